"""Anchors: pairs that are pinned under a name, to be judged again whenever a judge, its prompt or its engine changes.

A set is never changed: what is measured against it in a year must be the same pairs. `probe.py` judges them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlm_rlaif.feedback.known import find_judge
from vlm_rlaif.warehouse.care.keys import anchor_id
from vlm_rlaif.warehouse.errors import UserError, nearest
from vlm_rlaif.warehouse.records import Anchor, Record
from vlm_rlaif.warehouse.runs import BATCH_ROWS, Outcome, derive
from vlm_rlaif.warehouse.store import Warehouse

_CHOSEN = """
    WITH surest AS (
        SELECT pair_id, video_id, ntile(4) OVER (ORDER BY strength, pair_id) AS part, md5($seed || pair_id) AS lot
        FROM preferences WHERE judge = $judge AND complete
    ), placed AS (
        SELECT *, row_number() OVER (PARTITION BY part, video_id ORDER BY lot) AS place FROM surest
    ), in_turn AS (
        SELECT *, row_number() OVER (PARTITION BY part ORDER BY place, lot) AS turn FROM placed
    )
    SELECT pair_id FROM in_turn ORDER BY turn, part LIMIT $size
"""
_SETS = """
    WITH judged AS (
        SELECT anchor, count(DISTINCT (spec_id, engine)) AS judged_by FROM probes
        WHERE kind = 'anchor' GROUP BY anchor
    )
    SELECT n.name, count(*) AS pairs, count(DISTINCT q.video_id) AS videos, coalesce(any_value(j.judged_by), 0)
               AS judged_by, min(r.started_at)::DATE AS pinned
    FROM anchors n JOIN pairs p USING (pair_id) JOIN questions q ON q.question_id = p.question_id
    LEFT JOIN judged j ON j.anchor = n.name LEFT JOIN runs r ON r.run_id = n.run_id
    GROUP BY n.name ORDER BY n.name
"""


def pin(warehouse: Warehouse, name: str, judge: str | None, *, size: int = 200, seed: int = 0) -> Outcome:
    """Pin pairs that a judge has judged: as many sure as unsure ones, of as many videos as there are.

    Raises `UserError` where the name stands for other pairs, or the judge has too few.
    """
    if not name.strip() or size > BATCH_ROWS:
        raise UserError(f"An anchor set has a name, and at most {BATCH_ROWS:,} pairs.")
    spec = find_judge(warehouse, judge)
    chosen = [row["pair_id"] for row in warehouse.rows(_CHOSEN, {"judge": spec, "seed": str(seed), "size": size})]
    standing = {row["pair_id"] for row in warehouse.rows("SELECT pair_id FROM anchors WHERE name = ?", [name])}
    if standing and standing != set(chosen):
        raise UserError(
            f"The anchor set {name!r} stands with {len(standing):,} pairs, and a set is never changed.",
            f"vlm-rlaif feedback anchor pin {warehouse.path} ANOTHER_NAME --judge {spec}",
        )
    if not chosen:
        raise UserError(f"The judge {spec} has judged no pair in both orders yet.",
                        f"vlm-rlaif feedback label {warehouse.path} --recipe RECIPE")  # fmt: skip

    def rows(run_id: str) -> Iterator[Record]:
        for pair in chosen:
            yield Anchor(anchor_id=anchor_id(name, pair), name=name, pair_id=pair, run_id=run_id)

    config = {"name": name, "judge": spec, "size": size, "seed": seed}
    return derive(warehouse, "pin", config, rows)


def sets(warehouse: Warehouse) -> list[dict[str, Any]]:
    """Every anchor set: `name`, `pairs`, `videos`, how many judges and engines it was `judged_by`, `pinned`."""
    return warehouse.rows(_SETS)


def named(warehouse: Warehouse, name: str) -> tuple[str]:
    """The name of a set that stands; raises `UserError` for an unknown one."""
    known = [row["name"] for row in sets(warehouse)]
    if name not in known:
        raise UserError(
            f"There is no anchor set {name!r}.{nearest(name, known)} Sets: {', '.join(known) or 'none'}.",
            f"vlm-rlaif feedback anchor {'list' if known else 'pin'} {warehouse.path}{'' if known else f' {name}'}",
        )
    return (name,)
