"""The arithmetic of verdicts: label probabilities, both orders, ties. Pure functions, no model, no database.

A judge is shown two responses as A and B and answers A, B or C (= tie). It is asked twice, the second time with
the responses exchanged; a preference that does not survive the exchange is position bias, not a preference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, isnan, log, tanh
from statistics import fmean, pstdev

CHOICES = ("A", "B", "C")
"""First response shown, second response shown, tie. Each must be one token of the judge's tokenizer."""
_LAST_LINE = re.compile(r"[\W_]*(?:(?i:verdict)[\W_]+)?(?:(A|B)|(?:C(?:\s*\((?i:tie)\))?|(?i:tie)))[\W_]*")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one judgement says about the pair's `response_a`, whatever the place it was shown in."""

    p_a: float
    p_b: float
    p_tie: float

    @property
    def choice(self) -> str:
        """`a`, `b` or `tie`, the most probable; nothing stands out = tie."""
        if self.p_a > max(self.p_b, self.p_tie):
            return "a"
        if self.p_b > max(self.p_a, self.p_tie):
            return "b"
        return "tie"

    @property
    def soft(self) -> float:
        """Probability that `response_a` is better, a tie counting half."""
        return self.p_a + self.p_tie / 2

    def swap(self) -> Verdict:
        """The same judgement seen from the other response."""
        return Verdict(self.p_b, self.p_a, self.p_tie)


def readable(logprobs: Mapping[str, float]) -> bool:
    """Whether all three labels have a log-probability, and not all of them are impossible."""
    values = logprobs.values()
    return set(logprobs) == set(CHOICES) and not any(map(isnan, values)) and max(values) > -inf


def read_choice(logprobs: Mapping[str, float], shown_order: str) -> Verdict:
    """Log-probabilities of the three labels to a verdict on the pair (`shown_order`: `ab` or `ba`).

    They are renormalised over the labels, so it does not matter what else the judge might have said.

    >>> from math import log
    >>> read_choice({"A": log(0.6), "B": log(0.2), "C": log(0.2)}, "ba")
    Verdict(p_a=0.2, p_b=0.6, p_tie=0.2)
    """
    top = max(logprobs[choice] for choice in CHOICES)
    weights = [exp(logprobs[choice] - top) for choice in CHOICES]
    first, second, tie = (round(weight / sum(weights), 12) for weight in weights)
    verdict = Verdict(first, second, tie)
    return verdict if shown_order == "ab" else verdict.swap()


def read_words(reply: str, shown_order: str) -> Verdict | None:
    """The verdict that the last line of a reply names, with certainty; None where it names none.

    >>> read_words("A is wrong about the colour.\\n\\n**Verdict: B**", "ab")
    Verdict(p_a=0.0, p_b=1.0, p_tie=0.0)
    >>> read_words("Verdict: A or B", "ab")
    """
    lines = reply.strip().splitlines()
    found = _LAST_LINE.fullmatch(lines[-1]) if lines else None
    if found is None:
        return None
    verdict = {"A": Verdict(1.0, 0.0, 0.0), "B": Verdict(0.0, 1.0, 0.0)}.get(found[1], Verdict(0.0, 0.0, 1.0))
    return verdict if shown_order == "ab" else verdict.swap()


@dataclass(frozen=True, slots=True)
class Preference:
    """What is said of a pair in the end: by both orders, by ratings, or by several judges."""

    choice: str
    """`a`, `b` or `tie`."""
    p_a: float
    """Soft label: probability that `response_a` is better."""
    conflict: bool = False
    """The two orders named different winners."""
    vote_spread: float | None = None
    """How far the votes of one order lie apart: standard deviation of their soft p, mean over the orders that have
    several votes; None where none has."""

    @property
    def strength(self) -> float:
        """0 = undecided, 1 = certain."""
        return abs(2 * self.p_a - 1)


def combine(verdicts: Sequence[Verdict]) -> Preference:
    """Average the orders, one verdict each; opposite winners are a tie, a winner beside a tie stands.

    >>> combine([Verdict(0.7, 0.2, 0.1), Verdict(0.1, 0.8, 0.1)]).choice
    'tie'
    """
    return combine_votes([[verdict] for verdict in verdicts])


def combine_votes(orders: Sequence[Sequence[Verdict]]) -> Preference:
    """The votes of each order by majority, p their mean: (wins + ties / 2) / n; then the orders as `combine` has it.

    This is the slow twin of the SQL view `preferences`, and the two are tested to agree.
    """
    soft = fmean(fmean(vote.soft for vote in votes) for votes in orders)
    named = {most([vote.choice for vote in votes]) for votes in orders}
    spreads = [pstdev(vote.soft for vote in votes) for votes in orders if len(votes) > 1]
    conflict = {"a", "b"} <= named
    choice = "tie"
    if not conflict and "a" in named and soft > 0.5:
        choice = "a"
    elif not conflict and "b" in named and soft < 0.5:
        choice = "b"
    return Preference(choice, soft, conflict, fmean(spreads) if spreads else None)


def most(choices: Sequence[str]) -> str:
    """What is chosen most often; nothing that stands out = tie.

    >>> most(["a", "tie", "a"]), most(["a", "b"])
    ('a', 'tie')
    """
    a, b, tie = (choices.count(choice) for choice in ("a", "b", "tie"))
    return "a" if a > max(b, tie) else "b" if b > max(a, tie) else "tie"


def from_ratings(a: float, b: float, *, scale: float = 1.0, tie_margin: float = 0.0) -> Preference:
    """Two ratings to a preference: p = logistic((a - b) / scale), as Bradley and Terry (1952) have it of strengths.

    A difference that is no larger than the margin is a tie. What it says of p stands: ties have a strength, too.

    >>> from_ratings(4.0, 3.5, tie_margin=0.5)
    Preference(choice='tie', p_a=0.622459331202, conflict=False, vote_spread=None)
    """
    gap = a - b
    p_a = round((1 + tanh(gap / scale / 2)) / 2, 12)
    return Preference("tie" if abs(gap) <= tie_margin else _side(p_a), p_a)


def majority(members: Sequence[Preference]) -> Preference:
    """A panel whose members have a vote each: p is (wins + ties / 2) / n.

    >>> majority([Preference("a", 0.6), Preference("tie", 0.5), Preference("a", 0.9)])
    Preference(choice='a', p_a=0.833333333333, conflict=False, vote_spread=None)
    """
    choices = [member.choice for member in members]
    wins = choices.count("a") + choices.count("tie") / 2
    return Preference(most(choices), round(wins / len(choices), 12))


def mean(members: Sequence[Preference], weights: Sequence[float] | None = None) -> Preference:
    """A panel whose p is the mean of its members', each by its weight; exactly one half is a tie.

    >>> mean([Preference("a", 0.9), Preference("b", 0.4)], [1.0, 3.0])
    Preference(choice='a', p_a=0.525, conflict=False, vote_spread=None)
    """
    p_a = round(fmean([member.p_a for member in members], weights), 12)
    return Preference(_side(p_a), p_a)


def log_odds(right: float, judged: float) -> float:
    """The weight of a judge that is right in so many of its verdicts: log(accuracy / (1 - accuracy)).

    The weight that a vote of independent judges deserves (Nitzan and Paroush, 1982). One more right and one more
    wrong verdict keep it finite. Who is no better than a coin has no weight.

    >>> round(log_odds(8, 10), 3), log_odds(1, 5)
    (1.099, 0.0)
    """
    return max(0.0, log((right + 1) / (judged - right + 1)))


def _side(p_a: float) -> str:
    return "a" if p_a > 0.5 else "b" if p_a < 0.5 else "tie"
