"""Files of subtitles, SubRip (.srt) and WebVTT (.vtt): what is said, and when. Pure functions on text.

Only times and words are read: tags, styles, notes and numbers of cues are dropped. A file that is something else, or
whose times make no sense, is refused as a whole.
"""

from __future__ import annotations

import codecs
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlm_rlaif.warehouse.media.container import require_regular

SUFFIXES = {".srt", ".vtt"}
LARGEST_FILE = 2**24
"""Bytes; the subtitles of a film are a hundredth of it."""
_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
_TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
"""`<i>`, `<v Anna>`, `<00:01.500>`, and `{\\an8}` of other formats."""


@dataclass(frozen=True, slots=True)
class Cue:
    """Words that are shown together."""

    start_s: float
    end_s: float
    text: str


def read_subtitles(path: Path) -> list[Cue]:
    """The cues of a file in the order of their times; raises `ValueError` with the reason why there are none."""
    try:
        size = require_regular(path).st_size
        if size > LARGEST_FILE:
            raise ValueError(f"it has {size / 2**20:.0f} MiB; subtitles of more than {LARGEST_FILE >> 20} are none")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    return parse(_decoded(data))


def _decoded(data: bytes) -> str:
    """UTF-8, or UTF-16 if it says so. Other encodings are not guessed: a wrong guess is wrong words."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        name = "UTF-16" if utf16 else "UTF-8"
        raise ValueError(f"it is not {name} (byte {error.start:,}); iconv -t utf-8 converts it") from None


def parse(text: str) -> list[Cue]:
    """The cues of a file's text; raises `ValueError`.

    >>> parse("1\\n00:00:01,500 --> 00:00:03,000\\n<i>Hello</i>\\nthere.\\n")
    [Cue(start_s=1.5, end_s=3.0, text='Hello there.')]
    """
    found, said_before = [], ""
    for start_s, end_s, lines in _blocks(text):
        words = [line for line in (_plain(line) for line in lines) if line]
        if words and words[0] == said_before:  # captions that roll up repeat the line above
            del words[0]
        if words:
            said_before = words[-1]
            found.append(Cue(start_s, end_s, " ".join(words)))
    if not found:
        raise ValueError("there are no words with their times in it")
    return sorted(found, key=lambda cue: (cue.start_s, cue.end_s))


def _blocks(text: str) -> Iterator[tuple[float, float, list[str]]]:
    """(start, end, lines) of every cue: from its times to the next empty line, or to the next times."""
    times: tuple[float, float] | None = None
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if "-->" in line:
            if times is not None:
                yield (*times, lines[:-1] if lines and lines[-1].strip().isdecimal() else lines)
            times, lines = _times(number, line), []
        elif times is not None and line.strip():
            lines.append(line)
        elif times is not None and lines:
            yield (*times, lines)
            times, lines = None, []
    if times is not None:
        yield (*times, lines)


def _times(number: int, line: str) -> tuple[float, float]:
    found = _TIMES.fullmatch(line)
    if found is None:
        raise ValueError(f"line {number}: these are no times: {line.strip()[:60]!r}")
    start_s, end_s = _seconds(*found.groups()[:4]), _seconds(*found.groups()[4:])
    if end_s < start_s:
        raise ValueError(f"line {number}: it ends before it begins: {line.strip()[:60]!r}")
    return start_s, end_s


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str) -> float:
    return 3600 * int(hours or 0) + 60 * int(minutes) + int(seconds) + int(fraction.ljust(3, "0")) / 1000


def _plain(line: str) -> str:
    return " ".join(html.unescape(_TAG.sub("", line)).split())
