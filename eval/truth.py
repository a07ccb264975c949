"""Exact truth: scores of answers and labels in the shapes world, where every fact is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vlm_rlaif.datagen.shapes.truth import Truth, score
from vlm_rlaif.eval.metrics import agreement_with_truth
from vlm_rlaif.warehouse.records import Record, Score, row_id
from vlm_rlaif.warehouse.runs import Outcome, derive
from vlm_rlaif.warehouse.store import Warehouse

METRICS = ("truth", "fully_right")


def score_answers(warehouse: Warehouse) -> Outcome:
    """Write the truth of every answer to a question of the shapes world that has none yet."""

    def rows(run_id: str) -> Iterator[Record]:
        waiting = warehouse.stream(
            "SELECT a.answer_id, a.text, q.kind, q.reference FROM answers a JOIN questions q USING (question_id)"
            " WHERE q.source = 'shapes' AND NOT EXISTS"
            " (SELECT 1 FROM scores s WHERE s.answer_id = a.answer_id AND s.judge = 'truth')"
        )
        for answer in waiting:
            found = score(answer["kind"], answer["reference"], answer["text"])
            for metric, value in zip(METRICS, (found.fraction, found.fully_right), strict=True):
                yield Score(
                    score_id=row_id("score", answer["answer_id"], metric, "truth"),
                    answer_id=answer["answer_id"], metric=metric, judge="truth",
                    value=float(value), reply=None, run_id=run_id,
                )  # fmt: skip

    return derive(warehouse, "score", {"judge": "truth"}, rows)


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
