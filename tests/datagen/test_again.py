"""A reply that cannot be read is asked for once more, with the reason; an engine that refuses everything is left."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Completion, Request, ScriptedEngine
from vlm_rlaif.datagen.job import IN_VAIN, run_stage
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Question
from vlm_rlaif.warehouse.runs import Outcome
from vlm_rlaif.warehouse.store import Warehouse

Script = Callable[[Request], Any]
Work = Callable[..., Outcome]
REASON = "'many' is no number."


def is_again(request: Request) -> bool:
    return "An earlier reply to this could not be used" in request.user


def better_the_second_time(request: Request) -> str:
    return "3" if is_again(request) or "colour" not in request.user else "many"


def never_better(request: Request) -> str:
    return ("more" if is_again(request) else "many") if "colour" in request.user else "3"


class Recorder(ScriptedEngine):
    """Remembers what it was asked, in order."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.asked: list[Request] = []

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        def heard() -> Iterator[Request]:
            for request in requests:
                self.asked.append(request)
                yield request

        return super().generate(heard())


def failures(warehouse: Warehouse) -> list[dict[str, Any]]:
    return warehouse.rows(
        "SELECT attempt, kind, message, reply, count(*) AS n FROM failures GROUP BY ALL ORDER BY attempt"
    )


def the_run(warehouse: Warehouse) -> dict[str, Any]:
    (row,) = warehouse.rows("SELECT status, rows_written, rows_failed, tokens_out FROM runs")
    return row


def test_the_second_request_has_the_first_one_in_it_and_the_reason(asked: Warehouse, counting: Any) -> None:
    engine = Recorder(better_the_second_time)
    run_stage(asked, counting(), lambda: engine)
    first = {request.request_id: request for request in engine.asked if not is_again(request)}
    second = [request for request in engine.asked if is_again(request)]
    assert (len(first), len(second)) == (6, 3)
    for request in second:
        before = first[request.request_id]
        assert request.user.startswith(f"{before.user}\n") and REASON in request.user and "{}" in request.user
        assert (request.video, request.system, request.seed) == (before.video, before.system, before.seed)


def test_a_row_that_is_repaired_was_written_and_did_not_fail(asked: Warehouse, counting: Any) -> None:
    outcome = run_stage(asked, counting(), lambda: ScriptedEngine(better_the_second_time))
    assert (outcome.written, outcome.failed, outcome.pending, outcome.left) == (6, 0, 6, 0)
    assert the_run(asked) == {"status": "done", "rows_written": 6, "rows_failed": 0, "tokens_out": 9}
    assert failures(asked) == [{"attempt": 1, "kind": "unparsable", "message": REASON, "reply": "many", "n": 3}]
    assert asked.value("SELECT count(*) FROM open_failures") == 0
    assert run_stage(asked, counting(), lambda: ScriptedEngine(never_better)).run_id is None


def test_a_row_that_cannot_be_read_twice_failed_once_and_both_replies_are_kept(
    asked: Warehouse, counting: Any
) -> None:
    outcome = run_stage(asked, counting(), lambda: ScriptedEngine(never_better))
    assert (outcome.written, outcome.failed, outcome.left) == (3, 3, 0)
    assert the_run(asked) == {"status": "done", "rows_written": 3, "rows_failed": 3, "tokens_out": 9}
    assert [(each["attempt"], each["reply"], each["n"]) for each in failures(asked)] == [
        (1, "many", 3),
        (2, "more", 3),
    ]
    assert asked.rows("SELECT DISTINCT attempt, reply FROM open_failures") == [{"attempt": 2, "reply": "more"}]
    assert asked.value("SELECT count(*) FROM open_failures") == 3


def test_another_try_of_a_failed_row_is_asked_for_once_more_as_well(asked: Warehouse, counting: Any) -> None:
    run_stage(asked, counting(), lambda: ScriptedEngine(never_better))
    engine = Recorder(better_the_second_time)
    outcome = run_stage(asked, counting(), lambda: engine, retry_failed=True)
    assert (outcome.written, outcome.failed) == (3, 0)
    assert [is_again(request) for request in engine.asked] == [False, True] * 3
    assert [each["attempt"] for each in failures(asked)] == [1, 2, 3]


def test_nothing_waits_for_the_end_before_it_is_asked_again(asked: Warehouse, counting: Any) -> None:
    """Otherwise the replies of a long job that cannot be read would fill the memory."""
    engine = Recorder(never_better)
    run_stage(asked, counting(), lambda: engine)
    order = [(request.request_id, is_again(request)) for request in engine.asked]
    for number, (name, again) in enumerate(order):
        if again:
            assert order[number - 1] == (name, False)


def test_a_choice_is_not_asked_for_again(asked: Warehouse, counting: Any) -> None:
    engine = Recorder(lambda request: {"A": 1.0})
    outcome = run_stage(asked, counting(choices=("A", "B")), lambda: engine)
    assert (outcome.written, outcome.failed, len(engine.asked)) == (0, 6, 6)


def test_an_error_is_not_asked_for_again(asked: Warehouse, counting: Any) -> None:
    def stumbles(request: Request) -> str:
        raise ValueError("stumbled")

    engine = Recorder(stumbles)
    assert run_stage(asked, counting(), lambda: engine).failed == len(engine.asked) == 6


KILLED_BETWEEN = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.datagen.conftest import CountStage
from vlm_rlaif.datagen.engine import ScriptedEngine
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.warehouse.store import Warehouse

def answer(request):
    if "could not be used" in request.user:
        os.kill(os.getpid(), signal.SIGKILL)
    return "many"

run_stage(Warehouse(Path(sys.argv[1])), CountStage(), lambda: ScriptedEngine(answer))
"""


def test_a_job_that_is_killed_between_the_two_leaves_a_failed_row_that_can_be_tried_again(
    asked: Warehouse, counting: Any, request: pytest.FixtureRequest
) -> None:
    command = [sys.executable, "-c", KILLED_BETWEEN, str(asked.path), str(request.config.rootpath)]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert run_stage(asked, counting(), lambda: ScriptedEngine(lambda request: "3")).written == 5
    assert asked.rows("SELECT status, rows_written, rows_failed FROM runs ORDER BY started_at") == [
        {"status": "interrupted", "rows_written": 0, "rows_failed": 1},
        {"status": "done", "rows_written": 5, "rows_failed": 0},
    ]
    outcome = run_stage(asked, counting(), lambda: ScriptedEngine(lambda request: "3"), retry_failed=True)
    assert outcome.written == 1 and asked.value("SELECT count(*) FROM open_failures") == 0


# An engine that refuses everything


@pytest.fixture
def many(asked: Warehouse) -> Warehouse:
    """A hundred more questions."""
    video_id = asked.value("SELECT max(video_id) FROM videos")
    asked.append(
        [
            Question(question_id=f"{n:03}", video_id=video_id, text=f"{n}", source="test", run_id="test")
            for n in range(100)
        ]
    )
    return asked


def refuses(request: Request) -> str:
    raise ValueError("no such model")


def test_an_engine_that_refuses_everything_stops_the_job_and_the_first_failures_are_kept(
    many: Warehouse, counting: Any
) -> None:
    engine = Recorder(refuses)
    with pytest.raises(UserError, match=rf"the first {IN_VAIN} requests all failed(.|\n)*no such model") as raised:
        run_stage(many, counting(), lambda: engine)
    assert "--retry-failed" in str(raised.value)
    assert len(engine.asked) == IN_VAIN == many.value("SELECT count(*) FROM open_failures")
    assert the_run(many) == {"status": "failed", "rows_written": 0, "rows_failed": IN_VAIN, "tokens_out": 0}
    assert run_stage(many, counting(), lambda: ScriptedEngine(lambda r: "3"), retry_failed=True).written == 106


def test_one_answer_among_the_first_is_enough_to_go_on(many: Warehouse, counting: Any) -> None:
    asked: list[Request] = []

    def mostly(request: Request) -> str:
        asked.append(request)
        return "3" if len(asked) == IN_VAIN else refuses(request)

    outcome = run_stage(many, counting(), lambda: ScriptedEngine(mostly))
    assert (outcome.written, outcome.failed) == (1, 105)


def test_videos_that_cannot_be_read_do_not_stop_a_job(many: Warehouse, counting: Any) -> None:
    class BlindEngine(ScriptedEngine):
        def _answer(self, request: Request) -> Completion:
            return Completion(request.request_id, error="It is no video.", error_kind="video")

    assert run_stage(many, counting(), lambda: BlindEngine(refuses)).failed == 106


def test_rows_that_failed_before_may_all_fail_again(many: Warehouse, counting: Any) -> None:
    asked: list[Request] = []

    def once(request: Request) -> str:
        asked.append(request)
        return "3" if len(asked) == 1 else refuses(request)

    run_stage(many, counting(), lambda: ScriptedEngine(once))
    assert run_stage(many, counting(), lambda: ScriptedEngine(refuses), retry_failed=True).failed == 105
