"""The formats that are known, and how one is recognised by its records."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from vlm_rlaif.warehouse.errors import UserError, nearest
from vlm_rlaif.warehouse.intake.conversations import VIDEO_KEYS, shown
from vlm_rlaif.warehouse.intake.meanings import (
    COLUMNS,
    Asked,
    Record,
    read_columns,
    read_conversation,
    read_llama_factory,
    read_ms_swift,
    read_trl,
    read_video_chatgpt,
    read_video_qa,
    read_vlm_rlaif,
)

Keys = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file."""

    name: str
    typical: Keys
    """What a record usually has."""
    signs: tuple[Keys, ...]
    """A record with all the keys of one of these is of this format."""
    read: Callable[[Record], list[Asked]]

    def fits(self, record: Record) -> bool:
        return any(all(key in record for key in keys) for keys in self.signs)


def _either(*choices: Keys) -> tuple[Keys, ...]:
    """One key of each choice, in every combination."""
    return tuple(itertools.product(*choices))


_COMPARISON = _either(*(COLUMNS[what] for what in ("question", "response-a", "response-b", "preference")))
FORMATS = (
    Format(
        "vlm-rlaif", ("id", "conversations", "images", "output_1", "output_2", "preference"),
        (("output_1", "output_2", "preference"), ("conversations", "images")), read_vlm_rlaif,
    ),
    Format(
        "ms-swift", ("messages", "rejected_response", "videos"),
        (("rejected_response",), ("rejected_messages",), ("query", "response")), read_ms_swift,
    ),
    Format(
        "llama-factory", ("conversations", "chosen", "rejected", "videos"),
        (*_either(("conversations", "instruction"), ("chosen",), ("rejected",)), ("instruction", "output")),
        read_llama_factory,
    ),
    Format("trl", ("prompt", "chosen", "rejected", "videos"), (("chosen", "rejected"),), read_trl),
    Format("llava", ("id", "video", "conversations"), (("conversations",), ("messages",)), read_conversation),
    Format("video-chatgpt", ("q", "a", "video_id"), (("q", "a"), ("Q", "A"), ("Q1", "A")), read_video_chatgpt),
    Format(
        "columns", ("video", "question", "response_a", "response_b", "preference"), _COMPARISON,
        partial(read_columns, columns={}),
    ),
    Format(
        "video-qa", ("video_name", "question", "answer", "question_id"), _either(("question",), VIDEO_KEYS),
        read_video_qa,
    ),
)  # fmt: skip
"""The first that fits is taken."""


def _not_known(record: Record) -> list[Asked]:
    raise ValueError("its format is not known; --format names it")


UNKNOWN = Format("unknown", (), (), _not_known)
"""The format of a file in which no record could be recognised, because none could be read."""


def format_named(name: str) -> Format:
    for known in FORMATS:
        if known.name == name:
            return known
    names = [known.name for known in FORMATS]
    raise UserError(f"There is no format {name!r}.{nearest(name, names)}", f"Formats: auto, {', '.join(names)}.")


def recognise(records: Sequence[Record]) -> Format | None:
    """The format of most of these records."""
    votes = [next((known for known in FORMATS if known.fits(record)), None) for record in records]
    named = [vote for vote in votes if vote is not None]
    return max(FORMATS, key=named.count) if named else None


def resembles(records: Sequence[Record]) -> str:
    """What unrecognised records have, and which format comes nearest to it."""
    keys = sorted({str(key) for record in records for key in record})
    close = max(FORMATS, key=lambda known: len(set(known.typical) & set(keys)) / len(known.typical))
    has = f"Its records have the keys {shown(keys)}." if keys else "Its records have no keys."
    if not set(close.typical) & set(keys):
        return has
    return f"{has} The nearest format is {close.name}, whose records have {', '.join(close.typical)}."
