"""A file of questions: read as a whole before anything is written, and matched to the videos it names.

Everything that is wrong with a file is told at once, by line numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_rlaif.warehouse.errors import UserError, nearest

Line = dict[str, Any]
KEYS = ("video", "question", "reference", "kind")
SHOWN = 10
"""How many bad lines are shown."""


def read_questions(file: Path) -> list[tuple[int, Line]]:
    """(line number, record) of every line; all malformed lines are reported together."""
    if not file.is_file():
        raise UserError(f"There is no question file {file}.", "vlm-rlaif add --help")
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8: {error}.") from None
    good, bad = [], []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            good.append((number, read_question(text)))
        except ValueError as error:
            bad.append(f"{file}:{number}: {error}")
    if bad:
        expected = '{"video": "name.mp4", "question": "What happens?"}'
        raise UserError(*bad[:SHOWN], f"{len(bad)} bad lines. A line looks like this: {expected}")
    return good


def read_question(text: str) -> Line:
    """One line; raises `ValueError` when it is not a question in words."""
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError("it has no question")
    if unknown := [key for key in record if key not in KEYS]:
        close = nearest(unknown[0], KEYS) or f" Known: {', '.join(KEYS)}."
        raise ValueError(f"unknown key {unknown[0]!r}.{close}")
    if record.get("question") is None:
        raise ValueError("it has no question")
    for key in KEYS:
        if not isinstance(record.get(key), str | None):
            raise ValueError(f"`{key}` is not text: {record[key]!r}")
    if not record["question"].strip():
        raise ValueError("it has no question")
    return record


def match_videos(
    lines: Sequence[tuple[int, Line]], places: Iterable[tuple[str, str]], file: Path, warehouse: Path
) -> list[tuple[Line, list[str]]]:
    """Every question with the ids of its videos: all of them without a name, else the one that it names.

    `places` are (absolute path, video id); a video may have several. Both paths belong to the messages.
    """
    known = list(places)
    everything = list(dict.fromkeys(video_id for _, video_id in known))
    named = _named({line["video"] for _, line in lines if line.get("video") is not None}, known)
    matched, bad = [], []
    for number, line in lines:
        name = line.get("video")
        found = everything if name is None else list(named[name])
        if name is None and not found:
            bad.append(f"{file}:{number}: there is no readable video to ask it of.")
        elif not found:
            bad.append(f"{file}:{number}: no readable video is called {name!r}.")
        elif name is not None and len(found) > 1:
            some = ", ".join(sorted(named[name].values())[:3])
            bad.append(f"{file}:{number}: {len(found)} videos are called {name!r}, such as {some}.")
        else:
            matched.append((line, found))
    if bad:
        raise UserError(
            *bad[:SHOWN],
            f"{len(bad)} lines without their video. Its path, the end of its path and its id are names of a video:",
            f'vlm-rlaif sql {warehouse} "SELECT uri FROM videos"',
        )
    return matched


def _named(names: Iterable[str], places: Iterable[tuple[str, str]]) -> Mapping[str, Mapping[str, str]]:
    """What every name may mean: video id -> path."""
    names = set(names)
    found: dict[str, dict[str, str]] = {_plain(name): {} for name in names}
    for path, video_id in places:
        for spelled in (video_id, *_tails(path)):
            if spelled in found:
                found[spelled].setdefault(video_id, path)
    return {name: found[_plain(name)] for name in names}


def _plain(name: str) -> str:
    """One spelling of a path: without `./` and `//`; an absolute one without links."""
    return os.path.realpath(name) if os.path.isabs(name) else os.path.normpath(name)


def _tails(path: str) -> Iterator[str]:
    """`/a/b.mp4`, `a/b.mp4` and `b.mp4`."""
    while path:
        yield path
        path = path.partition("/")[2]
