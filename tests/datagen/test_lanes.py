"""Stages that ask one model run together: their requests leave by video, and their rows are what they were alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Completion, Engine, Request, ScriptedEngine
from vlm_rlaif.datagen.job import Stage, run_stages
from vlm_rlaif.datagen.portion import Portion, Shard
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.journal import only_one
from vlm_rlaif.warehouse.records import Spec
from vlm_rlaif.warehouse.runs import Outcome
from vlm_rlaif.warehouse.store import Warehouse


class Recorder(ScriptedEngine):
    """Remembers what it was asked, in order; every prompt is 100 tokens, of which it finds `cached` again."""

    def __init__(self, *, cached: int = 0, prefix_cache: bool = False, gpus: int = 0) -> None:
        super().__init__(lambda request: f"{len(request.user)}")
        self.asked: list[Request] = []
        self.cached, self.prefix_cache, self.gpus = cached, prefix_cache, gpus

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            self.asked.append(request)
            yield replace(self._answer(request), tokens_in=100, cached_tokens=self.cached)


def never() -> Engine:
    raise AssertionError("Nothing to do should need no engine.")


@pytest.fixture
def stages(counting: Any) -> list[Stage]:
    first = counting()
    return [first, replace(first, spec=named(first.spec, "b"))]


def named(spec: Spec, prompt: str) -> Spec:
    return Spec.make(
        stage=spec.stage, model="m", revision="r", prompt=prompt, prompt_hash=prompt, frames={"count": 2},
        sampling={}, upstream={},
    )  # fmt: skip


def work(
    warehouse: Warehouse, stages: list[Stage], engine: Engine | None = None, portion: Portion | None = None
) -> list[Outcome]:
    return run_stages(warehouse, stages, lambda: engine or Recorder(), portion or Portion())


def ratings(warehouse: Warehouse) -> list[dict[str, Any]]:
    return warehouse.rows("SELECT * EXCLUDE (run_id) FROM ratings ORDER BY rating_id")


def test_what_is_asked_about_one_video_leaves_together(asked: Warehouse, stages: list[Stage]) -> None:
    engine = Recorder()
    work(asked, stages, engine)
    videos = [request.video.path.name for request in engine.asked if request.video]
    assert len(videos) == 12 and [name for name, _ in groupby(videos)] == sorted(set(videos))
    for _, group in groupby(engine.asked, key=lambda request: request.video):
        assert [request.user[0] for request in group] == ["a", "a", "b", "b"]


def test_every_stage_has_a_run_and_an_outcome_of_its_own(asked: Warehouse, stages: list[Stage]) -> None:
    outcomes = work(asked, stages)
    assert [(each.written, each.pending) for each in outcomes] == [(6, 6), (6, 6)]
    rows = asked.rows(
        "SELECT run_id, config->>'$.prompt' AS prompt, rows_written, tokens_in FROM runs ORDER BY prompt"
    )
    assert rows == [
        {"run_id": outcome.run_id, "prompt": prompt, "rows_written": 6, "tokens_in": 600}
        for outcome, prompt in zip(outcomes, "ab", strict=True)
    ]
    assert asked.value("SELECT count(*) FROM ratings JOIN specs USING (spec_id) JOIN runs r ON r.run_id ="
                       " ratings.run_id WHERE r.config->>'$.prompt' = prompt") == 12  # fmt: skip


def test_the_rows_are_those_of_one_stage_after_the_other(
    asked: Warehouse, stages: list[Stage], tmp_path: Path
) -> None:
    twin = Warehouse(tmp_path / "twin.duckdb")
    twin.path.write_bytes(asked.path.read_bytes())
    for stage in stages:
        work(twin, [stage])
    work(asked, stages)
    assert ratings(asked) == ratings(twin) and len(ratings(asked)) == 12


def test_stages_share_the_seconds_of_their_job_by_their_rows(asked: Warehouse, stages: list[Stage]) -> None:
    work(asked, stages[:1], portion=Portion(limit=4))
    work(asked, stages, Recorder(gpus=8))
    two, six = asked.rows("SELECT * FROM runs WHERE gpu_seconds > 0 ORDER BY rows_written")
    assert 0 < two["seconds"] < six["seconds"]
    for run in (two, six):
        assert run["gpu_seconds"] == pytest.approx(8 * run["seconds"])
    took_s = max(run["ended_at"] for run in (two, six)) - min(run["started_at"] for run in (two, six))
    assert two["seconds"] + six["seconds"] <= took_s.total_seconds()


def test_a_stage_without_work_writes_no_run_beside_one_that_has_some(asked: Warehouse, stages: list[Stage]) -> None:
    work(asked, stages[:1])
    outcomes = work(asked, stages)
    assert [str(outcome) for outcome in outcomes] == ["count: nothing to do", "count: 6 rows written"]
    assert asked.value("SELECT count(*) FROM runs") == 2
    before = asked.path.read_bytes()
    run_stages(asked, stages, never, Portion())
    assert asked.path.read_bytes() == before


def test_a_stage_that_is_given_twice_runs_once(asked: Warehouse, stages: list[Stage]) -> None:
    (outcome,) = work(asked, [stages[0], stages[0]])
    assert outcome.written == 6 == len(ratings(asked))


def test_a_limit_is_each_stage_s_own_and_the_outcome_says_what_is_left(asked: Warehouse, stages: list[Stage]) -> None:
    assert [(o.written, o.left) for o in work(asked, stages, portion=Portion(limit=4))] == [(4, 2), (4, 2)]
    assert [(o.written, o.left) for o in work(asked, stages, portion=Portion(limit=4))] == [(2, 0), (2, 0)]


def test_parts_of_the_work_are_all_of_it_and_share_nothing(asked: Warehouse, stages: list[Stage]) -> None:
    written = []
    for part in (1, 2, 3):
        outcomes = work(asked, stages, portion=Portion(shard=Shard(part, 3)))
        assert all(outcome.left == 0 for outcome in outcomes)
        written.append(sum(outcome.written for outcome in outcomes))
    assert sum(written) == 12 == len(ratings(asked)) and max(written) < 12


def test_one_stage_that_somebody_else_runs_holds_the_job_up(asked: Warehouse, stages: list[Stage]) -> None:
    with only_one(asked, "count"), pytest.raises(UserError, match="Another job is running count"):
        run_stages(asked, stages, never, Portion())


# Whether the prefix cache finds what it should


def test_a_cache_that_finds_nothing_although_requests_begin_alike_is_told(
    asked: Warehouse, stages: list[Stage], capsys: pytest.CaptureFixture[str]
) -> None:
    work(asked, stages, Recorder(prefix_cache=True))
    assert "Warning: count: 0% of the prompt tokens were found in the prefix cache" in capsys.readouterr().err


@pytest.mark.parametrize("engine", [Recorder(prefix_cache=True, cached=90), Recorder(cached=0)])
def test_one_that_works_and_an_engine_without_one_are_not(
    asked: Warehouse, stages: list[Stage], engine: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    (outcome, _) = work(asked, stages, engine)
    assert "Warning" not in capsys.readouterr().err
    assert (outcome.cached_tokens, outcome.tokens_in) == (6 * engine.cached, 600)
    assert asked.value("SELECT sum(cached_tokens) FROM runs") == 12 * engine.cached
    assert asked.value("SELECT sum(cached_tokens) FROM ratings") == 12 * engine.cached
