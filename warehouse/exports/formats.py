"""What other trainers call a preference: each format is a function from a row of `rows.read` to their record.

Pure functions. Formats of a better and a worse response know no ties. The soft label travels along where a record may
have further keys: `p_chosen` is the probability that `chosen` is better, `strength` how far that is from a coin.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlm_rlaif.warehouse.errors import UserError, nearest

Row = dict[str, Any]
MARKS = re.compile(r"<(?:video|image|audio)>")
"""Where a trainer puts frames. A text that holds such a mark would get frames of its own."""


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of file."""

    name: str
    suffix: str
    """`jsonl`, `json` (one list), `parquet` or `arrow`."""
    record: Callable[[Row], Row] | None = None
    """None: rows stay columns, ties among them."""
    marks: bool = False
    """The record's texts may not hold `MARKS`."""

    @property
    def ties(self) -> bool:
        return self.record is None

    def file_name(self, split: str) -> str:
        return f"{split}/data-00000-of-00001.arrow" if self.suffix == "arrow" else f"{split}.{self.suffix}"

    def fits(self, row: Row) -> bool:
        """Whether the row can be said in this format."""
        return not (self.marks and any(MARKS.search(row[name]) for name in ("question", "text_a", "text_b")))


def trl(row: Row) -> Row:
    """TRL: a conversational preference. The user's turn says where the video goes; `videos` names its file."""
    chosen, rejected = _sides(row)
    return {
        "prompt": [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": row["question"]}]}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": chosen}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": rejected}]}],
        "videos": [row["video"]],
        **_more(row),
    }


def llama_factory(row: Row) -> Row:
    """LLaMA-Factory: sharegpt with `ranking`; as many `<video>` as videos."""
    chosen, rejected = _sides(row)
    return {
        "conversations": [{"from": "human", "value": f"<video>{row['question']}"}],
        "chosen": {"from": "gpt", "value": chosen},
        "rejected": {"from": "gpt", "value": rejected},
        "videos": [row["video"]],
        **_more(row),
    }


def ms_swift(row: Row) -> Row:
    """ms-swift: messages that end with the better response."""
    chosen, rejected = _sides(row)
    return {
        "messages": [
            {"role": "user", "content": f"<video>{row['question']}"},
            {"role": "assistant", "content": chosen},
        ],
        "rejected_response": rejected,
        "videos": [row["video"]],
        **_more(row),
    }


def llava(row: Row) -> Row:
    """LLaVA-NeXT's DPO trainer, which puts the image token before the prompt itself and reads `answer`, too."""
    chosen, rejected = _sides(row)
    return {
        "id": row["pair_id"],
        "video": row["video"],
        "prompt": row["question"],
        "answer": row["reference"] or "",
        "chosen": chosen,
        "rejected": rejected,
        **_more(row),
    }


def vlm_rlaif(row: Row) -> Row:
    """VLM-RLAIF and LLaVA-RLHF: a conversation without its last answer, two outputs, and which of them is better."""
    return {
        "id": row["pair_id"],
        "video": row["video"],
        "conversations": [{"from": "human", "value": f"<image>\n{row['question']}"}, {"from": "gpt", "value": ""}],
        "output_1": {"from": "gpt", "value": row["text_a"]},
        "output_2": {"from": "gpt", "value": row["text_b"]},
        "preference": 1 if row["choice"] == "a" else 2,
        "p_output_1": row["p_a"],
        "strength": row["strength"],
        "judge": row["judge"],
    }


def _sides(row: Row) -> tuple[str, str]:
    """The better and the worse text."""
    return (row["text_a"], row["text_b"]) if row["choice"] == "a" else (row["text_b"], row["text_a"])


def _more(row: Row) -> Row:
    p_chosen = row["p_a"] if row["choice"] == "a" else 1 - row["p_a"]
    return {
        "pair_id": row["pair_id"], "judge": row["judge"], "p_chosen": p_chosen, "strength": row["strength"]
    }  # fmt: skip


FORMATS = {
    known.name: known
    for known in (
        Format("trl", "jsonl", trl),
        Format("llama-factory", "json", llama_factory, marks=True),
        Format("ms-swift", "jsonl", ms_swift, marks=True),
        Format("llava", "json", llava, marks=True),
        Format("vlm-rlaif", "json", vlm_rlaif, marks=True),
        Format("parquet", "parquet"),
        Format("hf", "arrow"),
    )
}


def format_named(name: str) -> Format:
    if name not in FORMATS:
        raise UserError(
            f"There is no format {name!r}.{nearest(name, FORMATS)}", f"Formats: {', '.join(FORMATS)}."
        )  # fmt: skip
    return FORMATS[name]


def llama_factory_entries(name: str, files: dict[str, str]) -> Row:
    """`dataset_info.json`: how LLaMA-Factory finds the files (split -> file name)."""
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "videos": "videos"}
    return {
        f"{name}_{split}": {"file_name": file, "formatting": "sharegpt", "ranking": True, "columns": columns}
        for split, file in files.items()
    }
