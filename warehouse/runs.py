"""Runs: every command that writes rows leaves a row about itself, and its journal spans its whole life.

A run that has nothing to do writes nothing, not even itself.
"""

from __future__ import annotations

import json
import platform
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from vlm_rlaif.warehouse.journal import Journal, only_one, replay
from vlm_rlaif.warehouse.records import Record, Run, Spec
from vlm_rlaif.warehouse.store import Warehouse


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

    def __str__(self) -> str:
        if self.missing:
            return f"{self.stage}: nothing to work on, it needs {self.missing}"
        done = f"{self.written} rows written" if self.pending or self.written else "nothing to do"
        failed = f", {self.failed} failed (FROM open_failures says why)" if self.failed else ""
        before = f", {self.failed_before} failed before (--retry-failed tries again)" if self.failed_before else ""
        return f"{self.stage}: {done}{failed}{before}"


def derive(
    warehouse: Warehouse,
    stage: str,
    config: dict[str, Any],
    rows: Callable[[str], Sequence[Record]],
) -> Outcome:
    """Append rows that need no model, in one transaction. `rows` makes the missing ones for a run id."""
    with only_one(warehouse, stage):
        replay(warehouse)
        run_id = new_run_id()
        made = rows(run_id)
        if not made:
            return Outcome(stage)
        with record_run(warehouse, stage, config, "none", run_id) as run:
            run.written = warehouse.append(made)
        return Outcome(stage, run.written, 0, len(made), run_id)


@dataclass(slots=True)
class OpenRun:
    """A run that is under way: its journal and its counters."""

    run_id: str
    journal: Journal
    written: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


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
        run = OpenRun(run_id, journal)
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
            warehouse.execute(
                "UPDATE runs SET ended_at = ?, status = ?, rows_written = ?, rows_failed = ?,"
                " tokens_in = ?, tokens_out = ? WHERE run_id = ?",
                [_now(), status, run.written, run.failed, run.tokens_in, run.tokens_out, run_id],
            )
            journal.remove()


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
