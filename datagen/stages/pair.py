"""Pairs: two different responses to one question, unordered.

Without a `pair:` part every two responses of a recipe's policy are compared. With one, `choose_pairs.py` chooses.
The choice follows from the rows, so it is not stored: a pair stands once, whoever chose it first, and each recipe
reads those that it would choose now.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from vlm_rlaif.datagen.stages.choose_pairs import BALANCE, Answer, Balance, Chosen, choose, strategy_name
from vlm_rlaif.warehouse.records import Pair, Record, row_id
from vlm_rlaif.warehouse.runs import Outcome, derive
from vlm_rlaif.warehouse.settings import Pairing
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse

STRATEGY = "all"
SCORE = {
    None: "NULL",
    "logprob": "r.logprob / nullif(r.tokens, 0)",
    "quality": "(SELECT max(g.value) FROM ratings g WHERE g.response_id = r.response_id AND g.item = 'quality'"
    " AND g.spec_id IN (SELECT unnest($ratings)))",
}
"""What a response is scored by -> SQL."""


def pair(warehouse: Warehouse, respond_spec: str) -> Outcome:
    """Pair the responses of one spec. Two responses with the same words make no pair: nothing to prefer."""

    def rows(run_id: str) -> Iterator[Record]:
        found = warehouse.stream(
            "SELECT a.question_id, a.response_id AS a, b.response_id AS b FROM responses a JOIN responses b"
            " ON b.question_id = a.question_id AND b.spec_id = a.spec_id AND a.response_id < b.response_id"
            " WHERE a.spec_id = ? AND a.text <> b.text AND NOT EXISTS"
            " (SELECT 1 FROM pairs p WHERE p.response_a = a.response_id AND p.response_b = b.response_id)"
            " ORDER BY a.question_id, a.response_id, b.response_id",
            [respond_spec],
        )
        return (make_pair(row["question_id"], row["a"], row["b"], run_id) for row in found)

    return derive(warehouse, "pair", {"respond": respond_spec, "strategy": STRATEGY}, rows)


def make_pair(question_id: str, a: str, b: str, run_id: str, strategy: str = STRATEGY) -> Pair:
    """A pair of two response ids, in the one order that pairs have."""
    first, second = sorted((a, b))
    return Pair(
        pair_id=row_id("pair", first, second), question_id=question_id, response_a=first,
        response_b=second, strategy=strategy, run_id=run_id,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs that a recipe asks for."""

    settings: Pairing | None
    """None: all."""
    policies: tuple[str, ...]
    """Specs of the responses that are compared; the first is the recipe's own."""
    negatives: tuple[tuple[str, str], ...] = ()
    """(spec, kind) of the responses to spoilt videos."""
    ratings: tuple[str, ...] = ()
    """Specs of the ratings that the score `quality` is read from."""

    @property
    def chosen(self) -> bool:
        """Whether some pairs are chosen among others; if not, all pairs of the one policy are meant."""
        return self.settings is not None or len(self.policies) > 1

    def make(self, warehouse: Warehouse) -> Outcome:
        """Append the pairs that do not stand yet."""
        if not self.chosen:
            return pair(warehouse, self.policies[0])
        settings, found = self.settings or Pairing(), list[Selection]()
        strategy = strategy_name(settings)

        def rows(run_id: str) -> Iterator[Record]:
            found.append(selection := self.select(warehouse))
            for question_id, each in selection:
                name = f"perturb:{each.negative}" if each.negative else strategy
                yield make_pair(question_id, each.first, each.second, run_id, name)

        config = {"respond": list(self.policies), **dataclasses.asdict(settings), "strategy": strategy}
        outcome = derive(warehouse, "pair", config, rows)
        return dataclasses.replace(outcome, dropped=dict(found[0].dropped.most_common()), note=found[0].said())

    def ids(self, warehouse: Warehouse) -> list[str]:
        """The ids of all pairs that are meant, whether they stand or not."""
        if self.chosen:
            return [each.pair_id for _, each in self.select(warehouse)]
        meant, parameters = self.meant(warehouse)
        return [row["pair_id"] for row in warehouse.stream(f"SELECT pair_id FROM {meant}", parameters)]

    def meant(self, warehouse: Warehouse) -> tuple[str, dict[str, Any]]:
        """SQL: the pairs that are meant and stand, as a table, with its parameters."""
        if self.chosen:
            chosen = "(SELECT * FROM pairs SEMI JOIN (SELECT unnest($ids) AS pair_id) USING (pair_id))"
            return chosen, {"ids": self.ids(warehouse)}
        return (
            "(SELECT p.* FROM pairs p JOIN responses a ON a.response_id = p.response_a"
            " JOIN responses b ON b.response_id = p.response_b WHERE a.spec_id = $own AND b.spec_id = $own)",
            {"own": self.policies[0]},
        )

    def select(self, warehouse: Warehouse) -> Selection:
        """Choose among the responses that stand now."""
        settings = self.settings or Pairing()
        kinds = dict(self.negatives)
        parameters: dict[str, Any] = {"specs": [*self.policies, *kinds]}
        if settings.score == "quality":
            parameters["ratings"] = list(self.ratings)
        rows = warehouse.stream(
            "SELECT r.question_id, r.response_id, r.spec_id, r.sample_index, r.text,"
            f" {SCORE[settings.score]} AS score FROM responses r WHERE r.spec_id IN (SELECT unnest($specs))"
            " ORDER BY r.question_id, r.response_id",
            parameters,
        )
        return Selection(rows, settings, self.policies[0], kinds)


@dataclass(slots=True)
class Selection:
    """(question, pair) of all that are chosen; while it is read it counts what is dropped."""

    rows: Spool
    settings: Pairing
    own: str
    """Spec of the recipe's own policy."""
    kinds: dict[str, str]
    """Spec -> how the video was spoilt."""
    dropped: Counter[str] = field(default_factory=Counter)
    leaning: Counter[tuple[str, int]] = field(default_factory=Counter)
    """(`before` or `after` balancing, leaning) -> pairs."""

    def __iter__(self) -> Iterator[tuple[str, Chosen]]:
        balance = Balance.of(pair for _, pair in self._pairs()) if self.settings.length_balanced else None
        self.dropped.clear()
        for question_id, each in self._pairs():
            self.leaning["before", each.leaning] += 1
            if balance is not None and not balance.keeps(each):
                self.dropped[BALANCE] += 1
                continue
            self.leaning["after", each.leaning] += 1
            yield question_id, each

    def _pairs(self) -> Iterator[tuple[str, Chosen]]:
        for question_id, group in itertools.groupby(self.rows, lambda row: row["question_id"]):
            kept, dropped = choose([self._answer(row) for row in group], self.settings)
            self.dropped += dropped
            yield from ((question_id, each) for each in kept)

    def _answer(self, row: Row) -> Answer:
        negative, score = self.kinds.get(row["spec_id"], ""), row["score"]
        scored = score is not None and isfinite(score) and not negative
        return Answer(
            row["response_id"], row["text"], score if scored else None, row["sample_index"],
            row["spec_id"] == self.own, negative,
        )  # fmt: skip

    def said(self) -> str:
        """How often the longer response has the higher score; nothing where no pair is scored."""
        shares = []
        for when in ("before", "after"):
            longer, shorter = self.leaning[when, 1], self.leaning[when, -1]
            if longer + shorter:
                shares.append(f"{longer / (longer + shorter):.0%}")
        if not shares:
            return ""
        before = f", {shares[0]} before balancing" if self.settings.length_balanced else ""
        return f"the longer response has the higher score in {shares[-1]} of the pairs{before}"
