"""JSON of any length, read one record at a time: a list, JSON lines, or values one after another.

Memory stays the same however long the file is. What cannot be read is an entry too, with its place and the reason;
after it lines go on, and a list cannot.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

Tick = Callable[[int], None]
"""Told how many bytes of the file have been read."""
CHUNK = 1 << 20
MAX_RECORD = 1 << 26
"""Characters; a longer record is refused, so that a broken file does not fill the memory."""
CUT_OFF = 16
"""An error this close to the end of the text may be a word or a number that goes on in the next chunk."""
LAST = "nothing from here on can be read"
_SPACE = " \t\n\r"


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a file, or what is wrong with it."""

    place: str
    """`file:line` or `file[index]`, lines from 1 and indices from 0."""
    record: Any = None
    problem: str = ""


def _whole(digits: str) -> int | float:
    """Python refuses to read thousands of digits, and nothing here needs them."""
    return int(digits) if len(digits) < 20 else float(digits)


_JSON = json.JSONDecoder(parse_int=_whole)


class _Window:
    """The part of a long text that is being read."""

    def __init__(self, file: IO[bytes], tick: Tick) -> None:
        self._file, self._tick = file, tick
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self.text, self.at = "", 0

    def more(self) -> bool:
        """Read on: as much again as is waiting, so that a long record is scanned about twice and not many times."""
        data = self._file.read(max(CHUNK, len(self.text) - self.at))
        text = self._decoder.decode(data, final=not data)
        if data or text:
            self.text, self.at = self.text[self.at :] + text, 0
            self._tick(self._file.tell())
        return bool(data or text)

    def peek(self) -> str:
        """The next character that is no space, or nothing at the end; moves there."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in _SPACE:
                    return self.text[self.at]
                self.at += 1
            if not self.more():
                return ""

    def value(self) -> Any:
        """The JSON value that begins here; raises `ValueError`, after which nothing more can be read."""
        while True:
            try:
                value, end = _JSON.raw_decode(self.text, self.at)
            except RecursionError:
                raise ValueError("it is nested too deeply") from None
            except json.JSONDecodeError as error:
                open_end = error.pos >= len(self.text.rstrip()) or error.msg.startswith("Unterminated string")
                if len(self.text) - self.at > MAX_RECORD:
                    raise ValueError(f"it is longer than {MAX_RECORD >> 20} million characters") from None
                if (open_end or error.pos >= len(self.text) - CUT_OFF) and self.more():
                    continue
                said = "the file ends in the middle of it" if open_end else f"this is not JSON: {error.msg}"
                raise ValueError(said) from None
            may_go_on = self.text[end - 1] not in '}]"' and end >= len(self.text) - CUT_OFF  # a number
            if may_go_on and self.more():
                continue
            self.at = end
            return value


def read_json(file: Path, tick: Tick) -> Iterator[Entry]:
    with file.open("rb") as opened:
        window = _Window(opened, tick)
        first = window.peek()
        if first == "[":
            window.at += 1
            yield from _list(window, file)
        elif first == "{" and not _is_lines(file):
            yield from _values(window, file)
        elif first:
            opened.seek(0)
            yield from _lines(opened, file, tick)
        else:
            yield Entry(str(file), problem="it is empty")


def _value(window: _Window, place: str) -> Entry:
    try:
        return Entry(place, window.value())
    except ValueError as error:
        return Entry(place, problem=f"{error}; {LAST}")


def _list(window: _Window, file: Path) -> Iterator[Entry]:
    """The members of a JSON list."""
    index = 0
    while window.peek() != "]" or index:
        entry = _value(window, f"{file}[{index}]")
        yield entry
        if entry.problem:
            return
        index += 1
        follows = window.peek()
        window.at += 1
        if follows == "]":
            if window.peek():
                yield Entry(f"{file}[{index}]", problem="something follows the end of the list; it is left out")
            return
        if follows != ",":
            said = "the file ends before the list does" if not follows else "there is no comma before it"
            yield Entry(f"{file}[{index}]", problem=f"{said}; {LAST}")
            return


def _values(window: _Window, file: Path) -> Iterator[Entry]:
    """JSON values one after another, over as many lines as they like."""
    index = 0
    while window.peek():
        entry = _value(window, f"{file}[{index}]")
        yield entry
        if entry.problem:
            return
        index += 1


def _is_lines(file: Path) -> bool:
    """Whether a file is JSON lines: by its name, or because its first line is a whole value."""
    if file.suffix.lower() in (".jsonl", ".ndjson"):
        return True
    with file.open("rb") as opened:
        line = next((line for line in iter(lambda: opened.readline(MAX_RECORD), b"") if line.strip()), b"")
    return not _line(line).problem


def _lines(opened: IO[bytes], file: Path, tick: Tick) -> Iterator[Entry]:
    """JSON lines: a bad line says nothing about the next one."""
    number = 0
    while line := opened.readline(MAX_RECORD):
        number += 1
        tick(opened.tell())
        place = f"{file}:{number}"
        if len(line) == MAX_RECORD and not line.endswith(b"\n"):
            while (rest := opened.readline(MAX_RECORD)) and not rest.endswith(b"\n"):
                pass
            yield Entry(place, problem=f"it is longer than {MAX_RECORD >> 20} million bytes")
        elif line.strip():
            found = _line(line)
            yield Entry(place, found.record, found.problem)


def _line(line: bytes) -> Entry:
    try:
        return Entry("", _JSON.decode(line.decode("utf-8-sig", "surrogateescape")))
    except RecursionError:
        return Entry("", problem="it is nested too deeply")
    except json.JSONDecodeError as error:
        return Entry("", problem=f"this is not JSON: {error.msg} at column {error.colno}")
