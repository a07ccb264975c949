"""Requests on their way to servers and back: who gets which, how many at a time, and again after what went wrong.

Runs on one event loop; whatever is finished goes into a queue that a thread reads. Every server has a window of its
own. All requests about one video go to the same server, whose prefix cache has it: the one with the most room when
the first of them leaves. A server that is down is asked again until it is up, and its requests move to the others.
An outage costs no row: only when nobody answers for `patience_s` the traffic ends with a `UserError`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import httpx

from vlm_rlaif.datagen.engine import Completion
from vlm_rlaif.datagen.engines import server_start
from vlm_rlaif.datagen.engines.server_exchange import Asked, Delay, Down, Exchange, Server
from vlm_rlaif.datagen.engines.server_start import CONNECT_S
from vlm_rlaif.datagen.meter import Meter
from vlm_rlaif.warehouse.errors import UserError

BACKOFF_S, BACKOFF_MOST_S = 0.25, 30.0
"""How long a request waits before it is sent again: at first, and at most."""
HOMES = 100_000
"""Videos whose server is remembered."""
METRICS_S, METRICS_LATER_S, METRICS_SOON = 0.25, 1.0, 20
"""How often a server is asked how full it is: at first so many times quickly."""
_GAUGE = re.compile(r"^vllm:num_requests_(running|waiting)(?:\{[^}]*\})? ([0-9.eE+-]+)", re.MULTILINE)


class Traffic:
    """All servers, and what waits for them. Made and used on the event loop."""

    def __init__(
        self, servers: Sequence[Server], model: str, exchange: Exchange,
        finished: SimpleQueue[Completion | BaseException], meter: Meter, *, retries: int, patience_s: float,
    ) -> None:  # fmt: skip
        self.servers, self.model = servers, model
        self._exchange, self._finished, self._meter = exchange, finished, meter
        self._retries, self._patience_s = retries, patience_s
        self._queue: deque[Asked] = deque()
        """Requests that no server is bound to have, in their order."""
        self._homes: OrderedDict[str, Server] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._alive_s = time.monotonic()
        """When anybody last answered."""
        for server in servers:  # an earlier stream may have been left early
            server.in_flight = 0
            server.backlog.clear()

    @property
    def limit(self) -> int:
        """Requests that may be in flight, over all servers that are up."""
        return sum(server.window.limit for server in self.servers if server.found.up) or 1

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the servers busy until `stop`."""
        for server in self.servers:
            self._begin(self._watch_gauges(server))
            if not server.found.up:
                self._begin(self._watch_for(server))
        try:
            await stop.wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def add(self, asked: Sequence[Asked]) -> None:
        """Requests that are to be sent."""
        self._queue.extend(asked)
        self._dispatch()

    def fail(self, error: BaseException) -> None:
        """End the traffic: whoever reads the queue raises the error."""
        self._finished.put(error)

    def _begin(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def _dispatch(self) -> None:
        """Send as much as there is room for, to the emptiest server first."""
        sent = True
        while sent:
            sent = False
            open_ones = [server for server in self.servers if self._room(server) > 0]
            for server in sorted(open_ones, key=self._room, reverse=True):
                asked = self._next_for(server)
                if asked is not None:
                    server.in_flight += 1
                    self._begin(self._send(asked, server))
                    sent = True
                    break
        self._meter.mark(busy=sum(server.in_flight for server in self.servers) / self.limit)

    def _room(self, server: Server) -> int:
        if not server.found.up or time.monotonic() < server.closed_until_s:
            return 0
        return server.window.limit - server.in_flight

    def _next_for(self, server: Server) -> Asked | None:
        if server.backlog:
            return server.backlog.popleft()
        while self._queue:
            asked = self._queue.popleft()
            home = self._home(asked.video, server)
            if home is server:
                return asked
            home.backlog.append(asked)
        return self._taken_over(server)

    def _home(self, video: str | None, else_server: Server) -> Server:
        """The server that has a video, or will have it from now on."""
        if video is None:
            return else_server
        home = self._homes.get(video)
        if home is None or not home.found.up:
            self._homes[video] = home = else_server
            if len(self._homes) > HOMES:
                self._homes.popitem(last=False)
        return home

    def _taken_over(self, server: Server) -> Asked | None:
        """A server with nothing to do takes over a video from one that has more than it can begin with."""
        busiest = max(self.servers, key=lambda each: len(each.backlog))
        if len(busiest.backlog) <= busiest.window.limit:
            return None
        video = busiest.backlog[-1].video
        server.backlog.extend(asked for asked in busiest.backlog if asked.video == video)
        busiest.backlog = deque(asked for asked in busiest.backlog if asked.video != video)
        if video is not None:
            self._homes[video] = server
        return server.backlog.popleft()

    async def _send(self, asked: Asked, server: Server) -> None:
        sent_s = time.monotonic()
        try:
            done = await self._exchange.ask(asked, server)
        except OSError as error:
            server.in_flight -= 1
            self._finished.put(Completion(asked.request.request_id, error=str(error), error_kind="video"))
        except Delay as delay:
            if isinstance(delay, Down):
                self._lost(server)
            server.in_flight -= 1
            self._put_off(asked, delay)
        else:
            self._answered(server)
            server.window.finished(time.monotonic(), sent_s, server.in_flight)
            server.in_flight -= 1
            if done is None:
                self._queue.appendleft(asked)
            else:
                self._finished.put(done)
        self._dispatch()

    def _answered(self, server: Server) -> None:
        self._alive_s = server.answered_s = time.monotonic()

    def _put_off(self, asked: Asked, delay: Delay) -> None:
        """Send again after a while, or give the row up."""
        asked.attempts += delay.counts
        asked.waited += 1
        in_flight = sum(server.in_flight for server in self.servers)
        if asked.attempts > self._retries:
            tries = f" (asked {asked.attempts} times)" if asked.attempts > 1 else ""
            return self._finished.put(Completion(asked.request.request_id, error=f"{delay}{tries}"))
        if time.monotonic() - self._alive_s > self._patience_s and not in_flight:
            return self.fail(self._gave_up(str(delay)))
        after_s = random.uniform(0.5, 1.0) * min(BACKOFF_MOST_S, BACKOFF_S * 2 ** min(asked.waited - 1, 10))
        if delay.after_s is not None:
            after_s = delay.after_s + random.uniform(0, BACKOFF_S)
        asyncio.get_running_loop().call_later(after_s, self._again, asked)

    def _again(self, asked: Asked) -> None:
        self._queue.appendleft(asked)
        self._dispatch()

    def _gave_up(self, words: str) -> UserError:
        where = ", ".join(server.found.url for server in self.servers)
        return UserError(
            f"No server has answered for {time.monotonic() - self._alive_s:.0f} s: {where}",
            f"  {words}",
            "What is finished is kept. When a server is up again, the same command continues.",
        )

    def _lost(self, server: Server) -> None:
        """A server is down: its requests go to the others, and it is watched for."""
        if not server.found.up:
            return
        server.found.up = False
        self._queue.extendleft(reversed(server.backlog))
        server.backlog.clear()
        self._begin(self._watch_for(server))

    async def _watch_for(self, server: Server) -> None:
        """Until a server is up again, and serves what it has to."""
        pause_s = BACKOFF_S
        while True:
            problem = await asyncio.to_thread(server_start.ask, server.found, self.model)
            if not problem:
                break
            everybody = not any(each.found.up for each in self.servers)
            if everybody and time.monotonic() - self._alive_s > self._patience_s:
                return self.fail(self._gave_up(problem))
            await asyncio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, 10.0)
        self._dispatch()

    async def _watch_gauges(self, server: Server) -> None:
        """Tell the window what the server says about itself, if it says anything."""
        looks = 0
        while True:
            await asyncio.sleep(METRICS_S if looks < METRICS_SOON else METRICS_LATER_S)
            if not server.found.up or not server.in_flight:
                continue
            looks += 1
            with contextlib.suppress(httpx.HTTPError):
                async with self._exchange.clients.one(server.found.url) as client:
                    reply = await client.get(f"{server.found.root}/metrics", timeout=CONNECT_S)
                running, waiting = gauges(reply.text if reply.status_code == 200 else "")
                if running is None or waiting is None:
                    return
                server.window.told(running, waiting, server.in_flight)
                self._dispatch()


def gauges(metrics: str) -> tuple[float | None, float | None]:
    """Requests that vLLM runs and that wait, over all its engines; None where it does not say.

    >>> gauges('vllm:num_requests_running{engine="0"} 3.0\\nvllm:num_requests_waiting{engine="0"} 1.0')
    (3.0, 1.0)
    """
    found: dict[str, float] = {}
    for name, value in _GAUGE.findall(metrics):
        found[name] = found.get(name, 0.0) + float(value)
    return found.get("running"), found.get("waiting")
