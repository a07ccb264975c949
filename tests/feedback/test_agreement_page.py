"""`docs/agreement.md` is true: every command of the page is run again, and prints what the page says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("agreement_page", ROOT / "tests" / "agreement_page.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["agreement_page"] = module
    spec.loader.exec_module(module)
    return module


PAGE = _load()
EXAMPLES = list(PAGE.pages.examples(PAGE.PAGE.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's warehouse lies; the commands of the page are run on it in their order."""
    made = tmp_path_factory.mktemp("page")
    PAGE.make(made)
    return made


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: " ".join(example.arguments[:2]))
def test_a_command_of_the_page_prints_what_the_page_says(example: Any, folder: Path) -> None:
    assert PAGE.pages.ask(folder, example) == example.output


def test_the_page_has_examples_of_all_it_speaks_of() -> None:
    assert [" ".join(example.arguments[:2]) for example in EXAMPLES] == [
        "feedback agreement", "feedback calibrate", "dataset create", "sql w.duckdb",
    ]  # fmt: skip
