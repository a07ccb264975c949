"""Ratings: a judge reads question, video and one response, and gives a number for every item that it is asked about.

The only item of `score` is the quality, from 1 to 5: the expected rating, each of the five one-token answers weighted
by its probability. A checklist has yes-no questions of the recipe, `claims.py` asks about every claim of a response:
there the number is the probability of yes. The reply itself is kept as well. Ratings choose which responses are
compared (`pair: {score: quality}`), and `derived.py` makes labels of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, inf, isnan, tanh
from typing import Any

from vlm_rlaif.datagen.engine import Completion, Request
from vlm_rlaif.datagen.job import Unreadable
from vlm_rlaif.datagen.plan import context_spec, part, questions_of
from vlm_rlaif.datagen.policies import pairs_of, rating_specs
from vlm_rlaif.datagen.stages.pair import Pairs
from vlm_rlaif.datagen.stages.questions import Questions
from vlm_rlaif.feedback.judges.model import JudgeModel
from vlm_rlaif.warehouse.care.keys import rating_id
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.judge_settings import Grading
from vlm_rlaif.warehouse.records import Rating, Record, Spec
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse

RATINGS = ("1", "2", "3", "4", "5")
"""Each must be one token of the judge's tokenizer."""
YES, NO = YES_NO = ("yes", "no")
"""As they are."""
ITEM = "quality"
PAIRED = "responses in pairs, and with context a narrative of their videos (datagen pair, datagen context)"
"""What the further judges of a recipe rate."""
QUALITY = f"SELECT response_id, '{ITEM}' AS item FROM rated"


@dataclass(frozen=True, slots=True)
class Rated:
    """Which responses are rated: those of one policy, or those of a recipe's pairs."""

    of: str | Pairs
    """Spec of the responses, or the pairs."""

    def sql(self, warehouse: Warehouse) -> tuple[str, dict[str, Any]]:
        """A query for their ids, with its parameters."""
        if isinstance(self.of, str):
            return "SELECT response_id FROM responses WHERE spec_id = $respond", {"respond": self.of}
        meant, parameters = self.of.meant(warehouse)
        return f"SELECT DISTINCT unnest([response_a, response_b]) AS response_id FROM {meant}", parameters


@dataclass(frozen=True, slots=True)
class RateStage:
    """One rating per response and item."""

    judge: JudgeModel
    spec: Spec
    rated: Rated
    questions: Questions
    context_spec: str | None
    """Spec of the contexts that the judge reads; None = it rates without."""
    name: str = "rate"
    asks: str = ""
    """The field of the prompt that holds the item, which is answered with yes or no; empty: quality, from 1 to 5."""
    items: str = QUALITY
    """SQL: (response_id, item) of the responses `rated`."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Those of `items`."""
    needs: str = "responses, and with context a narrative of their videos (datagen respond, datagen context)"

    def asked(self, warehouse: Warehouse) -> tuple[str, dict[str, Any]]:
        """A query for (response_id, item) of all that is asked for, with its parameters."""
        rated, parameters = self.rated.sql(warehouse)
        return f"WITH rated AS ({rated}) {self.items}", parameters | self.parameters

    def pending(self, warehouse: Warehouse, *, everything: bool = False) -> Spool:
        asked, parameters = self.asked(warehouse)
        missing = f"""
            CREATE TEMP TABLE missing AS SELECT x.* FROM ({asked}) x WHERE $everything OR NOT EXISTS (SELECT 1
                FROM ratings g WHERE g.response_id = x.response_id AND g.spec_id = $spec AND g.item = x.item)
            """
        return warehouse.stream(
            "SELECT r.response_id, r.question_id, m.item, r.text AS response, q.text AS question, v.video_id, v.uri,"
            " c.context_id, c.text AS context FROM missing m JOIN responses r USING (response_id)"
            " JOIN questions q USING (question_id) JOIN videos v ON v.video_id = q.video_id"
            " LEFT JOIN contexts c ON c.video_id = v.video_id AND c.spec_id = $context"
            f" WHERE {self.questions.where} AND ($context IS NULL OR c.context_id IS NOT NULL)"
            " ORDER BY v.video_id, r.question_id, r.response_id, m.item",
            {"context": self.context_spec, **self.questions.parameters},
            row_id=self._rating_id,
            first=(missing, {"spec": self.spec.spec_id, "everything": everything, **parameters}),
        )

    def _rating_id(self, row: Row) -> str:
        item = row["item"] if self.asks else None
        return rating_id(self.spec.spec_id, row["question_id"], row["response_id"], item)

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        values = {"question": row["question"], "response": row["response"]}
        if self.asks:
            values[self.asks] = row["item"]
        return self.judge.ask(warehouse, row, YES_NO if self.asks else RATINGS, **values)

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        read = yes_probability if self.asks else expected_rating
        value = read(completion.choice_logprobs)
        if value is None:
            choices = "answers yes, no" if self.asks else "ratings 1 to 5"
            raise Unreadable("unparsable", f"The engine gave no probabilities of the {choices}.")
        return [
            Rating(
                rating_id=row["row_id"], question_id=row["question_id"], response_id=row["response_id"],
                spec_id=self.spec.spec_id, item=row["item"], value=value, reply=completion.text,
                cached_tokens=completion.cached_tokens, run_id=run_id,
            )
        ]  # fmt: skip


def expected_rating(logprobs: Mapping[str, float]) -> float | None:
    """The mean rating under the probabilities of all five; None where some are missing, or all are impossible.

    >>> from math import log
    >>> expected_rating({"1": -100.0, "2": -100.0, "3": log(0.25), "4": log(0.25), "5": log(0.1)})
    3.75
    """
    found = [logprobs.get(rating, -inf) for rating in RATINGS]
    top = max(found)
    if set(logprobs) != set(RATINGS) or any(map(isnan, found)) or top == -inf:
        return None
    weights = [exp(logprob - top) for logprob in found]
    return round(sum(int(r) * w for r, w in zip(RATINGS, weights, strict=True)) / sum(weights), 12)


def yes_probability(logprobs: Mapping[str, float]) -> float | None:
    """P(yes | yes or no) from natural log-probabilities; None where they say nothing.

    >>> from math import log
    >>> yes_probability({"yes": log(0.3), "no": log(0.1)})
    0.75
    """
    difference = logprobs.get(YES, -inf) - logprobs.get(NO, -inf)
    return None if isnan(difference) else round((1 + tanh(difference / 2)) / 2, 12)


def rate_stages(recipe: Recipe) -> list[RateStage]:
    """The judge of a recipe's `rate:` part, for the responses of each of its policies."""
    settings: Grading = part(recipe, "rate")
    context = context_spec(recipe).spec_id if settings.arm == "context" else None
    return [
        RateStage(
            JudgeModel(
                model=settings.model, adapter=settings.adapter, prompt=spec.prompt, frames=settings.frames
            ),
            spec, Rated(respond), questions_of(recipe), context,
        )
        for respond, spec in rating_specs(recipe).items()
    ]  # fmt: skip


def upstream_of(recipe: Recipe, arm: str) -> tuple[dict[str, str], str | None]:
    """What the ratings of a further judge are made from, and the spec of the contexts that it reads."""
    upstream: dict[str, str] = {"respond": pairs_of(recipe).policies[0]}
    context = context_spec(recipe).spec_id if arm == "context" else None
    return (upstream if context is None else {"context": context} | upstream), context


def score(recipe: Recipe, judge: JudgeModel, arm: str) -> RateStage:
    """From 1 to 5, every response of the recipe's pairs."""
    upstream, context = upstream_of(recipe, arm)
    spec = judge.spec("rate", upstream)
    return RateStage(judge, spec, Rated(pairs_of(recipe)), questions_of(recipe), context, needs=PAIRED)


def checklist(recipe: Recipe, judge: JudgeModel, arm: str, items: Sequence[str]) -> RateStage:
    """Yes or no for every item. The items are no part of the spec: a further one leaves the others as they are."""
    upstream, context = upstream_of(recipe, arm)
    return RateStage(
        judge, judge.spec("check", upstream), Rated(pairs_of(recipe)), questions_of(recipe), context, "check", "item",
        "SELECT response_id, unnest($items) AS item FROM rated", {"items": list(items)}, PAIRED,
    )  # fmt: skip
