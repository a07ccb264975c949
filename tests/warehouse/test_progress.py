"""Progress: a bar on a terminal, plain lines elsewhere, both on standard error."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace

import pytest

from vlm_rlaif.warehouse import progress
from vlm_rlaif.warehouse.progress import Bar

WORK = """
import time
from vlm_rlaif.warehouse.progress import Bar

class Note:
    said = 0
    def __str__(self):
        Note.said += 1
        return "3.2 rows/s, bound by [decode]"

with Bar("label", 3000) as bar:
    for _ in range(3000):
        bar.advance(1, Note())
    time.sleep(0.2)
    bar.advance(0, Note())
    time.sleep(0.2)
print(Note.said)
"""


def on_a_terminal(code: str, columns: int = 100) -> tuple[str, str]:
    """What a program writes to standard output, and to its terminal without the codes that move the cursor."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stderr=theirs, stdout=subprocess.PIPE,
        text=True, env={**os.environ, "TERM": "xterm"},
    ) as program:  # fmt: skip
        os.close(theirs)
        seen = b""
        try:
            while piece := os.read(ours, 65536):
                seen += piece
        except OSError:  # the terminal is closed
            pass
        out, _ = program.communicate()
    os.close(ours)
    return out, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())


def test_a_terminal_shows_a_bar_with_what_is_left_and_how_it_goes() -> None:
    out, seen = on_a_terminal(WORK)
    assert re.search(r"label .+ 3000/3000 0:00:00 3\.2 rows/s, bound by \[decode\]", seen), seen
    assert 1 <= int(out) < 100, "the note is put into words when it is shown, not for every row"


def test_a_narrow_terminal_cuts_the_note_and_not_the_count() -> None:
    _, seen = on_a_terminal(WORK, columns=50)
    assert re.search(r"label .+ 3000/3000 0:00:00 3\.2", seen), seen
    assert max(len(line) for line in re.split(r"[\r\n]+", seen)) <= 50


def test_without_a_terminal_a_plain_line_comes_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with Bar("caption", 4000) as bar:
        for _ in range(20):
            now[0] += 2.0
            bar.advance(100, "50 rows/s")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "caption: 800 of 4,000, 0:01:04 left, 50 rows/s",
        "caption: 1,600 of 4,000, 0:00:48 left, 50 rows/s",
    ]


def test_a_note_is_not_needed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", -1.0)
    with Bar("add", 2) as bar:
        bar.advance(0)
        bar.advance(2)
    assert capsys.readouterr().err.splitlines() == ["add: 0 of 2, 0:00:00 left", "add: 2 of 2, 0:00:00 left"]
