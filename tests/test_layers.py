"""The arrow: warehouse <- datagen <- feedback <- train <- eval. Imports point down, and heavy ones come late."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("warehouse", "datagen", "feedback", "train", "eval")
HEAVY = {"torch", "transformers", "peft", "datasets", "accelerate", "vllm", "ray", "matplotlib", "av"} | {
    "scipy", "sklearn", "statsmodels", "krippendorff", "label_studio_sdk",
}  # fmt: skip
ONLY_IN = {
    "vllm": "datagen/engines/vllm_",
    "ray": "datagen/engines/ray_",
    "label_studio_sdk": "feedback/audit/label_studio",
}


def sources() -> list[Path]:
    return [file for floor in FLOORS for file in sorted((ROOT / floor).rglob("*.py"))]


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, those inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{name.name}") for name in node.names)


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_run_one_way(floor: str) -> None:
    above = FLOORS[FLOORS.index(floor) + 1 :]
    upward = [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for file in sorted((ROOT / floor).rglob("*.py"))
        for line, module in imports(file)
        if module.startswith(tuple(f"vlm_rlaif.{name}" for name in above))
    ]
    assert not upward


def test_nothing_is_imported_by_a_folders_bare_name() -> None:
    """`import warehouse` works in a checkout, and makes a second copy of every class."""
    bare = [
        f"{file}:{line}" for file in sources() for line, module in imports(file) if module.split(".")[0] in FLOORS
    ]
    assert not bare


@pytest.mark.parametrize(("package", "home"), ONLY_IN.items())
def test_an_engines_package_is_imported_by_that_engine_only(package: str, home: str) -> None:
    found = {
        str(file.relative_to(ROOT))
        for file in sources()
        for _, module in imports(file)
        if module.split(".")[0] == package
    }
    assert [file for file in found if not file.startswith(home)] == []


def test_every_package_is_shipped() -> None:
    """A folder that is missing from `packages` works in a checkout and is missing from the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {file.parent.relative_to(ROOT) for file in sources()}
    assert sorted(settings["packages"]) == sorted(f"vlm_rlaif.{'.'.join(folder.parts)}" for folder in folders)
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()] == []


def test_every_file_beside_the_code_is_shipped() -> None:
    """Prompts, recipes, weights and views need a pattern in `package-data`."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    for floor in FLOORS:
        packages = [file.parent for file in (ROOT / floor).rglob("__init__.py")]
        shipped = {
            file
            for package in packages
            for pattern in settings["package-data"]["*"]
            for file in package.glob(pattern)
        }
        there = {
            file
            for file in (ROOT / floor).rglob("*")
            if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts
        }
        assert sorted(there - shipped) == []


def test_help_and_warehouse_commands_do_not_load_a_model_library(tmp_path: Path) -> None:
    w = str(tmp_path / "w.duckdb")
    commands = [
        ["--help"], ["init", w], ["tables", w], ["runs", w], ["sql", w, "SELECT 1"], ["add", "--help"],
        ["datagen", "--help"], ["datagen", "caption", "--help"], ["feedback", "label", "--help"],
        ["train", "--help"], ["eval", "--help"], ["run", "--help"],
    ]  # fmt: skip
    script = f"""
import json, sys
from vlm_rlaif.warehouse.cli import cli
for arguments in json.loads(sys.argv[1]):
    cli(arguments, standalone_mode=False)
    loaded = {HEAVY!r} & sys.modules.keys()
    assert not loaded, (arguments, loaded)
"""
    run = subprocess.run([sys.executable, "-c", script, json.dumps(commands)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
