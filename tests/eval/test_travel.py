"""A whole recipe with real models, as small as it gets: every figure is there, and a second run writes nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlm_rlaif.datagen import models
from vlm_rlaif.warehouse import config
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.schema import table_names
from vlm_rlaif.warehouse.store import Warehouse

MINI = Path(config.__file__).parent / "recipes" / "shapes-mini.yaml"
FIGURES = {
    "label_accuracy_context", "label_accuracy_none", "context_gain", "label_accuracy_held_out", "rm_accuracy",
    "rm_text_only_accuracy", "rm_video_gain", "rm_accuracy_time_reversed", "start_truth", "policy_truth",
    "policy_gain", "start_truth_fully_right", "policy_tokens", "start_truth_sampled", "policy_truth_sampled",
    "best_of_2_truth", "win_rate",
}  # fmt: skip


def recipe_file(folder: Path, **changes: Any) -> Path:
    """`shapes-mini`, smaller still, with some parts replaced (None: left out)."""
    parts = yaml.safe_load(MINI.read_text(encoding="utf-8"))
    parts["world"] |= {"videos": 36, "questions": 4}
    parts["ppo"] |= {"iterations": 1, "episodes": 8}
    for name, change in changes.items():
        parts[name] = change if change is None or name not in parts else {**parts[name], **change}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({name: part for name, part in parts.items() if part is not None}))
    return path


def counts(warehouse: Warehouse) -> dict[str, int]:
    return {name: warehouse.value(f"SELECT count(*) FROM {name}") for name in table_names()}


@pytest.mark.slow
def test_a_recipe_runs_to_its_report_and_a_second_run_writes_nothing(tmp_path: Path, command: Any) -> None:
    recipe, into = recipe_file(tmp_path), tmp_path / "out"
    first = command("run", recipe, "--into", into)
    assert first.code == 0, first.err
    figures = json.loads((into / "figures.json").read_text())
    assert set(figures) >= FIGURES
    assert all({"value", "low", "high", "n", "unit"} == set(figure) for figure in figures.values())
    assert "<svg" in (into / "report.html").read_text()
    assert "another video&#x27;s answer loses" in (into / "judges.html").read_text()
    warehouse = Warehouse.open(into / "warehouse.duckdb")
    before = counts(warehouse)
    again = command("run", recipe, "--into", into)
    assert again.code == 0 and again.out.count("nothing to do") >= 10
    assert counts(warehouse) == before
    (into / "figures.json").unlink()
    assert command("eval", "report", warehouse.path, "--recipe", recipe).code == 0
    assert json.loads((into / "figures.json").read_text()) == figures


@pytest.mark.slow
def test_after_fine_tuning_the_policy_starts_as_the_fine_tuned_model(tmp_path: Path, command: Any) -> None:
    tuning = {
        "model": "embedded:policy-start", "prompt": "respond_compact_v1",
        "frames": {"count": 3, "size": 32, "repeat": 2}, "epochs": 1,
    }  # fmt: skip
    recipe, into = recipe_file(tmp_path, sft=tuning, evaluate={"best_of": 0}), tmp_path / "out"
    result = command("run", recipe, "--into", into)
    assert result.code == 0, result.err
    warehouse = Warehouse.open(into / "warehouse.duckdb")
    (tuned,) = warehouse.rows("SELECT path FROM checkpoints WHERE kind = 'sft'")
    merged = models.revision(str(into / tuned["path"] / "merged"))
    assert warehouse.rows("SELECT revision FROM specs WHERE stage = 'respond'") == [{"revision": merged}]
    assert {row["parent"] for row in warehouse.rows("SELECT parent FROM checkpoints WHERE kind <> 'sft'")} == {merged}


@pytest.mark.slow
def test_a_recipe_whose_judge_never_reads_context_runs_to_its_report(tmp_path: Path, command: Any) -> None:
    recipe = recipe_file(
        tmp_path, caption=None, context=None, label={"arms": ["none"]}, reward={"labels": "none"},
        evaluate={"best_of": 0},
    )  # fmt: skip
    result = command("run", recipe, "--into", tmp_path / "out")
    assert result.code == 0, result.err
    assert "win_rate" in result.out


def test_a_slip_in_a_late_part_is_told_before_anything_is_made(tmp_path: Path, command: Any) -> None:
    for part, slip, word in (
        ("ppo", {"prompt": "respond_compact_v9"}, "respond_compact_v1"),
        ("reward", {"model": "embedded:polic-start"}, "policy-start"),
        ("reward", {"labels": "none"}, "does not make"),
    ):
        recipe = recipe_file(tmp_path, **{"label": {"arms": ["context"]}, part: slip})
        result = command("run", recipe, "--into", tmp_path / "out")
        assert result.code == 2 and word in result.err, part
        assert Warehouse.open(tmp_path / "out" / "warehouse.duckdb").value("SELECT count(*) FROM runs") == 0


def test_ppo_without_a_reward_model_is_no_recipe(tmp_path: Path) -> None:
    from vlm_rlaif.eval.conductor import check

    with pytest.raises(UserError, match="no `reward:` part"):
        check(dataclasses.replace(config.load("shapes-mini"), reward=None))
