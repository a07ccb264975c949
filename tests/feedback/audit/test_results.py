"""Submitted results: what the page can send is read, everything else is refused and says why."""

from __future__ import annotations

import copy
import json
import random
from contextlib import suppress
from datetime import datetime
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.feedback.audit.results import (
    Refused,
    Submitted,
    controls,
    labeling_config,
    own_choice,
    read_annotation,
    read_result,
    shown_choice,
    skipped,
)

CHOICES = ("a", "b", "tie", "both_bad")


def part(name: str, kind: str, **value: Any) -> dict[str, Any]:
    return {"from_name": name, "to_name": "video", "type": kind, "value": value}


def whole() -> dict[str, Any]:
    """An annotation as the server exports one."""
    return {
        "id": 17, "completed_by": 3, "lead_time": 12.5, "was_cancelled": False,
        "updated_at": "2026-11-25T08:49:16.382204Z",
        "result": [
            part("preference", "choices", choices=["A"]),
            part("reasons", "choices", choices=["style", "hallucination"]),
            part("confidence", "rating", rating=4), part("comment", "textarea", text=["B turns.", "A does not."]),
        ],
    }  # fmt: skip


def test_a_whole_annotation_is_read() -> None:
    read = read_annotation(whole())
    assert (read.number, read.user, read.seconds) == ("17", 3, 12.5)
    assert read.updated_at == datetime(2026, 11, 25, 8, 49, 16, 382204)
    assert read.verdict == Submitted("A", ("hallucination", "style"), 4, "B turns.\nA does not.")


def test_a_verdict_alone_is_enough() -> None:
    assert read_result([part("preference", "choices", choices=["both_bad"])]) == Submitted("both_bad")


def test_a_time_of_another_zone_is_the_same_moment() -> None:
    assert read_annotation(whole() | {"updated_at": "2026-11-25T10:49:16.382204+02:00"}).updated_at == datetime(
        2026, 11, 25, 8, 49, 16, 382204
    )


@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.parametrize("own", CHOICES)
def test_sides_are_turned_there_and_back(own: str, order: str) -> None:
    assert own_choice(shown_choice(own, order), order) == own


def test_a_win_of_the_response_shown_first_is_one_of_its_own_letter() -> None:
    assert [own_choice("A", "ab"), own_choice("A", "ba"), own_choice("B", "ba")] == ["a", "b", "a"]


def test_a_skipped_task_is_no_verdict() -> None:
    assert skipped(whole() | {"was_cancelled": True}) and not skipped(whole()) and not skipped(None)


BROKEN: list[tuple[str, Any, str]] = [
    # (where in the annotation, what stands there instead, what is said)
    ("", None, "no object"),
    ("", [], "no object"),
    ("id", None, "without a number"),
    ("id", True, "without a number"),
    ("id", "17", "without a number"),
    ("completed_by", None, "nobody is named"),
    ("completed_by", "x@y", "nobody is named"),
    ("completed_by", {"email": "x@y"}, "nobody is named"),
    ("lead_time", -1, "the time it took"),
    ("lead_time", "12", "the time it took"),
    ("lead_time", float("nan"), "the time it took"),
    ("lead_time", float("inf"), "the time it took"),
    ("lead_time", True, "the time it took"),
    ("updated_at", None, "last change"),
    ("updated_at", 5, "last change"),
    ("updated_at", "yesterday", "last change"),
    ("updated_at", "0001-01-01T00:00:00+14:00", "last change"),
    ("result", None, "no list"),
    ("result", {}, "no list"),
    ("result", "A", "no list"),
    ("result", [], "no verdict"),
    ("result.0", None, "no object"),
    ("result.0", "A", "no object"),
    ("result.0.from_name", None, "nothing on the page"),
    ("result.0.from_name", "verdict", "nothing on the page"),
    ("result.0.from_name", ["preference"], "nothing on the page"),
    ("result.0.from_name", "video", "nothing on the page"),
    ("result.0.from_name", "reasons", "not one of"),
    ("result.0.to_name", "question", "about 'question'"),
    ("result.0.to_name", None, "about None"),
    ("result.0.type", "rating", "is a 'rating'"),
    ("result.0.type", None, "is a None"),
    ("result.0.value", None, "no value"),
    ("result.0.value", ["A"], "no value"),
    ("result.0.value", {}, "preference is None"),
    ("result.0.value.choices", "A", "preference is 'A'"),
    ("result.0.value.choices", [], "names 0 choices"),
    ("result.0.value.choices", ["A", "B"], "names 2 choices"),
    ("result.0.value.choices", ["A", "A"], "names 2 choices"),
    ("result.0.value.choices", ["C"], "not one of"),
    ("result.0.value.choices", ["a"], "not one of"),
    ("result.0.value.choices", ["A is better"], "not one of"),
    ("result.0.value.choices", [1], r"preference is \[1\]"),
    ("result.0.value.choices", [None], "preference is"),
    ("result.0.value.choices", [["A"]], "preference is"),
    ("result.0.value.choices", ["<script>alert(1)</script>"], "not one of"),
    ("result.1.value.choices", ["style", "style"], "names 2 choices"),
    ("result.1.value.choices", ["lazy"], "not one of"),
    ("result.1.from_name", "preference", "preference is 'style'"),
    ("result.1", part("preference", "choices", choices=["B"]), "twice"),
    ("result.2.value.rating", 0, "not 1 to 5"),
    ("result.2.value.rating", 6, "not 1 to 5"),
    ("result.2.value.rating", 2.5, "not 1 to 5"),
    ("result.2.value.rating", "4", "not 1 to 5"),
    ("result.2.value.rating", True, "not 1 to 5"),
    ("result.2.value.rating", 10**400, "not 1 to 5"),
    ("result.2.value", {"stars": 4}, "not 1 to 5"),
    ("result.3.value.text", None, "comment is None"),
    ("result.3.value.text", [None], "comment is"),
    ("result.3.value.text", [["x"]], "comment is"),
    ("result.3.value.text", {"text": "x"}, "comment is"),
]


def broken(where: str, instead: Any) -> Any:
    """An annotation with something else in one place."""
    annotation: Any = whole()
    if not where:
        return instead
    *path, last = (int(step) if step.isdigit() else step for step in where.split("."))
    spot = annotation
    for step in path:
        spot = spot[step]
    spot[last] = copy.deepcopy(instead)
    return annotation


@pytest.mark.parametrize(("where", "instead", "said"), BROKEN)
def test_a_malformed_annotation_is_refused_with_the_reason(where: str, instead: Any, said: str) -> None:
    with pytest.raises(Refused, match=said) as refused:
        read_annotation(broken(where, instead))
    assert len(str(refused.value)) < 250


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=9), inside, max_size=3),
    max_leaves=6,
)


@given(anything, st.randoms(use_true_random=False))
def test_nothing_but_a_refusal_comes_of_anything(instead: Any, chance: random.Random) -> None:
    """Whatever stands in whatever place, it is read or refused."""
    annotation = whole()
    spots: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            spots.append((node, key))
            walk(node[key])

    walk(annotation)
    node, key = chance.choice(spots)
    node[key] = instead
    with suppress(Refused):
        assert read_annotation(annotation).verdict.choice in ("A", "B", "tie", "both_bad")


def test_the_page_asks_what_is_read() -> None:
    asked = controls()
    assert {name: control.kind for name, control in asked.items()} == {
        "preference": "choices", "reasons": "choices", "confidence": "rating", "comment": "textarea",
    }  # fmt: skip
    assert asked["preference"].allowed == {"A", "B", "tie", "both_bad"} and asked["preference"].most == 1
    assert asked["confidence"].most == 5


def test_every_choice_has_an_alias_for_predictions() -> None:
    """With a bare `value` a prediction selects nothing, and nobody says so."""
    choices = list(ElementTree.fromstring(labeling_config()).iter("Choice"))
    assert len(choices) == 10 and all(choice.get("alias") and choice.get("value") for choice in choices)
    hotkeys = [choice.get("hotkey") for choice in choices]
    assert len(set(hotkeys)) == len(hotkeys)


def test_a_whole_annotation_survives_json() -> None:
    assert read_annotation(json.loads(json.dumps(whole()))) == read_annotation(whole())
