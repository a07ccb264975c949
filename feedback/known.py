"""What is known of pairs, to hold judges against: what people said, or the exact truth of the shapes world.

Both come in one shape, so whoever measures a judge need not know which it was.
"""

from __future__ import annotations

from shlex import quote
from statistics import fmean

import polars as pl

from vlm_rlaif.datagen.shapes.truth import score
from vlm_rlaif.feedback.verdict import most
from vlm_rlaif.warehouse.errors import UserError, nearest
from vlm_rlaif.warehouse.store import Warehouse

AGAINST = {"humans": "people", "truth": "the exact truth"}
"""What pairs are known by, and its name in a sentence."""
SCHEMA = {
    "pair_id": pl.String, "cluster": pl.String, "choice": pl.String, "p_a": pl.Float64, "weight": pl.Float64,
    "stratum": pl.String,
}  # fmt: skip
_HUMANS = """
    WITH judged AS (
        SELECT DISTINCT plan_id, pair_id FROM human_verdicts WHERE $plan IS NULL OR plan_id = $plan
    ), strata AS (
        SELECT plan_id, stratum, count(*) / count(j.pair_id) AS scale
        FROM audit_tasks LEFT JOIN judged j USING (plan_id, pair_id) GROUP BY ALL HAVING count(j.pair_id) > 0
    ), weights AS (
        SELECT pair_id, coalesce(sum(t.weight * s.scale), 1.0) AS weight,
               CASE WHEN count(DISTINCT t.stratum) = 1 THEN min(t.stratum) END AS stratum
        FROM judged LEFT JOIN audit_tasks t USING (plan_id, pair_id) LEFT JOIN strata s USING (plan_id, stratum)
        GROUP BY pair_id
    )
    SELECT pair_id, v.video_group AS cluster, h.choice, h.p_a, w.weight, w.stratum
    FROM human_preferences h JOIN weights w USING (pair_id) JOIN pairs p USING (pair_id)
    JOIN questions q ON q.question_id = p.question_id JOIN videos v USING (video_id) ORDER BY pair_id
"""
_SAID = """
    SELECT pair_id, list(CASE choice WHEN 'both_bad' THEN 'tie' ELSE choice END) AS said FROM human_verdicts
    WHERE plan_id = ? GROUP BY pair_id
"""
_UNJUDGED = """
    WITH strata AS (
        SELECT plan_id, t.stratum, sum(t.weight) AS pairs, count(h.pair_id) AS judged
        FROM audit_tasks t LEFT JOIN (SELECT DISTINCT plan_id, pair_id FROM human_verdicts) h USING (plan_id, pair_id)
        WHERE $plan IS NULL OR plan_id = $plan GROUP BY plan_id, t.stratum
    )
    SELECT count(*) FILTER (judged = 0) AS strata, coalesce(sum(pairs) FILTER (judged = 0) / sum(pairs), 0.0) AS share
    FROM strata
"""
_TRUTH = """
    SELECT p.pair_id, v.video_group AS cluster, q.kind, q.reference, p.response_a, p.response_b,
           a.text AS text_a, b.text AS text_b
    FROM pairs p JOIN questions q USING (question_id) JOIN videos v USING (video_id)
    JOIN responses a ON a.response_id = p.response_a JOIN responses b ON b.response_id = p.response_b
    WHERE q.source = 'shapes' ORDER BY p.pair_id
"""


def known(warehouse: Warehouse, against: str | None, plan: str | None = None) -> pl.DataFrame:
    """One row per pair of which something is known: `pair_id`, `cluster`, `choice`, `p_a`, `weight`, `stratum`.

    `cluster` is the source of the video (`video_group`): cuts of one source are not independent.
    `against` is `humans` (most votes, whatever the plan) or `truth` (of the shapes world; equal truths are a tie).
    None takes people where any have judged, else the truth. `weight` is how many pairs one stands for: 1 for the
    truth; for people that of its stratum, which tasks that nobody has judged yet hand on to those that somebody has.
    A pair of several plans stands for what it stands for in each, together. `plan`, the name of one, takes its pairs,
    verdicts and weights alone.

    Raises `UserError` where nothing is known, with the command that changes it.
    """
    if against is not None and against not in AGAINST:
        wanted = " or ".join(AGAINST)
        raise UserError(f"A judge is held against {wanted}, not {against!r}.{nearest(against, AGAINST)}")
    if plan is not None and against == "truth":
        raise UserError("--plan names an audit by people: it goes with --against humans.")
    if plan is not None or (against or default_against(warehouse)) == "humans":
        people = _people(warehouse, plan)
        return people if len(people) else _nobody(warehouse, plan)
    truth = _truth(warehouse)
    if not len(truth):
        nobody = "No person has judged a pair yet. " if against is None else ""
        raise UserError(
            f"{nobody}The truth is known of the shapes world, and no pair of {warehouse.path} is of that world.",
            f"vlm-rlaif feedback audit plan {quote(str(warehouse.path))} NAME",
        )
    return truth


def default_against(warehouse: Warehouse) -> str:
    """`humans` where any have judged a pair, else `truth`."""
    judged = warehouse.value("SELECT count(*) FROM human_preferences SEMI JOIN pairs USING (pair_id)")
    return "humans" if judged else "truth"


def _people(warehouse: Warehouse, plan: str | None) -> pl.DataFrame:
    plan_id = None if plan is None else plan_named(warehouse, plan)
    frame = warehouse.query(_HUMANS, {"plan": plan_id}).cast(pl.Schema(SCHEMA))
    if plan_id is None:
        return frame
    said = {row["pair_id"]: row["said"] for row in warehouse.rows(_SAID, [plan_id])}
    half = {"a": 1.0, "tie": 0.5, "b": 0.0}
    return frame.with_columns(
        choice=pl.Series([most(said[pair]) for pair in frame["pair_id"]], dtype=pl.String),
        p_a=pl.Series([fmean(half[each] for each in said[pair]) for pair in frame["pair_id"]], dtype=pl.Float64),
    )


def unjudged(warehouse: Warehouse, plan: str | None = None) -> tuple[int, float]:
    """How many strata of audits have no verdict at all yet, and the share of the pairs that they stand for: nothing
    known says anything about these."""
    plan_id = None if plan is None else plan_named(warehouse, plan)
    row = warehouse.rows(_UNJUDGED, {"plan": plan_id})[0]
    return row["strata"], row["share"]


def plan_named(warehouse: Warehouse, name: str) -> str:
    """The id of the plan of an audit: of its name, its id, or the beginning of that.

    Raises `UserError` where none fits, or several do.
    """
    plans = {row["plan_id"]: row["name"] for row in warehouse.rows("SELECT plan_id, name FROM audit_plans")}
    fits = sorted(plan_id for plan_id in plans if name in (plan_id, plans[plan_id]))
    fits = fits or sorted(plan_id for plan_id in plans if name and plan_id.startswith(name))
    if len(fits) == 1:
        return str(fits[0])
    if fits:
        raise UserError(f"{len(fits)} audit plans are called {name!r}, or begin so. Name one by its id:", *fits)
    names = sorted(set(plans.values()))
    raise UserError(
        f"There is no audit plan {name!r}.{nearest(name, names)} Plans: {', '.join(names) or 'none'}.",
        f"vlm-rlaif feedback audit plan {quote(str(warehouse.path))} NAME",
    )


def _nobody(warehouse: Warehouse, plan: str | None) -> pl.DataFrame:
    """Say which step of an audit comes next."""
    planned = warehouse.value("SELECT count(*) FROM audit_plans")
    of = f" of the plan {plan}" if plan else ""
    path = quote(str(warehouse.path))
    step = f"pull {path} {quote(plan or 'NAME')}" if planned else f"plan {path} NAME"
    raise UserError(f"No person has judged a pair{of} yet.", f"vlm-rlaif feedback audit {step}")


def _truth(warehouse: Warehouse) -> pl.DataFrame:
    right: dict[str, float] = {}
    found = []
    for row in warehouse.stream(_TRUTH):
        for side in "ab":
            response = row[f"response_{side}"]
            if response not in right:
                right[response] = score(row["kind"], row["reference"], row[f"text_{side}"]).fraction
        a, b = right[row["response_a"]], right[row["response_b"]]
        choice, p_a = ("a", 1.0) if a > b else ("b", 0.0) if b > a else ("tie", 0.5)
        found.append((row["pair_id"], row["cluster"], choice, p_a, 1.0, None))
    return pl.DataFrame(found, schema=SCHEMA, orient="row")


def find_judge(warehouse: Warehouse, name: str | None) -> str:
    """The spec id of a judge: of its id, the beginning of one, or the name of its prompt; None: the only judge.

    Raises `UserError` with all judges where none fits, or several do.
    """
    judges = warehouse.rows(
        "SELECT s.spec_id, s.prompt, s.model, count(*) AS labels FROM labels l JOIN specs s USING (spec_id)"
        " GROUP BY ALL ORDER BY s.prompt, s.spec_id"
    )
    if not judges:
        raise UserError(f"No judge has labeled a pair in {warehouse.path} yet.",
                        f"vlm-rlaif feedback label {quote(str(warehouse.path))} --recipe RECIPE")  # fmt: skip
    for fits in (
        [each for each in judges if name is None or each["spec_id"] == name],
        [each for each in judges if each["prompt"] == name],
        [each for each in judges if name and each["spec_id"].startswith(name)],
    ):
        if len(fits) == 1:
            return str(fits[0]["spec_id"])
        if fits:
            break
    prompts = [each["prompt"] for each in judges]
    said = f"There is no judge {name!r}.{nearest(name or '', prompts)}" if not fits else f"{len(fits)} judges fit."
    known_judges = [
        f"  {one['spec_id']}  {one['prompt']} by {one['model']}, {one['labels']:,} labels" for one in judges
    ]
    raise UserError(f"{said} Name one with --judge, by its id or its prompt:", *known_judges)
