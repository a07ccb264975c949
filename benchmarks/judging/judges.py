"""How true are labels, and what do they cost? Every way to judge against the exact truth of the shapes world.

    python benchmarks/judging/judges.py [--small] [--keep FOLDER]

`judges.yaml` is the recipe: pairwise in both orders, five votes, text-only, without video and narrative (a control),
a checklist, claims, panels of those that see the video; with context and without. The embedded judge was taught to
compare and to check whole answers; claims are put to it in the place of an answer, judging without a video it was not
taught. Scores, critiques and rankings it cannot give at all, and they are left out. Accuracy counts pairs whose
responses differ in truth, a tie label half; intervals are clustered by video. Cost is in tokens that the judge reads
and writes, for a pair. Panels are held against their best member, votes against a single vote (`panel_*`,
`votes_*`): neither should be worse by more than the interval of the difference; `together_points` is the
one that comes nearest to it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_rlaif.eval.conductor import travel
from vlm_rlaif.feedback.judges.plan import Judging, judges_of
from vlm_rlaif.feedback.stats.estimates import Estimate, clustered_mean, paired_difference
from vlm_rlaif.feedback.truth import agreements, pair_truths
from vlm_rlaif.feedback.verdict import Verdict, combine
from vlm_rlaif.warehouse.config import Recipe, load
from vlm_rlaif.warehouse.store import Warehouse

RECIPE = Path(__file__).with_name("judges.yaml")
SMALL = 40
"""Videos of a quick run."""
Right = dict[str, tuple[float, str]]
"""Pair -> how right its label is, and its video."""


def judged(folder: Path, small: bool) -> tuple[Warehouse, Recipe]:
    recipe = load(str(RECIPE))
    assert recipe.world is not None
    if small:
        recipe = replace(recipe, world=replace(recipe.world, videos=SMALL))
    warehouse = Warehouse.create(folder / "w.duckdb")
    travel(warehouse, recipe)
    return warehouse, recipe


def right(warehouse: Warehouse, judge: Judging) -> Right:
    return _right(warehouse.preferences(judge=judge.spec.spec_id).to_dicts())


def _right(rows: list[dict[str, Any]]) -> Right:
    found = agreements(rows, [pair_truths(row) for row in rows])
    return {
        row["pair_id"]: (value, row["video_id"])
        for row, value in zip(rows, found, strict=True)
        if not math.isnan(value)
    }


def first_vote(warehouse: Warehouse, judge: Judging) -> Right:
    """As `right`, of the first vote in each order alone."""
    rows = warehouse.preferences(judge=judge.spec.spec_id).to_dicts()
    said: dict[str, list[Verdict]] = {}
    votes = "SELECT pair_id, p_a, p_tie FROM labels WHERE spec_id = ? AND vote = 0"
    for vote in warehouse.rows(votes, [judge.spec.spec_id]):
        verdict = Verdict(vote["p_a"], 1 - vote["p_a"] - vote["p_tie"], vote["p_tie"])
        said.setdefault(vote["pair_id"], []).append(verdict)
    whole = [row for row in rows if len(said.get(row["pair_id"], ())) == 2]  # the others failed in one order or both
    return _right([{**row, "choice": combine(said[row["pair_id"]]).choice} for row in whole])


def accuracy(of: Right) -> Estimate:
    return clustered_mean([value for value, _ in of.values()], [video for _, video in of.values()])


def difference(one: Right, other: Right) -> Estimate:
    both = sorted(one.keys() & other.keys())
    first, second = ([side[pair][0] for pair in both] for side in (one, other))
    return paired_difference(first, second, [one[pair][1] for pair in both])


def cost(warehouse: Warehouse, judge: Judging) -> tuple[float, float]:
    """Tokens of prompts and replies of all its requests, and requests, for each pair that it has judged."""
    specs = [stage.spec.spec_id for stage in judge.stages]
    (row,) = warehouse.rows(
        "SELECT coalesce(sum(tokens_in + tokens_out), 0) AS tokens, coalesce(sum(rows_written), 0) AS rows FROM runs"
        " WHERE stage NOT IN ('probe', 'anchor') AND config->>'$.spec_id' IN (SELECT unnest($specs))",
        {"specs": specs},
    )
    pairs = warehouse.value("SELECT count(DISTINCT pair_id) FROM labels WHERE spec_id = ?", [judge.spec.spec_id])
    return float(row["tokens"]) / pairs, float(row["rows"]) / pairs


def figures(warehouse: Warehouse, recipe: Recipe) -> dict[str, dict[str, Any]]:
    judges = judges_of(recipe)
    of = {name: right(warehouse, judge) for name, judge in judges.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, judge in judges.items():
        found[f"accuracy_{name}"] = figure(accuracy(of[name]), f"labels of {name} against the truth")
        if judge.stages:
            tokens, rows = cost(warehouse, judge)
            found[f"tokens_{name}"] = {
                "value": tokens, "low": None, "high": None, "n": len(of[name]), "unit": "tokens",
                "about": f"read and written for a pair by {name}, in {rows:.1f} requests",
            }  # fmt: skip
    for name in [name for name in judges if f"{name.removesuffix('_context')}_none" in judges]:
        gain = difference(of[name], of[f"{name.removesuffix('_context')}_none"])
        found[f"gain_{name}"] = figure(gain, f"{name} over the same without context")
    found["gain_context"] = figure(difference(of["context"], of["none"]), "context over none: the paper's claim")
    for panel in recipe.panels:
        best = max(panel.of, key=lambda member: accuracy(of[member]).value or 0.0)
        about = f"{panel.name} over its best member, {best}"
        found[f"panel_{panel.name}"] = figure(difference(of[panel.name], of[best]), about)
    for arm in ("context", "none"):
        votes = of[f"votes_{arm}"]
        single = difference(votes, first_vote(warehouse, judges[f"votes_{arm}"]))
        found[f"votes_{arm}_over_one"] = figure(single, f"five votes over the first of them, {arm}")
        about = f"five votes over the probabilities of one token, {arm}"
        found[f"votes_{arm}_over_choice"] = figure(difference(votes, of[arm]), about)
        claims = difference(of[f"claims_{arm}"], of[arm])
        found[f"claims_{arm}_over_choice"] = figure(claims, f"claims over the probabilities of one token, {arm}")
        mean = difference(of[f"mean_{arm}"], of[arm])
        found[f"mean_{arm}_over_choice"] = figure(mean, f"the mean panel over the probabilities of one token, {arm}")
    together = [one for name, one in found.items() if name.startswith("panel_") or name.endswith("_over_one")]
    return found | {"together_points": min(together, key=lambda one: one["high"])}


def figure(estimate: Estimate, about: str) -> dict[str, Any]:
    return {**estimate.as_json(), "unit": "" if estimate.unit == "fraction" else estimate.unit, "about": about}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--small", action="store_true")
    arguments.add_argument("--keep", type=Path, help="work in this folder, and leave it")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        with redirect_stdout(sys.stderr):
            found = figures(*judged(folder, given.small))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
