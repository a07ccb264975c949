"""The one driver of every stage: pending rows -> requests -> engine -> journal -> rows.

A stage says what is pending, how to ask for it and how to read the reply. This file owns everything else: one job
per stage at a time, the journal, failures as rows, progress, interruption, the record of the run. Running a
stage whose rows all stand writes nothing, not even a run.
"""

from __future__ import annotations

import json
import platform
import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Protocol

from vlm_rlaif.datagen.engine import Completion, Engine, Request
from vlm_rlaif.datagen.progress import Bar
from vlm_rlaif.warehouse.journal import Journal, only_one, replay
from vlm_rlaif.warehouse.records import Failure, Record, Run, Spec
from vlm_rlaif.warehouse.store import Warehouse

Row = dict[str, Any]
"""A pending row: `row_id` and whatever the stage needs to ask for it."""


class Unreadable(Exception):
    """A reply that is no answer. It becomes a failure, with the model's words."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Stage(Protocol):
    """What differs between captioning, answering and judging."""

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> Spec: ...

    @property
    def needs(self) -> str:
        """What it works on, and the command that makes it."""

    def pending(self, warehouse: Warehouse, *, everything: bool = False) -> list[Row]:
        """Rows that do not stand yet (or `everything`, to look at), requests of one video together."""

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        """What to ask the engine for this row."""

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        """The rows that the reply becomes; raises `Unreadable`."""


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


def run_stage(
    warehouse: Warehouse,
    stage: Stage,
    engine: Callable[[], Engine],
    *,
    limit: int | None = None,
    retry_failed: bool = False,
) -> Outcome:
    """Compute every pending row of a stage. The engine is made only when there is work for it."""
    with only_one(warehouse, stage.name):
        replay(warehouse)
        attempts = failed_attempts(warehouse, stage.name)
        waiting, left = waiting_rows(stage.pending(warehouse), {} if retry_failed else attempts, limit)
        if not waiting:
            empty = not left and not stage.pending(warehouse, everything=True)
            return Outcome(stage.name, failed_before=left, missing=stage.needs if empty else "")
        model = engine()
        with record_run(warehouse, stage.name, asdict(stage.spec), model.name) as run:
            _pump(stage, model.generate(stage.request(warehouse, row) for row in waiting), waiting, attempts, run)
        return Outcome(stage.name, run.written, run.failed, len(waiting), run.run_id, left)


def waiting_rows(pending: list[Row], failed: Container[str], limit: int | None) -> tuple[list[Row], int]:
    """The pending rows that a run would compute, and how many it leaves alone because they have failed before."""
    waiting = [row for row in pending if row["row_id"] not in failed]
    return waiting[:limit], len(pending) - len(waiting)


def failed_attempts(warehouse: Warehouse, stage: str) -> dict[str, int]:
    """Row id -> number of attempts that have failed so far."""
    sql = "SELECT row_id, max(attempt) AS attempt FROM failures WHERE stage = ? GROUP BY row_id"
    return {row["row_id"]: row["attempt"] for row in warehouse.rows(sql, [stage])}


def _pump(
    stage: Stage, completions: Iterable[Completion], waiting: list[Row], attempts: dict[str, int], run: OpenRun
) -> None:
    by_id = {row["row_id"]: row for row in waiting}
    with Bar(stage.name, len(waiting)) as bar:
        for done in completions:
            rows = _read(stage, by_id[done.request_id], done, run.run_id, attempts)
            run.journal.append(rows)
            failures = sum(isinstance(row, Failure) for row in rows)
            run.failed += failures
            run.written += len(rows) - failures
            run.tokens_in += done.tokens_in
            run.tokens_out += done.tokens_out
            bar.advance(1, f"{run.failed} failed" if run.failed else "")


def _read(stage: Stage, row: Row, done: Completion, run_id: str, attempts: dict[str, int]) -> Sequence[Record]:
    kind, message = done.error_kind, done.error
    if not done.error:
        try:
            return stage.parse(row, done, run_id)
        except Unreadable as error:
            kind, message = error.kind, str(error)
    return [
        Failure(
            row_id=row["row_id"], stage=stage.name, attempt=attempts.get(row["row_id"], 0) + 1,
            kind=kind, message=message, reply=done.text or None, run_id=run_id,
        )
    ]  # fmt: skip


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
