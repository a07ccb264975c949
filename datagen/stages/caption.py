"""Captions: a detailed description of every clip, seen densely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engine import Completion, Request, VideoPart
from vlm_rlaif.datagen.job import Unreadable
from vlm_rlaif.warehouse.config import Captioning
from vlm_rlaif.warehouse.records import Caption, Record, Spec, row_id
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse


@dataclass(frozen=True, slots=True)
class CaptionStage:
    """One caption per clip."""

    recipe: Captioning
    spec: Spec
    clip_method: str
    name: str = "caption"
    needs: str = "clips (vlm-rlaif datagen clip)"

    def pending(self, warehouse: Warehouse, *, everything: bool = False) -> Spool:
        return warehouse.stream(
            "SELECT c.clip_id, c.video_id, c.start_s, c.end_s, v.uri FROM clips c JOIN videos v USING (video_id)"
            " WHERE c.method = $method AND ($everything OR NOT EXISTS (SELECT 1 FROM captions x"
            " WHERE x.clip_id = c.clip_id AND x.spec_id = $spec)) ORDER BY c.video_id, c.start_s",
            {"method": self.clip_method, "spec": self.spec.spec_id, "everything": everything},
            row_id=lambda row: row_id("caption", self.spec.spec_id, row["clip_id"]),
        )

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        said = prompt.load(self.recipe.prompt).render()
        return Request(
            row["row_id"], said.user, said.system,
            VideoPart.of(warehouse, row, self.recipe.frames, row["start_s"], row["end_s"]),
            sampling=self.recipe.sampling, adapter=self.recipe.adapter,
        )  # fmt: skip

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        return [
            Caption(
                caption_id=row["row_id"], clip_id=row["clip_id"], spec_id=self.spec.spec_id,
                text=text_of(completion), cached_tokens=completion.cached_tokens, run_id=run_id,
            )
        ]  # fmt: skip


def text_of(completion: Completion) -> str:
    """The model's words, or the failure of having said nothing."""
    text = completion.text.strip()
    if not text:
        raise Unreadable("empty", "The model said nothing.")
    return text
