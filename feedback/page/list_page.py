"""The list of pairs as a page: filters that are links, and a row for every pair."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from vlm_rlaif.feedback.page.listing import NOBODY, SHOWS, SORTS, Filter, Listing, Page, Row
from vlm_rlaif.feedback.page.markup import Html, tag
from vlm_rlaif.feedback.page.shell import SIDE, About, badge, command, file_name, shell, shorten, verdict_badge

SHOWN_CHARACTERS = 280
"""Of an answer."""
STEPS = {
    "videos": ("There is no video in this warehouse yet.", "vlm-rlaif add {} FOLDER_OF_VIDEOS"),
    "questions": ("There are videos, and no question about them yet.", "vlm-rlaif datagen ask {} --recipe RECIPE"),
    "responses": ("There are questions, and no answers yet.", "vlm-rlaif datagen respond {} --recipe RECIPE"),
    "pairs": ("There are answers, and no pairs of them yet.", "vlm-rlaif datagen pair {} --recipe RECIPE"),
    "labels": ("No judge has compared a pair yet.", "vlm-rlaif feedback label {} --recipe RECIPE"),
}
"""What to do next where a table is empty; the first one counts."""


def list_page(listing: Listing, about: About, filter: Filter, after: int | None, before: int | None) -> bytes:
    """The page that begins after a place, or ends before one."""
    judges = listing.judges
    step = _next_step(listing, about.warehouse)
    if not judges:
        return shell(about, "Pairs", tag("main", step, class_="empty"))
    counts, page = listing.counts(filter), listing.page(filter, after, before)
    total, words = counts[filter.show], listing.words(page.rows)
    said = tag(
        "p", tag("b", f"{total:,}"), " pair, " if total == 1 else " pairs, ", SORTS[filter.sort][0], class_="total"
    )
    listed = tag("ol", [_row(row, words, filter) for row in page.rows], class_="pairs")
    main = tag("main", step, said, listed, _turns(page, filter) if page.rows else _nothing(filter))
    sides = tag("div", _sidebar(listing, filter, judges, counts), main, class_="list")
    return shell(about, "Pairs", sides, search_form(filter))


def search_form(filter: Filter) -> Html:
    """A field that searches within the filter."""
    kept = [tag("input", type="hidden", name=name, value=value) for name, value in filter.but(text="").said().items()]
    words = "Search questions, answers, files"
    field = tag("input", type="search", name="text", value=filter.text, placeholder=words, aria_label=words)
    return tag("form", field, kept, action="/", method="get", class_="search", role="search")


def _next_step(listing: Listing, warehouse: Path) -> Html | None:
    """What is missing in a warehouse that has no labels."""
    counts = ", ".join(f"(SELECT count(*) FROM {table}) AS {table}" for table in STEPS)
    (found,) = listing.rows(f"SELECT {counts}")
    for table, (words, line) in STEPS.items():
        if not found[table]:
            return tag("p", words, " Next: ", command(line.format(shlex.quote(str(warehouse)))), class_="step")
    return None


def _nothing(filter: Filter) -> Html:
    everything = tag("a", "Show all pairs", href=f"/?{Filter(filter.judge).query}")
    return tag("p", "No pair is like that. ", everything, class_="empty")


def _sidebar(listing: Listing, filter: Filter, judges: list[Row], counts: dict[str, int]) -> Html:
    """Everything that can be chosen; each is an address."""
    who = [
        _link(
            filter.but(judge=row["judge"]),
            filter,
            _judge_name(row),
            row["pairs"],
            f"{row['judge']} {row['model'] or ''}",
        )
        for row in judges
    ]
    shows = [
        _link(filter.but(show=name), filter, words, counts[name])
        for name, (words, _) in SHOWS.items()
        if counts[name] or name in ("all", filter.show)
    ]
    sorts = [_link(filter.but(sort=name), filter, words) for name, (words, _) in SORTS.items()]
    kinds, splits = (
        [
            _link(filter.but(**{column: None}), filter, "any"),
            *(
                _link(filter.but(**{column: value}), filter, value or "(none)", n)
                for value, n in listing.values(filter, column)
            ),
        ]
        for column in ("kind", "split")
    )
    groups = (
        ("Judge", who, 1),
        ("Show", shows, 1),
        ("Sort", sorts, 1),
        ("Kind", kinds, 3),
        ("Split", splits, 3),
    )
    return tag("aside", [
        tag("section", tag("h2", name), tag("ul", links, class_=name.lower()))
        for name, links, least in groups if len(links) >= least
    ])  # fmt: skip


def _link(to: Filter, now: Filter, words: str, count: int | None = None, title: str | None = None) -> Html:
    number = None if count is None else tag("span", f"{count:,}", class_="count")
    current = "true" if to == now else None
    return tag("li", tag("a", tag("span", words), number, href=f"/?{to.query}", title=title, aria_current=current))


def _judge_name(row: Row) -> str:
    """What people call a judge; `row` has its prompt."""
    return "nobody yet" if row["judge"] == NOBODY else file_name(row["prompt"])


def _row(row: Row, words: dict[str, str], filter: Filter) -> Html:
    """A pair in the list, all of it a link."""
    facts = tag("span", _facts(row, words, filter), class_="facts")
    top = tag(
        "div", tag("h3", shorten(words.get(row["question_id"], "(missing)"), SHOWN_CHARACTERS)), facts, class_="top"
    )
    answers = [
        tag(
            "p",
            tag("b", side.upper(), class_=f"side side-{side}"),
            shorten(words.get(row[f"response_{side}"], "(missing)"), SHOWN_CHARACTERS),
            class_="answer chosen" if row["choice"] == side else "answer",
        )
        for side in "ab"
    ]
    return tag("li", tag("a", top, answers, href=f"/pair/{row['pair_id']}?{filter.query}"))


def _facts(row: Row, words: dict[str, str], filter: Filter) -> Iterator[Html]:
    yield tag("span", file_name(words.get(row["video_id"])), class_="quiet")
    if row["kind"]:
        yield badge(row["kind"], "quiet")
    if filter.sort == "gap" and row["gap"]:
        yield badge(f"{'A' if row['gap'] > 0 else 'B'} is {abs(row['gap']):,} characters longer", "quiet")
    if not row["complete"]:
        yield badge("one order", "quiet")
    if row["human"]:
        yield badge(f"people: {SIDE[row['human']]}", "agree" if row["human"] == row["choice"] else "disagree")
    yield verdict_badge(row["choice"], row["p"], row["conflict"])


def _turns(page: Page, filter: Filter) -> Html | None:
    """Links to the pages before and after this one."""
    ends = (
        ("prev", "← previous page", page.before, f"before={page.rows[0]['place']}"),
        ("next", "next page →", page.after, f"after={page.rows[-1]['place']}"),
    )
    links = [tag("a", words, href=f"/?{filter.query}&{end}", rel=rel) for rel, words, there, end in ends if there]
    return tag("nav", links, class_="turns") if links else None
