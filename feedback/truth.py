"""Exact truth of pairs in the shapes world: which response is truer, and in which facts they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlm_rlaif.datagen.shapes.truth import Truth, score
from vlm_rlaif.feedback.stats.estimates import agreement_with_truth


def pair_truths(row: dict[str, Any]) -> tuple[Truth, Truth]:
    """The truth of both responses of a row of `Warehouse.preferences`."""
    a, b = (score(row["kind"], row["reference"], row[side]) for side in ("text_a", "text_b"))
    return a, b


def agreements(rows: Sequence[dict[str, Any]], truths: Sequence[tuple[Truth, Truth]]) -> list[float]:
    """Per preference: 1 when it names the truer response, 1/2 for a tie, 0 otherwise; NaN for equal truths."""
    named = [{"a": 1.0, "b": 0.0, "tie": 0.5}[row["choice"]] for row in rows]
    a, b = ([pair[side].fraction for pair in truths] for side in (0, 1))
    return [float(value) for value in agreement_with_truth(named, a, b)]


def differing_facts(a: Truth, b: Truth) -> set[str]:
    """Kinds of fact in which two responses are not equally right."""
    kinds = a.true.keys() | b.true.keys()
    return {k for k in kinds if _share(a, k) != _share(b, k)}


def _share(truth: Truth, kind: str) -> float:
    return truth.true.get(kind, 0) / max(1, truth.total.get(kind, 0))
