"""Responses: several sampled answers of a policy to every question, each with a seed of its own.

A policy that is shown another video than the question's gives a negative: an answer that ought to be worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engine import Completion, Request, VideoPart
from vlm_rlaif.datagen.stages.caption import text_of
from vlm_rlaif.datagen.stages.questions import Questions
from vlm_rlaif.warehouse.config import Responding
from vlm_rlaif.warehouse.records import Record, Response, Spec, row_id
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse

OWN = "SELECT video_id, uri, NULL::VARCHAR AS shown_video_id FROM videos WHERE status = 'ok'"
OTHER = """
    WITH sources AS (
        SELECT split, video_group, min(video_id) AS video_id FROM videos WHERE status = 'ok' GROUP BY ALL
    ), following AS (
        SELECT split, video_group, count(*) OVER (PARTITION BY split) AS sources,
               coalesce(lead(video_id) OVER by_name, first_value(video_id) OVER by_name) AS shown_video_id
        FROM sources WINDOW by_name AS (PARTITION BY split ORDER BY video_group)
    )
    SELECT v.video_id, shown.uri, f.shown_video_id FROM videos v JOIN following f USING (split, video_group)
    JOIN videos shown ON shown.video_id = f.shown_video_id WHERE v.status = 'ok' AND f.sources > 1"""
"""SQL: the video that is shown for a question about a video; another one is the next source's, of the same split."""


@dataclass(frozen=True, slots=True)
class RespondStage:
    """`recipe.samples` responses per question."""

    recipe: Responding
    spec: Spec
    questions: Questions
    other_video: bool = False
    """Show a video of another source in place of the question's own; none where a split has a single source."""
    name: str = "respond"
    needs: str = "questions (vlm-rlaif add W FOLDER --questions FILE.jsonl)"

    def pending(self, warehouse: Warehouse, *, everything: bool = False) -> Spool:
        return warehouse.stream(
            "SELECT q.question_id, q.text, v.video_id, v.uri, v.shown_video_id, s.sample_index FROM questions q"
            f" JOIN ({OTHER if self.other_video else OWN}) v USING (video_id)"
            " CROSS JOIN (SELECT unnest(range($samples)) AS sample_index) s"
            f" WHERE {self.questions.where}"
            " AND ($everything OR NOT EXISTS (SELECT 1 FROM responses r"
            " WHERE r.question_id = q.question_id AND r.spec_id = $spec"
            " AND r.sample_index = s.sample_index))"
            " ORDER BY q.video_id, q.question_id, s.sample_index",
            {
                "samples": self.recipe.samples,
                "spec": self.spec.spec_id,
                "everything": everything,
                **self.questions.parameters,
            },
            row_id=lambda row: row_id("response", self.spec.spec_id, row["question_id"], row["sample_index"]),
        )

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        said = prompt.load(self.recipe.prompt).render(question=row["text"])
        shown = {"uri": row["uri"], "video_id": row["shown_video_id"] or row["video_id"]}
        return Request(
            row["row_id"], said.user, said.system,
            VideoPart.of(warehouse, shown, self.recipe.frames),
            sampling=self.recipe.sampling, seed=seed_of(row["row_id"]), adapter=self.recipe.adapter,
        )  # fmt: skip

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        return [
            Response(
                response_id=row["row_id"], question_id=row["question_id"],
                spec_id=self.spec.spec_id, sample_index=row["sample_index"],
                seed=seed_of(row["row_id"]), text=text_of(completion),
                tokens=completion.tokens_out, finish=completion.finish,
                logprob=completion.logprob, shown_video_id=row["shown_video_id"],
                cached_tokens=completion.cached_tokens, run_id=run_id,
            )
        ]  # fmt: skip


def seed_of(response_id: str) -> int:
    """The seed of a response is part of its id, so the order of the work does not matter."""
    return int(response_id[:8], 16) >> 1
