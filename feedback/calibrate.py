"""`vlm-rlaif feedback calibrate`: a judge's probabilities made honest, as labels of a judge of its own.

The calibrated judge is a spec of the stage `calibrate` over the judge's: method, fitted parameters and the hash of
the verdicts that they were fitted on are part of its key. So the same verdicts give the same rows, and more verdicts
a further judge; the labels that it was made of stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

import polars as pl

from vlm_rlaif.feedback.known import AGAINST, default_against, find_judge, known
from vlm_rlaif.feedback.stats.calibration import FOLDS, METHODS, Calibration, Calibrator, calibration, fit, held_out
from vlm_rlaif.warehouse.care.keys import label_id
from vlm_rlaif.warehouse.errors import UserError, nearest
from vlm_rlaif.warehouse.inspection.card import aligned
from vlm_rlaif.warehouse.records import Label, Record, Spec, row_id
from vlm_rlaif.warehouse.runs import Outcome, derive
from vlm_rlaif.warehouse.store import Warehouse

STAGE = "calibrate"
TABLE_WIDTH = 80
FEWEST = {"temperature": 50, "isotonic": 200}
"""Pairs that a method needs at least."""
WHY = {
    "temperature": "with fewer, its own error bar is wider than what it could mend: 7 points at 50 pairs",
    "isotonic": "it fits a curve, not a number, and learns the noise of fewer by heart; --method temperature needs"
    f" {FEWEST['temperature']}",
}
PAYS = 1_000
"""Pairs from which on `isotonic` is the better choice (Niculescu-Mizil & Caruana 2005, figure 8)."""
_PREFERENCES = """
    SELECT pair_id, context_id, choice AS judge_choice, p_a AS judge_p FROM preferences
    WHERE judge = ? AND complete ORDER BY pair_id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A fitted judge: how far off it was, and is."""

    judge: str
    method: str
    against: str
    """What it was fitted to: `humans` or `truth`."""
    pairs: int
    """That it was fitted on."""
    videos: int
    """Sources: cuts of one source are one."""
    before: Calibration
    after: Calibration
    """Of held-out videos: each pair calibrated by a fit that saw no pair of its source."""
    calibrator: Calibrator
    spec: Spec

    def as_json(self) -> dict[str, Any]:
        sides = {name: _figures(side) for name, side in (("before", self.before), ("after", self.after))}
        return {
            "judge": self.judge, "method": self.method, "against": self.against, "pairs": self.pairs,
            "videos": self.videos, **sides, "parameters": self.calibrator.parameters(),
            "calibrated_judge": self.spec.spec_id, "calibrated_prompt": self.spec.prompt,
        }  # fmt: skip

    def __str__(self) -> str:
        rows = [
            [name, f"{100 * side.ece:.1f} %", f"{100 * side.by_chance:.1f} %", f"{side.brier.value or 0.0:.3f}"]
            for name, side in (("before", self.before), ("after", self.after))
        ]
        head = (
            f"{self.method}, fitted to {AGAINST[self.against]} on {self.pairs:,} pairs of {self.videos:,} videos;"
            " after: on held-out videos"
        )
        table = aligned("", ["", "ECE", "by chance alone", "Brier"], rows, TABLE_WIDTH)
        return "\n".join([head, *table])


def fit_judge(
    warehouse: Warehouse, *, judge: str | None, method: str | None = None, against: str | None = None
) -> Calibrated:
    """Fit a judge's p to what is known, and measure it on held-out videos. Writes nothing.

    Raises `UserError` where too little is known.
    """
    if method not in (None, *METHODS):
        raise UserError(f"A method is {' or '.join(METHODS)}, not {method!r}.{nearest(method, METHODS)}")
    spec_id = find_judge(warehouse, judge)
    spec = warehouse.rows("SELECT stage, prompt FROM specs WHERE spec_id = ?", [spec_id])[0]
    if spec["stage"] == STAGE:
        raise UserError(f"{spec['prompt']} is calibrated already. Calibrate the judge that it was made of.")
    against = against or default_against(warehouse)
    rows = warehouse.query(_PREFERENCES, [spec_id]).join(
        known(warehouse, against),
        on="pair_id",
        how="inner",
        maintain_order="left",
    )
    method = method or ("isotonic" if len(rows) >= PAYS else "temperature")
    _check(warehouse, spec["prompt"], rows, method, against)
    p, right, weights = (rows[column].to_numpy() for column in ("judge_p", "p_a", "weight"))
    clusters = rows["cluster"].to_list()
    calibrator = fit(method, p, right, weights)
    return Calibrated(
        judge=spec_id, method=method, against=against, pairs=len(rows), videos=rows["cluster"].n_unique(),
        before=calibration(p, right, weights, clusters),
        after=calibration(held_out(method, p, right, weights, clusters), right, weights, clusters),
        calibrator=calibrator, spec=_spec(spec_id, spec["prompt"], method, calibrator, rows),
    )  # fmt: skip


def _check(warehouse: Warehouse, prompt: str, rows: pl.DataFrame, method: str, against: str) -> None:
    if len(rows) < FEWEST[method]:
        raise UserError(
            f"Of the pairs that {prompt} has judged, {len(rows):,} are known by {AGAINST[against]}. {method} needs"
            f" {FEWEST[method]}: {WHY[method]}.",
            f"vlm-rlaif feedback audit plan {warehouse.path} NAME",
        )
    if (videos := rows["cluster"].n_unique()) < FOLDS:
        raise UserError(
            f"These {len(rows):,} pairs are of {videos} videos. What a calibration is worth is measured on videos"
            f" that it was not fitted on, in {FOLDS} parts: that needs {FOLDS} videos."
        )


def _spec(judge: str, prompt: str, method: str, calibrator: Calibrator, rows: pl.DataFrame) -> Spec:
    verdicts = row_id(*rows.select("pair_id", "p_a", "weight").iter_rows())
    name = f"{PurePath(prompt).name.removesuffix('.md')}+{method}-{verdicts[:6]}"
    return Spec.make(
        stage=STAGE, model="none", revision="none", prompt=name, prompt_hash="", frames={}, upstream={"label": judge},
        sampling={"method": method, "parameters": calibrator.parameters(), "verdicts": verdicts},
    )  # fmt: skip


def write(warehouse: Warehouse, fitted: Calibrated) -> Outcome:
    """Append a calibrated label for every preference of the judge that has none yet."""

    def rows(run_id: str) -> Iterator[Record]:
        for batch in warehouse.stream(_PREFERENCES, [fitted.judge]).batches():
            calibrated = fitted.calibrator(batch["judge_p"].to_numpy()).round(12)
            for row, p in zip(batch.to_pylist(), calibrated.tolist(), strict=True):
                yield _label(fitted.spec.spec_id, row, p, run_id)

    return derive(warehouse, STAGE, asdict(fitted.spec), rows)


def _label(spec_id: str, row: dict[str, Any], p: float, run_id: str) -> Label:
    """One label for both orders. A tie of the judge stays one, whatever its p: it named no winner, or a different one
    in each order, and calibration says how sure a judge may be, not whom it meant."""
    choice = "tie" if row["judge_choice"] == "tie" or p == 0.5 else "a" if p > 0.5 else "b"
    return Label(
        label_id=label_id(spec_id, row["pair_id"], row["context_id"], "both"), pair_id=row["pair_id"],
        spec_id=spec_id, context_id=row["context_id"], shown_order="both", vote=0, choice=choice, p_a=p, p_tie=0.0,
        reply=json.dumps({"p_before": row["judge_p"]}), cached_tokens=0, run_id=run_id,
    )  # fmt: skip


def _figures(side: Calibration) -> dict[str, Any]:
    return {
        "ece": side.ece, "by_chance": side.by_chance, "ece_equal_width": side.ece_equal_width,
        "brier": side.brier.as_json(),
        "bins": [
            {"confidence": one.confidence, "share": one.share, "right": one.right.as_json()} for one in side.bins
        ],
    }  # fmt: skip
