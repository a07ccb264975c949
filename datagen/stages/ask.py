"""Questions that a model writes from the context, for videos that came without any.

Another model or prompt writes questions of its own; a recipe reads those of its own `ask:` part, never both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engine import Completion, Request
from vlm_rlaif.datagen.job import Unreadable
from vlm_rlaif.warehouse.config import Asking
from vlm_rlaif.warehouse.records import Question, Record, Spec, row_id
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse

_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])?\s*")


@dataclass(frozen=True, slots=True)
class AskStage:
    """One request per video; every line of the reply that ends in a question mark is a question."""

    recipe: Asking
    spec: Spec
    context_spec: str
    name: str = "ask"
    needs: str = "contexts (vlm-rlaif datagen context)"

    def pending(self, warehouse: Warehouse, *, everything: bool = False) -> Spool:
        return warehouse.stream(
            "SELECT x.video_id, x.context_id, x.text FROM contexts x WHERE x.spec_id = $context"
            " AND ($everything OR NOT EXISTS (SELECT 1 FROM questions q WHERE q.video_id = x.video_id"
            " AND (q.spec_id IS NULL OR q.spec_id = $spec)))"
            " ORDER BY x.video_id",
            {"context": self.context_spec, "spec": self.spec.spec_id, "everything": everything},
            row_id=lambda row: self._question_id(row["context_id"], 0),
        )

    def _question_id(self, context_id: str, number: int) -> str:
        return row_id("ask", self.spec.spec_id, context_id, number)

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        said = prompt.load(self.recipe.prompt).render(context=row["text"])
        return Request(row["row_id"], said.user, said.system, sampling=self.recipe.sampling)

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        lines = (_BULLET.sub("", line).strip() for line in completion.text.splitlines())
        asked = list(dict.fromkeys(line for line in lines if line.endswith("?")))
        if not asked:
            raise Unreadable("unparsable", "No line of the reply ends in a question mark.")
        return [
            Question(
                question_id=self._question_id(row["context_id"], number), video_id=row["video_id"],
                text=text, source=self.name, spec_id=self.spec.spec_id, run_id=run_id,
            )
            for number, text in enumerate(asked)
        ]  # fmt: skip
