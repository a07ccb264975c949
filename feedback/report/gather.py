"""What a report on judges reads from the warehouse: one frame for every thing that it measures.

Length is that of a response in tokens; where an imported one has none, in words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import polars as pl

from vlm_rlaif.feedback.truth import pair_truths
from vlm_rlaif.warehouse.store import Warehouse

_LENGTH = "coalesce(nullif({side}.tokens, 0), len(string_split(trim({side}.text), ' ')))"
_PAIRS = f"""
    SELECT p.pair_id, p.video_id, p.choice, p.p_a AS p, p.strength, p.conflict, p.order_agreement,
           {_LENGTH.format(side="a")} AS length_a, {_LENGTH.format(side="b")} AS length_b,
           a.spec_id AS policy_a, b.spec_id AS policy_b
    FROM preferences p
    JOIN responses a ON a.response_id = p.response_a JOIN responses b ON b.response_id = p.response_b
    WHERE p.judge = ? AND p.complete ORDER BY p.pair_id
"""
_VERDICTS = """
    SELECT l.pair_id, q.video_id, l.shown_order, l.choice, l.p_a + l.p_tie / 2 AS p
    FROM labels l JOIN pairs p USING (pair_id) JOIN questions q ON q.question_id = p.question_id
    WHERE l.spec_id = ? AND l.shown_order IN ('ab', 'ba') ORDER BY l.pair_id, l.shown_order, l.vote
"""
_JUDGES = """
    WITH judged AS (
        SELECT spec_id, count(*) AS labels, count(DISTINCT pair_id) AS pairs FROM labels GROUP BY spec_id
    ), ran AS (
        SELECT config->>'$.spec_id' AS spec_id, string_agg(DISTINCT engine, ', ' ORDER BY engine) AS engines,
               sum(tokens_in + tokens_out) / nullif(sum(rows_written + rows_failed), 0) AS tokens
        FROM runs WHERE stage = 'label' AND tokens_in > 0 GROUP BY ALL
    )
    SELECT s.spec_id AS judge, s.prompt, s.model, s.stage, j.labels, j.pairs, r.engines, r.tokens
    FROM judged j JOIN specs s USING (spec_id) LEFT JOIN ran r USING (spec_id)
    ORDER BY s.stage = 'label' DESC, s.prompt, s.spec_id
"""
_WITHOUT_CONTEXT = """
    SELECT o.spec_id FROM specs s
    JOIN specs o ON o.stage = s.stage AND o.revision = s.revision AND o.adapter = s.adapter AND o.frames = s.frames
        AND o.sampling = s.sampling AND (o.upstream->>'$.respond') IS NOT DISTINCT FROM (s.upstream->>'$.respond')
    WHERE s.spec_id = ? AND (s.upstream->>'$.context') IS NOT NULL AND (o.upstream->>'$.context') IS NULL
      AND o.spec_id IN (SELECT spec_id FROM labels) ORDER BY o.prompt, o.spec_id LIMIT 1
"""
_REPEATED = """
    SELECT p.engine, q.video_id, l.choice AS before, p.choice AS after, l.p_a + l.p_tie / 2 AS p_before,
           p.p_a + p.p_tie / 2 AS p_after
    FROM probes p JOIN pairs d USING (response_a, response_b)
    JOIN labels l ON l.pair_id = d.pair_id AND l.spec_id = p.spec_id AND l.shown_order = p.shown_order AND l.vote = 0
    JOIN questions q ON q.question_id = p.question_id
    WHERE p.kind = 'repeat' AND p.spec_id = ? ORDER BY p.engine, p.probe_id
"""
_ANCHORED = """
    WITH said AS (
        SELECT anchor, spec_id, engine, question_id, response_a, response_b, avg(p_a + p_tie / 2) AS p,
               avg(CASE shown_order WHEN 'ab' THEN p_a + p_tie / 2 ELSE 1 - p_a - p_tie / 2 END) AS p_first,
               bool_or(choice = 'a') AS any_a, bool_or(choice = 'b') AS any_b, min(run_id) AS run_id
        FROM probes WHERE kind = 'anchor' GROUP BY ALL HAVING count(*) = 2
    ), decided AS (
        SELECT *, CASE WHEN any_a AND NOT any_b AND p > 0.5 THEN 'a' WHEN any_b AND NOT any_a AND p < 0.5 THEN 'b'
                       ELSE 'tie' END AS choice
        FROM said
    ), earliest AS (
        SELECT anchor, arg_min((spec_id, engine), (run_id, spec_id, engine)) AS asked FROM decided GROUP BY anchor
    )
    SELECT n.anchor, n.engine, o.spec_id AS first_judge, s.prompt AS first_prompt, o.engine AS first_engine,
           q.video_id, o.choice AS before, n.choice AS after, o.p AS p_before, n.p AS p_after,
           n.p_first - o.p_first AS towards_first
    FROM decided n JOIN earliest e USING (anchor)
    JOIN decided o ON o.anchor = n.anchor AND o.spec_id = e.asked[1] AND o.engine = e.asked[2]
        AND o.response_a = n.response_a AND o.response_b = n.response_b
    JOIN specs s ON s.spec_id = o.spec_id JOIN questions q ON q.question_id = n.question_id
    WHERE n.spec_id = ? ORDER BY n.anchor, n.engine, n.response_a, n.response_b
"""
_TRUTHS = """
    SELECT p.pair_id, q.kind, q.reference, a.text AS text_a, b.text AS text_b
    FROM pairs p JOIN questions q USING (question_id)
    JOIN responses a ON a.response_id = p.response_a JOIN responses b ON b.response_id = p.response_b
    WHERE q.source = 'shapes'
"""


@dataclass(frozen=True, slots=True)
class Reference:
    """Who else has an opinion about pairs: people, the truth, or another judge."""

    who: str
    frame: pl.DataFrame
    """`pair_id`, `known` (choice), `p_known`."""


def judges(warehouse: Warehouse) -> list[dict[str, Any]]:
    """Every judge with its model, how many labels and pairs it has, its engines and tokens per request."""
    return warehouse.rows(_JUDGES)


def pairs(warehouse: Warehouse, judge: str) -> pl.DataFrame:
    """The complete preferences of a judge, with lengths and policies."""
    return warehouse.query(_PAIRS, [judge])


def verdicts(warehouse: Warehouse, judge: str) -> pl.DataFrame:
    """Its verdicts in the two orders."""
    return warehouse.query(_VERDICTS, [judge])


def own_policies(warehouse: Warehouse, judge: str) -> list[str]:
    """Specs of responses that were written by the judge's own weights."""
    sql = "SELECT policy FROM judge_policies WHERE judge = ? AND judge_is_policy"
    return [row["policy"] for row in warehouse.rows(sql, [judge])]


def without_context(warehouse: Warehouse, judge: str) -> str | None:
    """The judge that is the same but reads no narrative; None where there is none, or this one reads none."""
    return next((row["spec_id"] for row in warehouse.rows(_WITHOUT_CONTEXT, [judge])), None)


def other_judge(warehouse: Warehouse, judge: str) -> Reference | None:
    """The judge that has judged most of the same pairs, one of other weights if there is any."""
    rows = warehouse.rows(
        "SELECT o.spec_id, o.prompt FROM labels l JOIN specs o USING (spec_id) JOIN specs m ON m.spec_id = $judge"
        " WHERE l.spec_id <> $judge AND l.pair_id IN"
        " (SELECT pair_id FROM labels WHERE spec_id = $judge) GROUP BY ALL"
        " ORDER BY any_value(o.revision <> m.revision) DESC, count(DISTINCT l.pair_id) DESC, o.spec_id LIMIT 1",
        {"judge": judge},
    )
    if not rows:
        return None
    sql = "SELECT pair_id, choice AS known, p_a AS p_known FROM preferences WHERE judge = ? AND complete"
    return Reference(f"the judge {rows[0]['prompt']}", warehouse.query(sql, [rows[0]["spec_id"]]))


def probe_results(warehouse: Warehouse, judge: str) -> pl.DataFrame:
    """`kind`, `video_id`, `shown_order`, `choice`, `passed` of the probes that can be passed."""
    sql = "SELECT kind, video_id, shown_order, choice, passed::DOUBLE AS passed FROM probe_results WHERE judge = ?"
    return warehouse.query(f"{sql} AND passed IS NOT NULL ORDER BY kind, probe_id", [judge])


def negative_results(warehouse: Warehouse, judge: str) -> pl.DataFrame:
    """`perturbation`, `video_id`, `confirmed` of the answers to spoilt videos."""
    sql = "SELECT perturbation, video_id, (verdict = 'confirmed')::DOUBLE AS confirmed FROM negative_pairs"
    return warehouse.query(f"{sql} WHERE judge = ? ORDER BY perturbation, pair_id", [judge])


def repeated(warehouse: Warehouse, judge: str) -> pl.DataFrame:
    """The same verdict twice: of the label, and of the probe `repeat`, by engine."""
    return warehouse.query(_REPEATED, [judge])


def anchored(warehouse: Warehouse, judge: str) -> pl.DataFrame:
    """Pinned pairs as this judge sees them, beside the judge and engine that were first to judge the set."""
    return warehouse.query(_ANCHORED, [judge])


def truth_gaps(warehouse: Warehouse) -> pl.DataFrame:
    """`pair_id`, `gap`: how far apart the truths of the two responses are, in the shapes world."""
    found = []
    for row in warehouse.stream(_TRUTHS):
        a, b = pair_truths(row)
        found.append((row["pair_id"], abs(a.fraction - b.fraction)))
    gaps = pl.DataFrame(found, schema={"pair_id": pl.String, "gap": pl.Float64}, orient="row")
    return gaps.filter(pl.col("gap").is_not_nan() & (pl.col("gap") < math.inf))
