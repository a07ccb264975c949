"""Responses: several sampled answers of the policy to every question, each with a seed of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engine import Completion, Request, VideoPart
from vlm_rlaif.datagen.stages.caption import text_of
from vlm_rlaif.warehouse.config import Responding
from vlm_rlaif.warehouse.records import Record, Response, Spec, row_id
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse


@dataclass(frozen=True, slots=True)
class RespondStage:
    """`recipe.samples` responses per question."""

    recipe: Responding
    spec: Spec
    ask_spec: str | None
    """Questions of this spec are answered beside the imported ones."""
    name: str = "respond"
    needs: str = "questions (vlm-rlaif add W FOLDER --questions FILE.jsonl)"

    def pending(self, warehouse: Warehouse, *, everything: bool = False) -> Spool:
        return warehouse.stream(
            "SELECT q.question_id, q.text, v.video_id, v.uri, s.sample_index FROM questions q"
            " JOIN videos v USING (video_id)"
            " CROSS JOIN (SELECT unnest(range($samples)) AS sample_index) s"
            " WHERE v.status = 'ok' AND (q.spec_id IS NULL OR q.spec_id = $ask)"
            " AND ($everything OR NOT EXISTS (SELECT 1 FROM responses r"
            " WHERE r.question_id = q.question_id AND r.spec_id = $spec"
            " AND r.sample_index = s.sample_index))"
            " ORDER BY q.video_id, q.question_id, s.sample_index",
            {
                "samples": self.recipe.samples,
                "spec": self.spec.spec_id,
                "ask": self.ask_spec,
                "everything": everything,
            },
            row_id=lambda row: row_id("response", self.spec.spec_id, row["question_id"], row["sample_index"]),
        )

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        said = prompt.load(self.recipe.prompt).render(question=row["text"])
        return Request(
            row["row_id"], said.user, said.system,
            VideoPart.of(warehouse, row, self.recipe.frames),
            sampling=self.recipe.sampling, seed=seed_of(row["row_id"]),
        )  # fmt: skip

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        return [
            Response(
                response_id=row["row_id"], question_id=row["question_id"],
                spec_id=self.spec.spec_id, sample_index=row["sample_index"],
                seed=seed_of(row["row_id"]), text=text_of(completion),
                tokens=completion.tokens_out, finish=completion.finish,
                logprob=completion.logprob, run_id=run_id,
            )
        ]  # fmt: skip


def seed_of(response_id: str) -> int:
    """The seed of a response is part of its id, so the order of the work does not matter."""
    return int(response_id[:8], 16) >> 1
