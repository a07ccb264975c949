"""A plan: which pairs of a judge people are to see, on which side each answer is shown, and by how many people.

    plan = plan_audit(warehouse, "spring", Asked(judge=JUDGE, half_width=0.05))

The plan is a few rows; nothing leaves the warehouse before `push`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from shlex import quote
from typing import Any

import polars as pl

from vlm_rlaif.feedback.audit.sampling import (
    Size,
    allocate,
    draw,
    expected,
    overlapping,
    sides,
    size_for,
    weighting,
)
from vlm_rlaif.feedback.audit.tasks import command
from vlm_rlaif.feedback.known import plan_named
from vlm_rlaif.warehouse.care.keys import audit_plan_id, audit_task_id
from vlm_rlaif.warehouse.errors import UserError, nearest
from vlm_rlaif.warehouse.records import AuditPlan, AuditTask, Record, row_id
from vlm_rlaif.warehouse.runs import BATCH_ROWS, derive
from vlm_rlaif.warehouse.store import Warehouse

NAME = re.compile(r"\w[\w.-]{0,99}")
"""Nothing that a shell would read: the name is part of commands that are printed to be typed."""
STRATA = ("confidence", "conflict", "length", "source")
MOST_PAIRS = BATCH_ROWS - 1
"""A plan and its tasks are written in one transaction."""
_POPULATION = """
    SELECT p.pair_id, p.video_id, p.strength, p.conflict, abs(length(a.text) - length(b.text)) AS gap,
           sa.prompt || '@' || sa.spec_id[:6] AS source_a, sb.prompt || '@' || sb.spec_id[:6] AS source_b
    FROM preferences p
    JOIN responses a ON a.response_id = p.response_a JOIN specs sa ON sa.spec_id = a.spec_id
    JOIN responses b ON b.response_id = p.response_b JOIN specs sb ON sb.spec_id = b.spec_id
    WHERE p.judge = $judge AND p.complete AND ($split IS NULL OR p.split = $split)
    ORDER BY p.pair_id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a plan is asked for; the same again is the same plan."""

    judge: str
    """The spec of its labels."""
    size: int | None = None
    """Pairs; None: as many as `half_width` needs."""
    half_width: float | None = None
    """Of the 95 % interval of the agreement with the judge."""
    agreement: float = 0.5
    """Agreement that is expected; 0.5 needs the most pairs."""
    correlation: float = 0.1
    """Of the errors within a video."""
    overlap: float = 0.2
    """Share of the pairs that `annotators` people see."""
    annotators: int = 2
    strata: list[str] = field(default_factory=lambda: list(STRATA))
    seed: int = 0
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Stratum:
    name: str
    population: int
    pairs: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan as it is to be, or as it stands."""

    name: str
    plan_id: str
    population: int
    videos: int
    size: Size
    strata: list[Stratum]
    shared: int
    """Pairs that several people see."""
    fresh: bool
    """Written just now, or to be written."""


def plan_audit(warehouse: Warehouse, name: str, asked: Asked, *, dry_run: bool = False) -> Plan:
    """Draw the pairs and write the plan. One that stands is left alone.

    Raises `UserError` where there is nothing to draw from, or for a name that means other settings.
    """
    _check(name, asked)
    settings = asdict(asked)
    if standing := _standing(warehouse, name, settings):
        return standing
    population = _population(warehouse, asked)
    videos = population["video_id"].n_unique()
    members = _members(population)
    try:
        size, counts = _size(asked, {stratum: len(pairs) for stratum, pairs in members.items()}, videos)
    except ValueError as error:
        raise UserError(
            f"An audit shows some pairs of every stratum, and {error} is not possible.",
            "Ask for more pairs (--size), or for fewer strata (--strata confidence).",
        ) from None
    strata = [Stratum(stratum, len(members[stratum]), counts[stratum]) for stratum in members]
    drawn = {stratum: draw(pairs, counts[stratum], asked.seed) for stratum, pairs in members.items()}
    shared = overlapping([pair for pairs in drawn.values() for pair in pairs], asked.overlap, asked.seed)
    if asked.annotators == 1:
        shared = set()
    said = {"asked": settings, "population": len(population), "videos": videos, "size": asdict(size),
            "drawn": row_id("drawn", sorted(pair for pairs in drawn.values() for pair in pairs))}  # fmt: skip
    config = json.dumps(said, sort_keys=True)
    plan_id = audit_plan_id(name, asked.judge, config)
    plan = Plan(name, plan_id, len(population), videos, size, strata, len(shared), True)
    if not dry_run:

        def rows(run_id: str) -> Iterable[Record]:
            yield AuditPlan(plan_id=plan_id, name=name, judge=asked.judge, config=config, run_id=run_id)
            yield from _tasks(plan, drawn, shared, asked, run_id)

        derive(warehouse, "audit-plan", {"name": name, **settings}, rows)
    return plan


def _check(name: str, asked: Asked) -> None:
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name for a plan: letters, digits, `.`, `_` and `-`, at most 100.")
    if unknown := [stratum for stratum in asked.strata if stratum not in STRATA]:
        raise UserError(f"There are no strata by {unknown[0]!r}.{nearest(unknown[0], STRATA)} "
                        f"Known: {', '.join(STRATA)}.")  # fmt: skip
    if (asked.size is None) == (asked.half_width is None):
        raise UserError("An audit has a size or a wanted half-width, one of the two: --size N, or --half-width 0.05.")
    if asked.size is not None and asked.size > MOST_PAIRS:
        raise UserError(f"One plan has at most {MOST_PAIRS:,} pairs, not {asked.size:,}. Make several plans.")


def _standing(warehouse: Warehouse, name: str, asked: dict[str, Any]) -> Plan | None:
    """The plan of this name, if there is one. Raises `UserError` if it was asked for in another way."""
    plans = {row["plan_id"]: json.loads(row["config"]) for row in warehouse.rows(
        "SELECT plan_id, config FROM audit_plans WHERE name = ? ORDER BY plan_id", [name])}  # fmt: skip
    if not plans:
        return None
    same = [plan_id for plan_id, config in plans.items() if config["asked"] == asked]
    if len(same) == 1:
        return _plan(warehouse, name, same[0], plans[same[0]])
    stands = plans[plan_named(warehouse, name)]["asked"]
    other = [key for key in asked if stands.get(key) != asked[key]]
    said = ", ".join(f"{key} {stands.get(key)!r}, not {asked[key]!r}" for key in other)
    raise UserError(
        f"The plan {name!r} stands already with other settings: {said}. A plan is never changed.",
        command("plan", warehouse.path, "ANOTHER_NAME"),
    )


def _plan(warehouse: Warehouse, name: str, plan_id: str, config: dict[str, Any]) -> Plan:
    """A plan that was written."""
    rows = warehouse.rows(
        "SELECT stratum, count(*) AS pairs, sum(weight) AS population, count_if(annotators > 1)::BIGINT AS shared"
        " FROM audit_tasks WHERE plan_id = ? GROUP BY stratum ORDER BY stratum",
        [plan_id],
    )
    strata = [Stratum(row["stratum"], round(row["population"]), row["pairs"]) for row in rows]
    shared = sum(row["shared"] for row in rows)
    return Plan(name, plan_id, config["population"], config["videos"], Size(**config["size"]), strata, shared, False)


def _population(warehouse: Warehouse, asked: Asked) -> pl.DataFrame:
    """The pairs that the judge has judged, each with its stratum; what is the same for all makes no strata."""
    pairs = warehouse.query(_POPULATION, {"judge": asked.judge, "split": asked.split})
    if not len(pairs):
        of = f" of the split {asked.split}" if asked.split else ""
        raise UserError(
            f"The judge {asked.judge} has judged no pair{of} in both orders yet.",
            f"vlm-rlaif sql {quote(str(warehouse.path))}"
            ' "SELECT judge, split, count(*) FROM preferences GROUP BY ALL"',
        )
    low, high = (pairs["strength"].quantile(share, "lower") for share in (1 / 3, 2 / 3))
    middle_gap = pairs["gap"].quantile(0.5, "lower")
    strength, source_a, source_b = pl.col("strength"), pl.col("source_a"), pl.col("source_b")
    levels = {
        "confidence": pl.when(strength <= low).then(pl.lit("low"))
        .when(strength <= high).then(pl.lit("middle")).otherwise(pl.lit("high")),
        "conflict": pl.when(pl.col("conflict")).then(pl.lit("yes")).otherwise(pl.lit("no")),
        "length": pl.when(pl.col("gap") <= middle_gap).then(pl.lit("near")).otherwise(pl.lit("far")),
        "source": pl.when(source_a == source_b).then(source_a)
        .otherwise(pl.min_horizontal(source_a, source_b) + "+" + pl.max_horizontal(source_a, source_b)),
    }  # fmt: skip
    leveled = pairs.with_columns(**{f"level {name}": level for name, level in levels.items()})
    telling = [name for name in STRATA if name in asked.strata and leveled[f"level {name}"].n_unique() > 1]
    said = [pl.concat_str(pl.lit(f"{name} "), f"level {name}") for name in telling]
    stratum = pl.concat_str(said, separator=", ") if said else pl.lit("all")
    return leveled.select("pair_id", "video_id", stratum.alias("stratum"))


def _members(population: pl.DataFrame) -> dict[str, list[tuple[str, str]]]:
    """Stratum -> its pairs, each (video, pair)."""
    members: dict[str, list[tuple[str, str]]] = {}
    for pair, video, stratum in population.iter_rows():
        members.setdefault(stratum, []).append((video, pair))
    return dict(sorted(members.items()))


def _size(asked: Asked, populations: dict[str, int], videos: int) -> tuple[Size, dict[str, int]]:
    """How many pairs, of all and of every stratum. Raises `ValueError` where these are fewer than the strata.

    How unequal the weights will be is known of a sample of some size, so a wanted width is sized twice.
    """
    guess = {"agreement": asked.agreement, "correlation": asked.correlation}
    population = sum(populations.values())
    if asked.size is not None:
        size = expected(min(asked.size, population), videos, **guess)
    else:
        assert asked.half_width is not None
        most = min(population, MOST_PAIRS)
        size = size_for(asked.half_width, most, videos, **guess)
        unequal = weighting(populations, allocate(populations, size.pairs))
        size = size_for(asked.half_width, most, videos, **guess, unequal=unequal)
    counts = allocate(populations, size.pairs)
    return expected(size.pairs, videos, **guess, unequal=weighting(populations, counts),
                    independent=size.independent), counts  # fmt: skip


def _tasks(
    plan: Plan, drawn: dict[str, list[str]], shared: set[str], asked: Asked, run_id: str
) -> Iterator[AuditTask]:  # fmt: skip
    side = sides([pair for pairs in drawn.values() for pair in pairs], asked.seed)
    for stratum in plan.strata:
        for pair in drawn[stratum.name]:
            yield AuditTask(
                audit_task_id=audit_task_id(plan.plan_id, pair), plan_id=plan.plan_id, pair_id=pair,
                stratum=stratum.name, weight=stratum.population / stratum.pairs, shown_order=side[pair],
                annotators=asked.annotators if pair in shared else 1, run_id=run_id,
            )  # fmt: skip


def arithmetic(plan: Plan, asked: Asked) -> Sequence[str]:
    """Why so many pairs, in lines to read."""
    size, p = plan.size, asked.agreement
    lines = [f"{plan.population:,} pairs of {plan.videos:,} videos have a verdict of this judge."]
    if asked.half_width is not None:
        lines.append(f"+-{asked.half_width:g} at an agreement of {p:g} needs 1.96^2 * {p:g} * {1 - p:g} /"
                     f" {asked.half_width:g}^2 = {size.independent:.0f} independent pairs.")  # fmt: skip
    if size.design_effect > 1:
        lines.append(f"{size.pairs_per_video:.1f} pairs of a video, whose errors go together ({asked.correlation:g}),"
                     f" count as {1 / size.design_effect:.2f} of as many independent ones"
                     f" (design effect {size.design_effect:.2f}).")  # fmt: skip
    if size.unequal > 1.0005:
        lines.append(f"Unequal weights w make the interval sqrt(n * sum(w^2)) / sum(w) = {size.unequal:.3f} times as"
                     " wide.")  # fmt: skip
    lines.append(f"{size.pairs:,} pairs promise +-{size.half_width:.3f}.")
    if asked.half_width is not None and size.half_width > asked.half_width * 1.001:
        lines.append("These pairs are too few, or of too few videos, for the interval that was asked for.")
    return lines
