"""The list: every filter against an obvious query of the views, and pages that neither skip nor repeat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vlm_rlaif.feedback.page.listing import NOBODY, SHOWS, SORTS, Filter, Listing
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.store import Warehouse

TWIN = """
SELECT p.pair_id FROM preferences p JOIN questions q USING (question_id) JOIN videos v ON v.video_id = q.video_id
JOIN responses a ON a.response_id = p.response_a JOIN responses b ON b.response_id = p.response_b
LEFT JOIN human_preferences h ON h.pair_id = p.pair_id
WHERE p.judge_prompt = 'judge_v1' AND {condition}
"""
CONDITIONS = {
    "all": "TRUE", "conflicts": "p.conflict", "ties": "p.choice = 'tie' AND NOT p.conflict",
    "unsure": "p.p_a > 0.4 AND p.p_a < 0.6", "half": "p.orders = 1", "audited": "h.pair_id IS NOT NULL",
    "disagree": "h.choice <> p.choice",
}  # fmt: skip


@pytest.fixture
def judge(seen: Warehouse) -> str:
    return str(seen.value("SELECT spec_id FROM specs WHERE prompt = 'judge_v1'"))


def everything(listing: Listing, filter: Filter, rows: int = 5) -> list[str]:
    """All pages in turn."""
    found: list[str] = []
    page = listing.page(filter, rows=rows)
    while True:
        found += [row["pair_id"] for row in page.rows]
        if not page.after:
            return found
        page = listing.page(filter, after=page.rows[-1]["place"], rows=rows)


def ids(warehouse: Warehouse, condition: str) -> list[str]:
    return sorted(row["pair_id"] for row in warehouse.rows(TWIN.format(condition=condition)))


@pytest.mark.parametrize("show", SHOWS)
def test_a_filter_lists_what_an_obvious_query_finds(site: Any, seen: Warehouse, judge: str, show: str) -> None:
    wanted = ids(seen, CONDITIONS[show])
    assert sorted(everything(site.listing, Filter(judge, show))) == wanted
    assert site.listing.counts(Filter(judge))[show] == len(wanted) > 0


def test_filters_go_together(site: Any, seen: Warehouse, judge: str) -> None:
    filter = Filter(judge, "conflicts", kind="colour", split="train")
    assert everything(site.listing, filter) == ids(seen, "p.conflict AND q.kind = 'colour' AND v.split = 'train'")
    assert site.listing.counts(filter)["all"] == len(ids(seen, "q.kind = 'colour' AND v.split = 'train'"))


def test_questions_without_a_kind_are_a_kind(site: Any, seen: Warehouse, judge: str) -> None:
    assert dict(site.listing.values(Filter(judge), "kind")) == {"action": 8, "": 8, "colour": 6}
    assert sorted(everything(site.listing, Filter(judge, kind=""))) == ids(seen, "q.kind IS NULL")


@pytest.mark.parametrize(
    "text", ["CAT", "at 3 ?", "very very very very very very very fast", "cat.mp4", "%", "no such"]
)
def test_a_search_finds_words_as_they_stand_in_capitals_or_not(
    site: Any, seen: Warehouse, judge: str, text: str
) -> None:
    where = " OR ".join(
        f"contains(lower({column}), '{text.lower()}')" for column in ("q.text", "a.text", "b.text", "v.uri")
    )
    assert sorted(everything(site.listing, Filter(judge, text=text))) == ids(seen, f"({where})")


def test_a_search_finds_a_pair_by_its_id(site: Any, seen: Warehouse, judge: str) -> None:
    pair = ids(seen, "TRUE")[0]
    assert everything(site.listing, Filter(judge, text=pair)) == [pair]


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_pages_follow_each_other_both_ways(site: Any, judge: str, sort: str, rows: int) -> None:
    filter, listing = Filter(judge, sort=sort), site.listing
    forwards = everything(listing, filter, rows)
    assert len(forwards) == len(set(forwards)) == 22
    assert forwards == everything(listing, filter, 1000)
    last = listing.page(filter, rows=1000).rows[-1]
    backwards, page = [last["pair_id"]], listing.page(filter, before=last["place"], rows=rows)
    assert page.after
    while page.rows:
        backwards = [*(row["pair_id"] for row in page.rows), *backwards]
        assert page.before == (backwards[0] != forwards[0])
        page = listing.page(filter, before=page.rows[0]["place"], rows=rows)
    assert backwards == forwards


def test_sorting_means_what_it_says(site: Any, judge: str) -> None:
    def sorted_by(sort: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = site.listing.page(Filter(judge, sort=sort), rows=100).rows
        return rows

    unsure = [row["strength"] for row in sorted_by("unsure")]
    assert unsure == sorted(unsure)
    assert [row["strength"] for row in sorted_by("sure")] == sorted(unsure, reverse=True)
    gaps = [abs(row["gap"]) for row in sorted_by("gap")]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 0


@pytest.mark.parametrize("sort", SORTS)
def test_the_position_counts_from_the_front(site: Any, judge: str, sort: str) -> None:
    rows = site.listing.page(Filter(judge, "unsure", sort=sort), rows=100).rows
    assert [site.listing.position(Filter(judge, "unsure", sort=sort), row["place"]) for row in rows] == [
        *range(1, len(rows) + 1)
    ]


def test_judges_come_with_their_pairs_and_nobody_last(site: Any, seen: Warehouse) -> None:
    assert [(row["prompt"], row["pairs"]) for row in site.listing.judges] == [
        ("judge_v1", 22), ("judges/other_v2.md", 8), ("panel_v1", 8), (None, 2),
    ]  # fmt: skip
    unjudged = "SELECT pair_id FROM pairs WHERE pair_id NOT IN (SELECT pair_id FROM labels)"
    wanted = sorted(row["pair_id"] for row in seen.rows(unjudged))
    assert sorted(everything(site.listing, Filter(NOBODY))) == wanted


def test_an_address_says_all_of_a_filter() -> None:
    for filter in (
        Filter("j"),
        Filter("j", "ties", "", "train", "a & b=c?ü", "gap"),
        Filter("j", text="'; DROP TABLE x"),
    ):
        assert Filter.read(filter.query, "another") == filter
    assert Filter.read("", "j") == Filter("j")
    assert Filter("j").query == "judge=j"


def test_words_that_mean_nothing_are_said_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"show=tie.*Did you mean 'ties'"):
        Filter.read("show=tie", "j")
    with pytest.raises(UserError, match="sort=length"):
        Filter.read("sort=length", "j")


def test_an_empty_warehouse_has_an_empty_list(warehouse: Warehouse, show: Callable[[Warehouse], Any]) -> None:
    with show(warehouse) as site:
        assert site.listing.judges == []
        assert everything(site.listing, Filter(NOBODY)) == []
        assert set(site.listing.counts(Filter(NOBODY)).values()) == {0}
