"""Pairs: every two different responses of one question by one policy, unordered."""

from __future__ import annotations

from collections.abc import Iterator

from vlm_rlaif.warehouse.records import Pair, Record, row_id
from vlm_rlaif.warehouse.runs import Outcome, derive
from vlm_rlaif.warehouse.store import Warehouse

STRATEGY = "all"


def pair(warehouse: Warehouse, respond_spec: str) -> Outcome:
    """Pair the responses of one spec. Two responses with the same words make no pair: nothing to prefer."""

    def rows(run_id: str) -> Iterator[Record]:
        found = warehouse.stream(
            "SELECT a.question_id, a.response_id AS a, b.response_id AS b FROM responses a JOIN responses b"
            " ON b.question_id = a.question_id AND b.spec_id = a.spec_id AND a.response_id < b.response_id"
            " WHERE a.spec_id = ? AND a.text <> b.text AND NOT EXISTS"
            " (SELECT 1 FROM pairs p WHERE p.response_a = a.response_id AND p.response_b = b.response_id)"
            " ORDER BY a.question_id, a.response_id, b.response_id",
            [respond_spec],
        )
        return (make_pair(row["question_id"], row["a"], row["b"], run_id) for row in found)

    return derive(warehouse, "pair", {"respond": respond_spec, "strategy": STRATEGY}, rows)


def make_pair(question_id: str, a: str, b: str, run_id: str) -> Pair:
    """A pair of two response ids, in the one order that pairs have."""
    first, second = sorted((a, b))
    return Pair(
        pair_id=row_id("pair", first, second), question_id=question_id, response_a=first,
        response_b=second, strategy=STRATEGY, run_id=run_id,
    )  # fmt: skip
