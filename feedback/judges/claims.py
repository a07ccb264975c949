"""Claims: a response is split into what it claims, and a judge says yes or no to every claim by itself.

As in RLAIF-V (2405.17220), which then counts the claims that are rejected; here the value of a response is the mean
probability of yes, so that more claims are not worse by themselves. Two steps, each with rows of its own: the claims
of a response are a rating `claims` whose value is their number and whose reply has them, one a line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_rlaif.datagen.engine import Completion, Request
from vlm_rlaif.datagen.job import Unreadable
from vlm_rlaif.datagen.plan import questions_of
from vlm_rlaif.datagen.policies import pairs_of
from vlm_rlaif.datagen.stages.questions import Questions
from vlm_rlaif.feedback.judges.model import JudgeModel
from vlm_rlaif.feedback.judges.rate import PAIRED, Rated, RateStage, upstream_of
from vlm_rlaif.warehouse.care.keys import SENTENCE, SENTENCES, rating_id
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.records import Rating, Record, Spec
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse

ITEM = "claims"
OF_SENTENCES = f"""
    SELECT DISTINCT response_id, {SENTENCES.format(text="text")} AS item FROM rated JOIN responses USING (response_id)
    """
OF_LINES = """
    SELECT response_id, unnest(string_split(reply, chr(10))) AS item
    FROM rated JOIN ratings USING (response_id) WHERE spec_id = $split
    """
_MARK = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")


def claims_in(reply: str) -> list[str]:
    """The claims that a model wrote, one a line; marks of a list and repetitions are dropped.

    >>> claims_in("- The cat sleeps.\\n\\n2. The dog barks.\\n- The cat sleeps.")
    ['The cat sleeps.', 'The dog barks.']
    """
    lines = (_MARK.sub("", line).strip() for line in reply.splitlines())
    return list(dict.fromkeys(line for line in lines if any(map(str.isalnum, line))))


def sentences_in(text: str) -> list[str]:
    """A response at the ends of its sentences. The slow twin of `OF_SENTENCES`, in any order there.

    >>> sentences_in("The cat is 3.5 feet long. It sleeps; then it wakes")
    ['The cat is 3.5 feet long.', 'It sleeps;', 'then it wakes']
    """
    found = re.findall(SENTENCE, text) or [text]
    return list(dict.fromkeys(sentence.strip(" \t\n\r") for sentence in found))


@dataclass(frozen=True, slots=True)
class SplitStage:
    """The claims of every response of the recipe's pairs, by a model that sees no video."""

    judge: JudgeModel
    spec: Spec
    rated: Rated
    questions: Questions
    name: str = "split"
    needs: str = "responses in pairs (datagen pair)"

    def pending(self, warehouse: Warehouse, *, everything: bool = False) -> Spool:
        rated, parameters = self.rated.sql(warehouse)
        missing = f"""
            CREATE TEMP TABLE missing AS SELECT * FROM ({rated}) x WHERE $everything OR NOT EXISTS
                (SELECT 1 FROM ratings g WHERE g.response_id = x.response_id AND g.spec_id = $spec)
            """
        return warehouse.stream(
            "SELECT r.response_id, r.question_id, r.text AS response, q.text AS question, q.video_id,"
            " NULL AS context_id FROM missing m JOIN responses r USING (response_id)"
            f" JOIN questions q USING (question_id) WHERE {self.questions.where}"
            " ORDER BY q.video_id, r.question_id, r.response_id",
            self.questions.parameters,
            row_id=lambda row: rating_id(self.spec.spec_id, row["question_id"], row["response_id"], ITEM),
            first=(missing, {"spec": self.spec.spec_id, "everything": everything, **parameters}),
        )

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        return self.judge.ask(warehouse, row, question=row["question"], response=row["response"])

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        found = claims_in(completion.text)
        if not found or completion.finish == "length":
            cut = "It was cut off at `max_new_tokens`." if found else "It has no claim: one a line is asked for."
            raise Unreadable("unparsable", cut)
        return [
            Rating(
                rating_id=row["row_id"], question_id=row["question_id"], response_id=row["response_id"],
                spec_id=self.spec.spec_id, item=ITEM, value=float(len(found)), reply="\n".join(found),
                cached_tokens=completion.cached_tokens, run_id=run_id,
            )
        ]  # fmt: skip


def split_stage(recipe: Recipe, judge: JudgeModel) -> SplitStage:
    pairs = pairs_of(recipe)
    spec = judge.spec("split", {"respond": pairs.policies[0]})
    return SplitStage(judge, spec, Rated(pairs), questions_of(recipe))


def verify_stage(recipe: Recipe, judge: JudgeModel, arm: str, split: Spec | None) -> RateStage:
    """Yes or no for every claim: those that a model found (`split`), or the sentences of the response."""
    upstream, context = upstream_of(recipe, arm)
    items, parameters = OF_SENTENCES, dict[str, Any]()
    if split is not None:
        upstream["split"], items, parameters = split.spec_id, OF_LINES, {"split": split.spec_id}
    return RateStage(
        judge, judge.spec("verify", upstream), Rated(pairs_of(recipe)), questions_of(recipe), context, "verify",
        "claim", items, parameters, PAIRED,
    )  # fmt: skip
