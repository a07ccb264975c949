"""The one driver of every stage: pending rows -> requests -> engine -> journal -> rows.

A stage says what is pending, how to ask for it and how to read the reply. This file owns everything else: one job
per stage at a time, the journal, failures as rows, progress, interruption, the record of the run. Running a
stage whose rows all stand writes nothing, not even a run.

Stages that ask the same model run together: what they ask about one video leaves together, so that an engine with a
prefix cache computes the video once for all of them. A reply that cannot be read is asked for once more.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Protocol

import click

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engine import Completion, Engine, Halted, Request
from vlm_rlaif.datagen.halt import Halt
from vlm_rlaif.datagen.portion import Portion, Shard
from vlm_rlaif.datagen.tally import Tally
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.journal import only_one, replay
from vlm_rlaif.warehouse.progress import Bar
from vlm_rlaif.warehouse.records import Failure, Record, Spec
from vlm_rlaif.warehouse.runs import OpenRun, Outcome, record_run
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse

AGAIN = "again_v1"
"""How a reply that cannot be read is asked for once more."""
IN_VAIN = 20
"""A job whose first so many requests are all refused by its engine stops: it would fill the table of failures."""


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
        """Rows that do not stand yet (or `everything`, to look at), in the order of their `video_id`.

        Each has a `row_id`, a `video_id` and whatever the stage needs to ask for it.
        """

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        """What to ask the engine for this row."""

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        """The rows that the reply becomes; raises `Unreadable`."""


class Lane:
    """One stage of a job: the rows that wait, and later the run that they are written in."""

    run: OpenRun

    def __init__(self, warehouse: Warehouse, stage: Stage, portion: Portion) -> None:
        self.warehouse, self.stage, self._shard = warehouse, stage, portion.shard
        self.attempts = failed_attempts(warehouse, stage.name)
        self._skipped = {} if portion.retry_failed else self.attempts
        self._pending = stage.pending(warehouse)
        mine, self.failed_before = count(self._pending, self._skipped, portion.shard)
        self.waiting = mine if portion.limit is None else min(mine, portion.limit)
        self.beyond = mine - self.waiting
        """Rows that the limit leaves out."""
        self.done = 0

    def rows(self) -> Iterator[tuple[str, Lane, Row]]:
        """(video, lane, row), as many as are waited for."""
        chosen = (row for row in self._pending if row["row_id"] not in self._skipped and holds(self._shard, row))
        return ((row["video_id"], self, row) for row in islice(chosen, self.waiting))

    def finish(self, row: Row, done: Completion) -> Failure | None:
        """Write what a reply becomes: rows, or a failure, which is returned."""
        made, failure = self._read(row, done)
        self.run.append(made, tokens_in=done.tokens_in, tokens_out=done.tokens_out, cached_tokens=done.cached_tokens)
        return failure

    def _read(self, row: Row, done: Completion) -> tuple[Sequence[Record], Failure | None]:
        kind, message = done.error_kind, done.error
        if not done.error:
            try:
                return self.stage.parse(row, done, self.run.run_id), None
            except Unreadable as error:
                kind, message = error.kind, str(error)
        attempt = self.attempts[row["row_id"]] = self.attempts.get(row["row_id"], 0) + 1
        failure = Failure(
            row_id=row["row_id"], stage=self.stage.name, attempt=attempt, kind=kind, message=message,
            reply=done.text or None, run_id=self.run.run_id,
        )  # fmt: skip
        return [failure], failure

    def outcome(self, tally: Tally | None) -> Outcome:
        """How the stage ended; without a `tally` it did not begin."""
        name, before, left = self.stage.name, self.failed_before, self.beyond + self.waiting - self.done
        if tally is None or not self.waiting:
            empty = not before and not left and not self.stage.pending(self.warehouse, everything=True)
            missing = self.stage.needs if empty else ""
            return Outcome(name, pending=self.waiting, failed_before=before, missing=missing, left=left)
        run = self.run
        return Outcome(
            name, run.written, run.failed, self.waiting, run.run_id, before, left=left,
            seconds=round(tally.seconds, 3), tokens_in=run.tokens_in, tokens_out=run.tokens_out,
            cached_tokens=run.cached_tokens, bound_by=run.bound_by,
        )  # fmt: skip


def run_stage(
    warehouse: Warehouse, stage: Stage, engine: Callable[[], Engine], *, limit: int | None = None,
    retry_failed: bool = False, shard: Shard | None = None, max_hours: float | None = None,
) -> Outcome:  # fmt: skip
    """Compute every pending row of a stage. The engine is made only when there is work for it."""
    (outcome,) = run_stages(warehouse, [stage], engine, Portion(limit, retry_failed, shard, max_hours))
    return outcome


def run_models(
    warehouse: Warehouse, stages: Sequence[Stage], engine_of: Callable[[str], Callable[[], Engine]], portion: Portion
) -> list[Outcome]:  # fmt: skip
    """Compute the pending rows of stages that ask several models, one model after the other."""
    outcomes: list[Outcome] = []
    for model in dict.fromkeys(stage.spec.model for stage in stages):
        same = [stage for stage in stages if stage.spec.model == model]
        outcomes += run_stages(warehouse, same, engine_of(model), portion)
    return outcomes


def run_stages(
    warehouse: Warehouse, stages: Sequence[Stage], engine: Callable[[], Engine], portion: Portion
) -> list[Outcome]:  # fmt: skip
    """Compute the pending rows of stages that ask the same model, those of one video together.

    A stage that is given twice runs once. Raises `UserError` when the engine refuses everything.
    """
    tally = None
    with ExitStack() as stack:
        for name in dict.fromkeys(stage.name for stage in stages):
            stack.enter_context(only_one(warehouse, name))
        replay(warehouse)
        different = {(stage.name, stage.spec.spec_id): stage for stage in stages}
        lanes = [Lane(warehouse, stage, portion) for stage in different.values()]
        busy = [lane for lane in lanes if lane.waiting]
        if busy and not portion.over:
            tally = _run(busy, engine(), portion)
        return [lane.outcome(tally) for lane in lanes]


def _run(lanes: Sequence[Lane], model: Engine, portion: Portion) -> Tally:
    tally = Tally(model.meter)
    title = "+".join(dict.fromkeys(lane.stage.name for lane in lanes))
    with Halt(portion) as halt, ExitStack() as stack:
        for lane in lanes:
            config = asdict(lane.stage.spec)
            lane.run = stack.enter_context(record_run(lane.warehouse, lane.stage.name, config, model.name))
        with Bar(title, sum(lane.waiting for lane in lanes)) as bar:
            _Stream(lanes, model, tally, bar, halt).run()
        if halt.interrupted:
            raise KeyboardInterrupt
    if model.prefix_cache and tally.misses_its_cache():
        click.echo(f"Warning: {title}: {tally.words_about_cache()}", err=True)
    return tally


@dataclass(frozen=True, slots=True)
class Asked:
    """A row whose request is on its way."""

    lane: Lane
    row: Row
    request: Request
    again: bool = False
    """The reply to the first request could not be read."""


class _Stream:
    """The requests of a job to its engine, and what comes back."""

    def __init__(self, lanes: Sequence[Lane], model: Engine, tally: Tally, bar: Bar, halt: Halt) -> None:
        self.lanes, self.model, self.tally, self.bar, self.halt = lanes, model, tally, bar, halt
        self.meter = model.meter
        self._rows = heapq.merge(*(lane.rows() for lane in lanes), key=lambda found: found[0])
        self._flying: dict[str, Asked] = {}
        self._again: deque[Asked] = deque()
        """Rows that are to be asked for once more: few, because they go first."""
        self._in_vain = 0

    def run(self) -> None:
        for lane in self.lanes:
            lane.run.gpus, lane.run.share = self.model.gpus, 1 / len(self.lanes)
        self.meter.reset()
        try:
            self._pump()
            while self._again and not self.halt.asked:  # of the last replies
                self._pump()
        finally:
            for lane in self.lanes:
                lane.run.bound_by = self.meter.bound_by()
                lane.run.share = lane.done / self.tally.rows if self.tally.rows else lane.run.share

    def _pump(self) -> None:
        replies = self.model.generate(self._requests())
        try:
            for done in replies:
                before = self.meter.switch("warehouse")
                self._receive(done)
                self.meter.switch(before)
        except Halted:  # of an engine that has nothing in flight when it asks for more
            pass
        finally:  # what is in flight is given up at once, not when the stream is collected as garbage
            if isinstance(replies, Generator):
                replies.close()

    def _requests(self) -> Iterator[Request]:
        while True:
            if self.halt.asked:
                raise Halted
            asked = self._again.popleft() if self._again else self._next()
            if asked is None:
                return
            self._flying[asked.row["row_id"]] = asked
            self.tally.begin(asked.request)
            yield asked.request

    def _next(self) -> Asked | None:
        before = self.meter.switch("warehouse")
        found, asked = next(self._rows, None), None
        if found is not None:
            _, lane, row = found
            self.meter.switch("prompt")
            asked = Asked(lane, row, lane.stage.request(lane.warehouse, row))
        self.meter.switch(before)
        return asked

    def _receive(self, done: Completion) -> None:
        asked = self._flying.pop(done.request_id)
        failure = asked.lane.finish(asked.row, done)
        self.tally.count(done)
        if asked.again:  # both replies are kept, and a row fails once
            asked.lane.run.failed -= 1
            self.tally.failed -= failure is None
            return
        asked.lane.done += 1
        self.tally.rows += 1
        self.tally.failed += failure is not None
        self.bar.advance(1, self.tally)
        if failure is not None:
            self._consider(asked, failure)

    def _consider(self, asked: Asked, failure: Failure) -> None:
        """A reply that cannot be read is asked for once more; an engine that refuses everything is not asked on."""
        if failure.kind == "unparsable" and not asked.request.choices:
            words = prompt.load(AGAIN).render(asked=asked.request.user, problem=failure.message).user
            self._again.append(replace(asked, request=replace(asked.request, user=words), again=True))
        self._in_vain += failure.kind == "engine" and failure.attempt == 1
        if self._in_vain == self.tally.rows == IN_VAIN:
            raise UserError(
                f"{asked.lane.stage.name}: the first {IN_VAIN} requests all failed, the last one with:",
                f"  {failure.message}",
                "Mend that, then run the same command with --retry-failed. The rest was not asked.",
            )


def holds(shard: Shard | None, row: Row) -> bool:
    """Whether a row belongs to this part of the work."""
    return shard is None or shard.holds(row["video_id"])


def count(pending: Spool, failed: Mapping[str, int], shard: Shard | None = None) -> tuple[int, int]:
    """How many of the pending rows are new, and how many have failed before; of this part of the work."""
    if not failed and shard is None:
        return len(pending), 0
    mine = [row["row_id"] in failed for row in pending if holds(shard, row)]
    return len(mine) - sum(mine), sum(mine)


def failed_attempts(warehouse: Warehouse, stage: str) -> dict[str, int]:
    """Row id -> number of attempts that have failed so far."""
    sql = "SELECT row_id, max(attempt) AS attempt FROM failures WHERE stage = ? GROUP BY row_id"
    return {row["row_id"]: row["attempt"] for row in warehouse.rows(sql, [stage])}
