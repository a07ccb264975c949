"""Which responses of a question make a pair, and which pairs are dropped. Pure functions: no model, no database.

A score only chooses. Which response of a pair is the better one, the judge says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from heapq import nsmallest
from itertools import combinations

from vlm_rlaif.warehouse.records import row_id
from vlm_rlaif.warehouse.settings import Pairing

_WORD = re.compile(r"\w+")
SAME, SIMILAR, LENGTH = "of the same words", "near-duplicates", "of too different length"
NO_SCORE, GAP = "without a score", "too close in score"
BEYOND, BALANCE = "beyond the most per question", "for balance"
"""Why a pair is dropped."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, as pairs are chosen by."""

    response_id: str
    text: str
    score: float | None = None
    sample_index: int = 0
    own: bool = True
    """Whether the recipe's own policy gave it, and not a further one."""
    negative: str = ""
    """How its video was spoilt; empty: it was shown as it is."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A pair, in the one order that pairs have."""

    first: str
    second: str
    negative: str = ""
    """How the video of one of them was spoilt; empty: of neither."""
    gap: float = 0.0
    """Between the scores."""
    leaning: int = 0
    """1: the longer response has the higher score; -1: the shorter one; 0: neither, or nobody knows."""

    @property
    def pair_id(self) -> str:
        return row_id("pair", self.first, self.second)


def strategy_name(settings: Pairing) -> str:
    """What goes into the rows: the strategy, with whatever it was told.

    >>> strategy_name(Pairing(strategy="best_worst", score="quality", min_gap=0.5))
    'best_worst(score=quality, min_gap=0.5)'
    """
    names = (each.name for each in fields(Pairing) if each.name not in ("strategy", "perturb"))
    told = {name: value for name in names if (value := getattr(settings, name)) != getattr(Pairing(), name)}
    said = ", ".join(f"{name}={value}" for name, value in told.items())
    return f"{settings.strategy}({said})" if said else settings.strategy


def choose(answers: Sequence[Answer], settings: Pairing) -> tuple[list[Chosen], Counter[str]]:
    """The pairs of one question, and how many were dropped for which reason."""
    dropped: Counter[str] = Counter()
    clean = [answer for answer in answers if not answer.negative]
    if settings.strategy != "all":
        dropped[NO_SCORE] += sum(answer.score is None for answer in clean)
    kept, refusals = _keep(candidates(clean, settings), settings)
    dropped += refusals
    most = settings.most_per_question
    if most is not None and len(kept) > most:
        dropped[BEYOND] += len(kept) - most
        kept = sorted(kept, key=lambda pair: (-pair.gap, pair.pair_id))[:most]
    if len(clean) < len(answers):
        plain = Pairing(max_similarity=settings.max_similarity, max_length_ratio=settings.max_length_ratio)
        for one, negative in spoilt(answers):
            found, refusals = _keep([(one, negative)], plain)
            kept += found
            dropped.update({f"{negative.negative}: {reason}": count for reason, count in refusals.items()})
    return kept, +dropped


def candidates(answers: Sequence[Answer], settings: Pairing) -> Iterator[tuple[Answer, Answer]]:
    """Pairs by strategy. The best and the worst are found among the scored responses; ids decide between equals."""
    if settings.strategy == "all":
        yield from combinations(answers, 2)
        return
    ranked = sorted(_scored(answers), key=lambda found: (-found[0], found[1].response_id))
    if len(ranked) > 1:
        rest = ranked[1:] if settings.strategy == "best_rest" else ranked[-1:]
        yield from ((ranked[0][1], other) for _, other in rest)


def _scored(answers: Iterable[Answer]) -> Iterator[tuple[float, Answer]]:
    return ((answer.score, answer) for answer in answers if answer.score is not None)


def spoilt(answers: Sequence[Answer]) -> Iterator[tuple[Answer, Answer]]:
    """Every negative with the own policy's response of the same number to the video as it is."""
    own = {answer.sample_index: answer for answer in answers if answer.own and not answer.negative}
    for answer in answers:
        if answer.negative and answer.sample_index in own:
            yield own[answer.sample_index], answer


def _keep(
    pairs: Iterable[tuple[Answer, Answer]], settings: Pairing
) -> tuple[list[Chosen], Counter[str]]:  # fmt: skip
    kept, refusals = list[Chosen](), Counter[str]()
    for one, other in pairs:
        if reason := refused(one, other, settings):
            refusals[reason] += 1
            continue
        gap = 0.0 if one.score is None or other.score is None else one.score - other.score
        longer = len(one.text) - len(other.text)
        leaning = (gap * longer > 0) - (gap * longer < 0)
        first, second = sorted((one.response_id, other.response_id))
        kept.append(Chosen(first, second, other.negative, abs(gap), leaning))
    return kept, refusals


def refused(one: Answer, other: Answer, settings: Pairing) -> str:
    """Why two responses make no pair; empty when they do."""
    if one.text == other.text:
        return SAME
    if settings.strategy != "all" or settings.min_gap or settings.length_balanced:
        if one.score is None or other.score is None:
            return NO_SCORE
        gap = abs(one.score - other.score)
        if gap < settings.min_gap or (gap == 0 and settings.strategy != "all"):
            return GAP
    if settings.max_similarity is not None and similarity(one.text, other.text) > settings.max_similarity:
        return SIMILAR
    shorter, longer = sorted((len(one.text), len(other.text)))
    if settings.max_length_ratio is not None and longer > settings.max_length_ratio * shorter:
        return LENGTH
    return ""


def similarity(one: str, other: str) -> float:
    """The share of words, whatever their case and order, that two texts have in common (Jaccard); 1: the same ones.

    >>> similarity("A red square moves.", "a blue square moves")
    0.6
    """
    first, second = (set(_WORD.findall(text.lower())) for text in (one, other))
    return len(first & second) / len(first | second) if first | second else 1.0


@dataclass(frozen=True, slots=True)
class Balance:
    """Which pairs stay, so that the longer response has the higher score as often as the shorter one."""

    side: int
    """The leaning that more pairs have."""
    last: str
    """Of those, the pairs up to this id stay."""

    @staticmethod
    def of(pairs: Iterable[Chosen]) -> Balance:
        """Ids are hashes, so those that stay are a sample, and every machine draws the same one."""
        sides: dict[int, list[str]] = {1: [], -1: []}
        for pair in pairs:
            if pair.leaning:
                sides[pair.leaning].append(pair.pair_id)
        few, side = min(map(len, sides.values())), max(sides, key=lambda side: len(sides[side]))
        return Balance(side, max(nsmallest(few, sides[side]), default=""))

    def keeps(self, pair: Chosen) -> bool:
        return pair.leaning != self.side or pair.pair_id <= self.last
