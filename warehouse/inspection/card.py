"""What `show` knows, as lines for a terminal. Every word of a model or a file is made printable first."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from vlm_rlaif.warehouse.inspection.printing import printable

MARGIN = 12
SHOWN_ANSWERS = 6
SHORT_REPLY = 12
ORDERS = {"ab": "a, b", "ba": "b, a", "both": "both"}

Row = dict[str, Any]


def lines(card: Row, width: int) -> Iterator[str]:
    """A pair on one page: `width` columns."""
    video, question = card["video"], card["question"]
    yield from beside("pair", card["pair"]["pair_id"], width)
    yield from beside("video", " · ".join(_video(video)), width)
    for context in card["contexts"]:
        yield from beside("context", context["text"], width, f"{context['prompt']} {context['context_id']}")
    yield ""
    yield from beside("question", question.get("text", "(not in this warehouse)"), width)
    if question.get("reference"):
        yield from beside("reference", question["reference"], width)
    for side, response in zip("ab", card["responses"], strict=True):
        yield ""
        yield from beside(f"response {side}", response.get("text", "(missing)"), width, " · ".join(_maker(response)))
    yield ""
    yield from _labels(card["labels"], width)
    yield ""
    yield from aligned("preferences", ["judge", "choice", "p_a", "strength", ""], [
        [each["prompt"], each["choice"], f"{each['p_a']:.3f}", f"{each['strength']:.3f}", _doubt(each)]
        for each in card["preferences"]
    ], width)  # fmt: skip
    if card["humans"]:
        yield ""
        yield from aligned("people", ["person", "choice", "sure", "reasons", "comment"], [
            [each["annotator"], each["choice"], f"{each['confidence'] or ''}", ", ".join(each["reasons"]),
             each["comment"] or ""]
            for each in card["humans"]
        ], width)  # fmt: skip
    for each in card["failures"]:
        yield ""
        said = f"{each['kind']}: {each['message']}\n{each['reply'] or ''}".rstrip()
        yield from beside("failure", said, width, f"{_asked(each)} · attempt {each['attempt']} · {each['row_id']}")
    for each in card["answers"][:SHOWN_ANSWERS]:
        yield ""
        yield from beside("answer", each["text"], width, " · ".join(_answerer(each)))
    if (more := len(card["answers"]) - SHOWN_ANSWERS) > 0:
        yield f"{'':<{MARGIN}}... and {more} more answers"


def _labels(labels: list[Row], width: int) -> Iterator[str]:
    """A line per verdict, then the replies that are longer than a word or two."""
    yield from aligned("labels", ["judge", "read", "shown", "choice", "p_a", "p_tie", "reply"], [
        [label["prompt"], "context" if label["context_id"] else "", _shown(label),
         label["choice"], f"{label['p_a']:.3f}", f"{label['p_tie']:.3f}", _short(label["reply"])]
        for label in labels
    ], width)  # fmt: skip
    for label in labels:
        if len(label["reply"]) > SHORT_REPLY:
            yield ""
            yield from beside("reply", label["reply"], width, f"{_asked(label)} · {label['label_id']}")


def _short(reply: str) -> str:
    return reply if len(reply) <= SHORT_REPLY else f"{reply[:SHORT_REPLY]}..."


def _asked(row: Row) -> str:
    """How a judge was asked."""
    return f"{row['prompt']} · shown {_shown(row)}"


def _shown(row: Row) -> str:
    """In which order, and for which vote where there are several."""
    order = ORDERS.get(row["shown_order"], "unknown")
    return f"{order} · vote {row['vote'] + 1}" if row["vote"] else order


def _video(video: Row) -> Iterator[str]:
    yield video.get("uri") or "(not in this warehouse)"
    if video.get("duration_s"):
        yield f"{video['duration_s']:g} s"
    if video.get("width"):
        yield f"{video['width']} x {video['height']}"
    for name in ("split", "status", "video_id"):
        if video.get(name) not in (None, "ok"):
            yield video[name]


def _maker(response: Row) -> Iterator[str]:
    yield str(response.get("model") or "unknown model")
    if response.get("prompt"):
        yield response["prompt"]
    if "sample_index" in response:
        yield f"sample {response['sample_index']}"
        yield f"{response['tokens']} tokens" + (", cut off" if response["finish"] == "length" else "")
    if response.get("logprob") is not None:
        yield f"logprob {response['logprob']:.2f}"
    yield response["response_id"]


def _doubt(preference: Row) -> str:
    if preference["conflict"]:
        return "the two orders contradict each other"
    if preference["vote_spread"]:
        return f"votes {preference['vote_spread']:.2f} apart"
    return "" if preference["complete"] else "judged in one order so far"


def _answerer(answer: Row) -> Iterator[str]:
    yield str(answer["model"] or "unknown model")
    yield f"sample {answer['sample_index']}"
    for name, value in answer["scores"].items():
        yield f"{name} {'none' if value is None else f'{value:.2f}'}"
    yield answer["answer_id"]


def beside(name: str, text: str, width: int, source: str = "") -> Iterator[str]:
    """A name in the margin and wrapped text beside it; `source` says above it whose words they are."""
    shown: list[str] = []
    for line in [*([printable(source)] if source else []), *printable(text).expandtabs(4).splitlines()]:
        shown += textwrap.wrap(line, max(20, width - MARGIN), break_on_hyphens=False) or [""]
    for number, line in enumerate(shown or [""]):
        yield f"{'' if number else name:<{MARGIN}}{line}".rstrip()


def aligned(name: str, head: Sequence[str], rows: list[list[str]], width: int) -> Iterator[str]:
    """Aligned columns beside a name in the margin, without a head where there is none; a line ends with the page."""
    if not rows:
        yield f"{name:<{MARGIN}}none"
        return
    cells = [
        *([list(head)] if head else []),
        *([" ".join(printable(str(value)).split()) for value in row] for row in rows),
    ]
    room = max(20, width - MARGIN)
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for number, line in enumerate(cells):
        text = "  ".join(f"{value:<{size}}" for value, size in zip(line, widths, strict=True)).rstrip()
        yield f"{'' if number else name:<{MARGIN}}{text if len(text) <= room else f'{text[: room - 3]}...'}"
