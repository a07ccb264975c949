"""The report on judges as data: what each is held against, its sections, its curves. `feedback report` shows it.

Nothing is written, and nothing is kept: every figure is computed from the rows that stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from shlex import quote
from typing import Any

import polars as pl

from vlm_rlaif.feedback.agreement import Judged, People, measure
from vlm_rlaif.feedback.known import AGAINST, default_against, find_judge, known
from vlm_rlaif.feedback.report import gather
from vlm_rlaif.feedback.report.gather import Reference
from vlm_rlaif.feedback.report.sections import Row, Section, Subject, sections
from vlm_rlaif.feedback.stats.calibration import Calibration, calibration
from vlm_rlaif.feedback.stats.estimates import Estimate, plain
from vlm_rlaif.feedback.stats.intervals import rate
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.store import Warehouse

COMPARES, CALIBRATED = "label", "calibrate"
"""The stages of judges that are asked about pairs, in two orders, and of those whose p was fitted to known pairs."""
GLANCE = {
    "accuracy": ("accuracy", "names the better response"), "conflicts": ("position", "conflict of the two orders"),
    "first wins": ("position", "names the first response"), "longer wins": ("length", "the longer response wins"),
    "same ties": ("probes", "one answer twice: a tie"), "other loses": ("probes", "another video's answer loses"),
}  # fmt: skip
"""Column of the first table -> the section and the row that it shows."""


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """All that is said of one judge."""

    judge: str
    prompt: str
    model: str
    facts: list[Row]
    sections: list[Section]
    agreement: Judged | None
    """With what is known; None where nothing is."""
    calibration: Calibration | None

    @property
    def name(self) -> str:
        """Of its prompt, which may be a file of the user."""
        return PurePath(self.prompt).stem if self.prompt.endswith(".md") else self.prompt

    def row(self, section: str, name: str) -> Estimate | str | None:
        """One figure by its place."""
        rows = (row for each in self.sections if each.title == section for row in each.rows)
        return next((row.value for row in rows if row.name == name), None)


@dataclass(frozen=True, slots=True)
class Report:
    """What `feedback report` says."""

    against: str
    """What judges are held against: people, the exact truth, or nothing."""
    known: int
    """Pairs of which that knows something."""
    note: str
    """Why it is nothing."""
    people: People | None
    judges: list[JudgeReport]

    def as_json(self) -> dict[str, Any]:
        found = plain(self)
        assert isinstance(found, dict)
        return found


def assess(warehouse: Warehouse, judges: Sequence[str] = (), against: str | None = None) -> Report:
    """Look at these judges, or at all of them. Raises `UserError` for an unknown one, and where `against` names what
    is not there."""
    chosen = [find_judge(warehouse, name) for name in judges]
    every = [row for row in gather.judges(warehouse) if not chosen or row["judge"] in chosen]
    if not every:
        find_judge(warehouse, None)
    try:
        frame = known(warehouse, against)
    except UserError as error:
        if against is not None:
            raise
        people = _everybody(warehouse, every, None, None)
        return Report("nothing", 0, str(error), None, people)
    against = against or default_against(warehouse)
    measured = measure(warehouse, judges=chosen, against=against)
    reference = Reference(AGAINST[against], frame.select("pair_id", "weight", known="choice", p_known="p_a"))
    by_judge = {one.judge: one for one in measured.judges}
    gaps = gather.truth_gaps(warehouse) if against == "truth" else None
    return Report(
        AGAINST[against], len(frame), "", measured.people,
        _everybody(warehouse, every, reference, gaps, by_judge),
    )  # fmt: skip


def _everybody(
    warehouse: Warehouse, rows: Sequence[dict[str, Any]], reference: Reference | None, gaps: pl.DataFrame | None,
    by_judge: dict[str, Judged] | None = None,
) -> list[JudgeReport]:  # fmt: skip
    found = []
    for row in rows:
        subject = _subject(warehouse, row, reference, gaps)
        agreed = (by_judge or {}).get(row["judge"])
        honest = None if reference is None or row["stage"] == CALIBRATED else _calibration(subject)
        parts = [*_accuracy(agreed, reference), *sections(subject), *_calibration_section(subject, row, honest)]
        found.append(
            JudgeReport(row["judge"], row["prompt"], row["model"], _facts(subject, row), parts, agreed, honest)
        )
    return found


def _subject(
    warehouse: Warehouse, row: dict[str, Any], reference: Reference | None, gaps: pl.DataFrame | None
) -> Subject:  # fmt: skip
    """Without people or the truth, another judge says what it thinks of the pairs."""
    judge = row["judge"]
    reference = reference or gather.other_judge(warehouse, judge)
    pairs = gather.pairs(warehouse, judge)
    if reference is None:
        nothing = pl.lit(None, pl.Float64)
        pairs = pairs.with_columns(known=pl.lit(None, pl.String), p_known=nothing, weight=nothing)
    else:
        pairs = pairs.join(reference.frame, on="pair_id", how="left", maintain_order="left")
    if gaps is not None:
        pairs = pairs.join(gaps, on="pair_id", how="left", maintain_order="left")
    else:
        pairs = pairs.with_columns(gap=(2 * pl.col("p_known") - 1).abs())
    return Subject(
        warehouse, judge, pairs, gather.verdicts(warehouse, judge), reference, row["stage"] == COMPARES
    )  # fmt: skip


def _facts(subject: Subject, row: dict[str, Any]) -> list[Row]:
    ties = (subject.pairs["choice"] == "tie").cast(pl.Float64).to_numpy()
    facts = [
        Row("model", row["model"]), Row("labels", f"{row['labels']:,}"),
        Row("pairs", f"{len(subject.pairs):,} complete of {row['pairs']:,}"), Row("ties", rate(ties, subject.videos)),
    ]  # fmt: skip
    if row["engines"]:
        facts.append(Row("engine", row["engines"]))
    if row["tokens"]:
        facts.append(Row("tokens", f"{row['tokens']:,.0f} a row"))
    return facts


def _accuracy(agreed: Judged | None, reference: Reference | None) -> list[Section]:
    if agreed is None or reference is None:
        return []
    good = "Accuracy far above 50 %; kappa, agreement beyond chance, above 0.6 (a convention)."
    rows = [
        Row("names the better response", agreed.accuracy), Row("same verdict, ties too", agreed.agreement),
        Row("kappa", agreed.kappa),
    ]  # fmt: skip
    rows += [
        Row(f"says {said}", ", ".join(f"{n:,} {known}" for n, known in zip(counts, ("a", "tie", "b"), strict=True)))
        for said, counts in zip(("a", "tie", "b"), agreed.confusion, strict=True)
    ]
    return [Section("accuracy", good, rows, f"Against {reference.who}; what that says stands behind the counts.")]


def _calibration(subject: Subject) -> Calibration | None:
    rows = subject.known
    if not len(rows):
        return None
    p, right, weight = (rows[name].to_numpy() for name in ("p", "p_known", "weight"))
    return calibration(p.astype(float), right.astype(float), weight.astype(float), rows["cluster"].to_list())


def _calibration_section(subject: Subject, row: dict[str, Any], found: Calibration | None) -> list[Section]:
    good = "The error is that of chance: of 100 verdicts with p = 0.8, 80 are right. `feedback calibrate` mends it."
    if row["stage"] == CALIBRATED:
        command = f"vlm-rlaif feedback calibrate {quote(str(subject.warehouse.path))} --judge {row['fitted_to']}"
        return [Section("calibration", good, note=f"Fitted on these pairs. Its held-out error: {command} --dry-run")]
    if found is None:
        return []
    rows = [
        Row("calibration error (ECE)", f"{100 * found.ece:.1f} %, by chance alone {100 * found.by_chance:.1f} %"),
        Row("squared error (Brier)", found.brier),
    ]  # fmt: skip
    return [Section("calibration", good, rows)]
