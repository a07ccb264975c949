"""Engines on Ray workers, on any number of machines: `--engine ray`.

Each worker is an actor that hosts another engine (`ray_worker.py`). The driver is `job.py`, as for any engine: it
decides what is pending, and writes the rows. Workers pull: a worker that is about to run out of requests is given
those of the next video, and what it has finished comes back with the same call. What a lost worker had not finished
is given to others.

Not Ray Data: its `map_batches` waits for a whole batch in every actor, an error costs or repeats a whole block, and
finished rows reach the driver a block at a time. `docs/cluster.md` says how to start a cluster.
"""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

import click

from vlm_rlaif.datagen import models
from vlm_rlaif.datagen.engine import Completion, Engine, Request
from vlm_rlaif.datagen.engines import ray_cluster
from vlm_rlaif.datagen.engines.make import EngineSettings
from vlm_rlaif.datagen.engines.ray_seat import Seat
from vlm_rlaif.datagen.engines.ray_work import Work
from vlm_rlaif.datagen.engines.ray_worker import Report, Worker
from vlm_rlaif.datagen.meter import Meter
from vlm_rlaif.warehouse.errors import UserError

if not ray_cluster.address():
    ray_cluster.stay_on_loopback()

import ray
from ray.exceptions import RayError

DEATHS = 4
"""A worker that is lost so often without finishing anything in between is given up."""
JOIN_S = 20.0
"""A job begins without workers that found no room in the cluster for so long; they may join it later."""
ROOM_S = 600.0
"""With no worker at all, a job waits this long for room in the cluster."""
TICK_S = 0.5
"""How often the driver looks up, for a signal say."""
WORDS = 300
"""Letters of a reason that are passed on."""


class RayEngine:
    """Answers requests on workers. Raises `UserError` when no worker can be had, or none is left."""

    name = "ray"

    def __init__(
        self, model: str, settings: EngineSettings, *, factory: Callable[[], Engine] | None = None
    ) -> None:  # fmt: skip
        """`factory` makes the engine of a worker, and is sent to it; by default the one that `settings` name."""
        self.model, self.meter = model, Meter()
        self.revision = "" if factory else models.revision(model)
        self._factory = factory or ray_cluster.worker_engine(model, settings)
        self._streams = count(1)
        self._seats: list[Seat] = []
        self._started = connect(settings.workers)
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self._gpus_each, workers = ray_cluster.shares(nodes, settings)
            self.prefix_cache = False
            self._seats = [self._seat() for _ in range(workers)]
            self._gather()
        except BaseException:
            self.close()
            raise

    @property
    def gpus(self) -> int:
        """Of the workers that have loaded their model."""
        return self._gpus_each * self.workers

    @property
    def workers(self) -> int:
        """How many have loaded their model."""
        return sum(seat.loaded for seat in self._seats)

    def close(self) -> None:
        """End the workers, and Ray itself if it was started here."""
        for seat in self._seats:
            ray.kill(seat.actor)
        self._seats = []
        if self._started:
            ray.shutdown()

    # Workers come and go

    def _seat(self) -> Seat:
        seat = Seat(None, None)
        self._place(seat)
        return seat

    def _place(self, seat: Seat) -> None:
        """Ask Ray for a worker; where it is, is the first thing that it says."""
        actor: Any = ray.remote(Worker)
        options = {"num_cpus": 1, "num_gpus": self._gpus_each, "scheduling_strategy": "SPREAD", "max_restarts": 0}
        seat.actor = actor.options(**options).remote(self._factory)
        seat.call, seat.node, seat.loaded, seat.stream = seat.actor.where.remote(), "", False, None

    def _gather(self) -> None:
        """Wait for the workers that have room in the cluster."""
        begun = time.monotonic()
        while not self.workers or any(seat.call is not None for seat in self._seats):
            for seat in self._ready():
                self._welcome(seat, at_start=True)
            loading = any(seat.node and not seat.loaded for seat in self._seats)
            if 0 < self.workers < len(self._seats) and time.monotonic() - begun > JOIN_S and not loading:
                said = f"ray: {self.workers} of {len(self._seats)} workers have found room; others may join later."
                click.echo(said, err=True)
                return
            self._check_room(begun)

    def _welcome(self, seat: Seat, *, at_start: bool = False) -> None:
        """A worker that has been placed loads its model; one that has loaded it may be given work."""
        try:
            said = ray.get(seat.call)
        except RayError as error:
            self._lose(seat, in_short(error))
            return
        seat.call = None
        if not seat.node:
            seat.node, seat.call = said, seat.actor.load.remote()
            return
        problem = said.problem
        if not problem and self.revision not in ("", said.revision):
            problem = (
                f"{self.model} has other weights there than here (revision {said.revision}, not {self.revision})."
            )
        if problem and at_start:
            raise UserError(f"The worker on {seat.node} cannot load its model: {problem}")
        if problem:
            self._give_up(seat, problem)
            return
        self.revision, self.prefix_cache = said.revision, said.prefix_cache
        seat.loaded, seat.since, seat.done = True, time.monotonic(), 0

    def _lose(self, seat: Seat, reason: str, work: Work | None = None) -> None:
        """Replace a worker that is lost, and give back what it had not finished."""
        if work is not None:
            work.give_back(seat.held.values(), reason)
        seat.held.clear()
        seat.deaths += 1
        if seat.deaths >= DEATHS:
            self._give_up(seat, reason)
        else:
            where = f" on {seat.node}" if seat.node else ""
            click.echo(f"ray: the worker{where} is lost, another takes its place: {reason}", err=True)
            ray.kill(seat.actor)
            self._place(seat)

    def _give_up(self, seat: Seat, reason: str) -> None:
        ray.kill(seat.actor)
        self._seats.remove(seat)
        click.echo(f"ray: the worker on {seat.node or 'some node'} is given up: {reason}", err=True)
        if not self._seats:
            raise UserError(
                f"No worker of Ray is left. The last one said: {reason}",
                "What is finished is kept: mend this, then run the same command again.",
            )

    def _check_room(self, since: float) -> None:
        if not any(seat.node for seat in self._seats) and time.monotonic() - since > ROOM_S:
            raise UserError(f"No worker has found room in the Ray cluster for {ROOM_S:.0f} s.", "ray status")

    def _ready(self) -> list[Seat]:
        """Workers that have answered; waits a moment for one."""
        calls = {seat.call: seat for seat in self._seats if seat.call is not None}
        if not calls:
            return []
        found, _ = ray.wait(list(calls), timeout=TICK_S, fetch_local=True)
        if found:
            found, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        return [calls[call] for call in found]

    # A stream over all workers

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Every worker streams; this puts their streams together."""
        work = Work(requests)
        for seat in self._seats:
            self._begin(seat)
        since, proven = time.monotonic(), False
        while True:
            for seat in self._seats:
                if seat.loaded and seat.call is None:
                    self._ask(seat, work)
                    self._mark(work)
            over = work.ended and not any(seat.held or seat.stream is not None for seat in self._seats)
            if over or proven:  # if no worker has finished anything, the fault is not with the requests
                yield from work.convict()
            if over:
                return
            for seat in self._ready():
                done = self._hear(seat, work)
                proven = proven or bool(done)
                yield from done
            if any(seat.node for seat in self._seats):
                since = time.monotonic()
            self._check_room(since)

    def _begin(self, seat: Seat) -> None:
        """Forget what an earlier stream, that was left, has left behind."""
        seat.held.clear()
        seat.stream, seat.waiting, seat.since, seat.done = None, 0, time.monotonic(), 0
        if seat.loaded:
            seat.call = None

    def _ask(self, seat: Seat, work: Work) -> None:
        """Give a worker what it has room for, and ask for what it has finished."""
        given: list[Request] = []
        if seat.stream is None:
            if not (given := work.take(alone=True)):
                return
            seat.stream, seat.last, seat.waiting = next(self._streams), False, 0
            seat.seconds, seat.busy = {}, 1.0
        reserve = seat.reserve
        while not seat.last and seat.waiting + len(given) < reserve and (bundle := work.take()):
            given += bundle
        seat.held.update((request.request_id, request) for request in given)
        seat.last = seat.last or work.dry
        seat.call = seat.actor.exchange.remote(seat.stream, given, last=seat.last, reserve=reserve)

    def _hear(self, seat: Seat, work: Work) -> list[Completion]:
        """What a worker has finished. It is asked again before anybody reads that."""
        if not seat.loaded:
            self._welcome(seat)
            return []
        try:
            report: Report = ray.get(seat.call)
        except RayError as error:
            self._lose(seat, in_short(error), work)
            return []
        if report.problem:
            raise UserError(report.problem)
        seat.call = None
        done = [each for each in report.completions if seat.held.pop(each.request_id, None) is not None]
        if done:
            seat.done, seat.deaths = seat.done + len(done), 0
        if report.broken:
            self._lose(seat, textwrap.shorten(report.broken, WORDS), work)
            return []
        if report.ended:
            seat.stream = None
        seat.note(report.waiting, report.seconds)
        self._ask(seat, work)
        self._mark(work)
        return done

    def _mark(self, work: Work) -> None:
        """The workers' meters together are this one's."""
        loaded = [seat for seat in self._seats if seat.loaded]
        if loaded:
            busy = sum(seat.busy for seat in loaded if seat.held) / len(loaded)
            idlest = min(loaded, key=lambda seat: seat.busy)
            self.meter.mark(busy=busy, cause="engine" if work.ended else idlest.cause)


def connect(workers: int | None) -> bool:
    """Join a cluster, or start Ray for this process alone; True where Ray was not there yet."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    where = ray_cluster.address()
    ray_cluster.knock(where)
    options: dict[str, Any] = {} if where else {"address": "local", "include_dashboard": False}
    if not where and workers and workers > (os.cpu_count() or 1):  # a worker takes one of them
        options["num_cpus"] = workers
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise UserError(*ray_cluster.unusable(where, textwrap.shorten(str(error), WORDS))) from None
    return True


def in_short(error: RayError) -> str:
    """The last line of what Ray says, which is the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return textwrap.shorten(lines[-1] if lines else type(error).__name__, WORDS)
