"""Pairs: every two different responses of one question by one policy, unordered."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from vlm_rlaif.warehouse.records import Pair, Record, row_id
from vlm_rlaif.warehouse.runs import Outcome, derive
from vlm_rlaif.warehouse.store import Warehouse

STRATEGY = "all"


def pair(warehouse: Warehouse, respond_spec: str) -> Outcome:
    """Pair the responses of one spec. Two responses with the same words make no pair: nothing to prefer."""

    def rows(run_id: str) -> Sequence[Record]:
        responses = warehouse.rows(
            "SELECT question_id, response_id, text FROM responses WHERE spec_id = ?"
            " ORDER BY question_id, response_id",
            [respond_spec],
        )
        known = {row["pair_id"] for row in warehouse.rows("SELECT pair_id FROM pairs")}
        made = [
            make_pair(question_id, a, b, run_id)
            for question_id, group in itertools.groupby(responses, lambda r: r["question_id"])
            for a, b in itertools.combinations(list(group), 2)
            if a["text"] != b["text"]
        ]
        return [p for p in made if p.pair_id not in known]

    return derive(warehouse, "pair", {"respond": respond_spec, "strategy": STRATEGY}, rows)


def make_pair(question_id: str, a: dict[str, Any], b: dict[str, Any], run_id: str) -> Pair:
    first, second = sorted((a["response_id"], b["response_id"]))
    return Pair(
        pair_id=row_id("pair", first, second), question_id=question_id, response_a=first,
        response_b=second, strategy=STRATEGY, run_id=run_id,
    )  # fmt: skip
