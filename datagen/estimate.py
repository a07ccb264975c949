"""What a stage would cost, before any model is loaded: rows, frames, prompt tokens, time.

Tokens and time are those of earlier runs where there were any: of the same prompt, and of the same stage on the same
engine (and model, if it ran there before). Without any, the words of the first requests are counted, and time is
unknown.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engines import make
from vlm_rlaif.datagen.job import Stage, count_failed, failed_attempts
from vlm_rlaif.warehouse.records import Spec
from vlm_rlaif.warehouse.spool import Row
from vlm_rlaif.warehouse.store import Warehouse

SAMPLED_REQUESTS = 50
TOKENS_PER_WORD = 4 / 3
"""Of English, roughly; used where no run has counted yet."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the pending rows of a stage would cost."""

    stage: str
    model: str
    prompt: str
    rows: int
    """Rows that would be computed."""
    failed: int
    """Rows that failed before and would be left alone."""
    frames: int
    """Frames that a row shows its model."""
    tokens: float
    """Tokens of a row's prompt."""
    pace_s: float | None
    """Seconds that a row took in earlier runs."""
    first: tuple[str, ...] = ()
    """Ids of the first rows."""

    def __str__(self) -> str:
        time = f", about {in_words(self.pace_s * self.rows)} at the pace of earlier runs" if self.pace_s else ""
        return (
            f"{self.stage}: {self.rows:,} rows would be computed by {self.model} ({self.prompt}):"
            f" {self.frames * self.rows:,} frames, about {self.tokens * self.rows:,.0f} tokens of prompt{time}"
        )


def estimate(
    warehouse: Warehouse, stage: Stage, *, limit: int | None = None, retry_failed: bool = False, engine: str = "auto"
) -> Estimate:
    """Count what a run would compute, and measure its first requests."""
    failed = {} if retry_failed else failed_attempts(warehouse, stage.name)
    pending = stage.pending(warehouse)
    left = count_failed(pending, failed)
    rows = min(len(pending) - left, len(pending) if limit is None else limit)
    sampled: list[Row] = list(islice((r for r in pending if r["row_id"] not in failed), min(rows, SAMPLED_REQUESTS)))
    requests = [stage.request(warehouse, row) for row in sampled]
    words = [len(f"{r.system} {r.user}".split()) for r in requests] or [_words_of(stage.spec.prompt)]
    spec = stage.spec
    return Estimate(
        stage.name, spec.model, spec.prompt, rows, left,
        frames=json.loads(spec.frames).get("count", 0),
        tokens=_tokens_per_row(warehouse, spec) or fmean(words) * TOKENS_PER_WORD,
        pace_s=pace_s(warehouse, stage.name, make.choose(engine), spec.model),
        first=tuple(row["row_id"] for row in sampled[:5]),
    )  # fmt: skip


def _words_of(name: str) -> int:
    """Words of a prompt without what is filled in."""
    wording = prompt.load(name)
    return len(f"{wording.system} {wording.user}".split())


def _tokens_per_row(warehouse: Warehouse, spec: Spec) -> float | None:
    """Prompt tokens per row in the earlier runs of a stage with this prompt."""
    found: float | None = warehouse.value(
        "SELECT sum(tokens_in) / nullif(sum(rows_written + rows_failed), 0) FROM runs"
        " WHERE stage = ? AND tokens_in > 0 AND (config->>'$.prompt_hash') = ?",
        [spec.stage, spec.prompt_hash],
    )
    return found


def pace_s(warehouse: Warehouse, stage: str, engine: str, model: str | None = None) -> float | None:
    """Seconds per row in the earlier runs of a stage on an engine: those of this model, if there are any."""
    found = warehouse.rows(
        "SELECT (config->>'$.model') IS NOT DISTINCT FROM $model AS same,"
        " sum(epoch(ended_at - started_at)) / nullif(sum(rows_written + rows_failed), 0) AS pace FROM runs"
        " WHERE stage = $stage AND engine = $engine AND ended_at IS NOT NULL GROUP BY ALL ORDER BY same DESC",
        {"stage": stage, "engine": engine, "model": model},
    )
    return found[0]["pace"] if found else None


def in_words(seconds: float) -> str:
    """A length of time.

    >>> [in_words(s) for s in (0.2, 59, 600, 7300, 200_000)]
    ['1 s', '59 s', '10 min', '2.0 h', '2.3 days']
    """
    for unit, size, most in (("s", 1, 120), ("min", 60, 7200)):
        if seconds < most:
            return f"{max(1, seconds / size):.0f} {unit}"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
