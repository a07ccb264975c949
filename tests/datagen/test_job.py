"""The driver of every stage: failures are rows, death loses nothing, and finished work is not done again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Completion, Engine, Request, ScriptedEngine
from vlm_rlaif.datagen.estimate import estimate
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.plan import respond_stage
from vlm_rlaif.datagen.portion import Portion
from vlm_rlaif.datagen.stages.respond import RespondStage
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.journal import only_one
from vlm_rlaif.warehouse.records import Clip, Question
from vlm_rlaif.warehouse.runs import Outcome, derive
from vlm_rlaif.warehouse.store import Warehouse

# Two samples of six questions are twelve responses. The job kills itself before its Nth visit to the warehouse, or
# before its Nth answer; N = 0 never comes.
MORTAL_JOB = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from vlm_rlaif.datagen.engine import ScriptedEngine
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.plan import respond_stage
from vlm_rlaif.warehouse.config import load
from vlm_rlaif.warehouse.store import Warehouse

path, recipe, moment, last = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
left = {"visit": 0, "answer": 0, moment: last}

def live(what):
    left[what] -= 1
    if left[what] == 0:
        os.kill(os.getpid(), signal.SIGKILL)

class MortalWarehouse(Warehouse):
    @contextmanager
    def visit(self, **how):
        live("visit")
        with super().visit(**how) as connection:
            yield connection

def answer(request):
    live("answer")
    return f"{request.user} {request.seed}"

run_stage(MortalWarehouse(path), respond_stage(load(recipe)), lambda: ScriptedEngine(answer))
"""
VISITS = range(3, 6)
"""1 looks for failures, 2 reads what is pending, 3 writes the run, 4 merges the rows, 5 ends the run."""

# The console command with a scripted engine in the place of a model; Ctrl-C comes while it makes its fourth answer.
INTERRUPTED_COMMAND = """
import os, signal, sys
from vlm_rlaif.datagen.engines import make as engines
from vlm_rlaif.datagen.engine import ScriptedEngine
from vlm_rlaif.warehouse.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)
asked = []

def answer(request):
    asked.append(request)
    if len(asked) == 4:
        os.kill(os.getpid(), signal.SIGINT)
    return f"{request.user} {request.seed}"

engines.make = lambda settings, model: ScriptedEngine(answer)
main()
"""


def answer(request: Request) -> str:
    return f"{request.user} {request.seed}"


def answer_no_colours(request: Request) -> str:
    """Fails in both ways that a request can fail: an engine error, and an answer without words."""
    if "colour" in request.user:
        raise ValueError("I am colour-blind.")
    return " \n" if "cat" in request.user else answer(request)


def never() -> Engine:
    raise AssertionError("Nothing to do should need no engine.")


@pytest.fixture
def stage(recipe: Recipe) -> RespondStage:
    return respond_stage(recipe)


@pytest.fixture
def work(asked: Warehouse, stage: RespondStage) -> Callable[..., Outcome]:
    """Runs the stage with a script."""

    def run(script: Callable[[Request], Any] = answer, **options: Any) -> Outcome:
        return run_stage(asked, stage, lambda: ScriptedEngine(script), **options)

    return run


Work = Callable[..., Outcome]


def responses(warehouse: Warehouse) -> list[dict[str, Any]]:
    """All responses without the name of their run."""
    return warehouse.rows("SELECT * EXCLUDE (run_id) FROM responses ORDER BY response_id")


def runs(warehouse: Warehouse) -> list[dict[str, Any]]:
    return warehouse.rows("SELECT * FROM runs ORDER BY started_at")


def undisturbed(warehouse: Warehouse, stage: RespondStage, tmp_path: Path) -> list[dict[str, Any]]:
    """What the stage writes when nothing goes wrong."""
    (tmp_path / "twin").mkdir()
    twin = Warehouse(Path(tmp_path / "twin" / "w.duckdb"))
    twin.path.write_bytes(warehouse.path.read_bytes())
    run_stage(twin, stage, lambda: ScriptedEngine(answer))
    return responses(twin)


def test_a_stage_writes_a_row_for_every_request_and_one_run(
    work: Work, asked: Warehouse, stage: RespondStage
) -> None:
    outcome = work()
    assert (outcome.written, outcome.failed, outcome.pending) == (12, 0, 12)
    assert str(outcome) == "respond: 12 rows written"
    assert len(responses(asked)) == 12
    (run,) = runs(asked)
    assert (run["run_id"], run["status"], run["rows_written"]) == (outcome.run_id, "done", 12)
    assert run["tokens_out"] == asked.value("SELECT sum(tokens) FROM responses") > 0
    assert run["ended_at"] >= run["started_at"]
    assert json.loads(run["config"])["spec_id"] == stage.spec.spec_id
    assert asked.rows("SELECT spec_id, run_id FROM specs") == [
        {"spec_id": stage.spec.spec_id, "run_id": outcome.run_id}
    ]


def test_a_finished_stage_run_again_writes_nothing_not_even_a_run(
    work: Work, asked: Warehouse, stage: RespondStage
) -> None:
    work()
    before = asked.path.read_bytes()
    outcome = run_stage(asked, stage, never)
    assert outcome == Outcome("respond") and str(outcome) == "respond: nothing to do"
    assert asked.path.read_bytes() == before


def test_new_work_is_all_that_a_second_run_does(work: Work, asked: Warehouse) -> None:
    work()
    video_id = asked.value("SELECT min(video_id) FROM videos")
    asked.append([Question(question_id="new", video_id=video_id, text="why ?", source="test", run_id="test")])
    assert work().written == 2
    assert len(runs(asked)) == 2


def test_ids_depend_on_the_request_and_not_on_the_reply(work: Work, asked: Warehouse, tmp_path: Path) -> None:
    twin = Warehouse(Path(tmp_path / "twin.duckdb"))
    twin.path.write_bytes(asked.path.read_bytes())
    work(lambda request: "one thing")
    first = responses(asked)
    asked.path.write_bytes(twin.path.read_bytes())
    work(lambda request: "another")
    assert [(r["response_id"], r["seed"]) for r in first] == [(r["response_id"], r["seed"]) for r in responses(asked)]


def test_a_limit_does_a_part_and_the_next_run_the_rest(work: Work, asked: Warehouse) -> None:
    assert work(limit=5).written == 5
    assert work(limit=5).written == 5
    assert work(limit=5).written == 2
    assert work(limit=5).run_id is None
    assert len(responses(asked)) == 12


def test_answers_may_come_in_any_order(asked: Warehouse, stage: RespondStage, tmp_path: Path) -> None:
    class BackwardsEngine(ScriptedEngine):
        def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
            return super().generate(reversed(list(requests)))

    wanted = undisturbed(asked, stage, tmp_path)
    run_stage(asked, stage, lambda: BackwardsEngine(answer))
    assert responses(asked) == wanted


def test_failed_requests_become_rows_with_what_was_wrong(work: Work, asked: Warehouse) -> None:
    outcome = work(answer_no_colours)
    assert (outcome.written, outcome.failed) == (4, 8)
    assert str(outcome) == "respond: 4 rows written, 8 failed (FROM open_failures says why)"
    (run,) = runs(asked)
    assert (run["status"], run["rows_written"], run["rows_failed"]) == ("done", 4, 8)
    found = asked.rows("SELECT kind, message, reply, attempt, count(*) AS n FROM failures GROUP BY ALL ORDER BY 1")
    assert found == [
        {"kind": "empty", "message": "The model said nothing.", "reply": " \n", "attempt": 1, "n": 2},
        {"kind": "engine", "message": "I am colour-blind.", "reply": None, "attempt": 1, "n": 6},
    ]
    assert asked.value("SELECT count(DISTINCT row_id) FROM failures WHERE stage = 'respond'") == 8


def test_a_plain_rerun_does_not_try_failed_requests_again(work: Work, asked: Warehouse, stage: RespondStage) -> None:
    work(answer_no_colours)
    outcome = run_stage(asked, stage, never)
    assert outcome.run_id is None and outcome.failed_before == 8
    assert str(outcome) == "respond: nothing to do, 8 failed before (--retry-failed tries again)"
    assert len(responses(asked)) == 4


def test_a_stage_without_anything_to_work_on_says_what_it_needs(warehouse: Warehouse, stage: RespondStage) -> None:
    outcome = run_stage(warehouse, stage, never)
    assert str(outcome).startswith("respond: nothing to work on, it needs questions (vlm-rlaif add")


def test_an_estimate_counts_what_a_run_would_do(work: Work, asked: Warehouse, stage: RespondStage) -> None:
    work(answer_no_colours, limit=10)

    def rows(**options: Any) -> str:
        return str(estimate(asked, stage, Portion(**options), "transformers")).split(" would")[0]

    assert rows() == "respond: 2 rows"
    assert rows(retry_failed=True) == "respond: 8 rows"
    assert rows(limit=1) == "respond: 1 rows"


def test_a_retry_counts_its_attempts_and_hides_what_it_repairs(work: Work, asked: Warehouse) -> None:
    work(answer_no_colours)
    assert asked.value("SELECT count(*) FROM open_failures") == 8

    still_blind = work(lambda r: answer(r) if "cat" in r.user and "colour" not in r.user else answer_no_colours(r),
                       retry_failed=True)  # fmt: skip
    assert (still_blind.written, still_blind.failed, still_blind.pending) == (2, 6, 8)
    assert asked.rows("SELECT DISTINCT attempt, kind FROM open_failures") == [{"attempt": 2, "kind": "engine"}]
    assert asked.value("SELECT count(*) FROM open_failures") == 6

    assert work(retry_failed=True).written == 6
    assert asked.value("SELECT count(*) FROM open_failures") == 0
    assert asked.value("SELECT count(*) FROM failures") == 14
    assert work(retry_failed=True).run_id is None


def test_a_repaired_stage_is_like_one_that_never_failed(
    work: Work, asked: Warehouse, stage: RespondStage, tmp_path: Path
) -> None:
    wanted = undisturbed(asked, stage, tmp_path)
    work(answer_no_colours)
    work(retry_failed=True)
    assert responses(asked) == wanted


def test_a_second_job_of_the_stage_is_refused_with_the_pid_of_the_first(work: Work, asked: Warehouse) -> None:
    with only_one(asked, "respond"), pytest.raises(UserError, match=rf"\(pid {os.getpid()}\)"):
        work()
    assert runs(asked) == []


def test_a_job_that_breaks_keeps_what_it_finished_and_says_failed(
    work: Work, asked: Warehouse, stage: RespondStage, tmp_path: Path
) -> None:
    wanted = undisturbed(asked, stage, tmp_path)
    seen: list[Request] = []

    def breaks(request: Request) -> str:
        seen.append(request)
        if len(seen) == 4:
            raise RuntimeError("a bug of ours")
        return answer(request)

    with pytest.raises(RuntimeError, match="a bug of ours"):
        work(breaks)
    assert [(r["status"], r["rows_written"]) for r in runs(asked)] == [("failed", 3)]
    assert work().written == 9
    assert responses(asked) == wanted


@pytest.mark.parametrize(("moment", "number"), [*(("visit", n) for n in VISITS), ("answer", 7)])
def test_a_job_that_is_killed_at_any_moment_loses_and_doubles_nothing(
    asked: Warehouse, stage: RespondStage, recipe_file: Path, tmp_path: Path, moment: str, number: int
) -> None:
    wanted = undisturbed(asked, stage, tmp_path)
    command = [sys.executable, "-c", MORTAL_JOB, str(asked.path), str(recipe_file), moment, str(number)]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr

    outcome = run_stage(asked, stage, lambda: ScriptedEngine(answer))
    finished = {"visit": 0 if number < 4 else 12, "answer": number - 1}[moment]
    assert outcome.written == 12 - finished
    assert responses(asked) == wanted
    assert [(run["status"], run["rows_written"]) for run in runs(asked)] == [
        *([("interrupted", finished)] if (moment, number) != ("visit", 3) else []),
        *([("done", 12 - finished)] if finished < 12 else []),
    ]
    assert list(asked.journal_folder.glob("*.jsonl")) == []


def test_a_job_that_is_not_killed_makes_no_more_visits_than_that(
    asked: Warehouse, stage: RespondStage, recipe_file: Path, tmp_path: Path
) -> None:
    """The moments above are all there are."""
    command = [sys.executable, "-c", MORTAL_JOB, str(asked.path), str(recipe_file), "visit", str(VISITS.stop)]
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert responses(asked) == undisturbed(asked, stage, tmp_path)


def test_control_c_ends_with_130_and_keeps_what_is_finished(
    asked: Warehouse, stage: RespondStage, recipe_file: Path, tmp_path: Path
) -> None:
    wanted = undisturbed(asked, stage, tmp_path)
    command = [sys.executable, "-c", INTERRUPTED_COMMAND, "datagen", "respond", str(asked.path),
               "--recipe", str(recipe_file)]  # fmt: skip
    stopped = subprocess.run(command, capture_output=True, text=True)
    assert stopped.returncode == 130, stopped.stderr
    assert "Interrupted. What is finished is kept" in stopped.stderr and "Traceback" not in stopped.stderr
    assert "what is in flight is finished. Once more stops at once." in stopped.stderr
    assert [(r["status"], r["rows_written"]) for r in runs(asked)] == [("interrupted", 4)]
    assert len(responses(asked)) == 4
    assert run_stage(asked, stage, lambda: ScriptedEngine(answer)).written == 8
    assert responses(asked) == wanted


def test_derived_rows_are_written_once_with_their_run(warehouse: Warehouse) -> None:
    def rows(run_id: str) -> list[Clip]:
        there = warehouse.value("SELECT count(*) FROM clips")
        return [] if there else [Clip(clip_id="c", video_id="v", start_s=0, end_s=1, method="m", run_id=run_id)]

    outcome = derive(warehouse, "clip", {"parts": 1}, rows)
    assert outcome.written == 1
    assert [(r["run_id"], r["status"], r["engine"]) for r in runs(warehouse)] == [(outcome.run_id, "done", "none")]
    assert derive(warehouse, "clip", {"parts": 1}, rows) == Outcome("clip")
    assert len(runs(warehouse)) == 1
