"""`docs/generation.md` is true: every recipe of the page can be read, and its prompts are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlm_rlaif.datagen import prompt
from vlm_rlaif.warehouse.config import load

PAGE = Path(__file__).parents[1] / "docs" / "generation.md"
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def prompts(settings: Any) -> list[str]:
    """The names of all prompts in a part of a recipe, on all levels."""
    if isinstance(settings, list):
        return [name for item in settings for name in prompts(item)]
    if not isinstance(settings, dict):
        return []
    own = [settings[key] for key in ("prompt", "context_prompt", "transcripts") if isinstance(settings.get(key), str)]
    return own + [name for value in settings.values() for name in prompts(value)]


@pytest.mark.parametrize("text", EXAMPLES)
def test_an_example_can_be_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    load(str(tmp_path / "recipe.yaml"))
    for name in prompts(yaml.safe_load(text)):
        if not name.endswith(".md"):
            prompt.load(name)


def test_what_the_page_says_of_a_prompt_is_in_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, words in re.findall(r"(?:prompt|transcripts): (\w+_v\d+) +# (From .*)", page):
        assert prompt.load(name).user == words
