"""Where the time of a stream of requests goes: does the engine work, or what does it wait for?

An engine has slots. Every moment, the share of them that work counts for the engine, and the idle rest for what they
wait for: frames (`decode`), the next prompt (`prompt`), or rows that are read or written (`warehouse`). The engine
says how many of its slots work; whoever holds it up says so. Threads may share a meter.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CAUSES = ("engine", "decode", "prompt", "warehouse")
ENGINE_BOUND = 0.9
"""A stream is bound by its engine when at least this share of its slots worked."""


class Meter:
    """Seconds by cause.

    >>> now = iter([0.0, 1.0, 3.0, 3.0]).__next__
    >>> meter = Meter(now)
    >>> meter.mark(busy=0.5, cause="decode")
    >>> meter.seconds()
    {'engine': 1.0, 'decode': 1.0, 'prompt': 1.0, 'warehouse': 0.0}
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Begin anew: all slots are idle and wait for the first prompt."""
        with self._lock:
            self._seconds = dict.fromkeys(CAUSES, 0.0)
            self._busy, self._cause, self._since = 0.0, "prompt", self._now()

    def mark(self, *, busy: float | None = None, cause: str | None = None) -> None:
        """From now on `busy` (0 to 1) of the slots work, and the others wait for `cause`."""
        with self._lock:
            self._close()
            self._busy = self._busy if busy is None else min(1.0, max(0.0, busy))
            self._cause = cause or self._cause

    def switch(self, cause: str) -> str:
        """Slots that are idle from now on wait for `cause`; returns what they waited for before."""
        with self._lock:
            self._close()
            before, self._cause = self._cause, cause
        return before

    @contextmanager
    def waiting_for(self, cause: str) -> Iterator[None]:
        """Slots that are idle in this block wait for `cause`."""
        before = self.switch(cause)
        try:
            yield
        finally:
            self.switch(before)

    @contextmanager
    def working(self) -> Iterator[None]:
        """All slots work in this block, and none outside of it."""
        self.mark(busy=1.0)
        try:
            yield
        finally:
            self.mark(busy=0.0)

    def seconds(self) -> dict[str, float]:
        """Cause -> seconds so far; together they are the time since the start."""
        with self._lock:
            self._close()
            return dict(self._seconds)

    def bound_by(self) -> str:
        """`engine`, unless a tenth of its time was lost: then what it mostly waited for. Empty if nothing ran."""
        seconds = self.seconds()
        total = sum(seconds.values())
        if not total:
            return ""
        if seconds["engine"] >= ENGINE_BOUND * total:
            return "engine"
        return max(CAUSES[1:], key=lambda cause: seconds[cause])

    def _close(self) -> None:
        now = self._now()
        passed, self._since = now - self._since, now
        self._seconds["engine"] += passed * self._busy
        self._seconds[self._cause] += passed * (1 - self._busy)
