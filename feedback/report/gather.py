"""What a report on judges reads from the warehouse: one frame for every thing that it measures.

`cluster` is the source of a video (`video_group`): cuts of one source are not independent. Length is that of a
response in tokens; where an imported one has none, in words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import polars as pl

from vlm_rlaif.feedback.agreement import LENGTH
from vlm_rlaif.feedback.truth import pair_truths
from vlm_rlaif.warehouse.store import Warehouse

_PAIRS = f"""
    SELECT p.pair_id, v.video_group AS cluster, p.choice, p.p_a AS p, p.conflict, p.orders,
           {LENGTH.format(side="a")} AS length_a, {LENGTH.format(side="b")} AS length_b,
           a.spec_id AS policy_a, b.spec_id AS policy_b
    FROM preferences p
    JOIN responses a ON a.response_id = p.response_a JOIN responses b ON b.response_id = p.response_b
    JOIN videos v ON v.video_id = p.video_id
    WHERE p.judge = ? AND p.complete ORDER BY p.pair_id
"""
_VERDICTS = """
    SELECT l.pair_id, v.video_group AS cluster, l.shown_order, l.choice
    FROM labels l JOIN preferences p ON p.pair_id = l.pair_id AND p.judge = l.spec_id JOIN videos v USING (video_id)
    WHERE l.spec_id = ? AND p.orders = 2 ORDER BY l.pair_id, l.shown_order, l.vote
"""
_JUDGES = """
    WITH judged AS (
        SELECT spec_id, count(*) AS labels, count(DISTINCT pair_id) AS pairs FROM labels GROUP BY spec_id
    ), asked AS (
        SELECT spec_id, spec_id AS model_spec FROM specs
        UNION ALL SELECT spec_id, upstream->>'$.rating' FROM specs WHERE stage = 'rated'
    ), ran AS (
        SELECT a.spec_id, string_agg(DISTINCT r.engine, ', ' ORDER BY r.engine) AS engines,
               sum(r.tokens_in + r.tokens_out) / nullif(sum(r.rows_written + r.rows_failed), 0) AS tokens
        FROM runs r JOIN asked a ON a.model_spec = (r.config->>'$.spec_id')
        WHERE r.stage NOT IN ('probe', 'anchor') AND r.tokens_in > 0 GROUP BY a.spec_id
    )
    SELECT s.spec_id AS judge, s.prompt, s.model, s.stage, s.upstream->>'$.label' AS fitted_to, j.labels, j.pairs,
           r.engines, r.tokens
    FROM judged j JOIN specs s USING (spec_id) LEFT JOIN ran r USING (spec_id)
    ORDER BY s.stage = 'label' DESC, s.prompt, s.spec_id
"""
_WITHOUT_CONTEXT = """
    WITH asked AS (
        SELECT s.spec_id AS judge, s.prompt AS name, s.sampling AS made, a.*
        FROM specs s JOIN specs a ON a.spec_id = coalesce(s.upstream->>'$.rating', s.spec_id)
        WHERE s.stage IN ('label', 'rated')
    )
    SELECT o.judge, o.name FROM asked s
    JOIN asked o ON o.made = s.made AND o.stage = s.stage AND o.revision = s.revision AND o.adapter = s.adapter
        AND o.frames = s.frames AND o.sampling = s.sampling
        AND (o.upstream->>'$.respond') IS NOT DISTINCT FROM (s.upstream->>'$.respond')
        AND (o.upstream->>'$.split') IS NOT DISTINCT FROM (s.upstream->>'$.split')
    WHERE s.judge = ? AND (s.upstream->>'$.context') IS NOT NULL AND (o.upstream->>'$.context') IS NULL
      AND o.judge IN (SELECT spec_id FROM labels) ORDER BY o.name, o.judge
"""
_REPEATED = """
    SELECT p.engine, v.video_group AS cluster, l.choice AS before, p.choice AS after, l.p_a + l.p_tie / 2 AS p_before,
           p.p_a + p.p_tie / 2 AS p_after
    FROM probes p JOIN pairs d USING (response_a, response_b)
    JOIN labels l ON l.pair_id = d.pair_id AND l.spec_id = p.spec_id AND l.shown_order = p.shown_order AND l.vote = 0
    JOIN questions q ON q.question_id = p.question_id JOIN videos v ON v.video_id = q.video_id
    WHERE p.kind = 'repeat' AND p.spec_id = ? ORDER BY p.engine, p.probe_id
"""
_ANCHORED = """
    WITH said AS (
        SELECT anchor, spec_id, p.engine, question_id, response_a, response_b, avg(p_a + p_tie / 2) AS p,
               avg(CASE shown_order WHEN 'ab' THEN p_a + p_tie / 2 ELSE 1 - p_a - p_tie / 2 END) AS p_first,
               bool_or(choice = 'a') AS any_a, bool_or(choice = 'b') AS any_b, min(started_at) AS started_at
        FROM probes p LEFT JOIN runs USING (run_id) WHERE kind = 'anchor'
        GROUP BY anchor, spec_id, p.engine, question_id, response_a, response_b HAVING count(*) = 2
    ), decided AS (
        SELECT *, CASE WHEN any_a AND NOT any_b AND p > 0.5 THEN 'a' WHEN any_b AND NOT any_a AND p < 0.5 THEN 'b'
                       ELSE 'tie' END AS choice
        FROM said
    ), turns AS (
        SELECT anchor, spec_id, engine, upstream,
               row_number() OVER (PARTITION BY anchor ORDER BY min(started_at), spec_id, engine) AS turn
        FROM decided JOIN specs USING (spec_id) GROUP BY anchor, spec_id, engine, upstream
    ), held AS (
        SELECT n.anchor, n.spec_id, n.engine, o.spec_id AS base_judge, o.engine AS base_engine
        FROM turns n JOIN turns o ON o.anchor = n.anchor AND o.turn <= n.turn
        QUALIFY row_number() OVER (PARTITION BY n.anchor, n.turn ORDER BY o.turn = n.turn, o.spec_id <> n.spec_id,
            o.upstream <> n.upstream, o.turn) = 1
    )
    SELECT n.anchor, n.engine, h.base_judge, s.prompt AS base_prompt, h.base_engine, v.video_group AS cluster,
           o.choice AS before, n.choice AS after, o.p AS p_before, n.p AS p_after,
           n.p_first - o.p_first AS towards_first
    FROM decided n JOIN held h USING (anchor, spec_id, engine)
    JOIN decided o ON o.anchor = n.anchor AND o.spec_id = h.base_judge AND o.engine = h.base_engine
        AND o.response_a = n.response_a AND o.response_b = n.response_b
    JOIN specs s ON s.spec_id = h.base_judge JOIN questions q ON q.question_id = n.question_id
    JOIN videos v ON v.video_id = q.video_id
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
    """`pair_id`, `known` (choice), `p_known`, `weight` (how many pairs one stands for)."""


def judges(warehouse: Warehouse) -> list[dict[str, Any]]:
    """Every judge with its model, how many labels and pairs it has, its engines and tokens per request."""
    return warehouse.rows(_JUDGES)


def pairs(warehouse: Warehouse, judge: str) -> pl.DataFrame:
    """The complete preferences of a judge, with lengths and policies."""
    return warehouse.query(_PAIRS, [judge])


def verdicts(warehouse: Warehouse, judge: str) -> pl.DataFrame:
    """Its verdicts on the pairs that it has judged in both orders."""
    return warehouse.query(_VERDICTS, [judge])


def own_policies(warehouse: Warehouse, judge: str) -> list[str]:
    """Specs of responses that were written by the judge's own weights."""
    sql = "SELECT policy FROM judge_policies WHERE judge = ? AND judge_is_policy"
    return [row["policy"] for row in warehouse.rows(sql, [judge])]


def without_context(warehouse: Warehouse, judge: str) -> list[tuple[str, str]]:
    """The judges that are the same but read no narrative, with their names; none where this one reads none."""
    return [(row["judge"], row["name"]) for row in warehouse.rows(_WITHOUT_CONTEXT, [judge])]


def other_judge(warehouse: Warehouse, judge: str) -> Reference | None:
    """The judge that has judged most of the same pairs, one of other weights if there is any; neither one that is
    made of other judges, which may be this one, nor one that this one is made of."""
    rows = warehouse.rows(
        "SELECT o.spec_id, o.prompt FROM labels l JOIN specs o USING (spec_id) JOIN specs m ON m.spec_id = $judge"
        " WHERE l.spec_id <> $judge AND o.stage = 'label'"
        " AND NOT list_contains(json_extract_string(m.upstream, '$.*'), o.spec_id)"
        " AND l.pair_id IN (SELECT pair_id FROM labels WHERE spec_id = $judge) GROUP BY ALL"
        " ORDER BY any_value(o.revision <> m.revision) DESC, count(DISTINCT l.pair_id) DESC, o.spec_id LIMIT 1",
        {"judge": judge},
    )
    if not rows:
        return None
    sql = "SELECT pair_id, choice AS known, p_a AS p_known, 1.0::DOUBLE AS weight FROM preferences WHERE judge = ?"
    return Reference(
        f"the judge {rows[0]['prompt']}", warehouse.query(f"{sql} AND complete", [rows[0]["spec_id"]])
    )  # fmt: skip


def probe_results(warehouse: Warehouse, judge: str) -> pl.DataFrame:
    """`kind`, `cluster`, `shown_order`, `choice`, `passed` of the probes that can be passed."""
    sql = "SELECT kind, video_group AS cluster, shown_order, choice, passed::DOUBLE AS passed FROM probe_results"
    where = "JOIN videos USING (video_id) WHERE judge = ? AND passed IS NOT NULL ORDER BY kind, probe_id"
    return warehouse.query(f"{sql} {where}", [judge])


def negative_results(warehouse: Warehouse, judge: str) -> pl.DataFrame:
    """`perturbation`, `cluster`, `confirmed` of the answers to spoilt videos."""
    sql = "SELECT perturbation, video_group AS cluster, (verdict = 'confirmed')::DOUBLE AS confirmed"
    where = "FROM negative_pairs JOIN videos USING (video_id) WHERE judge = ? ORDER BY perturbation, pair_id"
    return warehouse.query(f"{sql} {where}", [judge])


def repeated(warehouse: Warehouse, judge: str) -> pl.DataFrame:
    """The same verdict twice: of the label, and of the probe `repeat`, by engine."""
    return warehouse.query(_REPEATED, [judge])


def anchored(warehouse: Warehouse, judge: str) -> pl.DataFrame:
    """Pinned pairs as this judge sees them on every engine, beside what was said of them before: by the first engine
    of this judge, else by the first judge of the same rows (another prompt or model of this arm), else by the first
    of all."""
    return warehouse.query(_ANCHORED, [judge])


def truth_gaps(warehouse: Warehouse) -> pl.DataFrame:
    """`pair_id`, `gap`: how far apart the truths of the two responses are, in the shapes world."""
    found = []
    for row in warehouse.stream(_TRUTHS):
        a, b = pair_truths(row)
        found.append((row["pair_id"], abs(a.fraction - b.fraction)))
    gaps = pl.DataFrame(found, schema={"pair_id": pl.String, "gap": pl.Float64}, orient="row")
    return gaps.filter(pl.col("gap").is_not_nan() & (pl.col("gap") < math.inf))
