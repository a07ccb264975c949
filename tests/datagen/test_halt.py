"""How a job is asked to stop: once lets what is in flight finish, twice stops at once; the clock does as well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from types import SimpleNamespace

import pytest

from vlm_rlaif.datagen import portion
from vlm_rlaif.datagen.engine import Completion, Engine, Halted, Request, ScriptedEngine
from vlm_rlaif.datagen.halt import SIGNALS, Halt
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.plan import respond_stage
from vlm_rlaif.datagen.portion import Portion
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.store import Warehouse

BOTH = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    """A shell that starts the tests in the background ignores Ctrl-C."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class EngineInFlight(ScriptedEngine):
    """Holds three requests at a time. A signal comes when it has begun its fifth, another after the next reply."""

    def __init__(self, signals: list[int]) -> None:
        super().__init__(lambda request: f"{request.user} {request.seed}")
        self.signals, self.begun = signals, 0

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        source, flying = iter(requests), []
        while True:
            while len(flying) < 3 and (request := self.following(source)):
                flying.append(request)
                self.begun += 1
                if self.begun == 5 and self.signals:
                    os.kill(os.getpid(), self.signals.pop(0))
            if not flying:
                return
            yield self._answer(flying.pop(0))
            if self.begun >= 5 and self.signals:
                os.kill(os.getpid(), self.signals.pop(0))

    def following(self, source: Iterator[Request]) -> Request | None:
        try:
            return next(source, None)
        except Halted:
            return None


def stop(warehouse: Warehouse, recipe: Recipe, signals: list[int]) -> EngineInFlight:
    engine = EngineInFlight(signals)
    with pytest.raises(KeyboardInterrupt):
        run_stage(warehouse, respond_stage(recipe), lambda: engine)
    return engine


def runs(warehouse: Warehouse) -> list[tuple[str, int]]:
    return [(r["status"], r["rows_written"]) for r in warehouse.rows("SELECT * FROM runs ORDER BY started_at")]


@BOTH
def test_one_signal_lets_what_is_in_flight_finish_and_begins_nothing(
    asked: Warehouse, recipe: Recipe, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = stop(asked, recipe, [number])
    assert engine.begun == 5 and runs(asked) == [("interrupted", 5)]
    assert "what is in flight is finished. Once more stops at once." in capfd.readouterr().err
    again = EngineInFlight([])
    assert run_stage(asked, respond_stage(recipe), lambda: again).written == 7 == again.begun
    assert asked.value("SELECT count(*) FROM responses") == 12


@BOTH
def test_a_second_signal_stops_at_once_and_loses_only_what_was_in_flight(
    asked: Warehouse, recipe: Recipe, number: int
) -> None:
    engine = stop(asked, recipe, [number, number])
    assert engine.begun == 5
    ((status, written),) = runs(asked)
    assert status == "interrupted" and written in (3, 4) and written == asked.value("SELECT count(*) FROM responses")
    again = EngineInFlight([])
    assert run_stage(asked, respond_stage(recipe), lambda: again).written == 12 - written == again.begun


def test_what_handled_the_signals_before_handles_them_again(asked: Warehouse, recipe: Recipe) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Halt(Portion()) as ours:
        assert [signal.getsignal(number) for number in SIGNALS] == [ours._on_signal] * 2
    assert [signal.getsignal(number) for number in SIGNALS] == before
    stop(asked, recipe, [signal.SIGINT, signal.SIGINT])
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Halt(Portion()) as ours:
        os.kill(os.getpid(), signal.SIGINT)
        assert not ours.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert ours.asked


def test_a_job_in_another_thread_leaves_the_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with Halt(Portion()):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


# polars, which the warehouse imports, puts a handler of its own below Python's.
STOPPED_IN_A_QUERY = """
import os, signal, sys
from pathlib import Path
from vlm_rlaif.datagen.halt import Halt
from vlm_rlaif.datagen.portion import Portion
from vlm_rlaif.warehouse.store import Warehouse

signal.signal(signal.SIGINT, signal.default_int_handler)
warehouse = Warehouse(Path(sys.argv[1]))
with Halt(Portion()) as halt:
    import polars
    warehouse.query("SELECT 1").filter(polars.col("1") > 0)
    os.kill(os.getpid(), signal.SIGINT)
    found = warehouse.value("SELECT count(*) FROM range(3000000) a(x) WHERE x % 3 = 0")
    print(found, halt.interrupted)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        warehouse.value("SELECT count(*) FROM range(3000000) a(x) WHERE x % 3 = 0")
    except KeyboardInterrupt:
        print("stopped")
"""


def test_our_handler_is_in_force_although_polars_has_one_and_a_query_goes_on(warehouse: Warehouse) -> None:
    command = [sys.executable, "-c", STOPPED_IN_A_QUERY, str(warehouse.path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "1000000 True\nstopped\n"), ended.stderr


def test_without_any_time_nothing_is_begun_and_no_model_is_loaded(asked: Warehouse, recipe: Recipe) -> None:
    def never() -> Engine:
        raise AssertionError("There is no time for a model.")

    before = asked.path.read_bytes()
    for hours in (0.0, -1.0):
        outcome = run_stage(asked, respond_stage(recipe), never, max_hours=hours)
        assert (outcome.pending, outcome.left, outcome.written, outcome.run_id) == (12, 12, 0, None)
        assert str(outcome) == "respond: 0 rows written, 12 left to do"
    assert asked.path.read_bytes() == before


def test_when_the_time_is_over_no_request_is_begun_and_the_outcome_says_what_is_left(
    asked: Warehouse, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))  # an hour passes whenever somebody looks
    monkeypatch.setattr(portion, "time", SimpleNamespace(monotonic=lambda: 3600 * next(clock)))
    engine = EngineInFlight([])
    outcome = run_stage(asked, respond_stage(recipe), lambda: engine, max_hours=7)
    assert 0 < engine.begun < 12
    assert (outcome.written, outcome.left) == (engine.begun, 12 - engine.begun)
    assert f"{engine.begun} rows written, {12 - engine.begun} left to do" in str(outcome)
    assert runs(asked) == [("done", engine.begun)]


def test_the_time_that_the_model_takes_to_load_counts(
    asked: Warehouse, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(portion, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def load() -> Engine:
        now[0] += 7200
        return EngineInFlight([])

    outcome = run_stage(asked, respond_stage(recipe), load, max_hours=1)
    assert (outcome.written, outcome.left) == (0, 12)
