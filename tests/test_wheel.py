"""A wheel, installed in a folder of its own, works like the checkout."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel, borrowing this one's dependencies but not its checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", ROOT)
    run(sys.executable, "-m", "venv", folder / "env")
    python = folder / "env" / "bin" / "python"
    site = next((folder / "env" / "lib").glob("python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = (folder / "dist").glob("*.whl")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    return python


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.wheel
def test_the_installed_code_is_the_wheels(python: Path, tmp_path: Path) -> None:
    where = run(python, "-c", "import vlm_rlaif.train.ppo_math as m; print(m.__file__)", cwd=tmp_path)
    assert str(python.parent.parent) in where


@pytest.mark.wheel
def test_prompts_recipes_views_and_models_are_shipped(python: Path, tmp_path: Path) -> None:
    program = (
        "from vlm_rlaif.datagen import models, prompt\n"
        "from vlm_rlaif.warehouse import config, schema\n"
        "print(prompt.load('judge_context_v1').text_hash, config.load('shapes').name)\n"
        "assert 'preferences' in schema.create_views()\n"
        "print(models.revision('embedded:judge'), models.revision('embedded:policy-start'))\n"
    )
    assert "shapes" in run(python, "-c", program, cwd=tmp_path)


@pytest.mark.wheel
def test_a_users_own_train_and_eval_do_not_get_in_the_way(python: Path, tmp_path: Path) -> None:
    for name in ("train", "eval", "warehouse"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    command = python.parent / "vlm-rlaif"
    assert "show-prompt" in run(command, "--help", cwd=tmp_path)
    run(command, "init", "w.duckdb", cwd=tmp_path)
    assert "videos" in run(command, "tables", "w.duckdb", cwd=tmp_path)
