"""How many pairs people should see, and which: a stratified sample. Pure functions, no database.

Every draw is a hash of the seed and the ids, so the same plan draws the same sample wherever it is made.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf, sqrt

from vlm_rlaif.warehouse.records import row_id

Z = 1.959963984540054
"""Of a 95 % interval."""
AT_LEAST = 5
"""Pairs of every stratum, where it has as many and the sample has room."""


@dataclass(frozen=True, slots=True)
class Size:
    """How many pairs, and the interval that they promise."""

    pairs: int
    independent: float
    """Pairs that would do if each were of a video of its own."""
    pairs_per_video: float
    design_effect: float
    """What pairs of one video that go wrong together cost."""
    unequal: float
    """How much wider the interval is because pairs stand for unequal numbers of pairs."""
    half_width: float
    """Of the 95 % interval of an agreement, as it may be expected."""


def size_for(
    half_width: float, population: int, videos: int, *, agreement: float, correlation: float, unequal: float = 1.0
) -> Size:
    """The smallest sample whose 95 % interval of an agreement rate is no wider than +-`half_width`.

    Independent pairs: n0 = z^2 p (1 - p) / w^2, and `unequal`^2 as many (see `weighting`). With m = n / videos > 1
    pairs of a video n = n0 (1 + (m - 1) rho), the design effect of Kish (1965), solved for n; `correlation` is rho. A
    sample that cannot be as large is all.

    >>> size_for(0.05, 10_000, 10_000, agreement=0.5, correlation=0.1).pairs
    385
    """
    independent = Z**2 * agreement * (1 - agreement) / half_width**2
    pairs = needed = independent * unequal**2
    if needed > videos:
        rest = 1 - needed * correlation / videos
        pairs = needed * (1 - correlation) / rest if rest > 0 else inf
    return expected(min(ceil(min(pairs, population)), population), videos, agreement=agreement,
                    correlation=correlation, unequal=unequal, independent=independent)  # fmt: skip


def expected(
    pairs: int, videos: int, *, agreement: float, correlation: float, unequal: float = 1.0,
    independent: float | None = None,
) -> Size:  # fmt: skip
    """What a sample of this size promises."""
    per_video = max(1.0, pairs / videos)
    effect = 1 + (per_video - 1) * correlation
    half_width = unequal * Z * sqrt(agreement * (1 - agreement) * effect / pairs)
    return Size(pairs, pairs / effect if independent is None else independent, per_video, effect, unequal, half_width)


def weighting(populations: Mapping[str, int], pairs: Mapping[str, int]) -> float:
    """sqrt(n sum(w^2)) / sum(w) over the pairs of a sample: what unequal weights make of an interval (Kish, 1965).

    >>> weighting({"a": 60, "b": 40}, {"a": 6, "b": 4})
    1.0
    """
    squares = sum(population**2 / pairs[name] for name, population in populations.items())
    return sqrt(sum(pairs.values()) * squares) / sum(populations.values())


def allocate(populations: Mapping[str, int], size: int) -> dict[str, int]:
    """How many pairs of every stratum: in proportion to its population, and some of each.

    Raises `ValueError` if there are more strata than pairs.
    """
    if size < len(populations):
        raise ValueError(f"{len(populations)} strata in {size} pairs")
    floor = max(1, min(AT_LEAST, size // (2 * len(populations))))
    taken = {name: min(floor, population) for name, population in populations.items()}
    hungry = [(-population / (taken[name] + 0.5), name) for name, population in populations.items()]
    heapq.heapify(hungry)
    left = min(size, sum(populations.values())) - sum(taken.values())
    while left > 0:  # the next pair goes to the stratum whose share is furthest behind (Sainte-Lague)
        _, name = heapq.heappop(hungry)
        if taken[name] < populations[name]:
            taken[name] += 1
            left -= 1
            heapq.heappush(hungry, (-populations[name] / (taken[name] + 0.5), name))
    return taken


def draw(pairs: Sequence[tuple[str, str]], count: int, seed: int) -> list[str]:
    """`count` of the pairs (video, pair), each as likely as any other, spread over the videos.

    Every so many-th of the pairs in an order that keeps those of a video together: a systematic sample, which takes
    of no video more than one above its share.
    """
    ordered = sorted(pairs, key=lambda pair: (_hash(seed, "video", pair[0]), _hash(seed, "pair", pair[1])))
    return [ordered[place][1] for place in _every(len(ordered), count, _hash(seed, "start", *ordered[0]))]


def overlapping(pairs: Sequence[str], share: float, seed: int) -> set[str]:
    """The share of the sample that several people are to see, spread evenly over its order."""
    count = round(share * len(pairs))
    if count == 0:
        return set()
    return {pairs[place] for place in _every(len(pairs), count, _hash(seed, "overlap", pairs[0]))}


def sides(pairs: Sequence[str], seed: int) -> dict[str, str]:
    """Which response of a pair is shown as A: `ab` or `ba`, in an order without a pattern, half of each."""
    ordered = sorted(pairs, key=lambda pair: _hash(seed, "side", pair))
    return {pair: "ab" if place % 2 == 0 else "ba" for place, pair in enumerate(ordered)}


def _every(population: int, count: int, start: str) -> list[int]:
    """`count` places at equal distances; the first is drawn."""
    first = int(start, 16) / 16 ** len(start)
    return [min(population - 1, int((first + number) * population / count)) for number in range(count)]


def _hash(*parts: object) -> str:
    return row_id("audit", *parts)
