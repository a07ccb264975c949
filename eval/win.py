"""Win rate: the judge compares the answers of two models, in both orders, reading the narrative where it has one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engine import Completion, Request, VideoPart
from vlm_rlaif.datagen.job import Unreadable
from vlm_rlaif.datagen.plan import context_spec, model_spec, part
from vlm_rlaif.feedback.judges.model import ONE_TOKEN
from vlm_rlaif.feedback.verdict import CHOICES, read_choice, readable
from vlm_rlaif.warehouse.config import Labeling, Recipe
from vlm_rlaif.warehouse.records import Record, Score, Spec, row_id
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse


@dataclass(frozen=True, slots=True)
class WinStage:
    """One score per question and order: the probability that the new answer beats the old one."""

    settings: Labeling
    spec: Spec
    new_spec: str
    """Answer spec of the model that is judged."""
    old_spec: str
    """Answer spec of the model that it is compared with."""
    context: str | None
    """Spec of the contexts that the judge reads; None = it judges without."""
    name: str = "win"
    needs: str = "greedy answers of both models (vlm-rlaif eval answer)"

    def pending(self, warehouse: Warehouse, *, everything: bool = False) -> Spool:
        return warehouse.stream(
            "SELECT n.answer_id, o.answer_id AS old_id, n.text AS new_text, o.text AS old_text,"
            " q.text AS question, v.video_id, v.uri, c.text AS context, s.shown_order"
            " FROM answers n JOIN answers o ON o.question_id = n.question_id AND o.spec_id = $old"
            " AND o.sample_index = 0 JOIN questions q ON q.question_id = n.question_id"
            " JOIN videos v ON v.video_id = q.video_id"
            " LEFT JOIN contexts c ON c.video_id = v.video_id AND c.spec_id = $context"
            " CROSS JOIN (VALUES ('ab'), ('ba')) s(shown_order)"
            " WHERE n.spec_id = $new AND n.sample_index = 0 AND ($context IS NULL OR c.context_id IS NOT NULL)"
            " AND ($everything OR NOT EXISTS (SELECT 1 FROM scores x WHERE x.answer_id = n.answer_id"
            " AND x.judge = $spec AND x.metric = 'win:' || s.shown_order))"
            " ORDER BY q.video_id, q.question_id, s.shown_order",
            {
                "old": self.old_spec, "new": self.new_spec, "context": self.context,
                "spec": self.spec.spec_id, "everything": everything,
            },
            row_id=self._score_id,
        )  # fmt: skip

    def _score_id(self, row: Row) -> str:
        return row_id("win", self.spec.spec_id, row["answer_id"], row["old_id"], row["shown_order"])

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        first, second = row["new_text"], row["old_text"]
        if row["shown_order"] == "ba":
            first, second = second, first
        values = {"question": row["question"], "response_a": first, "response_b": second}
        if self.context is not None:
            values["context"] = row["context"]
        said = prompt.load(self.spec.prompt).render(**values)
        return Request(
            row["row_id"], said.user, said.system,
            VideoPart.of(warehouse, row, self.settings.frames),
            choices=CHOICES, sampling=ONE_TOKEN,
        )  # fmt: skip

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        if not readable(completion.choice_logprobs):
            raise Unreadable("unparsable", "The engine gave no probabilities of the labels A, B, C.")
        verdict = read_choice(completion.choice_logprobs, row["shown_order"])
        return [
            Score(
                score_id=row["row_id"], answer_id=row["answer_id"],
                metric=f"win:{row['shown_order']}", judge=self.spec.spec_id, value=verdict.soft,
                reply=completion.text, run_id=run_id,
            )
        ]  # fmt: skip


def win_stage(recipe: Recipe, new_spec: str, old_spec: str) -> WinStage:
    """The recipe's judge, with context if it ever reads one, comparing two models' greedy answers."""
    settings: Labeling = part(recipe, "label")
    context, shown = None, settings
    if "context" in settings.arms:
        context = context_spec(recipe).spec_id
        shown = dataclasses.replace(settings, prompt=settings.context_prompt)
    spec = model_spec("win", shown, {"new": new_spec, "old": old_spec})
    return WinStage(settings, spec, new_spec, old_spec, context)
