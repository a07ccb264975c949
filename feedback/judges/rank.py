"""Ranking: a judge reads all responses of one policy to a question at once, and puts them in an order.

They are shown twice, the second time in reversed order, so that what a place in the list is worth averages out. The
value of a response is the share of the others that it beats. Cheap where there are many responses to a question, and
the least exact where they are alike (2402.04788 finds ranking the weakest form of judgement).
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
from vlm_rlaif.feedback.judges.rate import upstream_of
from vlm_rlaif.warehouse.care.keys import RANKED_TOGETHER, rating_id
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.records import Rating, Record, Spec
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse

LISTED = f"""
    SELECT question_id, ids, texts, {RANKED_TOGETHER} AS item, o.way
    FROM (SELECT question_id, list(response_id ORDER BY response_id) AS ids,
                 list(text ORDER BY response_id) AS texts
          FROM responses WHERE spec_id = $respond GROUP BY question_id HAVING count(DISTINCT text) > 1)
    CROSS JOIN (VALUES ('forward'), ('reversed')) o(way)
    """
"""The responses of every question, in both ways; where all say the same there is nothing to rank."""
ORDER = re.compile(r"\W*(?:(?i:order)\W+)?(\d+(?:\s*>\s*\d+)+)\W*")


@dataclass(frozen=True, slots=True)
class RankStage:
    """Two ratings per response: from the list forwards, and reversed."""

    judge: JudgeModel
    spec: Spec
    respond_spec: str
    questions: Questions
    context_spec: str | None
    name: str = "rank"
    needs: str = "several responses to a question, and with context a narrative (datagen respond, datagen context)"

    def asked(self, warehouse: Warehouse) -> tuple[str, dict[str, Any]]:
        """A query for (response_id, item) of all that is asked for, with its parameters."""
        return f"SELECT unnest(ids) AS response_id, item FROM ({LISTED})", {"respond": self.respond_spec}

    def pending(self, warehouse: Warehouse, *, everything: bool = False) -> Spool:
        missing = f"""
            CREATE TEMP TABLE missing AS SELECT x.* FROM ({LISTED}) x WHERE $everything OR NOT EXISTS
                (SELECT 1 FROM ratings g WHERE g.response_id = x.ids[1] AND g.spec_id = $spec AND g.item = x.item)
            """
        return warehouse.stream(
            "SELECT m.question_id, m.ids, m.texts, m.item, m.way, m.ids[1] AS response_id, q.text AS question,"
            " v.video_id, v.uri, c.context_id, c.text AS context"
            " FROM missing m JOIN questions q USING (question_id) JOIN videos v ON v.video_id = q.video_id"
            " LEFT JOIN contexts c ON c.video_id = v.video_id AND c.spec_id = $context"
            f" WHERE {self.questions.where} AND ($context IS NULL OR c.context_id IS NOT NULL)"
            " ORDER BY v.video_id, m.question_id, m.item",
            {"context": self.context_spec, **self.questions.parameters},
            row_id=lambda row: self._rating_id(row, row["response_id"]),
            first=(
                missing,
                {"spec": self.spec.spec_id, "everything": everything, "respond": self.respond_spec},
            ),
        )

    def _rating_id(self, row: Row, response: str) -> str:
        return rating_id(self.spec.spec_id, row["question_id"], response, row["item"])

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        listed = "\n".join(f"{n}. {text}" for n, text in enumerate(_shown(row, row["texts"]), 1))
        return self.judge.ask(warehouse, row, question=row["question"], responses=listed)

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        shown = _shown(row, row["ids"])
        order = read_order(completion.text, len(shown))
        if order is None:
            raise Unreadable("unparsable", f"Its last line is no order of 1 to {len(shown)}: `Order: 2 > 1`, say.")
        return [
            Rating(
                rating_id=self._rating_id(row, shown[number - 1]), question_id=row["question_id"],
                response_id=shown[number - 1], spec_id=self.spec.spec_id, item=row["item"],
                value=(len(order) - place) / (len(order) - 1), reply=completion.text,
                cached_tokens=completion.cached_tokens, run_id=run_id,
            )
            for place, number in enumerate(order, 1)
        ]  # fmt: skip


def _shown(row: Row, listed: Sequence[str]) -> list[str]:
    return list(listed if row["way"] == "forward" else reversed(listed))


def read_order(reply: str, count: int) -> list[int] | None:
    """The numbers of the last line, the best first; None unless each of 1 to `count` is there once.

    >>> read_order("The second is right.\\nOrder: 2 > 1 > 3", 3)
    [2, 1, 3]
    """
    lines = reply.strip().splitlines()
    found = ORDER.fullmatch(lines[-1]) if lines else None
    order = [int(number) for number in re.findall(r"\d+", found[1])] if found else []
    return order if sorted(order) == list(range(1, count + 1)) else None


def rank_stage(recipe: Recipe, judge: JudgeModel, arm: str) -> RankStage:
    """The responses of the recipe's own policy, those of each question together."""
    upstream, context = upstream_of(recipe, arm)
    spec = judge.spec("rank", upstream)
    return RankStage(judge, spec, pairs_of(recipe).policies[0], questions_of(recipe), context)
