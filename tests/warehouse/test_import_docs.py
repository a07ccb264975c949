"""docs/import.md is true: every file of it is written, every command is run, and what is printed is compared."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_rlaif.warehouse.store import Warehouse

Command = Any
PAGE = Path(__file__).parents[2] / "docs" / "import.md"
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
BLOCK = re.compile(r"^```(\w+) ?([\w./-]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
VIDEOS = ("kitchen.mp4", "v_1QIUV7WYKXg.mp4", "msrvtt/video6513.mp4", "tumblr_nk172.mp4")


@pytest.fixture
def here(warehouse: Warehouse, shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the page's commands are run, with an empty warehouse and the page's videos."""
    monkeypatch.chdir(tmp_path)
    warehouse.path.rename("w.duckdb")
    for number, name in enumerate(VIDEOS):
        path = Path("videos", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((shapes_folder / f"{number % 3}.mp4").read_bytes() + bytes(number))
    frames = Path("videos/frames/v_abc")
    frames.mkdir(parents=True)
    for number in (1, 2, 3):
        Image.new("L", (16, 16), 50 * number).save(frames / f"frame_{number}.png")
    return tmp_path


def run(line: str, command: Command) -> str:
    """What a line of a console block prints: complaints first, then the result."""
    name, *arguments = shlex.split(line)
    if name == "mv":
        shutil.move(*arguments)
        return ""
    if name == "rm":
        Path(*arguments).unlink()
        return ""
    assert name == "vlm-rlaif"
    result = command(*arguments)
    return "\n".join(text.rstrip() for text in f"{result.err}{result.out}".splitlines())


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_says_what_happens(section: str, here: Path, command: Command) -> None:
    for language, name, text in BLOCK.findall(SECTIONS[section]):
        if language == "python":
            pytest.importorskip("datasets")
            exec(compile(text, section, "exec"), {})
        elif name:
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(text)
        else:
            lines = [line for line in text.splitlines() if line.startswith("$ ")]
            printed = [part for line in lines for part in (line, run(line[2:], command)) if part]
            assert "\n".join(printed) + "\n" == text, section


def test_every_section_has_an_example() -> None:
    assert len(SECTIONS) == 12
    assert all("$ vlm-rlaif" in text for text in SECTIONS.values())
