"""The pages say what the code does: commands, files, recipes and extras are held against README and architecture."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from vlm_rlaif.warehouse import config
from vlm_rlaif.warehouse.cli import cli

ROOT = Path(__file__).parents[1]
FLOORS = ("warehouse", "datagen", "feedback", "train", "eval")
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))))
SOURCES = [file for floor in FLOORS for file in sorted((ROOT / floor).rglob("*.py"))]
LONGEST = 400
NOT_FOR_READERS = re.compile(rf"\b({'TO' + 'DO'}|{'FIX' + 'ME'})\b|(?<!\w){'shared' + '/'}")


def commands(command: click.Command = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """(`datagen caption`, its command) of every command, those of the other floors too."""
    if not isinstance(command, click.Group):
        yield " ".join(path), command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from commands(found, (*path, name))


def table_of_commands() -> set[str]:
    """The first column of README's table of commands."""
    (section,) = re.findall(r"^## All commands\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))


def command_lines() -> list[str]:
    """Every command of a code block that calls `vlm-rlaif`, in all pages.

    In a block with prompts the other lines are output. What the shell does with a command is left out.
    """
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S):
            text = block.replace("\\\n", " ")
            prompt = r"^\$ " if "$ vlm-rlaif" in text else "^"
            found += re.findall(rf'{prompt}(vlm-rlaif\b(?:[^"\n>|&]|"[^"]*")*)', text, re.M)
    return found


def parse(arguments: list[str]) -> click.Context:
    """Resolve a command and its options as click does, and stop before it runs."""
    command: click.Command = cli
    context, name = click.Context(cli), "vlm-rlaif"
    while isinstance(command, click.Group):
        name, *arguments = arguments
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        command = found
    return command.make_context(name, arguments)


def repository_files() -> list[Path]:
    """What is or would be committed."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [file for line in done.stdout.splitlines() if (file := ROOT / line).is_file()]


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=lambda value: value if type(value) is str else "")
def test_every_command_has_a_help_text(name: str, command: click.Command) -> None:
    assert command.get_short_help_str(), name


def test_the_table_of_commands_is_complete_and_names_no_others() -> None:
    assert table_of_commands() == {name for name, _ in commands()}


def test_there_are_command_lines_to_check() -> None:
    assert len(command_lines()) > 15


@pytest.mark.parametrize("line", sorted(set(command_lines())))
def test_a_command_line_of_the_docs_parses(line: str) -> None:
    context = parse(shlex.split(line, comments=True)[1:])
    recipe = context.params.get("recipe_name")
    assert recipe is None or recipe.endswith(".yaml") or recipe in config.shipped()


def test_a_wrong_command_line_would_be_found() -> None:
    for wrong in ("sql w.duckdb", "datagen caption w.duckdb --recipe shapes --frames 3"):
        with pytest.raises(click.UsageError):
            parse(wrong.split())
    with pytest.raises(AssertionError, match="no command"):
        parse(["datagen", "captoin"])


@pytest.mark.parametrize("name", config.shipped())
def test_every_recipe_loads_and_is_named_in_the_readme(name: str) -> None:
    assert config.load(name).name == name
    assert f"`{name}`" in README


def test_extras_of_the_readme_and_of_the_package_are_the_same() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = {extra for group in re.findall(r"vlm-rlaif\[([\w,-]+)\]", README) for extra in group.split(",")}
    assert named == set(settings["project"]["optional-dependencies"])


def test_every_file_of_the_five_folders_is_named_in_the_architecture() -> None:
    there = {str(file.relative_to(ROOT)) for file in SOURCES if file.name != "__init__.py"}
    assert sorted(there - set(re.findall(r"`([\w/]+\.py)`", ARCHITECTURE))) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(rf"`((?:{'|'.join((*FLOORS, 'tests', 'docs', 'examples'))})/[\w./-]*)`", text))
    linked = {(ROOT / page).parent / target for target in re.findall(r"\]\(([\w./-]+)\)", text)}
    assert sorted(name for name in named if not (ROOT / name).exists()) == []
    assert sorted(str(target) for target in linked if not target.exists()) == []


def test_every_table_and_view_is_in_the_architecture() -> None:
    from vlm_rlaif.warehouse import schema

    views = re.findall(r"CREATE OR REPLACE VIEW (\w+)", schema.create_views())
    assert [name for name in (*schema.table_names(), *views) if f"`{name}`" not in ARCHITECTURE] == []


def benchmark(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_results_of_the_readme_are_those_of_the_results_file() -> None:
    """Nobody typed them: the benchmark wrote the table, and would write it again."""
    journey = benchmark("shapes_journey")
    results = json.loads(journey.RESULTS.read_text(encoding="utf-8"))
    assert all(set(figure) == {"value", "low", "high", "n", "unit"} for figure in results["figures"].values())
    (section,) = re.findall(r"^<!-- results:begin -->\n(.+)\n<!-- results:end -->$", README, re.M | re.S)
    assert journey.readme_table(results) in section
    assert section.count("REWARD HACKING") == sum("REWARD HACKING" in said for said in results["remarks"])


def test_the_table_of_the_warehouse_is_that_of_its_results_file() -> None:
    warehouse = benchmark("warehouse")
    results = json.loads(warehouse.RESULTS.read_text(encoding="utf-8"))
    assert warehouse.table(results) in warehouse.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["generation", "feedback"])
def test_the_tables_of_a_benchmark_are_those_of_its_results_file(name: str) -> None:
    suite = benchmark(name).SUITE
    figures = json.loads(suite.results.read_text(encoding="utf-8"))
    assert suite.table(figures) in (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert suite.front(figures) in README


def test_the_sentence_about_the_demo_stands_between_its_marks() -> None:
    assert re.search(r"^<!-- demo:begin -->\n.+\n<!-- demo:end -->$", README, re.M | re.S)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_says_what_it_is_and_is_not_too_long(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= LONGEST


def test_no_file_holds_a_note_to_self_or_points_outside_the_repository() -> None:
    found = []
    for file in repository_files():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # weights
            continue
        lines = enumerate(text.splitlines(), 1)
        found += [f"{file.relative_to(ROOT)}:{n}: {line}" for n, line in lines if NOT_FOR_READERS.search(line)]
    assert found == []
