"""What records of video data sets have in common: a video, words, and turns of a conversation.

Pure functions: they take what a file says and raise `ValueError` with the reason where it does not fit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

VIDEO_KEYS = ("video", "videos", "video_path", "video_name", "gif_name", "video_id", "images")
ROLES = {
    "human": "human", "user": "human",
    "gpt": "assistant", "assistant": "assistant", "model": "assistant", "bot": "assistant",
    "system": "system",
}  # fmt: skip
PLACEHOLDER = re.compile(
    r" ?<\|?(?:image|video|audio|image_pad|video_pad|vision_start|vision_end|im_start|im_end|vid_start|vid_end|"
    r"vi_start|vi_end|vid_patch|im_patch|ImageHere|VideoHere)\|?>"
)
"""Marks of the place where a model's frames go. They are no part of a question."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation."""

    role: str
    """`human`, `assistant` or `system`."""
    text: str
    """Stripped, and possibly empty."""


def words(value: Any, what: str) -> str:
    """Text that says something; a number is text, too. `what` names it in the reason."""
    text = said(value, what)
    if not text:
        raise ValueError(f"{what} is empty")
    return text


def aside(value: Any, what: str) -> str:
    """Text that is not needed: where there is something else, there is none."""
    return said(value, what) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def said(value: Any, what: str) -> str:
    """Stripped text, empty where there is none."""
    if isinstance(value, str):
        return _checked(value, what).strip()
    if value is None or (isinstance(value, float) and math.isnan(value)):  # how tables say that there is nothing
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(int(value)) if math.isfinite(value) and value == int(value) else repr(value)
    if isinstance(value, list):
        return "\n".join(part for part in (_part(item, what) for item in value) if part)
    raise ValueError(f"{what} is not text: {shown(value)}")


def _checked(text: str, what: str) -> str:
    if "\0" in text:
        raise ValueError(f"{what} holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} is not UTF-8") from None
    return text


def _part(item: Any, what: str) -> str:
    """The words of a part of a message; parts that show something have none."""
    if not isinstance(item, dict):
        raise ValueError(f"{what} is not text: {shown(item)}")
    return said(item["text"], what) if item.get("text") is not None else ""


def shown(value: Any) -> str:
    """A value in a message, cut short."""
    try:
        text = ascii(value[:60] if isinstance(value, str | bytes | list) else value)
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def question_text(value: Any, what: str = "its question") -> str:
    """A question without the marks of where the frames go."""
    text = PLACEHOLDER.sub("", said(value, what)).strip()
    if not text:
        raise ValueError(f"{what} is empty")
    return text


def turns_of(value: Any) -> list[Turn]:
    """The turns of `[{"from": ..., "value": ...}]` or `[{"role": ..., "content": ...}]`, of the system none."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):  # VLM-RLAIF wraps some twice
        value = value[0]
    if not isinstance(value, list) or not value:
        raise ValueError(f"its conversation is not a list of turns: {shown(value)}")
    turns = []
    for item in value:
        if not isinstance(item, dict):
            raise ValueError(f"a turn is not an object: {shown(item)}")
        name = first_of(item, "from", "role")
        role = ROLES.get(name.lower()) if isinstance(name, str) else None
        if role is None:
            raise ValueError(f"a turn has an unknown role: {shown(name)}")
        turns.append(Turn(role, said(first_of(item, "value", "content"), "a turn")))
    return [turn for turn in turns if turn.role != "system"]


def first_of(item: Mapping[str, Any], *keys: str) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def last_question(turns: Sequence[Turn]) -> str:
    """What the last human turn asks; earlier turns have no place in a warehouse."""
    asked = [turn.text for turn in turns if turn.role == "human"]
    if not asked:
        raise ValueError("nobody asks anything in its conversation")
    return question_text(asked[-1])


def response_text(value: Any, what: str) -> str:
    """The words of a response: text, one turn, or a conversation that ends with it."""
    if isinstance(value, dict):
        return words(first_of(value, "value", "content"), what)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        last = turns_of(value)[-1:]
        if not last or last[0].role != "assistant":
            raise ValueError(f"{what} does not end with the assistant")
        return words(last[0].text, what)
    if isinstance(value, list) and len(value) == 1:
        return words(value[0], what)
    return words(value, what)


def video_of(record: Mapping[str, Any]) -> str | tuple[str, ...]:
    """The name of the video that a record is about, or the paths of its frames."""
    for key in VIDEO_KEYS:
        if record.get(key) not in (None, "", [], ()):
            return _video(record[key], f"`{key}`", frames=key == "images")
    if shown_in_it := _in_messages(record):
        return _video(shown_in_it, "its conversation", frames=False)
    if record.get("image"):
        raise ValueError("it is about an image, not a video")
    raise ValueError("it names no video")


def _video(value: Any, what: str, *, frames: bool) -> str | tuple[str, ...]:
    if isinstance(value, dict):
        name = first_of(value, "path", "url", "video", "uri")
        if name is None:
            raise ValueError(f"{what} holds the video itself and not its path")
        return words(name, what)
    if not isinstance(value, list):
        return words(value, what)
    if frames or (len(value) > 1 and all(isinstance(item, str) and _is_image(item) for item in value)):
        return _frames(value, what)
    if len(value) != 1:
        raise ValueError(f"{what} names {len(value)} videos, and a question is about one")
    return _video(value[0], what, frames=False)


def _frames(value: list[Any], what: str) -> tuple[str, ...]:
    """The paths of frames. There are fifty in each record of the published files, so they are checked all at once."""
    if all(isinstance(item, str) for item in value):
        names = tuple(_checked("\n".join(value), what).split("\n"))
    else:
        names = tuple(str(_video(item, what, frames=False)) for item in value)
    if not value or not all(names):
        raise ValueError(f"{what} has an empty name in it")
    return names


def _is_image(name: str) -> bool:
    return name.lower().endswith((".jpg", ".jpeg", ".png"))


def _in_messages(record: Mapping[str, Any]) -> list[Any]:
    """Videos that are parts of messages: `{"type": "video", "video": ...}` or `{"video_url": {"url": ...}}`."""
    found = []
    for key in ("messages", "prompt", "conversations", "chosen"):
        turns = record.get(key)
        for turn in turns if isinstance(turns, list) else ():
            parts = turn.get("content") if isinstance(turn, dict) else None
            for part in parts if isinstance(parts, list) else ():
                video = first_of(part, "video", "video_url", "path") if isinstance(part, dict) else None
                if video is not None and video not in found:
                    found.append(video)
        if found:
            break
    return found
