"""Labels and answers against the exact truth."""

from __future__ import annotations

import math
from typing import Any

from vlm_rlaif.datagen.shapes.truth import Truth, score
from vlm_rlaif.feedback.truth import agreements, differing_facts, pair_truths

RIGHT, WRONG = "there are 3 shapes .", "there are 4 shapes ."


def row(choice: str, text_a: str = RIGHT, text_b: str = WRONG) -> dict[str, Any]:
    return {"kind": "count", "reference": RIGHT, "text_a": text_a, "text_b": text_b, "choice": choice}


def test_a_label_agrees_when_it_names_the_truer_response_and_half_when_it_is_a_tie() -> None:
    rows = [row("a"), row("b"), row("tie")]
    assert agreements(rows, [pair_truths(r) for r in rows]) == [1.0, 0.0, 0.5]


def test_pairs_of_equal_truth_do_not_count() -> None:
    rows = [row("a", WRONG, "there are 5 shapes .")]
    assert math.isnan(agreements(rows, [pair_truths(r) for r in rows])[0])


def test_facts_that_differ_are_named_by_kind() -> None:
    reference = "then a red circle grows ."
    a, b = (score("after", reference, f"then a {x} .") for x in ("red circle blinks", "blue circle grows"))
    assert differing_facts(a, b) == {"colour", "motion"}
    assert differing_facts(a, a) == set()


def test_an_answer_that_says_nothing_is_wrong_and_not_missing() -> None:
    assert score("count", RIGHT, "") == Truth({"count": 0}, {"count": 1})
