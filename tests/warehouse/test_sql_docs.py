"""`docs/sql.md` is true: every command of the page is run again, and prints what the page says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sql_page", ROOT / "tests" / "sql_page.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["sql_page"] = module
    spec.loader.exec_module(module)
    return module


PAGE = _load()
EXAMPLES = list(PAGE.examples(PAGE.PAGE.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's warehouse lies."""
    made = tmp_path_factory.mktemp("page")
    PAGE.make(made)
    return made


def test_there_are_at_least_twenty_queries() -> None:
    assert sum(example.arguments[0] == "sql" for example in EXAMPLES) >= 20
    assert {example.arguments[0] for example in EXAMPLES} == {"sql", "show", "why", "plan"}


def test_every_block_of_a_shell_is_an_example() -> None:
    """None is passed over because it is written in another way."""
    text = PAGE.PAGE.read_text(encoding="utf-8")
    assert len(EXAMPLES) == text.count("```console\n") == len({example.command for example in EXAMPLES})


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: " ".join(example.command.split())[:60])
def test_a_command_prints_what_the_page_says(
    example: Any, folder: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    result = command(*example.arguments)
    assert (result.code, result.err) == (0, "")
    assert result.out.replace("\r\n", "\n") == example.output, "python tests/sql_page.py writes the page anew"


def test_a_page_that_is_not_true_would_be_found(folder: Path, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (first, *_) = EXAMPLES
    assert command("sql", "w.duckdb", "SELECT 1 AS wrong").out != first.output
