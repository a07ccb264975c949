"""What a stage would cost, before any model is loaded: rows, frames, prompt tokens, time.

Tokens and time are those of earlier runs where there were any: of the same prompt, and of the same stage on the same
engine (and model, if it ran there before). Without any, tokens of the first requests are counted by the model's
processor where whoever asks has time for that, else from their words; time is unknown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engine import Request
from vlm_rlaif.datagen.job import Stage, count, failed_attempts, holds
from vlm_rlaif.datagen.portion import Portion
from vlm_rlaif.datagen.preview import Preview
from vlm_rlaif.warehouse import schema
from vlm_rlaif.warehouse.records import RECORDS, Probe, Spec
from vlm_rlaif.warehouse.store import Warehouse

SAMPLED_REQUESTS = 50
COUNTED_REQUESTS = 8
"""Of them, those whose tokens a processor counts: it decodes their videos."""
TOKENS_PER_WORD = 4 / 3
"""Of English, roughly; used where nobody has counted yet."""

_COLUMNS = {record.table: schema.columns(record) for record in RECORDS}

CountTokens = Callable[[str, Sequence[Request]], list[int | None]]
"""(model, requests) -> tokens of every prompt, None where they cannot be counted."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a row took in earlier runs."""

    seconds: float
    gpu_seconds: float


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
    stands: int
    """Rows that were computed before, in all parts of the work."""
    frames: int
    """Frames that a row shows its model."""
    tokens: float
    """Tokens of a row's prompt."""
    tokens_by: str
    """Who counted them: `runs`, `processor`, or nobody: `words`, without what a video adds."""
    pace_s: float | None
    """Seconds that a row took in earlier runs."""
    gpu_pace_s: float = 0.0
    """Seconds of graphics cards that it took."""
    first: tuple[str, ...] = ()
    """Ids of the first rows."""
    prompts: tuple[Preview, ...] = ()
    """The first prompts, as many as were asked for."""

    @property
    def seconds(self) -> float | None:
        return None if self.pace_s is None else self.pace_s * self.rows

    @property
    def gpu_hours(self) -> float:
        return self.gpu_pace_s * self.rows / 3600

    def __str__(self) -> str:
        counted = {"runs": "as in earlier runs", "processor": "by its processor", "words": "guessed from words"}
        time = "" if self.seconds is None else f", about {in_words(self.seconds)} at the pace of earlier runs"
        cards = f" ({self.gpu_hours:.2g} GPU hours)" if self.gpu_hours else ""
        before = f"; {self.stands:,} stand already" if self.stands else ""
        before += f"; {self.failed:,} that failed before are left alone" if self.failed else ""
        said = (
            f"{self.stage}: {self.rows:,} rows would be computed by {self.model} ({self.prompt}):"
            f" {self.frames * self.rows:,} frames, about {self.tokens * self.rows:,.0f} tokens of prompt"
            f" ({counted[self.tokens_by]}){time}{cards}{before}"
        )
        return "\n\n".join([said, *map(str, self.prompts)])


def estimate(
    warehouse: Warehouse, stage: Stage, portion: Portion, engine: str, *, show: int = 0,
    count_tokens: CountTokens | None = None, runs: Sequence[str] | None = None,
) -> Estimate:  # fmt: skip
    """Count what a run would compute, and measure its first requests.

    `show` so many prompts; with `runs` the pace is theirs alone.
    """
    spec = stage.spec
    failed = {} if portion.retry_failed else failed_attempts(warehouse, stage.name)
    pending = stage.pending(warehouse)
    new, left = count(pending, failed, portion.shard)
    rows = new if portion.limit is None else min(new, portion.limit)
    chosen = (row for row in pending if row["row_id"] not in failed and holds(portion.shard, row))
    requests = [stage.request(warehouse, row) for row in islice(chosen, min(rows, max(show, SAMPLED_REQUESTS)))]
    told = _tokens_per_row(warehouse, spec)
    counted: list[int | None] = [None] * len(requests)
    if count_tokens and (show or told is None):
        few = max(show, 0 if told else COUNTED_REQUESTS)
        counted[:few] = count_tokens(spec.model, requests[:few])
    tokens, tokens_by = _tokens(spec, requests, counted, told)
    pace = pace_of(warehouse, stage.name, engine, spec.model, runs)
    return Estimate(
        stage.name, spec.model, spec.prompt, rows, left, _standing(warehouse, stage),
        json.loads(spec.frames).get("count", 0), tokens, tokens_by,
        pace.seconds if pace else None, pace.gpu_seconds if pace else 0.0,
        first=tuple(request.request_id for request in requests[:5]),
        prompts=tuple(Preview.of(spec, r, n) for r, n in zip(requests[:show], counted[:show], strict=True)),
    )  # fmt: skip


def _standing(warehouse: Warehouse, stage: Stage) -> int:
    """Rows of any table that were made with a spec; of a judge its probes and its labels are told apart."""
    spec = stage.spec
    if stage.name in ("probe", "anchor"):
        sql = "SELECT count(*) FROM probes WHERE spec_id = ? AND (kind = 'anchor') = ?"
        return int(warehouse.value(sql, [spec.spec_id, stage.name == "anchor"]))
    columns = [("scores", "judge"), *((record.table, "spec_id") for record in RECORDS if record not in (Probe, Spec))]
    counts = [f"(SELECT count(*) FROM {t} WHERE {c} = $spec)" for t, c in columns if c in _COLUMNS[t]]
    return int(warehouse.value(f"SELECT {' + '.join(counts)}", {"spec": spec.spec_id}))


def _tokens(
    spec: Spec, requests: Sequence[Request], counted: Sequence[int | None], told: float | None
) -> tuple[float, str]:
    """Tokens of a row's prompt, and who counted them."""
    if told is not None:
        return told, "runs"
    known = [number for number in counted if number is not None]
    if known:
        return fmean(known), "processor"
    words = [len(f"{r.system} {r.user}".split()) for r in requests] or [_words_of(spec.prompt)]
    return fmean(words) * TOKENS_PER_WORD, "words"


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


def pace_of(
    warehouse: Warehouse, stage: str, engine: str, model: str | None = None, runs: Sequence[str] | None = None
) -> Pace | None:
    """How long a row took in the earlier runs of a stage on an engine: those of this model, if there are any.

    With `runs` those count, whatever they ran on.
    """
    found = warehouse.rows(
        "WITH timed AS (SELECT *, coalesce(nullif(seconds, 0), epoch(ended_at - started_at)) AS took FROM runs)"
        " SELECT (config->>'$.model') IS NOT DISTINCT FROM $model AS same, sum(rows_written + rows_failed) AS n,"
        " sum(took) / n AS seconds, sum(gpu_seconds) / n AS gpu_seconds FROM timed WHERE stage = $stage"
        " AND ended_at IS NOT NULL AND ($runs IS NULL AND engine = $engine OR list_contains($runs, run_id))"
        " GROUP BY same HAVING n > 0 ORDER BY same DESC",
        {"stage": stage, "engine": engine, "model": model, "runs": None if runs is None else list(runs)},
    )
    return Pace(found[0]["seconds"], found[0]["gpu_seconds"]) if found else None


def pace_s(warehouse: Warehouse, stage: str, engine: str, model: str | None = None) -> float | None:
    """Seconds that a row took in the earlier runs of a stage on an engine."""
    found = pace_of(warehouse, stage, engine, model)
    return found.seconds if found else None


def in_words(seconds: float) -> str:
    """A length of time.

    >>> [in_words(s) for s in (0.2, 59, 600, 7300, 200_000)]
    ['1 s', '59 s', '10 min', '2.0 h', '2.3 days']
    """
    for unit, size, most in (("s", 1, 120), ("min", 60, 7200)):
        if seconds < most:
            return f"{max(1, seconds / size):.0f} {unit}"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
