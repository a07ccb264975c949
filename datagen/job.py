"""The one driver of every stage: pending rows -> requests -> engine -> journal -> rows.

A stage says what is pending, how to ask for it and how to read the reply. This file owns everything else: one job
per stage at a time, the journal, failures as rows, progress, interruption, the record of the run. Running a
stage whose rows all stand writes nothing, not even a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Protocol

from vlm_rlaif.datagen.engine import Completion, Engine, Request
from vlm_rlaif.warehouse.journal import only_one, replay
from vlm_rlaif.warehouse.progress import Bar
from vlm_rlaif.warehouse.records import Failure, Record, Spec
from vlm_rlaif.warehouse.runs import OpenRun, Outcome, record_run
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse


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

    def pending(self, warehouse: Warehouse, *, everything: bool = False) -> Spool:
        """Rows that do not stand yet (or `everything`, to look at), requests of one video together.

        Each has a `row_id` and whatever the stage needs to ask for it.
        """

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        """What to ask the engine for this row."""

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        """The rows that the reply becomes; raises `Unreadable`."""


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
        pending, skipped = stage.pending(warehouse), {} if retry_failed else attempts
        left = count_failed(pending, skipped)
        waiting = min(len(pending) - left, len(pending) if limit is None else limit)
        if not waiting:
            empty = not left and not stage.pending(warehouse, everything=True)
            return Outcome(stage.name, failed_before=left, missing=stage.needs if empty else "")
        model = engine()
        with record_run(warehouse, stage.name, asdict(stage.spec), model.name) as run:
            rows = islice((row for row in pending if row["row_id"] not in skipped), waiting)
            _pump(warehouse, stage, model, rows, waiting, attempts, run)
        return Outcome(stage.name, run.written, run.failed, waiting, run.run_id, left)


def count_failed(pending: Spool, failed: Mapping[str, int]) -> int:
    """How many of the pending rows have failed before."""
    return sum(row["row_id"] in failed for row in pending) if failed else 0


def failed_attempts(warehouse: Warehouse, stage: str) -> dict[str, int]:
    """Row id -> number of attempts that have failed so far."""
    sql = "SELECT row_id, max(attempt) AS attempt FROM failures WHERE stage = ? GROUP BY row_id"
    return {row["row_id"]: row["attempt"] for row in warehouse.rows(sql, [stage])}


def _pump(
    warehouse: Warehouse, stage: Stage, model: Engine, rows: Iterator[Row], waiting: int,
    attempts: dict[str, int], run: OpenRun,
) -> None:  # fmt: skip
    asked: dict[str, Row] = {}
    """What the engine is working on."""

    def requests() -> Iterator[Request]:
        for row in rows:
            asked[row["row_id"]] = row
            yield stage.request(warehouse, row)

    with Bar(stage.name, waiting) as bar:
        for done in model.generate(requests()):
            made = _read(stage, asked.pop(done.request_id), done, run.run_id, attempts)
            run.append(made, tokens_in=done.tokens_in, tokens_out=done.tokens_out)
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
