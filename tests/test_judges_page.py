"""`docs/judges.md` is true: every recipe of the page can be read, its judges resolve, and its prompts are there."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from vlm_rlaif.datagen import prompt
from vlm_rlaif.feedback.judges.plan import judges_of
from vlm_rlaif.warehouse.config import load, replace_models
from vlm_rlaif.warehouse.judge_settings import METHODS

PAGE = (Path(__file__).parents[1] / "docs" / "judges.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", EXAMPLES)
def test_an_example_resolves_to_its_judges(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    judges = load(str(tmp_path / "recipe.yaml"))
    whole = dataclasses.replace(load("natural"), judges=judges.judges, panels=judges.panels)
    found = judges_of(replace_models(whole, "embedded:judge"))
    assert {*(judge.name for judge in judges.judges), *(panel.name for panel in judges.panels)} <= found.keys()


def test_every_method_has_an_example_and_a_line_of_the_table() -> None:
    for method in METHODS:
        assert f"| `{method}` |" in PAGE
        assert f"method: {method}" in PAGE or method == "pairwise"


def test_the_shipped_prompts_that_are_named_are_there() -> None:
    (named,) = re.findall(r"^Shipped: (.*?)\. A prompt", PAGE, re.MULTILINE | re.DOTALL)
    for name in re.findall(r"`(\w+_v\d+)`", named):
        prompt.load(name)
