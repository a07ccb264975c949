"""What a stage would cost: rows, prompts, tokens, time and graphics cards; and a calibration that measures it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Request, ScriptedEngine, VideoPart
from vlm_rlaif.datagen.engines import make as making
from vlm_rlaif.datagen.engines.tokens import count_tokens
from vlm_rlaif.datagen.estimate import COUNTED_REQUESTS, estimate, pace_of
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.portion import Portion, Shard
from vlm_rlaif.warehouse.config import Frames, Sampling
from vlm_rlaif.warehouse.records import Run
from vlm_rlaif.warehouse.store import Warehouse

Command = Any


def earlier_run(name: str, spec: Any, **more: Any) -> Run:
    """A run of ten rows."""
    started = datetime(2026, 1, 1)
    config = {"model": spec.model, "prompt_hash": spec.prompt_hash}
    given = {"engine": "vllm", "rows_written": 10, "seconds": 20.0} | more
    return Run(
        run_id=name, stage=spec.stage, config=json.dumps(config), code_version="0", host="h", started_at=started,
        ended_at=started + timedelta(seconds=100), status="done", **given,
    )  # fmt: skip


def never(model: str, requests: Sequence[Request]) -> list[int | None]:
    raise AssertionError("Earlier runs have counted.")


def test_tokens_are_those_of_earlier_runs_of_the_same_prompt(asked: Warehouse, counting: Any) -> None:
    stage = counting()
    asked.append([earlier_run("1", stage.spec, tokens_in=700, rows_failed=4)])
    found = estimate(asked, stage, Portion(), "vllm", count_tokens=never)
    assert (found.tokens, found.tokens_by) == (50.0, "runs")
    assert "about 300 tokens of prompt (as in earlier runs)" in str(found)


def test_without_an_earlier_run_a_processor_counts_the_first_requests(asked: Warehouse, counting: Any) -> None:
    seen: list[Request] = []

    def count(model: str, requests: Sequence[Request]) -> list[int | None]:
        seen.extend(requests)
        return [None, *range(100, 99 + len(requests))]

    found = estimate(asked, counting(), Portion(), "vllm", count_tokens=count)
    assert len(seen) == min(6, COUNTED_REQUESTS)
    assert (found.tokens, found.tokens_by, found.prompts) == (102.0, "processor", ())
    assert "about 612 tokens of prompt (by its processor)" in str(found)


@pytest.mark.parametrize("count", [None, lambda model, requests: [None] * len(requests)])
def test_where_nobody_can_count_words_are_counted(asked: Warehouse, counting: Any, count: Any) -> None:
    found = estimate(asked, counting(), Portion(), "vllm", count_tokens=count)
    assert found.tokens_by == "words" and 5 < found.tokens < 20
    assert "(guessed from words)" in str(found)


def test_prompts_are_shown_with_their_tokens_exactly_as_they_would_be_asked(asked: Warehouse, counting: Any) -> None:
    stage = counting()
    engine_saw: list[Request] = []

    def count(model: str, requests: Sequence[Request]) -> list[int | None]:
        return [10 + place for place, _ in enumerate(requests)]

    found = estimate(asked, stage, Portion(), "vllm", show=2, count_tokens=count)

    def answer(request: Request) -> str:
        engine_saw.append(request)
        return "3"

    run_stage(asked, stage, lambda: ScriptedEngine(answer))
    assert [(each.row_id, each.user, each.system) for each in found.prompts] == [
        (request.request_id, request.user, request.system) for request in engine_saw[:2]
    ]
    assert [each.tokens for each in found.prompts] == [10, 11]
    shown = str(found).split("\n\n")
    assert len(shown) == 3 and shown[1].startswith(f"row      {found.prompts[0].row_id}\nmodel    m\nprompt   a\n")
    assert "tokens   10\n--- system ---\ncount\n--- user ---\na: what" in shown[1]


def test_what_stands_what_failed_and_what_is_left_are_told(asked: Warehouse, counting: Any) -> None:
    stage = counting()

    def stumbles(request: Request) -> str:
        if "owl" in request.user:
            raise ValueError("stumbled")
        return "3"

    run_stage(asked, stage, lambda: ScriptedEngine(stumbles), limit=5)
    found = estimate(asked, stage, Portion(), "vllm")
    assert found.rows + found.stands + found.failed == 6
    assert found.stands == asked.value("SELECT count(*) FROM ratings") > 0
    assert f"; {found.stands} stand already; {found.failed} that failed before are left alone" in str(found)
    retried = estimate(asked, stage, Portion(retry_failed=True), "vllm")
    assert retried.rows == found.rows + found.failed and retried.failed == 0


def test_parts_of_the_work_add_up(asked: Warehouse, counting: Any) -> None:
    stage = counting(replace(counting().spec, prompt="respond_v1"))
    assert sum(estimate(asked, stage, Portion(shard=Shard(part, 3)), "vllm").rows for part in (1, 2, 3)) == 6
    assert estimate(asked, stage, Portion(limit=2), "vllm").rows == 2


def test_time_and_cards_are_those_of_earlier_runs(asked: Warehouse, counting: Any) -> None:
    stage = counting()
    asked.append(
        [
            earlier_run("1", stage.spec, gpu_seconds=36_000.0),
            earlier_run("2", stage.spec, engine="transformers", seconds=1.0),
        ]
    )
    found = estimate(asked, stage, Portion(), "vllm")
    assert (found.seconds, found.gpu_hours) == (12.0, 6.0)
    assert "about 12 s at the pace of earlier runs (6 GPU hours)" in str(found)
    assert "GPU" not in str(estimate(asked, stage, Portion(), "transformers"))
    unknown = estimate(asked, stage, Portion(), "server")
    assert unknown.seconds is None and "pace" not in str(unknown)


def test_the_pace_is_that_of_the_same_model_where_it_ran_before(asked: Warehouse, counting: Any) -> None:
    spec = counting().spec
    asked.append(
        [earlier_run("1", spec), earlier_run("2", spec, seconds=0.0)]
    )  # an old run: from its start to its end
    pace = pace_of(asked, "count", "vllm", "m")
    assert pace is not None and pace.seconds == 6.0
    other = pace_of(asked, "count", "vllm", "another")
    assert other == pace, "no better guess than another model's"
    alone = pace_of(asked, "count", "vllm", "m", ["1"])
    assert alone is not None and alone.seconds == 2.0
    assert pace_of(asked, "count", "vllm", "m", []) is None
    asked.append([earlier_run("3", spec, rows_written=0, engine="server")])
    assert pace_of(asked, "count", "server", "m") is None


# The command


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scripted engine takes the place of every model."""
    monkeypatch.setattr(making, "make", lambda settings, model: ScriptedEngine(lambda request: f"{request.seed}"))


def test_a_dry_run_prints_prompts_and_writes_nothing(asked: Warehouse, recipe_file: Path, command: Command) -> None:
    before = asked.path.read_bytes()
    shown = command("datagen", "respond", asked.path, "--recipe", recipe_file, "--dry-run", "--show", 2)
    assert shown.code == 0 and shown.out.count("--- user ---") == 2
    first = command("show-prompt", asked.path, "respond", "--recipe", recipe_file).out
    assert first.strip() in shown.out
    found = json.loads(
        command("datagen", "respond", asked.path, "--recipe", recipe_file, "--dry-run", "--show", 2, "--json").out
    )
    assert len(found[0]["prompts"]) == 2 and found[0]["rows"] == 12 and found[0]["tokens_by"] == "words"
    assert asked.path.read_bytes() == before


@pytest.mark.usefixtures("scripted")
def test_a_calibration_computes_some_rows_for_real_and_says_what_the_rest_takes(
    asked: Warehouse, recipe_file: Path, command: Command
) -> None:
    arguments = ("datagen", "respond", asked.path, "--recipe", recipe_file, "--engine", "vllm", "--calibrate", 5)
    shown = command(*arguments)
    assert shown.code == 0
    done, rest = shown.out.splitlines()
    assert done == "respond: 5 rows written, 7 left to do"
    assert re.match(r"respond: 7 rows would be computed by .*, about \d+ s at the pace of .*; 5 stand already$", rest)
    found = json.loads(command(*arguments, "--json").out)
    assert found["done"][0]["written"] == 5 and found["rest"][0]["rows"] == 2
    assert asked.value("SELECT count(*) FROM responses") == 10


@pytest.mark.usefixtures("scripted")
def test_a_calibration_s_pace_is_its_own(asked: Warehouse, recipe: Any, recipe_file: Path, command: Command) -> None:
    from vlm_rlaif.datagen.plan import respond_stage

    spec = respond_stage(recipe).spec
    asked.append([earlier_run("slow", spec, engine="scripted", seconds=1e6)])
    found = json.loads(
        command("datagen", "respond", asked.path, "--recipe", recipe_file, "--calibrate", 5, "--json").out
    )
    (run,) = asked.rows("SELECT seconds / rows_written AS pace FROM runs WHERE run_id <> 'slow'")
    assert found["rest"][0]["pace_s"] == pytest.approx(run["pace"])


def test_a_job_s_json_says_what_it_took(
    asked: Warehouse, recipe_file: Path, command: Command, scripted: None
) -> None:
    (found,) = json.loads(
        command("datagen", "respond", asked.path, "--recipe", recipe_file, "--limit", 5, "--json").out
    )
    assert (found["written"], found["left"], found["tokens_out"], found["cached_tokens"]) == (5, 7, 5, 0)
    assert found["seconds"] > 0 and found["bound_by"] in ("engine", "decode", "prompt", "warehouse")


# The tokens of real prompts


def test_tokens_are_counted_as_the_engine_counts_them(shapes_folder: Path) -> None:
    pytest.importorskip("torch")
    from vlm_rlaif.datagen.engines.transformers_engine import TransformersEngine

    frames, short = Frames(count=3, size=32, repeat=2), Sampling(max_new_tokens=1)
    requests = [
        Request("0", "describe the clip .", video=VideoPart(shapes_folder / "0.mp4", frames), sampling=short),
        Request("1", "describe .", sampling=short),
        Request("2", "describe the clip .", video=VideoPart(shapes_folder / "none.mp4", frames)),
    ]  # fmt: skip
    engine = TransformersEngine("embedded:judge", device="cpu")
    by_engine = {done.request_id: done.tokens_in for done in engine.generate(requests[:2])}
    assert count_tokens("embedded:judge", requests) == [by_engine["0"], by_engine["1"], None]
    assert by_engine["0"] > by_engine["1"] + 3


@pytest.mark.parametrize("kind", ["served", "empty folder", "hub"])
def test_a_model_that_is_not_here_counts_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("vlm_rlaif.datagen.models.revision", lambda model: "0" * 40)
    model = {"served": "served:judge", "empty folder": str(tmp_path), "hub": "nobody/nothing-of-this-name"}[kind]
    assert count_tokens(model, [Request("0", "words")]) == [None]
