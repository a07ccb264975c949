"""Exact truth: scores of answers in the shapes world, where every fact is known."""

from __future__ import annotations

from collections.abc import Iterator

from vlm_rlaif.datagen.shapes.truth import score
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
