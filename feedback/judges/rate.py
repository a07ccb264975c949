"""Ratings: a judge reads question, video and one response, and says from 1 to 5 how good it is.

The value is the expected rating: each of the five one-token answers, weighted by its probability. The reply itself is
kept as well. Ratings choose which responses are compared (`pair: {score: quality}`); no model learns from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, isnan

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engine import Completion, Request, VideoPart
from vlm_rlaif.datagen.job import Unreadable
from vlm_rlaif.datagen.plan import context_spec, part, questions_of
from vlm_rlaif.datagen.policies import rating_specs
from vlm_rlaif.datagen.stages.questions import Questions
from vlm_rlaif.feedback.judges.pairwise import ONE_TOKEN
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.judge_settings import Grading
from vlm_rlaif.warehouse.records import Rating, Record, Spec, row_id
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse

RATINGS = ("1", "2", "3", "4", "5")
"""Each must be one token of the judge's tokenizer."""
ITEM = "quality"


@dataclass(frozen=True, slots=True)
class RateStage:
    """One rating per response of one policy."""

    settings: Grading
    spec: Spec
    respond_spec: str
    questions: Questions
    context_spec: str | None
    """Spec of the contexts that the judge reads; None = it rates without."""
    name: str = "rate"
    needs: str = "responses, and with context a narrative of their videos (datagen respond, datagen context)"

    def pending(self, warehouse: Warehouse, *, everything: bool = False) -> Spool:
        return warehouse.stream(
            "SELECT r.response_id, r.question_id, r.text AS response, q.text AS question, v.video_id, v.uri,"
            " c.context_id, c.text AS context FROM responses r JOIN questions q USING (question_id)"
            " JOIN videos v ON v.video_id = q.video_id"
            " LEFT JOIN contexts c ON c.video_id = v.video_id AND c.spec_id = $context"
            f" WHERE r.spec_id = $respond AND {self.questions.where}"
            " AND ($context IS NULL OR c.context_id IS NOT NULL)"
            " AND ($everything OR NOT EXISTS (SELECT 1 FROM ratings g WHERE g.response_id = r.response_id"
            " AND g.spec_id = $spec)) ORDER BY v.video_id, r.question_id, r.response_id",
            {
                "context": self.context_spec, "respond": self.respond_spec, "spec": self.spec.spec_id,
                "everything": everything, **self.questions.parameters,
            },
            row_id=lambda row: row_id("rating", self.spec.spec_id, row["question_id"], row["response_id"]),
        )  # fmt: skip

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        values = {"question": row["question"], "response": row["response"]}
        if self.context_spec is not None:
            values["context"] = row["context"]
        said = prompt.load(self.spec.prompt).render(**values)
        return Request(
            row["row_id"], said.user, said.system,
            VideoPart.of(warehouse, row, self.settings.frames),
            choices=RATINGS, sampling=ONE_TOKEN, adapter=self.settings.adapter,
        )  # fmt: skip

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        value = expected_rating(completion.choice_logprobs)
        if value is None:
            raise Unreadable("unparsable", "The engine gave no probabilities of the ratings 1 to 5.")
        return [
            Rating(
                rating_id=row["row_id"], question_id=row["question_id"], response_id=row["response_id"],
                spec_id=self.spec.spec_id, item=ITEM, value=value, reply=completion.text,
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


def rate_stages(recipe: Recipe) -> list[RateStage]:
    """The judge of a recipe's `rate:` part, for the responses of each of its policies."""
    settings: Grading = part(recipe, "rate")
    context = context_spec(recipe).spec_id if settings.arm == "context" else None
    return [
        RateStage(settings, spec, respond, questions_of(recipe), context)
        for respond, spec in rating_specs(recipe).items()
    ]
