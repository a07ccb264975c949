"""What all pages share: the head, the bar at the top, the help; and small pieces of both kinds of pages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vlm_rlaif.feedback.page.markup import Html, Inside, join, tag

KEYS = (
    ("j  or  →", "next pair"),
    ("k  or  ←", "previous pair"),
    ("Enter", "open the pair (in the list)"),
    ("Space", "play or pause"),
    ("1 … 9", "jump to a clip; in the list: the filters from the top"),
    ("/", "search"),
    ("u", "back to the list"),
    ("?", "this help"),
)
BAR_WIDTH = 96
SIDE = {"a": "A", "b": "B", "tie": "tie", "both_bad": "both bad"}
"""What people call a choice."""


@dataclass(frozen=True, slots=True)
class About:
    """Of what the pages are a snapshot."""

    warehouse: Path
    """As it was named on the command line: commands on the pages can be run where that one was."""
    taken_at: datetime


def shell(about: About, title: str, body: Html, search: Html | None = None) -> bytes:
    """A whole page."""
    name = about.warehouse.name
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} · {name}"),
        tag("link", rel="icon", href="/static/icon.svg", type="image/svg+xml"),
        tag("link", rel="stylesheet", href="/static/page.css"),
        tag("script", src="/static/page.js", defer=True),
    )
    moment = f"a snapshot of {about.taken_at:%Y-%m-%d %H:%M:%S}"
    bar = tag(
        "header",
        tag("a", name, href="/", class_="brand", title=str(about.warehouse)),
        tag("span", f"as of {about.taken_at:%H:%M}", class_="quiet", title=moment),
        search,
        tag("button", "?", type="button", id="ask", title="keys", aria_label="keys"),
    )
    page = tag("html", head, tag("body", bar, body, _help()), lang="en")
    return f"<!doctype html>\n{page}".encode()


def _help() -> Html:
    keys = [(tag("dt", tag("kbd", key)), tag("dd", what)) for key, what in KEYS]
    close = tag("form", tag("button", "Close"), method="dialog")
    return tag("dialog", tag("h2", "Keys"), tag("dl", keys), close, id="help")


def badge(text: Inside, kind: str = "", title: str | None = None) -> Html:
    return tag("span", text, class_=f"badge {kind}".strip(), title=title)


def verdict_badge(choice: str | None, p: float | None, conflict: bool = False) -> Html:
    """What a judge thinks, with how probable it holds that A is better."""
    if choice is None:
        return badge("not judged", "quiet")
    if conflict:
        return badge("conflict", "conflict", "the two orders name different winners, which is a tie")
    sure = "" if p is None else f"\N{NO-BREAK SPACE}{p if choice == 'a' else 1 - p if choice == 'b' else p:.2f}"
    return badge(f"{SIDE[choice]}{sure}", f"side-{choice}", None if p is None else f"P(A is better) = {p:.3f}")


def p_bar(p: float) -> Html:
    """How probable it is that A is better, as a bar from the middle: to the left A, to the right B."""
    middle, long = BAR_WIDTH / 2, abs(p - 0.5) * BAR_WIDTH
    begin, side = (middle - long, "a") if p >= 0.5 else (middle, "b")
    return tag(
        "svg",
        tag("rect", x=0, y=3, width=BAR_WIDTH, height=6, rx=3, class_="track"),
        tag("rect", x=f"{begin:.1f}", y=3, width=f"{max(long, 1):.1f}", height=6, rx=2, class_=f"fill-{side}"),
        tag("rect", x=middle - 0.5, y=0, width=1, height=12, class_="middle"),
        class_="p-bar", width=BAR_WIDTH, height=12, role="img", aria_label=f"P(A is better) = {p:.2f}",
    )  # fmt: skip


def command(line: str) -> Html:
    """A command, with a button that copies it."""
    copy = tag("button", "copy", type="button", data_copy=line)
    return tag("span", tag("code", line), copy, class_="command")


def shorten(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most].rstrip()}…"


def file_name(path: str | None) -> str:
    """The name of a prompt or a file without its folders."""
    return Path(path).name if path else "?"


def lines(*pieces: Inside) -> Html:
    """Facts on one line, between dots; those that are None are left out."""
    there = [piece for piece in pieces if piece is not None and piece != ""]
    return join([(" · " if n else "", piece) for n, piece in enumerate(there)])
