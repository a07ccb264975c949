"""Which of the pending rows a job computes, and for how long."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import row_id


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several parts of the work: all rows of some of the videos.

    >>> sum(Shard(i, 3).holds("some video") for i in (1, 2, 3))
    1
    """

    part: int
    """From 1."""
    parts: int

    @staticmethod
    def parse(text: str) -> Shard:
        """`2/8`; raises `UserError`."""
        part, _, parts = text.partition("/")
        if part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts):
            return Shard(int(part), int(parts))
        raise UserError(f"--shard {text}: give a part and how many there are, 1/8 to 8/8.")

    def holds(self, video_id: str) -> bool:
        """The parts of the videos do not depend on their split, nor on which other videos there are."""
        return int(row_id("shard", video_id), 16) % self.parts == self.part - 1


@dataclass(frozen=True, slots=True)
class Portion:
    """All pending rows that have not failed before, unless it says otherwise."""

    limit: int | None = None
    """Rows of every stage at most."""
    retry_failed: bool = False
    """Those that failed before, too."""
    shard: Shard | None = None
    max_hours: float | None = None
    """No request is begun after this time, which runs from the moment that the portion is made."""
    _begun_s: float = field(default_factory=lambda: time.monotonic(), compare=False, repr=False)

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return self.max_hours is not None and time.monotonic() >= self._begun_s + 3600 * self.max_hours
