"""Runs: every command that writes rows leaves a row about itself, and its journal spans its whole life.

A run that has nothing to do writes nothing, not even itself.
"""

from __future__ import annotations

import itertools
import json
import platform
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from vlm_rlaif.warehouse.journal import Journal, only_one, replay
from vlm_rlaif.warehouse.records import Failure, Record, Run, Spec
from vlm_rlaif.warehouse.store import Warehouse

BATCH_ROWS = 20_000
"""Derived rows that are held in memory and appended in one transaction."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a stage ended."""

    stage: str
    written: int = 0
    failed: int = 0
    pending: int = 0
    """Rows that were waiting when it started."""
    run_id: str | None = None
    failed_before: int = 0
    """Rows that failed in an earlier run and were left alone in this one."""
    missing: str = ""
    """What there is none of, where there is nothing to work on."""
    left: int = 0
    """Rows that are still to be computed: beyond the limit, or not begun when the job was stopped."""
    seconds: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    cached_tokens: int = 0
    bound_by: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """What a filter left out: reason -> how many."""
    note: str = ""
    """What else there is to say."""

    def __str__(self) -> str:
        if self.missing:
            return f"{self.stage}: nothing to work on, it needs {self.missing}"
        done = f"{self.written} rows written" if self.pending or self.written else "nothing to do"
        done += f", {self.left} left to do" if self.left else ""
        failed = f", {self.failed} failed (FROM open_failures says why)" if self.failed else ""
        before = f", {self.failed_before} failed before (--retry-failed tries again)" if self.failed_before else ""
        why = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        dropped = f", {sum(self.dropped.values())} dropped ({why})" if why else ""
        note = f"; {self.note}" if self.note else ""
        return f"{self.stage}: {done}{failed}{before}{dropped}{note}"


def derive(
    warehouse: Warehouse,
    stage: str,
    config: dict[str, Any],
    rows: Callable[[str], Iterable[Record]],
) -> Outcome:
    """Append rows that need no model, many at a time. `rows` makes them for a run id; those that stand are left out.

    The run begins with the first row that is new. One that is killed has written whole batches.
    """
    with only_one(warehouse, stage), ExitStack() as stack:
        replay(warehouse)
        run_id = new_run_id()
        run: OpenRun | None = None
        made = iter(rows(run_id))
        while batch := list(itertools.islice(made, BATCH_ROWS)):
            if not (fresh := warehouse.unknown(batch)):
                continue
            run = run or stack.enter_context(record_run(warehouse, stage, config, "none", run_id))
            run.written += warehouse.append(fresh)
        if run is None:
            return Outcome(stage)
        return Outcome(stage, run.written, 0, run.written, run_id)


@dataclass(slots=True)
class OpenRun:
    """A run that is under way: its journal and its counters."""

    warehouse: Warehouse
    run_id: str
    journal: Journal
    written: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cached_tokens: int = 0
    bound_by: str = ""
    gpus: int = 0
    share: float = 1.0
    """Of the time, that it has for itself: stages that run together share it."""
    begun: float = field(default_factory=time.monotonic)

    def append(
        self, rows: Sequence[Record], *, tokens_in: int = 0, tokens_out: int = 0, cached_tokens: int = 0
    ) -> None:
        """Count finished rows and make them durable. The run's own row follows whenever the journal is merged."""
        failures = sum(isinstance(row, Failure) for row in rows)
        self.failed += failures
        self.written += len(rows) - failures
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.cached_tokens += cached_tokens
        self.journal.append(rows, self.tell)

    def tell(self, warehouse: Warehouse, status: str = "running") -> None:
        """Bring the run's row up to date."""
        seconds = self.share * (time.monotonic() - self.begun)
        warehouse.execute(
            "UPDATE runs SET ended_at = ?, status = ?, rows_written = ?, rows_failed = ?, tokens_in = ?,"
            " tokens_out = ?, cached_tokens = ?, seconds = ?, gpu_seconds = ?, bound_by = ? WHERE run_id = ?",
            [None if status == "running" else _now(), status, self.written, self.failed, self.tokens_in,
             self.tokens_out, self.cached_tokens, seconds, self.gpus * seconds, self.bound_by, self.run_id],
        )  # fmt: skip


def new_run_id() -> str:
    """Runs sort by time: `20261124-131502-3f9a1c`."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"


@contextmanager
def record_run(
    warehouse: Warehouse, stage: str, config: dict[str, Any], engine: str, run_id: str | None = None
) -> Iterator[OpenRun]:
    """Write the run's row at the start and its end whatever happens in between.

    The journal spans both, so a run that is killed at any moment is found by the next job.
    """
    run_id = run_id or new_run_id()
    with closing(Journal(warehouse, run_id)) as journal:
        run = OpenRun(warehouse, run_id, journal)
        first: list[Record] = [
            Run(
                run_id=run_id, stage=stage, config=json.dumps(config, sort_keys=True),
                code_version=version("vlm-rlaif"), engine=engine, host=platform.node(), started_at=_now(),
            )
        ]  # fmt: skip
        if "spec_id" in config:
            first.append(Spec(**{**config, "run_id": run_id}))
        warehouse.append(first)
        status = "failed"
        try:
            yield run
            status = "done"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            journal.merge()
            run.tell(warehouse, status)
            journal.remove()


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
