"""What other people's records mean: a function for each format, from one record to questions about a video.

A record that does not fit raises `ValueError` with the reason. Nothing here opens a file or knows the warehouse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_rlaif.warehouse.intake.conversations import (
    VIDEO_KEYS,
    aside,
    first_of,
    last_question,
    question_text,
    response_text,
    said,
    shown,
    turns_of,
    video_of,
    words,
)  # fmt: skip

Record = Mapping[str, Any]
ACTIVITYNET_KINDS = ("motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other")
"""`type` of ActivityNet-QA, https://github.com/MILVLG/activitynet-qa, dataset/README.md."""
ACTIVITYNET_ID = re.compile(r"v_[\w-]{11}_\d+")
"""`question_id` of ActivityNet-QA: the id of the video, and a number."""
TGIF_KINDS = ("object", "number", "color", "location")
"""`type` of TGIF-QA's frame questions, https://github.com/YunseokJANG/tgif-qa, dataset/README.md."""
BETTER = {
    "first": ("1", "a", "first", "model_a", "response_a"),
    "second": ("2", "b", "second", "model_b", "response_b"),
    "tie": ("0", "tie", "c"),
}
"""What a preference may say."""
RATIONALES = ("rationale", "explanation", "feedback", "reason", "critique", "reply")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Two responses, and which is better."""

    first: str
    second: str
    better: str
    """`first`, `second` or `tie`."""
    rationale: str = ""
    models: tuple[str, str] = ("", "")
    """Who wrote them, where the file says."""
    judge: str = ""
    """Who compared them, where the file says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question about a video, with an answer, a comparison of two, or neither."""

    video: str | tuple[str, ...]
    """Its name, or the paths of its frames."""
    question: str
    reference: str | None = None
    kind: str | None = None
    compared: Compared | None = None


# Conversations and preferences


def read_conversation(record: Record) -> list[Asked]:
    """Every human turn is a question, and what the assistant says next is its reference."""
    turns = turns_of(first_of(record, "conversations", "messages"))
    video, kind = video_of(record), _kind(record)
    asked = [
        Asked(
            video=video, question=question_text(turn.text, "a question"), kind=kind,
            reference=(after.text or None) if after is not None and after.role == "assistant" else None,
        )
        for turn, after in zip(turns, [*turns[1:], None], strict=True) if turn.role == "human"
    ]  # fmt: skip
    if not asked:
        raise ValueError("nobody asks anything in its conversation")
    return asked


def read_vlm_rlaif(record: Record) -> list[Asked]:
    """VLM-RLAIF and LLaVA-RLHF: a conversation, or one whose last answer is `output_1` or `output_2`."""
    if "preference" not in record:
        return read_conversation(record)
    question = last_question(turns_of(record.get("conversations")))
    return [_preference(record, question, record.get("output_1"), record.get("output_2"), record["preference"])]


def read_trl(record: Record) -> list[Asked]:
    """TRL: `prompt`, `chosen`, `rejected`, each text or messages; the prompt may be the start of both."""
    prompt, chosen = first_of(record, "prompt", "question", "messages"), record.get("chosen")
    if isinstance(prompt, list):
        question = last_question(turns_of(prompt))
    elif prompt is not None:
        question = question_text(prompt)
    elif isinstance(chosen, list):
        question = last_question(turns_of(chosen))
    else:
        raise ValueError("it has no `prompt`, and `chosen` is not a conversation that begins with it")
    return [_preference(record, question, chosen, record.get("rejected"), 1)]


def read_llama_factory(record: Record) -> list[Asked]:
    """LLaMA-Factory: a conversation or an instruction, with `chosen` and `rejected`, or with an `output`."""
    if "instruction" in record:
        question = f"{question_text(record['instruction'])}\n{said(record.get('input'), 'its input')}".strip()
    else:
        question = last_question(turns_of(first_of(record, "conversations", "messages")))
    if "chosen" in record:
        return [_preference(record, question, record["chosen"], record.get("rejected"), 1)]
    reference = said(record.get("output"), "its output") or None
    return [Asked(video=video_of(record), question=question, reference=reference, kind=_kind(record))]


def read_ms_swift(record: Record) -> list[Asked]:
    """ms-swift: messages that end with the better answer, and the rejected one apart; or `query` and `response`."""
    rejected = first_of(record, "rejected_response", "rejected_messages")
    if "query" in record:
        question, answer = question_text(record["query"]), record.get("response")
        if rejected is None:
            reference = said(answer, "its response") or None
            return [Asked(video=video_of(record), question=question, reference=reference, kind=_kind(record))]
    else:
        turns = turns_of(record.get("messages"))
        if turns[-1:] and turns[-1].role != "assistant":
            raise ValueError("its messages do not end with the assistant")
        question, answer = last_question(turns), turns[-1].text
    return [_preference(record, question, answer, rejected, 1)]


def _preference(record: Record, question: str, first: Any, second: Any, better: Any) -> Asked:
    texts = response_text(first, "the first response"), response_text(second, "the second response")
    if texts[0] == texts[1]:
        raise ValueError("both responses have the same words")
    return Asked(
        video=video_of(record), question=question, kind=_kind(record),
        reference=aside(first_of(record, "reference", "answer"), "its reference") or None,
        compared=Compared(
            first=texts[0], second=texts[1], better=_better(better),
            rationale=aside(first_of(record, *RATIONALES), "its rationale"),
            models=(aside(record.get("model_a"), "`model_a`"), aside(record.get("model_b"), "`model_b`")),
            judge=aside(record.get("judge"), "`judge`"),
        ),
    )  # fmt: skip


def _better(value: Any) -> str:
    """Which response a preference names: 1 or 2, a or b; 0 and tie are neither.

    >>> _better(1), _better("B"), _better(0.0)
    ('first', 'second', 'tie')
    """
    name = said(value, "its preference").lower()
    for better, names in BETTER.items():
        if name in names:
            return better
    raise ValueError(f"its preference is none of 1, 2 and tie: {shown(value)}")


# Questions and answers


def read_video_chatgpt(record: Record) -> list[Asked]:
    """Video-ChatGPT: `q` and `a` (instructions), `Q` and `A`, or `Q1`, `Q2` and `A` (consistency benchmark)."""
    asked = [record[key] for key in ("q", "Q", "Q1", "Q2") if record.get(key) is not None]
    reference = words(first_of(record, "a", "A"), "its answer")
    kind = "consistency" if "Q1" in record else _kind(record)
    if not asked:
        raise ValueError("it has no question")
    return [
        Asked(video=video_of(record), question=question_text(text), reference=reference, kind=kind) for text in asked
    ]


def read_video_qa(record: Record) -> list[Asked]:
    """MSVD-QA, MSRVTT-QA, TGIF-QA, ActivityNet-QA and their like: `question` and `answer`, which may be a choice."""
    asked, kind = [first_of(record, "question", "query")], _kind(record)
    pair = [record.get(key) for key in ("question_1", "question_2")]  # lmms-eval's copy of Video-ChatGPT
    if all(text not in (None, "", "None") for text in pair):
        asked, kind = pair, "consistency"
    video, reference = video_of(record), _answer(record)
    return [Asked(video=video, question=question_text(text), reference=reference, kind=kind) for text in asked]


def _answer(record: Record) -> str | None:
    """The words of the answer: where there are choices, those of the right one."""
    answer = said(record.get("answer"), "its answer")
    choices = _choices(record)
    if choices and re.fullmatch(r"\d|[A-H]", answer):
        number = int(answer) if answer.isdecimal() else ord(answer) - ord("A")
        if number >= len(choices):
            raise ValueError(f"its answer {answer} is none of its {len(choices)} choices")
        return re.sub(r"^[A-H][.):] *", "", choices[number])
    return answer or None


def _choices(record: Record) -> list[str]:
    """`a0` to `a4` of NExT-QA, `a1` to `a5` of TGIF-QA, or a list."""
    listed = first_of(record, "candidates", "options", "choices")
    if isinstance(listed, list):
        return [words(choice, "a choice") for choice in listed]
    names = [name for name in (f"a{number}" for number in range(10)) if name in record]
    return [words(record[name], "a choice") for name in names]


def _kind(record: Record) -> str | None:
    """The kind of a question, by its name where the number is one of a known data set."""
    kind = aside(first_of(record, "kind", "type", "question_type"), "its type")
    if kind.isdecimal() and len(kind) == 1:
        names: Sequence[str] = ()
        if "gif_name" in record:
            names = TGIF_KINDS
        elif ACTIVITYNET_ID.fullmatch(aside(record.get("question_id"), "its id")):
            names = ACTIVITYNET_KINDS
        return names[int(kind)] if int(kind) < len(names) else kind
    if not kind and "gif_name" in record:
        kind = re.sub(r"\d+$", "", aside(record.get("vid_id"), "its id")).lower()
    return kind or None


# Named columns

COLUMNS: dict[str, tuple[str, ...]] = {
    "video": VIDEO_KEYS,
    "question": ("question", "prompt", "query", "instruction"),
    "reference": ("reference", "answer", "response", "output"),
    "kind": ("kind", "type", "question_type"),
    "response-a": ("response_a", "text_a", "answer_a", "response_1"),
    "response-b": ("response_b", "text_b", "answer_b", "response_2"),
    "preference": ("preference", "choice", "winner"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "rationale": RATIONALES,
}
"""What a column may hold -> the names that are understood."""


def read_columns(record: Record, columns: Mapping[str, str]) -> list[Asked]:
    """A table: a question with its video, and a reference, two responses and a preference, or chosen and rejected."""
    cell = {
        what: record.get(columns[what]) if what in columns else first_of(record, *names)
        for what, names in COLUMNS.items()
    }
    named = {what: cell[what] for what in ("video", "kind", "reference", "rationale")}
    named |= {key: record[key] for key in ("model_a", "model_b", "judge", "images") if key in record}
    question = question_text(cell["question"])
    if said(cell["preference"], "its preference"):
        return [_preference(named, question, cell["response-a"], cell["response-b"], cell["preference"])]
    if cell["chosen"] is not None:
        return [_preference(named, question, cell["chosen"], cell["rejected"], 1)]
    reference = said(named["reference"], "its reference") or None
    return [Asked(video=video_of(named), question=question, reference=reference, kind=_kind(named))]
