"""What a person submitted, read strictly. Pure functions: the server stores any result that it is sent.

What may be said is read from the labeling config, so it stands in one place.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from math import inf
from typing import Any, TypeGuard
from xml.etree import ElementTree


class Refused(Exception):
    """A result that says something else than a verdict; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Control:
    """Something on the page that people fill in."""

    kind: str
    allowed: frozenset[str]
    """Of choices."""
    most: int
    """Choices, texts, or stars."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A verdict in the places shown."""

    choice: str
    """`A`, `B`, `tie` or `both_bad`."""
    reasons: tuple[str, ...] = ()
    confidence: int | None = None
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Annotation:
    """A verdict with who gave it, and when."""

    number: str
    user: int
    updated_at: datetime
    seconds: float | None
    verdict: Submitted


@functools.cache
def labeling_config() -> str:
    return (files("vlm_rlaif.feedback.audit") / "video_pair.xml").read_text(encoding="utf-8")


@functools.cache
def controls() -> dict[str, Control]:
    """What can be filled in on the page, by name."""
    found = {}
    for element in ElementTree.fromstring(labeling_config()).iter():
        name = element.get("name", "")
        if element.tag == "Choices":
            aliases = frozenset(choice.get("alias", "") for choice in element.iter("Choice"))
            found[name] = Control("choices", aliases, len(aliases) if element.get("choice") == "multiple" else 1)
        elif element.tag == "Rating":
            found[name] = Control("rating", frozenset(), int(element.get("maxRating", "5")))
        elif element.tag == "TextArea":
            found[name] = Control("textarea", frozenset(), int(element.get("maxSubmissions", "1")))
    return found


def own_choice(shown: str, shown_order: str) -> str:
    """A verdict in the places shown, as one on the pair.

    >>> own_choice("A", "ba"), own_choice("A", "ab"), own_choice("tie", "ba")
    ('b', 'a', 'tie')
    """
    return shown_order["AB".index(shown)] if shown in ("A", "B") else shown


def shown_choice(own: str, shown_order: str) -> str:
    """A verdict on the pair, in the places shown: the way back of `own_choice`."""
    return "AB"[shown_order.index(own)] if own in ("a", "b") else own


def skipped(annotation: object) -> bool:
    """Whether a person left the task out."""
    return isinstance(annotation, Mapping) and annotation.get("was_cancelled") is True


def read_annotation(annotation: object) -> Annotation:
    """An annotation of an export; raises `Refused`."""
    if not isinstance(annotation, Mapping):
        raise Refused("an annotation that is no object")
    number, user = annotation.get("id"), annotation.get("completed_by")
    if isinstance(user, Mapping):
        user = user.get("id")
    if not _is_int(number):
        raise Refused("an annotation without a number")
    if not _is_int(user):
        raise Refused("nobody is named who submitted it")
    seconds = annotation.get("lead_time")
    if seconds is not None and (not _is_number(seconds) or not 0 <= seconds < inf):
        raise Refused(f"the time it took is {_cut(seconds)}")
    return Annotation(str(number), user, _time(annotation.get("updated_at")),
                      None if seconds is None else float(seconds), read_result(annotation.get("result")))  # fmt: skip


def read_result(result: object) -> Submitted:
    """A result as a verdict; raises `Refused` at anything that the page cannot have sent."""
    if not isinstance(result, list):
        raise Refused("the result is no list")
    said: dict[str, list[Any]] = {}
    for item in result:
        name, values = _item(item)
        if name in said:
            raise Refused(f"{name} is there twice")
        said[name] = values
    if "preference" not in said:
        raise Refused("there is no verdict")
    return Submitted(
        choice=said["preference"][0],
        reasons=tuple(sorted(said.get("reasons", []))),
        confidence=said.get("confidence", [None])[0],
        comment="\n".join(said.get("comment", [])).strip() or None,
    )


def _item(item: object) -> tuple[str, list[Any]]:
    """(control, values) of one part of a result."""
    if not isinstance(item, Mapping):
        raise Refused("a part of the result is no object")
    name = item.get("from_name")
    control = controls().get(name) if isinstance(name, str) else None
    if control is None:
        raise Refused(f"nothing on the page is called {_cut(name)}")
    if item.get("to_name") != "video" or item.get("type") != control.kind:
        raise Refused(f"{name} is a {_cut(item.get('type'))} about {_cut(item.get('to_name'))}")
    value = item.get("value")
    if not isinstance(value, Mapping):
        raise Refused(f"{name} has no value")
    key = "text" if control.kind == "textarea" else control.kind
    return str(name), _values(str(name), control, value.get(key))


def _values(name: str, control: Control, found: object) -> list[Any]:
    if control.kind == "rating":
        if not _is_int(found) or not 1 <= found <= control.most:
            raise Refused(f"{name} is {_cut(found)}, not 1 to {control.most}")
        return [found]
    values = [found] if control.kind == "textarea" and isinstance(found, str) else found
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise Refused(f"{name} is {_cut(found)}")
    if control.kind == "textarea":
        return values
    if unknown := [value for value in values if value not in control.allowed]:
        raise Refused(f"{name} is {_cut(unknown[0])}, not one of {', '.join(sorted(control.allowed))}")
    if not 1 <= len(values) <= control.most or len(set(values)) < len(values):
        raise Refused(f"{name} names {len(values)} choices")
    return values


def _time(said: object) -> datetime:
    """When it was submitted, UTC."""
    try:
        time = datetime.fromisoformat(said) if isinstance(said, str) else None
        if time is not None:
            return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time
    except (ValueError, OverflowError):
        pass
    raise Refused(f"the time of the last change is {_cut(said)}")


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, float) or _is_int(value)


def _cut(value: object) -> str:
    """A value that may be anything, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
