"""How many requests a server is given at a time: enough that it never idles, not so many that it refuses.

Pure arithmetic on what was seen; it sends nothing and reads no clock. A server that says how many requests it runs
and how many wait (vLLM's `/metrics`) is kept a short queue. From any other the window learns by trying: it doubles
while more in flight finish faster, halves while fewer do as well, and holds a quarter above the smallest window that
reached full speed, so that the server always has a next request. Now and then it tries for more. A refusal ends that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

START = 32
MOST = 256
SPARE = 1.25
"""The window over the smallest one that reaches full speed."""
STEP = 1.4
"""How far the window goes up when it tries for more."""
WORTH = 1.2
"""More in flight is worth having when so many times as many requests are finished a second."""
STILL_FULL = 0.9
"""Half the window is enough when it finishes this share of the requests a second."""
LEAST_COUNT, LEAST_HELD = 20, 100
"""Requests that have to finish before a window is judged: while it searches, and while it holds."""
PROBE_S, PROBE_MOST_S = 5.0, 120.0
"""When the window tries for more: first, and at last."""
REFUSED_S = 10.0
"""How long it does not after a refusal, at least."""
LEAST_QUEUE = 4
ARRIVED = 0.75
"""A server that runs less than this share of what is in flight is not short of requests: they are on their way."""


@dataclass(slots=True)
class _First:
    """The first requests. They meet an empty server: how long they take tells what so many at a time can finish."""

    window: float
    count: int
    began_s: float
    answered_s: float
    """When the first of them came back. Whatever was sent later is none of them."""
    done: int = 0
    took_s: float = 0.0

    def finished(self, now_s: float, sent_s: float) -> None:
        if sent_s < self.answered_s:
            self.done += 1
            self.took_s += now_s - sent_s

    def rate(self, now_s: float) -> float:
        """Requests a second; those that are not back yet have taken until now."""
        open_s = (self.count - self.done) * (now_s - self.began_s)
        return self.count * self.done / max(1e-9, self.took_s + open_s)


class Window:
    """The window of one server. `limit` is how many requests may be in flight."""

    def __init__(self, *, start: int = START, most: int = MOST, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._most = fixed or most
        self._limit = float(fixed or min(start, most))
        self._goal = self._limit if fixed else min(2 * self._limit, float(most))
        self._first: _First | None = None
        self._tried: dict[float, float] = {}
        """Window -> requests a second that it finished, since the search began."""
        self._told = False
        """The server says itself how full it is."""
        self._holding = fixed is not None
        self._held, self._held_rate = self._limit, 0.0
        self._wait_s = PROBE_S
        self._next_probe_s = math.inf
        self._since_s: float | None = None
        self._count = self._skip = 0
        self._cut_s, self._floor = -math.inf, 1

    @property
    def limit(self) -> int:
        return max(1, int(self._limit))

    def finished(self, now_s: float, sent_s: float, in_flight: int) -> None:
        """A request has been answered, one of `in_flight`."""
        if self._fixed or self._told:
            return
        if self._first is None:
            self._first = _First(self._limit, in_flight, sent_s, now_s)
        self._first.finished(now_s, sent_s)
        if in_flight > self._limit:  # of a larger window that is given up; what they show is no evidence
            return self._restart(skip=self.limit // 2)
        if in_flight < 0.9 * self._limit:  # whoever sends the requests has no more of them
            return self._restart(skip=0)
        if self._limit < self._goal:  # one more for each that is done: a refusal is noticed before there are many
            self._limit = min(self._goal, self._limit + 1)
            return self._restart(skip=self.limit // 4)
        if self._skip:
            self._skip -= 1
            return
        if self._since_s is None:
            self._since_s = now_s
            return
        self._count += 1
        needed = max(LEAST_HELD, 2 * self._limit) if self._holding else max(LEAST_COUNT, self._limit / 2)
        if self._count >= needed and now_s > self._since_s:
            self._judge(self._count / (now_s - self._since_s), now_s)

    def refused(self, now_s: float, sent_s: float, in_flight: int, *, hard: bool = False) -> None:
        """The server had enough (429, 503): as many were too many. A time-out is a `hard` sign: the half stays.

        Refusals of requests that were sent before the first one belong to it: together they cost half at most.
        """
        if self._fixed:
            return
        if sent_s > self._cut_s:
            self._cut_s, self._floor = now_s, max(1, math.ceil(self._limit / 2))
            self._wait_s = max(REFUSED_S, min(2 * self._wait_s, PROBE_MOST_S))
        self._hold(self._floor if hard else max(self._floor, min(self.limit, in_flight) - 1), 0.0)
        self._next_probe_s = now_s + self._wait_s

    def told(self, running: float, waiting: float, in_flight: int) -> None:
        """What the server says about itself; `in_flight` are ours, it may have others."""
        if self._fixed:
            return
        self._told = True
        if waiting > 0:
            queue = max(LEAST_QUEUE, (SPARE - 1) * running)
            self._limit = self._goal = self._allowed(in_flight - waiting + queue)
        elif in_flight >= 0.9 * self._limit and running >= ARRIVED * in_flight:  # it takes whatever comes
            self._limit = self._goal = self._allowed(2 * self._limit)

    def _judge(self, rate: float, now_s: float) -> None:
        if self._holding:
            if self._limit > self._held:  # it tried for more
                if rate > WORTH * self._held_rate:
                    self._search(self._limit, rate)
                else:
                    self._wait_s = min(2 * self._wait_s, PROBE_MOST_S)
                    self._next_probe_s = now_s + self._wait_s
                    self._hold(self._held, rate)
                return
            self._held_rate = rate
            if now_s >= self._next_probe_s and self._limit < self._most:
                self._goal = self._allowed(STEP * self._limit)
            return self._restart(skip=0)
        if not self._tried and self._first is not None and self._first.window < self._limit:
            self._tried[self._first.window] = self._first.rate(now_s)
        self._search(self._limit, rate)
        if self._holding:
            self._next_probe_s = now_s + self._wait_s

    def _search(self, window: float, rate: float) -> None:
        """Go on with twice the window, or half of it, or hold when both are known."""
        self._holding = False
        self._tried[window] = rate
        larger = max(self._tried)
        smaller = min(self._tried)
        if larger == window and larger < self._most and self._grew(window):
            return self._go(self._allowed(2 * window))
        proven = [w for w in self._tried if w < larger and self._tried[w] < self._tried[larger] * STILL_FULL]
        if not proven and smaller > 1:
            return self._go(max(1.0, smaller // 2))
        full = max(self._tried.values())
        knee = max(proven) * full / self._tried[max(proven)] if proven else smaller
        self._hold(self._allowed(math.ceil(SPARE * min(knee, larger))), full)

    def _grew(self, window: float) -> bool:
        """Whether this window finishes more than the next smaller one that was tried; the first one may."""
        below = [w for w in self._tried if w < window]
        return not below or self._tried[window] > WORTH * self._tried[max(below)]

    def _go(self, window: float) -> None:
        self._goal = window
        if window < self._limit:
            self._limit = window
        self._restart(skip=self.limit // 2)

    def _hold(self, window: float, rate: float) -> None:
        self._limit = self._goal = self._held = window
        self._holding, self._held_rate = True, rate
        self._tried.clear()
        self._restart(skip=self.limit // 2)

    def _allowed(self, window: float) -> float:
        return min(float(self._most), max(1.0, window))

    def _restart(self, skip: int) -> None:
        """Count anew, without the next `skip` that finish: they were sent into another window."""
        self._count, self._skip, self._since_s = 0, skip, None
