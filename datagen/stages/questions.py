"""Which questions a recipe reads: those that came with the videos, and its own, as far as they can be answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Questions:
    """What stands for questions in the queries of every stage that reads them."""

    ask_spec: str | None = None
    """Questions of this spec are read beside the imported ones."""
    answerable_spec: str | None = None
    """With one, only those of them that its model thinks answerable."""
    at_least: float = 0.0
    """The least probability that a question can be answered."""

    @property
    def where(self) -> str:
        """SQL: whether a question `q` is read."""
        mine = "q.spec_id = $ask"
        if self.answerable_spec is not None:
            mine += (
                " AND EXISTS (SELECT 1 FROM ratings can WHERE can.question_id = q.question_id"
                " AND can.spec_id = $answerable AND can.value >= $at_least)"
            )
        return f"(q.spec_id IS NULL OR ({mine}))"

    @property
    def parameters(self) -> dict[str, Any]:
        """Those of `where`."""
        if self.answerable_spec is None:
            return {"ask": self.ask_spec}
        return {"ask": self.ask_spec, "answerable": self.answerable_spec, "at_least": self.at_least}
