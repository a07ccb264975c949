"""`plan`: what a recipe would compute, told before it is computed, and held against what it then does."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Request, ScriptedEngine
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.plan import ask_stage, part, respond_stage
from vlm_rlaif.datagen.stages.clip import clip
from vlm_rlaif.eval.overview import Line
from vlm_rlaif.eval.overview_learning import overview
from vlm_rlaif.warehouse.config import Evaluation, FineTuning, Frames, Recipe, Rewarding, World, load
from vlm_rlaif.warehouse.store import Warehouse

STEPS = ("clip", "caption", "context", "ask one request per video", "respond", "pair", "label context", "label none")
Command = Any


def lines(warehouse: Warehouse, recipe: Recipe) -> dict[str, Line]:
    """Lines by `stage` or `stage form`."""
    return {f"{line.stage} {line.form}".strip(): line for line in overview(warehouse, recipe, "transformers")}


def counts(line: Line) -> tuple[int, int, int, int, int]:
    return line.stands, line.stale, line.failed, line.pending, line.later


def test_what_is_planned_is_what_is_computed(asked: Warehouse, recipe: Recipe, walk: Any) -> None:
    """Before every stage, its pending rows are those it then writes; what comes later was foreseen at the start."""
    first = seen = lines(asked, recipe)
    for name in STEPS:
        before = seen[name]
        assert before.later == 0, name
        walk(asked, recipe, only=name)
        seen = lines(asked, recipe)
        assert (seen[name].stands, seen[name].work) == (before.pending, 0), name
        assert seen[name].stands == first[name].work, name
    assert all(line.work == 0 for line in seen.values())


def test_what_comes_later_is_computed_from_its_inputs(asked: Warehouse, recipe: Recipe) -> None:
    found = lines(asked, recipe)
    assert {name: (line.pending, line.bound, line.later) for name, line in found.items()} == {
        "add": (0, "", 0), "questions": (0, "", 0),
        "clip": (6, "", 0), "caption": (0, "", 6), "context": (0, "at most", 3),
        "ask one request per video": (0, "", 0), "respond": (12, "", 0), "pair": (0, "at most", 6),
        "label context": (0, "at most", 12), "label none": (0, "at most", 12),
    }  # fmt: skip


def test_questions_that_a_model_will_write_are_about_as_many_as_it_wrote(
    asked: Warehouse, recipe: Recipe, walk: Any, scripted: Any
) -> None:
    asked.execute("DELETE FROM questions")
    found = lines(asked, recipe)
    assert counts(found["ask one request per video"]) == (0, 0, 0, 0, 3)
    assert (found["respond"].later, found["respond"].bound) == (6, "about")
    walk(asked, recipe, upto="context")
    run_stage(asked, ask_stage(recipe), scripted, limit=1)
    found = lines(asked, recipe)
    assert counts(found["ask one request per video"]) == (2, 0, 0, 2, 0)
    assert (found["respond"].pending, found["respond"].later) == (4, 8)


def test_half_a_stage_is_told_apart(asked: Warehouse, recipe: Recipe, scripted: Any) -> None:
    run_stage(asked, respond_stage(recipe), scripted, limit=3)
    found = lines(asked, recipe)
    assert counts(found["respond"]) == (3, 0, 0, 9, 0)
    assert counts(found["pair"]) == (0, 0, 0, 1, 5)
    assert found["respond"].first == tuple(row["row_id"] for row in [*respond_stage(recipe).pending(asked)][:5])


def test_failed_rows_are_left_alone_and_counted(asked: Warehouse, recipe: Recipe) -> None:
    def fail(request: Request) -> str:
        if "colour" in request.user:
            raise ValueError("no colours here")
        return f"a cat {request.seed}"

    run_stage(asked, respond_stage(recipe), lambda: ScriptedEngine(fail))
    assert counts(lines(asked, recipe)["respond"]) == (6, 0, 6, 0, 0)


def test_rows_of_another_prompt_are_stale(asked: Warehouse, recipe: Recipe, tmp_path: Path, walk: Any) -> None:
    walk(asked, recipe)
    (tmp_path / "mine.md").write_text("[user]\nDescribe what you see.\n")
    caption = dataclasses.replace(part(recipe, "caption"), prompt=str(tmp_path / "mine.md"))
    found = lines(asked, dataclasses.replace(recipe, caption=caption))
    assert counts(found["caption"]) == (0, 6, 0, 6, 0)
    assert counts(found["context"]) == (0, 3, 0, 0, 3)
    assert counts(found["respond"]) == (12, 0, 0, 0, 0), "the responses do not read captions"
    assert counts(found["label context"]) == (0, 12, 0, 0, 12)
    assert counts(found["label none"]) == (12, 0, 0, 0, 0)


def test_another_cut_makes_clips_stale(asked: Warehouse, recipe: Recipe) -> None:
    clip(asked, part(recipe, "clip"))
    cut = dataclasses.replace(part(recipe, "clip"), parts=3)
    assert counts(lines(asked, dataclasses.replace(recipe, clip=cut))["clip"]) == (0, 6, 0, 9, 0)


def test_imported_rows_are_not_stale(journey: Warehouse) -> None:
    spec = journey.rows("SELECT * FROM specs WHERE stage = 'respond'")[0]
    journey.execute("UPDATE specs SET stage = 'import' WHERE spec_id = ?", [spec["spec_id"]])
    found = lines(journey, load("natural", "embedded:judge"))
    assert found["respond"].stale == 0 and found["caption"].stale == 96


def test_a_world_that_is_not_rendered_is_counted_by_its_clips(warehouse: Warehouse) -> None:
    recipe = dataclasses.replace(load("shapes-mini"), world=World(videos=7, seed=3, questions=2))
    found = lines(warehouse, recipe)
    assert (found["add"].pending, found["questions"].later, found["respond"].later) == (7, 14, 28)
    assert 7 <= found["clip"].later <= 21 and found["caption"].later == found["clip"].later


def test_frames_tokens_and_time_are_those_of_earlier_runs(journey: Warehouse) -> None:
    """The fixture's captions had 27 tokens of prompt each, its responses took 2.14 s for 320."""
    found = lines(journey, load("natural", "embedded:judge"))
    assert found["caption"].frames == 16 * found["caption"].later == 16 * 120
    assert found["respond"].prompt_tokens == 9362 and found["respond"].frames == 16 * 320
    assert found["respond"].seconds == pytest.approx(2.13762, rel=0.01)
    mini = lines(journey, load("shapes-mini"))
    assert mini["win"].seconds is not None and "vllm" not in mini
    other = {line.stage: line for line in overview(journey, load("natural", "embedded:judge"), "vllm")}
    assert other["respond"].seconds is None, "no run on vLLM tells how long a row takes"


def test_a_trainer_that_waits_for_labels_says_so(asked: Warehouse, recipe: Recipe, walk: Any) -> None:
    taught = dataclasses.replace(recipe, reward=rewarding(recipe))
    assert (lines(asked, taught)["reward"].later, lines(asked, taught)["reward"].note) == (1, "from at most 6 pairs")
    walk(asked, recipe)
    line = lines(asked, taught)["reward"]
    train = asked.value("SELECT count(*) FROM preferences WHERE judge_prompt LIKE '%context%' AND split = 'train'")
    assert (line.pending, line.later, line.note) == (1, 0, f"from {train} preferences")


def rewarding(recipe: Recipe) -> Rewarding:
    return Rewarding(model=part(recipe, "respond").model, prompt="reward_v1", frames=Frames(count=2))


def test_what_comes_after_fine_tuning_waits_for_it(asked: Warehouse, recipe: Recipe, walk: Any) -> None:
    walk(asked, recipe)
    asked.execute("UPDATE questions SET reference = 'a cat'")
    tuned = dataclasses.replace(
        recipe, sft=FineTuning(model=part(recipe, "respond").model, prompt="respond_v1", frames=Frames(count=2)),
        reward=rewarding(recipe), evaluate=Evaluation(split="train", best_of=4),
    )  # fmt: skip
    found = lines(asked, tuned)
    assert found["sft"].pending == 1 and "references" in found["sft"].note
    assert counts(found["respond"]) == (0, 12, 0, 0, 12) and found["respond"].note == "waits for sft"
    assert counts(found["pair"]) == (0, 6, 0, 0, 6)
    assert counts(found["label none"]) == (0, 12, 0, 0, 12)
    assert found["reward"].later == found["reward text only"].later == 1
    train = asked.value("SELECT count(*) FROM questions JOIN videos USING (video_id) WHERE split = 'train'")
    assert (found["answer start, greedy"].later, found["answer start, 4 samples"].later) == (train, 4 * train)


# The command


def test_the_command_ends_with_the_command_that_runs_it(
    asked: Warehouse, recipe: Recipe, recipe_file: Path, command: Command, walk: Any
) -> None:
    shown = command("plan", asked.path, recipe_file)
    assert shown.code == 0
    assert shown.out.splitlines()[-1] == f"vlm-rlaif run {asked.path} {recipe_file}"
    assert "18 rows now, about 39 later" in shown.out and "which never ran here" in shown.out
    walk(asked, recipe)
    shown = command("plan", asked.path, recipe_file)
    assert "Everything stands: a run would write nothing." in shown.out
    assert asked.value("SELECT count(*) FROM runs WHERE stage = 'plan'") == 0


def test_json_holds_the_ids_of_the_first_pending_rows(asked: Warehouse, recipe_file: Path, command: Command) -> None:
    shown = json.loads(command("plan", asked.path, recipe_file, "--json").out)
    (line,) = (line for line in shown["stages"] if line["stage"] == "respond")
    assert len(line["first"]) == 5 and line["pending"] == 12 and line["spec_id"]
    assert shown["total"]["pending"] == 18 and shown["command"] == f"vlm-rlaif run {asked.path} {recipe_file}"


def test_a_plan_loads_no_model_library_and_writes_nothing(journey: Warehouse) -> None:
    before = journey.path.read_bytes()
    script = """
import sys
from vlm_rlaif.warehouse.cli import cli
cli(["plan", sys.argv[1], "shapes"], standalone_mode=False)
cli(["why", sys.argv[1], "13620b66355221853cbe"], standalone_mode=False)
cli(["why", sys.argv[1], sys.argv[2], "--recipe", "natural", "--model", "embedded:judge"], standalone_mode=False)
loaded = {"torch", "transformers", "peft", "datasets"} & sys.modules.keys()
assert not loaded, loaded
"""
    pending = respond_stage(load("natural", "embedded:judge")).pending(journey)
    arguments = [sys.executable, "-c", script, str(journey.path), next(iter(pending))["row_id"]]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert journey.path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.duckdb", "shapes"], "vlm-rlaif init none.duckdb"),
        (["{w}", "shaps"], "Did you mean 'shapes'?"),
        (["{w}", "natural", "--model", "./nowhere"], "There is no model folder ./nowhere."),
    ],
)
def test_a_mistake_is_said(asked: Warehouse, command: Command, arguments: list[str], words: str) -> None:
    said = command("plan", *(argument.format(w=asked.path) for argument in arguments))
    assert said.code == 2 and words in said.err and "Traceback" not in said.err


def test_an_estimate_says_frames_tokens_and_time(asked: Warehouse, recipe_file: Path, command: Command) -> None:
    shown = command("datagen", "respond", asked.path, "--recipe", recipe_file, "--dry-run").out
    assert shown.startswith("respond: 12 rows would be computed by ")
    assert "24 frames, about 96 tokens of prompt" in shown
