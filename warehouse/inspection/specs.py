"""Specs taken apart: what their ids are made of, how alike two of them are, and what changed between them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

NAMES = {"revision": "model", "prompt_hash": "prompt"}
"""Parts that are hashes, and the name that people know the same thing by. The name is no part of the id."""

SpecRow = Mapping[str, Any]
"""A row of `specs`, or a `Spec` as a dictionary."""


@dataclass(frozen=True, slots=True)
class Change:
    """One part that differs between two specs."""

    part: str
    """`prompt_hash`, `sampling.temperature`, `upstream.context`; with its place in an upstream spec before it."""
    old: str
    new: str
    names: str = ""
    """`old -> new` in words, where the part is a hash."""

    def __str__(self) -> str:
        return f"{self.part}: {self.old} -> {self.new}" + (f" ({self.names})" if self.names else "")


def parts(spec: SpecRow) -> dict[str, str]:
    """What a spec's id is the hash of, but for its stage, each part by itself.

    >>> parts({"model": "m", "revision": "1a", "adapter": "", "prompt_hash": "2b", "frames": '{"count": 3}',
    ...        "sampling": "{}", "upstream": '{"clip": "parts:3"}'})
    {'revision': '1a', 'prompt_hash': '2b', 'frames.count': '3', 'upstream.clip': 'parts:3'}
    """
    found = {"revision": spec["revision"] or spec["model"], "adapter": spec["adapter"]}
    found["prompt_hash"] = spec["prompt_hash"]
    found |= flat({group: json.loads(spec[group]) for group in ("frames", "sampling", "upstream")})
    return {name: value for name, value in found.items() if value}


def flat(value: Any, place: str = "") -> dict[str, str]:
    """Nested settings as one level of words.

    >>> flat({"frames": {"count": 3, "size": None}, "separator": " "})
    {'frames.count': '3', 'separator': "' '"}
    """
    if isinstance(value, Mapping):
        inner = {f"{place}.{name}" if place else name: part for name, part in value.items()}
        return {name: word for key, part in inner.items() for name, word in flat(part, key).items()}
    if value is None:
        return {}
    text = str(value)
    return {place: text if text == text.strip() and text else repr(text)}


def called(spec: SpecRow, part: str) -> str:
    """The name of a part that is a hash, without the folder of a prompt file; empty where the part has no name.

    >>> called({"prompt": "/home/me/short.md"}, "prompt_hash")
    'short'
    """
    name = str(spec[NAMES[part]]) if part in NAMES else ""
    return PurePath(name).name.removesuffix(".md") if part == "prompt_hash" else name


def shared(one: SpecRow, other: SpecRow) -> int:
    """How many parts two specs have in common; a part that both have with other values counts a little."""
    a, b = parts(one), parts(other)
    return sum(10 * (a[name] == b[name]) + 1 for name in a.keys() & b.keys())


def nearest(spec: SpecRow, others: Iterable[SpecRow]) -> SpecRow | None:
    """The most alike of the other specs."""
    return max(others, key=lambda other: (shared(spec, other), other["spec_id"]), default=None)


def changes(new: SpecRow, old: SpecRow, known: Mapping[str, SpecRow], place: str = "") -> Iterator[Change]:
    """Every part that differs. A changed upstream spec is followed by what changed in it."""
    before, after = parts(old), parts(new)
    for part in dict.fromkeys([*after, *before]):
        if before.get(part) == after.get(part):
            continue
        before_name, after_name = called(old, part), called(new, part)
        names = f"{before_name} -> {after_name}" if before_name != after_name else ""
        yield Change(f"{place}{part}", before.get(part, "none"), after.get(part, "none"), names)
        upstream = known.get(before.get(part, "")), known.get(after.get(part, ""))
        if upstream[0] and upstream[1]:
            yield from changes(upstream[1], upstream[0], known, f"{place}{part.removeprefix('upstream.')}.")
