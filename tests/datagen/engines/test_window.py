"""The window of a server, against simulated servers: it fills them fast, and refuses to be a nuisance."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.datagen.engines.window import MOST, Window


@dataclass
class Server:
    """So many slots, then a queue; service times are log-normal with a heavy tail. Time is simulated."""

    slots: int
    refuses_above: int | None = None
    """In flight, as hosted APIs do."""
    tells_every_s: float | None = None
    mean_s: float = 0.5
    sigma: float = 0.6
    seed: int = 0
    refused: int = 0
    history: list[tuple[float, int, int]] = field(default_factory=list)
    """(time, window, slots that work) after every event."""

    def service_s(self) -> float:
        return min(5.0, self._random.lognormvariate(math.log(self.mean_s) - self.sigma**2 / 2, self.sigma))

    def run(self, window: Window, rows: int) -> Server:
        """A client with so many rows, all there from the start."""
        self._random = random.Random(self.seed)
        now, done, in_flight, busy = 0.0, 0, 0, 0
        events: list[tuple[float, int, str, float]] = []
        queue: deque[tuple[float, float]] = deque()
        number: Iterator[int] = iter(range(10**9))
        if self.tells_every_s:
            heapq.heappush(events, (self.tells_every_s, next(number), "tells", 0.0))
        while done < rows:
            while in_flight < window.limit:
                in_flight += 1
                if self.refuses_above is not None and busy + len(queue) >= self.refuses_above:
                    heapq.heappush(events, (now + 0.02, next(number), "refuses", now))
                elif busy < self.slots:
                    busy += 1
                    heapq.heappush(events, (now + self.service_s(), next(number), "answers", now))
                else:
                    queue.append((self.service_s(), now))
            now, _, what, sent_s = heapq.heappop(events)
            if what == "tells":
                window.told(busy, len(queue), in_flight)
                heapq.heappush(events, (now + (self.tells_every_s or 1), next(number), "tells", 0.0))
            elif what == "refuses":
                self.refused += 1
                window.refused(now, sent_s, in_flight)
                in_flight -= 1
            else:
                done += 1
                busy -= 1
                if queue:
                    took, began = queue.popleft()
                    busy += 1
                    heapq.heappush(events, (now + took, next(number), "answers", began))
                window.finished(now, sent_s, in_flight)
                in_flight -= 1
            self.history.append((now, window.limit, busy))
        return self

    def use(self, capacity: int | None = None) -> float:
        """Share of the slots that worked."""
        steps = zip(self.history, self.history[1:], strict=False)
        worked = sum(busy * (after - now) for (now, _, busy), (after, _, _) in steps)
        return worked / ((capacity or self.slots) * self.history[-1][0])

    def full_after_s(self) -> float:
        return next(now for now, _, busy in self.history if busy >= self.slots)


@pytest.mark.parametrize("seed", range(5))
def test_a_server_of_64_slots_is_full_within_two_seconds_and_stays_so(seed: int) -> None:
    server = Server(64, seed=seed).run(Window(), 2000)
    assert server.full_after_s() < 2.0
    assert server.use() > 0.94
    assert 64 <= server.history[-1][1] <= 2 * 64


@pytest.mark.parametrize("seed", range(3))
def test_a_server_that_tells_is_kept_a_quarter_more_than_it_runs(seed: int) -> None:
    server = Server(64, tells_every_s=0.25, seed=seed).run(Window(), 2000)
    assert server.full_after_s() < 1.0
    assert server.use() > 0.97
    assert server.history[-1][1] == 80


@pytest.mark.parametrize("slots", [16, 32, 80, 128, 200])
def test_servers_of_any_size_are_filled(slots: int) -> None:
    server = Server(slots, seed=slots).run(Window(), 60 * slots)
    assert server.use() > 0.92


@pytest.mark.parametrize("slots", [1, 4])
def test_a_small_server_gets_less_than_it_is_tried_with(slots: int) -> None:
    runs = [Server(slots, sigma=0.3, seed=seed).run(Window(), 300 * slots) for seed in range(9)]
    assert sorted(server.history[-1][1] for server in runs)[4] < 32


@pytest.mark.parametrize("limit", [8, 20, 40, 64, 100])
def test_an_api_that_refuses_what_is_too_much_is_hardly_ever_asked_for_more(limit: int) -> None:
    server = Server(1000, refuses_above=limit, seed=limit).run(Window(), 3000)
    assert server.refused < 0.02 * 3000
    assert server.use(limit) > 0.75
    assert all(window <= 1.1 * limit + 1 for now, window, _ in server.history if now > 5)


def test_growth_ends_at_the_most_that_is_allowed() -> None:
    server = Server(1000).run(Window(most=48), 2000)
    assert max(window for _, window, _ in server.history) == 48 == server.history[-1][1]


def test_a_fixed_window_stays_whatever_happens() -> None:
    window = Window(fixed=7)
    Server(64, refuses_above=5, tells_every_s=0.2).run(window, 200)
    assert window.limit == 7


def test_one_overload_cuts_once_whatever_it_refuses() -> None:
    window = Window(start=100)
    for _ in range(90):
        window.refused(1.0, 0.5, 100)
    assert window.limit == 50
    window.refused(2.0, 1.5, 50)
    assert window.limit == 49


def test_a_time_out_halves() -> None:
    window = Window(start=100)
    window.refused(1.0, 0.5, 100, hard=True)
    assert window.limit == 50


def test_a_caller_without_requests_is_no_evidence() -> None:
    window = Window()
    for i in range(10_000):
        window.finished(i / 10, i / 10 - 0.5, 3)
    assert window.limit == 32


EVENTS = st.sampled_from(["finished", "refused", "hard", "told"])


@given(st.lists(st.tuples(EVENTS, st.integers(0, 400), st.floats(0, 9))))
def test_the_window_is_never_below_one_or_above_the_most(steps: list[tuple[str, int, float]]) -> None:
    window, now = Window(), 0.0
    for what, number, pause_s in steps:
        now += pause_s
        if what == "finished":
            window.finished(now, now - pause_s, number)
        elif what == "told":
            window.told(number, pause_s * 10, number)
        else:
            window.refused(now, now - pause_s, number, hard=what == "hard")
        assert 1 <= window.limit <= MOST
