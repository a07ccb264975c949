"""The arithmetic of verdicts: label probabilities, both orders, ties. Pure functions, no model, no database.

A judge is shown two responses as A and B and answers A, B or C (= tie). It is asked twice, the second time with
the responses exchanged; a preference that does not survive the exchange is position bias, not a preference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, isnan

CHOICES = ("A", "B", "C")
"""First response shown, second response shown, tie. Each must be one token of the judge's tokenizer."""


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


@dataclass(frozen=True, slots=True)
class Preference:
    """Both orders together."""

    choice: str
    """`a`, `b` or `tie`."""
    p_a: float
    """Soft label: probability that `response_a` is better."""
    conflict: bool
    """The two orders named different winners."""

    @property
    def strength(self) -> float:
        """0 = undecided, 1 = certain."""
        return abs(2 * self.p_a - 1)


def combine(verdicts: Sequence[Verdict]) -> Preference:
    """Average the orders; opposite winners are a tie, a winner beside a tie stands.

    This is the slow twin of the SQL view `preferences`, and the two are tested to agree.

    >>> combine([Verdict(0.7, 0.2, 0.1), Verdict(0.1, 0.8, 0.1)]).choice
    'tie'
    """
    soft = sum(verdict.soft for verdict in verdicts) / len(verdicts)
    named = {verdict.choice for verdict in verdicts}
    conflict = {"a", "b"} <= named
    if not conflict and "a" in named and soft > 0.5:
        return Preference("a", soft, conflict)
    if not conflict and "b" in named and soft < 0.5:
        return Preference("b", soft, conflict)
    return Preference("tie", soft, conflict)
