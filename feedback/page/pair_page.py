"""One pair as a page: the video with its captions beside the question, both answers and what was said of them."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator

from vlm_rlaif.feedback.page import verdicts
from vlm_rlaif.feedback.page.list_page import search_form
from vlm_rlaif.feedback.page.listing import Filter, Listing, Row
from vlm_rlaif.feedback.page.markup import Html, Inside, tag
from vlm_rlaif.feedback.page.shell import SIDE, About, badge, file_name, lines, shell
from vlm_rlaif.feedback.page.verdicts import maker

LONG_CONTEXT = 1_500
"""Characters of a context that is folded away."""
MOST_COMPARED = 400
"""Words of an answer, above which differences are not marked: it takes long and shows little."""
_WORD = re.compile(r"\S+|\s+")


def pair_page(listing: Listing, about: About, filter: Filter, card: Row) -> bytes:
    """The page of a pair; `card` is what `pair.look_up` found."""
    mine = next((row for row in card["places"] if row["judge"] == filter.judge), None)
    columns = tag(
        "div",
        tag("section", _watch(card), class_="watch"),
        tag("section", _question(card["question"]), _answers(card, mine), verdicts.sections(card, filter.judge)),
        class_="columns",
    )
    turns = _turns(listing, filter, mine)
    return shell(
        about, "Pair", tag("main", turns, columns, verdicts.lineage(card, about), class_="pair"), search_form(filter)
    )


def _turns(listing: Listing, filter: Filter, mine: Row | None) -> Html:
    """Where the pair stands in the list, and the way to its neighbours."""
    back = tag("a", "↑ list", href=f"/?{filter.query}", rel="up")
    if mine is None:
        return tag("nav", back, tag("span", "not in this list", class_="quiet"), class_="turns")

    def way(rel: str, words: str, found: list[Row]) -> Html:
        if not found:
            return tag("span", words, class_="quiet")
        return tag("a", words, href=f"/pair/{found[0]['pair_id']}?{filter.query}", rel=rel)

    place = mine["place"]
    before = listing.page(filter, before=place, rows=1).rows
    after = listing.page(filter, after=place, rows=1).rows
    stands = f"{listing.position(filter, place):,} of {listing.counts(filter)[filter.show]:,}"
    ways = way("prev", "← previous", before), back, way("next", "next →", after)
    return tag("nav", ways, tag("span", stands, class_="quiet"), class_="turns")


def _watch(card: Row) -> Iterator[Inside]:
    """The video, with what is said to happen in it and when."""
    video = card["video"]
    if video.get("status") == "ok":
        yield tag("video", controls=True, preload="metadata", src=f"/video/{video['video_id']}", tabindex=-1)
        yield tag("p", id="video-says", role="status")
    else:
        why = video.get("status") or "it is not in this warehouse"
        yield tag("p", f"This video cannot be read: {why}", class_="no-video")
    size = f"{video['width']} × {video['height']}" if video.get("width") else None
    length = f"{video['duration_s']:g} s" if video.get("duration_s") else None
    facts = lines(tag("b", file_name(video.get("uri"))), length, size, video.get("codec"), video.get("split"))
    yield tag("p", facts, class_="quiet", title=video.get("uri"))
    numbers = itertools.count(1)
    for spec_id, captions in itertools.groupby(card["captions"], key=lambda caption: caption["spec_id"]):
        yield tag("h2", "Captions ", tag("small", maker(card, spec_id)))
        yield tag("ol", [_moment(caption, next(numbers)) for caption in captions])
    if card["transcripts"]:
        yield tag("h2", "Transcript")
        yield tag("ol", [_moment(line, next(numbers)) for line in card["transcripts"]])
    for context in card["contexts"]:
        whose = tag("small", maker(card, context["spec_id"]))
        summary, text = tag("summary", "Context ", whose), tag("p", context["text"], class_="words")
        yield tag("details", summary, text, open=len(context["text"]) <= LONG_CONTEXT)


def _moment(said: Row, number: int) -> Html:
    """A part of the video and words about it: a click jumps there."""
    begin, end = said["start_s"], said["end_s"]
    inside = tag("span", f"{begin:.1f}–{end:.1f} s", class_="clock"), tag("span", said["text"], class_="words")
    hint = f"key {number}" if number < 10 else None
    button = tag("button", *inside, type="button", class_="clip", data_start=begin, data_end=end, title=hint)
    return tag("li", button)


def _question(question: Row) -> Iterator[Html]:
    yield tag("h1", question.get("text", "(the question is not in this warehouse)"))
    kind, reference = question.get("kind"), question.get("reference")
    if kind or reference:
        known = tag("span", "Reference: ", tag("b", reference)) if reference else None
        yield tag("p", badge(kind, "quiet") if kind else None, known, class_="reference")


def _answers(card: Row, mine: Row | None) -> Html:
    texts = [response.get("text", "(the answer is not in this warehouse)") for response in card["responses"]]
    people = {row["choice"] for row in card["humans"]}
    return tag(
        "div",
        [
            _answer(
                card, response, side, words, preferred=bool(mine and mine["choice"] == side), by_all=people == {side}
            )
            for response, side, words in zip(card["responses"], "ab", differing(*texts), strict=True)
        ],
        class_="answers",
    )


def _answer(card: Row, response: Row, side: str, words: Inside, *, preferred: bool, by_all: bool) -> Html:
    """One answer; `preferred` by the judge of the list, `by_all` people who judged it."""
    head = tag(
        "header",
        tag("b", SIDE[side], class_=f"side side-{side}"),
        badge("preferred", f"side-{side}") if preferred else None,
        badge("people prefer it", "agree") if by_all else None,
    )
    tokens = f"{response['tokens']:,} tokens" if response.get("tokens") else None
    cut = "cut off" if response.get("finish") == "length" else None
    facts = lines(f"{len(response.get('text', '')):,} characters", tokens, cut, maker(card, response.get("spec_id")))
    inside = head, tag("p", words, class_="words"), tag("footer", facts, class_="quiet")
    return tag("article", *inside, class_="chosen" if preferred else None)


def differing(a: str, b: str) -> tuple[Inside, Inside]:
    """Both texts, with the words marked that the other one has not in that place.

    >>> differing("a red ball", "a blue ball")
    (['a ', '<mark>red</mark>', ' ball'], ['a ', '<mark>blue</mark>', ' ball'])
    """
    words = _WORD.findall(a), _WORD.findall(b)
    if max(map(len, words)) > 2 * MOST_COMPARED:
        return a, b
    shown: tuple[list[Inside], list[Inside]] = [], []
    steps = difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes()
    for what, a_begin, a_end, b_begin, b_end in steps:
        for pieces, has in ((shown[0], words[0][a_begin:a_end]), (shown[1], words[1][b_begin:b_end])):
            if has:
                pieces.append("".join(has) if what == "equal" else tag("mark", "".join(has)))
    return shown
