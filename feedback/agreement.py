"""`vlm-rlaif feedback agreement`: how far people agree with each other, and every judge with them or with the truth.

Everything is read from rows; nothing is written. `docs/agreement.md` says what the numbers mean.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from vlm_rlaif.feedback.known import find_judge, known, plan_named, unjudged
from vlm_rlaif.feedback.stats import agreement as stats
from vlm_rlaif.feedback.stats.calibration import Kept, accuracy_coverage
from vlm_rlaif.feedback.stats.correction import Corrected, corrected_rate
from vlm_rlaif.feedback.stats.estimates import Estimate, plain
from vlm_rlaif.feedback.stats.intervals import Floats
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.store import Warehouse

FEWEST_COMMON = 10
"""Pairs that two people must both have judged for a line of their own."""
_VERDICTS = """
    SELECT h.pair_id, h.annotator, h.choice, v.video_group AS cluster
    FROM human_verdicts h JOIN pairs p USING (pair_id) JOIN questions q ON q.question_id = p.question_id
    JOIN videos v USING (video_id)
    WHERE $plan IS NULL OR h.plan_id = $plan
    QUALIFY row_number() OVER (PARTITION BY h.pair_id, h.annotator ORDER BY h.updated_at DESC, h.audit_id) = 1
    ORDER BY h.pair_id, h.annotator
"""
LENGTH = "coalesce(nullif({side}.tokens, 0), len(string_split(trim({side}.text), ' ')))"
"""SQL of the length of a response, whatever the table is called."""
_JUDGED = f"""
    SELECT p.pair_id, v.video_group AS cluster, p.choice AS judge_choice, p.p_a AS judge_p, p.judge_prompt,
           CASE s.stage WHEN 'calibrate' THEN s.upstream->>'$.label' ELSE '' END AS fitted_to,
           {LENGTH.format(side="a")} AS length_a, {LENGTH.format(side="b")} AS length_b,
           a.spec_id AS policy_a, b.spec_id AS policy_b
    FROM preferences p
    JOIN responses a ON a.response_id = p.response_a JOIN responses b ON b.response_id = p.response_b
    JOIN videos v ON v.video_id = p.video_id JOIN specs s ON s.spec_id = p.judge
    WHERE p.judge = ? AND p.complete ORDER BY p.pair_id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatorPair:
    """Two people who judged some pairs both."""

    annotators: tuple[str, str]
    agreement: Estimate
    kappa: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """What people say of the same pairs."""

    annotators: int
    verdicts: int
    both_bad: int
    """Verdicts; elsewhere they are ties."""
    pairs: int
    overlap: int
    """Pairs that two or more people judged. What follows is about these."""
    agreement: Estimate
    """Of two people about one pair."""
    alpha: Estimate
    alpha_ordinal: Estimate
    annotator_pairs: list[AnnotatorPair]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How often something happens, as the judge says and as it would be if people had judged every pair."""

    what: str
    pairs: int
    known: int
    corrected: Corrected | None
    refused: str = ""
    """Why it cannot be corrected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A judge against what is known."""

    judge: str
    prompt: str
    preferences: int
    known: int
    """Pairs of them of which something is known."""
    fitted_to: str
    """The judge that this one is the calibration of, so that its p was fitted on such pairs; empty for any other."""
    agreement: Estimate
    kappa: Estimate
    alpha: Estimate
    alpha_ordinal: Estimate
    accuracy: Estimate
    confusion: list[list[int]]
    """Pairs with verdict i of the judge and verdict j of what is known, in the order a, tie, b."""
    confusion_weighted: list[list[float]]
    """The same as shares of all pairs, each standing for those of its stratum."""
    curve: list[Kept]
    rates: list[Rate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Everything that the command says."""

    against: str
    """`humans` or `truth`."""
    plan: str | None
    pairs: int
    videos: int
    """Cuts of one source are one."""
    weighted: bool
    """Whether pairs stand for different numbers of others."""
    strata_unjudged: int
    """Strata of audits of which nobody has judged a pair yet: nothing is known of them."""
    share_unjudged: float
    """Of the pairs that the audits stand for."""
    people: People | None
    judges: list[Judged]

    def as_json(self) -> dict[str, Any]:
        found = plain(self)
        assert isinstance(found, dict)
        return found


def measure(
    warehouse: Warehouse, *, judges: Sequence[str] = (), against: str | None = None, plan: str | None = None
) -> Agreement:
    """Hold these judges, or all of them, against people or the truth. Raises `UserError` where nothing is known."""
    frame = known(warehouse, against, plan)
    people = _people(warehouse, frame, plan) if against != "truth" else None
    chosen = [find_judge(warehouse, judge) for judge in judges] or _judges(warehouse)
    strata, share = unjudged(warehouse, plan) if people else (0, 0.0)
    return Agreement(
        against="humans" if people else "truth", plan=plan, pairs=len(frame), videos=frame["cluster"].n_unique(),
        weighted=frame["weight"].n_unique() > 1, strata_unjudged=strata, share_unjudged=share, people=people,
        judges=[one for each in chosen if (one := _judged(warehouse, each, frame)) is not None],
    )  # fmt: skip


def _judges(warehouse: Warehouse) -> list[str]:
    rows = warehouse.rows("SELECT DISTINCT judge_prompt, judge FROM preferences WHERE complete ORDER BY ALL")
    return [row["judge"] for row in rows]


def _people(warehouse: Warehouse, frame: pl.DataFrame, plan: str | None) -> People | None:
    verdicts = warehouse.query(_VERDICTS, {"plan": None if plan is None else plan_named(warehouse, plan)})
    if not len(verdicts):
        return None
    codes = stats.codes(verdicts["choice"].to_list())
    units, counts = stats.verdict_counts(verdicts["pair_id"].to_list(), codes)
    video, weight = (dict(zip(frame["pair_id"], frame[column], strict=True)) for column in ("cluster", "weight"))
    videos, weights = [video[unit] for unit in units], np.array([weight[unit] for unit in units])
    alphas = (stats.krippendorff_alpha(counts, videos, level) for level in stats.LEVELS)
    return People(
        annotators=verdicts["annotator"].n_unique(), verdicts=len(verdicts), pairs=len(units),
        both_bad=int((verdicts["choice"] == "both_bad").sum()), overlap=int((counts.sum(axis=1) > 1).sum()),
        agreement=stats.pairwise_agreement(counts, weights, videos), alpha=next(alphas), alpha_ordinal=next(alphas),
        annotator_pairs=list(_annotator_pairs(verdicts, weight)),
    )  # fmt: skip


def _annotator_pairs(verdicts: pl.DataFrame, weight: dict[str, float]) -> Iterator[AnnotatorPair]:
    for one, other in itertools.combinations(sorted(verdicts["annotator"].unique()), 2):
        both = verdicts.filter(pl.col("annotator") == one).join(
            verdicts.filter(pl.col("annotator") == other), on="pair_id", maintain_order="left"
        )
        if len(both) >= FEWEST_COMMON:
            first, second = (stats.codes(both[column].to_list()) for column in ("choice", "choice_right"))
            weights, videos = np.array([weight[pair] for pair in both["pair_id"]]), both["cluster"].to_list()
            yield AnnotatorPair(
                annotators=(one, other), agreement=stats.raw_agreement(first, second, weights, videos),
                kappa=stats.cohen_kappa(first, second, weights, videos),
            )  # fmt: skip


def _judged(warehouse: Warehouse, judge: str, frame: pl.DataFrame) -> Judged | None:
    """None where the judge has no preference of which anything is known."""
    rows = warehouse.query(_JUDGED, [judge]).join(
        frame.select("pair_id", "choice", "weight"), on="pair_id", how="left", maintain_order="left"
    )
    there = rows.filter(pl.col("choice").is_not_null())
    if not len(there):
        return None
    said, right = (stats.codes(there[column].to_list()) for column in ("judge_choice", "choice"))
    weights, videos = there["weight"].to_numpy(), there["cluster"].to_list()
    _, both = stats.verdict_counts([*there["pair_id"]] * 2, np.concatenate([said, right]))
    weighed = stats.confusion(said, right, weights)
    return Judged(
        judge=judge, prompt=rows["judge_prompt"][0], preferences=len(rows), known=len(there),
        fitted_to=rows["fitted_to"][0],
        agreement=stats.raw_agreement(said, right, weights, videos),
        kappa=stats.cohen_kappa(said, right, weights, videos),
        alpha=stats.krippendorff_alpha(both, videos), accuracy=stats.accuracy(said, right, weights, videos),
        alpha_ordinal=stats.krippendorff_alpha(both, videos, "ordinal"),
        confusion=stats.confusion(said, right).astype(int).tolist(),
        confusion_weighted=(weighed / weighed.sum()).tolist(),
        curve=accuracy_coverage(there["judge_p"].to_numpy(), said != 1, 1 - right / 2, weights, videos),
        rates=list(_rates(warehouse, rows)),
    )  # fmt: skip


def _rates(warehouse: Warehouse, rows: pl.DataFrame) -> Iterator[Rate]:
    """How often the longer response is better, and the response of one policy than that of another."""
    longer = rows["length_a"].to_numpy() - rows["length_b"].to_numpy()
    for word, sign in (("longer", 1), ("shorter", -1)):
        yield _rate(f"the {word} response is better", rows, sign * longer)
    a, b = rows["policy_a"].to_numpy(), rows["policy_b"].to_numpy()
    named = {each["spec_id"]: each["model"] for each in warehouse.rows("SELECT spec_id, model FROM specs")}
    for one, other in sorted({tuple(sorted(pair)) for pair in zip(a, b, strict=True) if pair[0] != pair[1]}):
        side = np.where((a == one) & (b == other), 1, np.where((a == other) & (b == one), -1, 0))
        for better, worse, sign in ((one, other, 1), (other, one, -1)):
            said = " over ".join(f"{named.get(spec, '')} ({spec[:6]})" for spec in (better, worse))
            yield _rate(said, rows, sign * side)


def _rate(what: str, rows: pl.DataFrame, side: Floats) -> Rate:
    """How often one side is better: `side` (n,) is above 0 where that is a, below where it is b, 0 where neither."""
    of, counted = np.where(side > 0, "a", "b"), side != 0
    some = rows.filter(pl.Series(counted))
    said = (some["judge_choice"].to_numpy() == of[counted]).astype(float)
    is_known = some["choice"].is_not_null().to_numpy()
    seen = np.where(is_known, (some["choice"].to_numpy() == of[counted]).astype(float), np.nan)
    corrected, refused = None, ""
    try:
        corrected = corrected_rate(said, seen, some["weight"].fill_null(0.0).to_numpy(), some["cluster"].to_list())
    except UserError as error:
        refused = str(error)
    return Rate(what=what, pairs=len(some), known=int(is_known.sum()), corrected=corrected, refused=refused)
