"""What a job has done so far, and how fast: the words beside its progress bar."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from vlm_rlaif.datagen.engine import Completion, Request, VideoPart
from vlm_rlaif.datagen.meter import Meter

REPEATS_WORTH_A_WORD = 0.3
"""Share of requests that begin like the one before, from which on a prefix cache should show."""
SHORTEST_SHARED = 64
"""Tokens of a prompt on average: caches hold whole blocks, and a shorter prompt may not fill one."""
HITS_TOO_FEW = 0.05


@dataclass(slots=True)
class Tally:
    """Counts over one job; all its stages together."""

    meter: Meter
    started: float = field(default_factory=time.monotonic)
    rows: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cached_tokens: int = 0
    begun: int = 0
    repeats: int = 0
    """Requests that show the same video after the same system text as the one that left before them."""
    _last: tuple[VideoPart | None, str, str] | None = None

    def begin(self, request: Request) -> None:
        """A request leaves."""
        beginning = request.video, request.system, request.adapter
        self.begun += 1
        self.repeats += request.video is not None and beginning == self._last
        self._last = beginning

    def count(self, done: Completion) -> None:
        """The tokens of a reply."""
        self.tokens_in += done.tokens_in
        self.tokens_out += done.tokens_out
        self.cached_tokens += done.cached_tokens

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens that the engine found in its cache."""
        return self.cached_tokens / self.tokens_in if self.tokens_in else 0.0

    def misses_its_cache(self) -> bool:
        """Prompts share their beginning, and yet the cache hardly ever held it."""
        shared = self.repeats >= REPEATS_WORTH_A_WORD * self.begun > 0
        long_enough = self.tokens_in >= SHORTEST_SHARED * self.begun > 0
        return shared and long_enough and self.hit_rate < HITS_TOO_FEW

    def words_about_cache(self) -> str:
        return (
            f"{self.hit_rate:.0%} of the prompt tokens were found in the prefix cache, although"
            f" {self.repeats / self.begun:.0%} of the requests began like the one before (the same video)."
        )

    def __str__(self) -> str:
        """`3.2 rows/s, bound by decode, 2 failed, 4.1k tok/s in, 210 out, 63% cached`; narrow lines end early."""
        spent = max(self.seconds, 1e-9)
        said = [f"{short(self.rows / spent)} rows/s", f"bound by {self.meter.bound_by()}"]
        if self.failed:
            said.append(f"{self.failed:,} failed")
        if self.tokens_in or self.tokens_out:
            said.append(f"{short(self.tokens_in / spent)} tok/s in, {short(self.tokens_out / spent)} out")
        if self.cached_tokens:
            said.append(f"{self.hit_rate:.0%} cached")
        return ", ".join(said)


def short(number: float) -> str:
    """A number in few letters.

    >>> [short(n) for n in (0.054, 0.5, 12.3, 4100, 52_000, 3_400_000)]
    ['0.054', '0.5', '12', '4.1k', '52k', '3.4M']
    """
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2g}{letter}" if number < 10 * size else f"{number / size:.0f}{letter}"
    return f"{number:.2g}" if number < 10 else f"{number:.0f}"
