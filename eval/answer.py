"""Answers: what a model says to the questions of a split, greedily or sampled. Rows, like everything else."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engine import Completion, Request, VideoPart
from vlm_rlaif.datagen.plan import model_spec, part, questions_of
from vlm_rlaif.datagen.stages.caption import text_of
from vlm_rlaif.datagen.stages.questions import Questions
from vlm_rlaif.datagen.stages.respond import seed_of
from vlm_rlaif.warehouse.config import Evaluation, Recipe, Responding, Sampling
from vlm_rlaif.warehouse.records import Answer, Record, Spec, row_id
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse


@dataclass(frozen=True, slots=True)
class AnswerStage:
    """`settings.samples` answers of one model to every question of a split."""

    settings: Responding
    spec: Spec
    questions: Questions
    split: str
    most: int | None = None
    """At most this many questions, in the order of their ids."""
    name: str = "answer"
    needs: str = "questions about videos of its split (vlm-rlaif add W FOLDER --questions FILE.jsonl)"

    @property
    def benchmark(self) -> str:
        return f"warehouse/{self.split}"

    def pending(self, warehouse: Warehouse, *, everything: bool = False) -> Spool:
        return warehouse.stream(
            "SELECT q.question_id, q.text, v.video_id, v.uri, s.sample_index FROM"
            " (SELECT q.* FROM questions q JOIN videos v USING (video_id)"
            f"  WHERE v.split = $split AND v.status = 'ok' AND {self.questions.where}"
            "  ORDER BY q.question_id LIMIT $most) q"
            " JOIN videos v USING (video_id)"
            " CROSS JOIN (SELECT unnest(range($samples)) AS sample_index) s"
            " WHERE ($everything OR NOT EXISTS (SELECT 1 FROM answers a WHERE a.question_id = q.question_id"
            " AND a.spec_id = $spec AND a.sample_index = s.sample_index))"
            " ORDER BY q.video_id, q.question_id, s.sample_index",
            {
                "everything": everything, "split": self.split, **self.questions.parameters,
                "samples": self.settings.samples, "spec": self.spec.spec_id,
                "most": self.most if self.most is not None else 2**40,
            },
            row_id=self._answer_id,
        )  # fmt: skip

    def _answer_id(self, row: Row) -> str:
        return row_id("answer", self.benchmark, self.spec.spec_id, row["question_id"], row["sample_index"])

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        said = prompt.load(self.settings.prompt).render(question=row["text"])
        return Request(
            row["row_id"], said.user, said.system,
            VideoPart.of(warehouse, row, self.settings.frames),
            sampling=self.settings.sampling, seed=seed_of(row["row_id"]), adapter=self.settings.adapter,
        )  # fmt: skip

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        return [
            Answer(
                answer_id=row["row_id"], benchmark=self.benchmark, question_id=row["question_id"],
                spec_id=self.spec.spec_id, sample_index=row["sample_index"],
                text=text_of(completion), tokens=completion.tokens_out,
                cached_tokens=completion.cached_tokens, run_id=run_id,
            )
        ]  # fmt: skip


def answer_stage(
    recipe: Recipe, model: str | None = None, adapter: str | None = None, *,
    samples: int = 1, split: str | None = None,
) -> AnswerStage:  # fmt: skip
    """Greedy answers with one sample, sampled ones with more.

    `model` None = the policy's start, as the recipe answers with it. Another model goes without the recipe's adapter.
    """
    evaluate, respond = recipe.evaluate or Evaluation(), part(recipe, "respond")
    if adapter is None:
        adapter = respond.adapter if model in (None, respond.model) else ""
    greedy = Sampling(max_new_tokens=respond.sampling.max_new_tokens)
    settings = dataclasses.replace(
        respond, model=model or respond.model, adapter=adapter, samples=samples, also=[],
        sampling=greedy if samples == 1 else respond.sampling,
    )  # fmt: skip
    where = split or evaluate.split
    spec = model_spec("answer", settings, {"split": where})  # so that figures of one spec are those of one split
    return AnswerStage(settings, spec, questions_of(recipe), where, evaluate.max_questions)
