"""What the driver of `--engine ray` knows of a worker: what it has, how fast it is, what it waits for. No Ray."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from vlm_rlaif.datagen.engine import Request

RESERVE_S = 1.0
"""A worker has requests for this long in reserve, at the pace that it has shown."""
RESERVE_MOST = 256
GLANCE_S = 0.05
"""What a worker did in less time says nothing about what holds it up."""


@dataclass(slots=True, eq=False)
class Seat:
    """A place for a worker, and the one that has it: a lost worker is replaced."""

    actor: Any
    call: Any
    """What the worker was asked for and has not answered yet; None while there is nothing for it to do."""
    node: str = ""
    loaded: bool = False
    stream: int | None = None
    last: bool = False
    """Its stream was told that no more requests come: further ones need a new stream."""
    waiting: int = 0
    """Requests that lay in reserve at its last report."""
    depth: int = 1
    """Requests that it should have in reserve because it has emptied a smaller one."""
    held: dict[str, Request] = field(default_factory=dict)
    """What it was given and has not finished."""
    deaths: int = 0
    done: int = 0
    """Completions since `since`."""
    since: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    """Of its meter, at the last look."""
    busy: float = 0.0
    cause: str = "prompt"

    @property
    def reserve(self) -> int:
        """Requests that should wait there: enough for a while, and no more, so that none idles at the end."""
        pace = self.done / max(time.monotonic() - self.since, RESERVE_S)
        return min(RESERVE_MOST, max(self.depth, 1 + int(RESERVE_S * pace)))

    def note(self, waiting: int, seconds: dict[str, float]) -> None:
        """What lies in reserve there, and from its meter, what it has been doing lately."""
        self.waiting = waiting
        self.depth = max(1, self.depth // 2) if waiting else min(RESERVE_MOST, 2 * self.depth)
        passed = {cause: now - self.seconds.get(cause, 0.0) for cause, now in seconds.items()}
        if (total := sum(passed.values())) >= GLANCE_S:
            self.busy, self.seconds = passed.pop("engine") / total, seconds
            self.cause = max(passed, key=lambda cause: passed[cause])
