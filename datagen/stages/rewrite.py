"""Contexts made of contexts: refined by a model that sees the video, or summed up where they are too long.

Every round of refinement, and the summary, is a spec of its own over the one before. Each row leads to the context
that it was made from (`base_context_id`), and whoever reads contexts reads those of the last spec.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engine import Completion, Request, VideoPart
from vlm_rlaif.datagen.stages.caption import text_of
from vlm_rlaif.warehouse.records import Context, Record, Spec, row_id
from vlm_rlaif.warehouse.runs import Outcome, derive
from vlm_rlaif.warehouse.settings import Refining, Summarising
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse

WORDS = r"len(regexp_extract_all(b.text, '\S+'))"
WAITING = """
    SELECT b.context_id AS base_context_id, b.video_id, b.text AS context, v.uri
    FROM contexts b JOIN videos v USING (video_id)
    WHERE b.spec_id = $base AND {chosen} AND ($everything OR NOT EXISTS
        (SELECT 1 FROM contexts x WHERE x.video_id = b.video_id AND x.spec_id = $spec))
    ORDER BY b.video_id
"""


@dataclass(frozen=True, slots=True)
class RewriteStage:
    """One new context per old one."""

    name: str
    """`refine` or `summarise`."""
    settings: Refining | Summarising
    spec: Spec
    base_spec: str
    """Spec of the contexts that are rewritten."""
    needs: str = "contexts (vlm-rlaif datagen context)"

    def pending(self, warehouse: Warehouse, *, everything: bool = False) -> Spool:
        long = f"{WORDS} > {self.settings.above_words}" if isinstance(self.settings, Summarising) else "true"
        return self._waiting(warehouse, long, everything)

    def _waiting(self, warehouse: Warehouse, chosen: str, everything: bool) -> Spool:
        return warehouse.stream(
            WAITING.format(chosen=chosen),
            {"base": self.base_spec, "spec": self.spec.spec_id, "everything": everything},
            row_id=lambda row: row_id("rewrite", self.spec.spec_id, row["base_context_id"]),
        )

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        said = prompt.load(self.settings.prompt).render(context=row["context"])
        video = None
        if isinstance(self.settings, Refining):
            video = VideoPart.of(warehouse, row, self.settings.frames)
        return Request(
            row["row_id"], said.user, said.system, video, sampling=self.settings.sampling,
            adapter=self.settings.adapter,
        )  # fmt: skip

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        return [self._context(row, text_of(completion), run_id, completion.cached_tokens)]

    def _context(self, row: Row, text: str, run_id: str, cached_tokens: int = 0) -> Context:
        return Context(
            context_id=row["row_id"], video_id=row["video_id"], spec_id=self.spec.spec_id, caption_ids=[],
            base_context_id=row["base_context_id"], text=text, cached_tokens=cached_tokens, run_id=run_id,
        )  # fmt: skip

    def pass_short(self, warehouse: Warehouse) -> Outcome:
        """Contexts that are not too long become rows as they are, so that readers know one spec only."""
        assert isinstance(self.settings, Summarising)
        short = f"{WORDS} <= {self.settings.above_words}"

        def rows(run_id: str) -> Iterator[Record]:
            waiting = self._waiting(warehouse, short, everything=False)
            return (self._context(row, row["context"], run_id) for row in waiting)

        return derive(warehouse, self.name, dataclasses.asdict(self.spec), rows)
