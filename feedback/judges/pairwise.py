"""Labels: a judge reads question, video, two responses and (in one arm) the narrative, and says which is better.

Every pair is shown in both orders. The verdict is read from the log-probabilities of three one-token labels, or, of
a judge that writes (a critique, say), from its last line; such a judge may vote several times. The reply itself is
kept as well. What cannot be read is a failure, never a default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_rlaif.datagen.engine import Completion, Request
from vlm_rlaif.datagen.job import Unreadable
from vlm_rlaif.datagen.plan import context_spec, part, questions_of
from vlm_rlaif.datagen.policies import pairs_of
from vlm_rlaif.datagen.stages.pair import Pairs
from vlm_rlaif.datagen.stages.questions import Questions
from vlm_rlaif.feedback.judges.model import JudgeModel
from vlm_rlaif.feedback.verdict import CHOICES, Verdict, read_choice, read_words, readable
from vlm_rlaif.warehouse.care.keys import label_id
from vlm_rlaif.warehouse.config import ARMS, Labeling, Recipe
from vlm_rlaif.warehouse.errors import UserError, nearest
from vlm_rlaif.warehouse.records import Label, Record, Spec
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse


@dataclass(frozen=True, slots=True)
class LabelStage:
    """Two verdicts per pair and vote: `ab` and `ba`."""

    judge: JudgeModel
    spec: Spec
    pairs: Pairs
    questions: Questions
    context_spec: str | None
    """Spec of the contexts that the judge reads; None = it judges without."""
    votes: int = 1
    name: str = "label"
    needs: str = "pairs, and with context a narrative of their videos (vlm-rlaif datagen pair, datagen context)"

    def pending(self, warehouse: Warehouse, *, everything: bool = False) -> Spool:
        own: str | None = self.pairs.policies[0]
        meant, asked = "pairs", dict[str, Any]()
        if self.pairs.chosen:
            own, (meant, asked) = None, self.pairs.meant(warehouse)
        missing = f"""
            CREATE TEMP TABLE missing AS
            SELECT p.pair_id, p.question_id, p.response_a, p.response_b, o.shown_order, n.vote
            FROM {meant} p CROSS JOIN (VALUES ('ab'), ('ba')) o(shown_order) CROSS JOIN range({self.votes}) n(vote)
            WHERE $everything OR NOT EXISTS (SELECT 1 FROM labels l WHERE l.pair_id = p.pair_id
                AND l.spec_id = $spec AND l.shown_order = o.shown_order AND l.vote = n.vote)
            """
        return warehouse.stream(
            f"""
            SELECT m.pair_id, m.shown_order, m.vote, q.text AS question, a.text AS text_a, b.text AS text_b,
                   v.video_id, v.uri, c.context_id, c.text AS context
            FROM missing m
            JOIN responses a ON a.response_id = m.response_a
            JOIN responses b ON b.response_id = m.response_b
            JOIN questions q ON q.question_id = m.question_id
            JOIN videos v ON v.video_id = q.video_id
            LEFT JOIN contexts c ON c.video_id = v.video_id AND c.spec_id = $context
            WHERE ($own IS NULL OR (a.spec_id = $own AND b.spec_id = $own)) AND {self.questions.where}
              AND ($context IS NULL OR c.context_id IS NOT NULL)
            ORDER BY v.video_id, m.question_id, m.pair_id, m.shown_order, m.vote
            """,
            {"context": self.context_spec, "own": own, **self.questions.parameters},
            row_id=self._label_id,
            first=(missing, {"spec": self.spec.spec_id, "everything": everything, **asked}),
        )

    def _label_id(self, row: Row) -> str:
        return label_id(self.spec.spec_id, row["pair_id"], row["context_id"], row["shown_order"], row["vote"])

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        first, second = row["text_a"], row["text_b"]
        if row["shown_order"] == "ba":
            first, second = second, first
        return self.judge.ask(
            warehouse, row, CHOICES, question=row["question"], response_a=first, response_b=second
        )  # fmt: skip

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        verdict = self._read(completion, row["shown_order"])
        return [
            Label(
                label_id=row["row_id"], pair_id=row["pair_id"], spec_id=self.spec.spec_id,
                context_id=row["context_id"], shown_order=row["shown_order"], vote=row["vote"],
                choice=verdict.choice, p_a=verdict.p_a, p_tie=verdict.p_tie,
                reply=completion.text, cached_tokens=completion.cached_tokens, run_id=run_id,
            )
        ]  # fmt: skip

    def _read(self, completion: Completion, shown_order: str) -> Verdict:
        if self.judge.sampling is None:
            if not readable(completion.choice_logprobs):
                raise Unreadable("unparsable", "The engine gave no probabilities of the labels A, B, C.")
            return read_choice(completion.choice_logprobs, shown_order)
        verdict = read_words(completion.text, shown_order)
        if verdict is None:
            cut = " It was cut off at `max_new_tokens`." if completion.finish == "length" else ""
            raise Unreadable("unparsable", f"Its last line is no verdict: `Verdict: A`, B or C (tie) is.{cut}")
        return verdict


def label_stage(recipe: Recipe, arm: str) -> LabelStage:
    """The judge of one arm of a recipe: `context` (it reads the narrative) or `none`."""
    settings: Labeling = part(recipe, "label")
    if arm not in ARMS:
        raise UserError(f"label: unknown arm {arm!r}.{nearest(arm, ARMS)} Arms: {', '.join(ARMS)}.")
    wording = settings.context_prompt if arm == "context" else settings.prompt
    judge = JudgeModel(
        model=settings.model, adapter=settings.adapter, prompt=wording, frames=settings.frames
    )  # fmt: skip
    return compare(recipe, judge, arm)


def compare(recipe: Recipe, judge: JudgeModel, arm: str, votes: int = 1) -> LabelStage:
    """A judge of the recipe's pairs. What it writes, if it does, is told from what it is asked to choose."""
    pairs = pairs_of(recipe)
    upstream = {"respond": pairs.policies[0]}
    context = None
    if arm == "context":
        context = upstream["context"] = context_spec(recipe).spec_id
    further = {} if judge.sampling is None else {"verdict": "words"}
    return LabelStage(judge, judge.spec("label", upstream, **further), pairs, questions_of(recipe), context, votes)
