"""Can the questions that were written be answered? A model that reads the context says yes or no.

The probability of yes is a row of `ratings`; which questions it leaves out is decided when questions are read, so
another threshold computes nothing anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan, tanh

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engine import Completion, Request
from vlm_rlaif.datagen.job import Unreadable
from vlm_rlaif.warehouse.records import Rating, Record, Spec, row_id
from vlm_rlaif.warehouse.settings import Answerability, Sampling
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse

YES, NO = CHOICES = ("A", "B")
ITEM = "answerable"


@dataclass(frozen=True, slots=True)
class AnswerableStage:
    """One rating per question of the recipe's own `ask:` part; imported questions are not doubted."""

    settings: Answerability
    spec: Spec
    ask_spec: str
    context_spec: str
    name: str = "answerable"
    needs: str = "written questions (vlm-rlaif datagen ask)"

    def pending(self, warehouse: Warehouse, *, everything: bool = False) -> Spool:
        return warehouse.stream(
            "SELECT q.question_id, q.video_id, q.text AS question, x.text AS context FROM questions q"
            " JOIN contexts x ON x.video_id = q.video_id AND x.spec_id = $context WHERE q.spec_id = $ask"
            " AND ($everything OR NOT EXISTS (SELECT 1 FROM ratings r WHERE r.question_id = q.question_id"
            " AND r.spec_id = $spec))"
            " ORDER BY q.video_id, q.question_id",
            {"context": self.context_spec, "ask": self.ask_spec, "spec": self.spec.spec_id, "everything": everything},
            row_id=lambda row: row_id("rating", self.spec.spec_id, row["question_id"], None),
        )

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        said = prompt.load(self.settings.prompt).render(context=row["context"], question=row["question"])
        return Request(
            row["row_id"], said.user, said.system, choices=CHOICES, sampling=Sampling(max_new_tokens=1),
            adapter=self.settings.adapter,
        )  # fmt: skip

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        value = yes_probability(completion.choice_logprobs)
        if value is None:
            raise Unreadable("unparsable", "The engine gave no probabilities of the labels A, B.")
        return [
            Rating(
                rating_id=row["row_id"], question_id=row["question_id"], response_id=None,
                spec_id=self.spec.spec_id, item=ITEM, value=value, reply=completion.text,
                cached_tokens=completion.cached_tokens, run_id=run_id,
            )
        ]  # fmt: skip


def yes_probability(logprobs: Mapping[str, float]) -> float | None:
    """P(A | A or B) from natural log-probabilities; None where they say nothing.

    >>> from math import log
    >>> round(yes_probability({"A": log(0.3), "B": log(0.1)}), 6)
    0.75
    """
    difference = logprobs.get(YES, -inf) - logprobs.get(NO, -inf)
    return None if isnan(difference) else (1 + tanh(difference / 2)) / 2


def left_out(warehouse: Warehouse, stage: AnswerableStage) -> str:
    """How many of the rated questions get no responses, in words; empty where none is rated."""
    (found,) = warehouse.rows(
        "SELECT count(*) AS rated, count(*) FILTER (r.value < $least) AS dropped FROM ratings r"
        " JOIN questions q USING (question_id) WHERE r.spec_id = $spec AND q.spec_id = $ask",
        {"least": stage.settings.at_least, "spec": stage.spec.spec_id, "ask": stage.ask_spec},
    )
    if not found["rated"]:
        return ""
    return (
        f"answerable: {found['dropped']:,} of {found['rated']:,} written questions are left out,"
        f" below {stage.settings.at_least:g}"
    )
