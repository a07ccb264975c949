"""Labels that nobody is asked for: made of ratings, or of what the members of a panel say.

Such a label stands for both orders at once (`shown_order` is `both`), and its reply is a short JSON of what it was
made from. A pair of which something is missing gets no label yet, and is counted.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import polars as pl

from vlm_rlaif.datagen.stages.pair import Pairs
from vlm_rlaif.datagen.stages.questions import Questions
from vlm_rlaif.feedback.known import known
from vlm_rlaif.feedback.stats.agreement import codes, correctness
from vlm_rlaif.feedback.verdict import Preference, from_ratings, log_odds, majority, mean
from vlm_rlaif.warehouse.care.keys import label_id
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Label, Record, Spec
from vlm_rlaif.warehouse.runs import Outcome, derive
from vlm_rlaif.warehouse.spool import Row
from vlm_rlaif.warehouse.store import Warehouse


class Rating(Protocol):
    """A stage that rates responses."""

    @property
    def spec(self) -> Spec: ...

    def asked(self, warehouse: Warehouse) -> tuple[str, dict[str, Any]]:
        """A query for (response_id, item) of all that is asked for, with its parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedLabels:
    """Labels of the pairs whose responses both have all their ratings; the value of a response is their mean."""

    spec: Spec
    rating: Rating
    pairs: Pairs
    questions: Questions
    context_spec: str | None
    scale: float
    tie_margin: float

    def __call__(self, warehouse: Warehouse) -> Outcome:
        missing = f"without all ratings of {self.spec.prompt}"
        return _append(warehouse, self.spec, self._labels(warehouse), missing)

    def _labels(self, warehouse: Warehouse) -> Iterator[tuple[Row, Preference | None, Any]]:
        asked, parameters = self.rating.asked(warehouse)
        meant, further = self.pairs.meant(warehouse)
        rows = warehouse.stream(
            f"""
            WITH asked AS ({asked}), valued AS (
                SELECT a.response_id, avg(g.value) AS value FROM asked a LEFT JOIN ratings g
                ON g.response_id = a.response_id AND g.item = a.item AND g.spec_id = $rating
                GROUP BY a.response_id HAVING count(*) = count(g.rating_id)
            )
            SELECT p.pair_id, c.context_id, a.value AS a, b.value AS b
            FROM {meant} p JOIN questions q USING (question_id)
            LEFT JOIN valued a ON a.response_id = p.response_a LEFT JOIN valued b ON b.response_id = p.response_b
            LEFT JOIN contexts c ON c.video_id = q.video_id AND c.spec_id = $context
            WHERE {self.questions.where} AND {NEW} ORDER BY p.pair_id
            """,
            {
                "rating": self.rating.spec.spec_id, "context": self.context_spec, "spec": self.spec.spec_id,
                **parameters, **further, **self.questions.parameters,
            },
        )  # fmt: skip
        for row in rows:
            if row["a"] is None or row["b"] is None:
                yield row, None, None
                continue
            verdict = from_ratings(row["a"], row["b"], scale=self.scale, tie_margin=self.tie_margin)
            yield row, verdict, {side: round(row[side], 6) for side in "ab"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelLabels:
    """Labels of the pairs that every member of a panel has judged, in both orders where it is asked in orders."""

    spec: Spec
    members: Mapping[str, str]
    """Name -> the spec of its labels."""
    combination: str
    pairs: Pairs
    questions: Questions

    def __call__(self, warehouse: Warehouse) -> Outcome:
        missing = "without a verdict of every member"
        return _append(warehouse, self.spec, self._labels(warehouse), missing)

    def _labels(self, warehouse: Warehouse) -> Iterator[tuple[Row, Preference | None, Any]]:
        weights = self._weights(warehouse) if self.combination == "weighted" else None
        meant, parameters = self.pairs.meant(warehouse)
        rows = warehouse.stream(
            f"""
            SELECT p.pair_id, f.judge, f.choice, f.p_a, f.context_id
            FROM {meant} p JOIN questions q USING (question_id)
            LEFT JOIN (SELECT * FROM preferences WHERE judge IN (SELECT unnest($members)) AND complete) f
            ON f.pair_id = p.pair_id
            WHERE {self.questions.where} AND {NEW} ORDER BY p.pair_id
            """,
            {
                "members": list(self.members.values()), "spec": self.spec.spec_id, **parameters,
                **self.questions.parameters,
            },
        )  # fmt: skip
        for pair_id, group in itertools.groupby(rows, lambda row: row["pair_id"]):
            found = {row["judge"]: row for row in group}
            contexts = sorted({row["context_id"] for row in found.values() if row["context_id"] is not None})
            pair = {"pair_id": pair_id, "context_id": contexts[0] if contexts else None}
            if set(self.members.values()) - found.keys():
                yield pair, None, None
                continue
            said = {name: Preference(*_verdict(found[spec])) for name, spec in self.members.items()}
            reply: dict[str, Any] = {name: round(each.p_a, 4) for name, each in said.items()}
            yield pair, self._united(said, weights), reply if weights is None else {**reply, "weights": weights}

    def _united(self, said: Mapping[str, Preference], weights: Mapping[str, float] | None) -> Preference:
        if self.combination == "majority":
            return majority(list(said.values()))
        return mean(list(said.values()), None if weights is None else [weights[name] for name in said])

    def _weights(self, warehouse: Warehouse) -> dict[str, float]:
        """Of the members, by their accuracy where people have judged; those of its labels, if any stand."""
        standing = warehouse.rows("SELECT reply FROM labels WHERE spec_id = ? LIMIT 1", [self.spec.spec_id])
        if standing:
            weights: dict[str, float] = json.loads(standing[0]["reply"])["weights"]
            return weights
        people = known(warehouse, "humans").filter(pl.col("choice") != "tie")
        weights = {name: self._weight(warehouse, people, name) for name in self.members}
        if not any(weights.values()):
            raise UserError(
                f"No member of the panel {self.spec.prompt} is better than a coin where people have judged.",
                f"vlm-rlaif feedback agreement {warehouse.path} --against humans",
            )
        return weights

    def _weight(self, warehouse: Warehouse, people: pl.DataFrame, name: str) -> float:
        """A tie of the judge is half right; where people see a tie, nobody is right or wrong."""
        said = warehouse.query(
            "SELECT pair_id, choice AS said FROM preferences WHERE judge = ? AND complete", [self.members[name]]
        )
        both = people.join(said, on="pair_id")
        if not len(both):
            raise UserError(
                f"People have judged no pair that {name} has judged, a member of the panel {self.spec.prompt}.",
                f"vlm-rlaif feedback audit plan {warehouse.path} --judge {self.members[name]}",
            )
        right = correctness(codes(both["said"].to_list()), codes(both["choice"].to_list()))
        accuracy = float(np.average(right, weights=both["weight"].to_numpy()))
        return round(log_odds(accuracy * len(both), len(both)), 4)


NEW = "NOT EXISTS (SELECT 1 FROM labels l WHERE l.pair_id = p.pair_id AND l.spec_id = $spec)"


def _verdict(row: Row) -> tuple[str, float]:
    return row["choice"], row["p_a"]


def _append(
    warehouse: Warehouse, spec: Spec, labels: Iterator[tuple[Row, Preference | None, Any]], missing: str
) -> Outcome:  # fmt: skip
    """Write the labels that can be made, and count the pairs of the others."""
    waiting = 0

    def rows(run_id: str) -> Iterator[Record]:
        nonlocal waiting
        for pair, verdict, said in labels:
            if verdict is None:
                waiting += 1
            else:
                yield _label(spec, pair, verdict, json.dumps(said, ensure_ascii=False), run_id)

    outcome = derive(warehouse, spec.stage, asdict(spec), rows)
    return replace(outcome, dropped={missing: waiting} if waiting else {}, note=f"judge {spec.prompt}")


def _label(spec: Spec, pair: Row, verdict: Preference, reply: str, run_id: str) -> Label:
    return Label(
        label_id=label_id(spec.spec_id, pair["pair_id"], pair["context_id"], "both"),
        pair_id=pair["pair_id"], spec_id=spec.spec_id, context_id=pair["context_id"], shown_order="both", vote=0,
        choice=verdict.choice, p_a=verdict.p_a, p_tie=0.0, reply=reply, cached_tokens=0, run_id=run_id,
    )  # fmt: skip
