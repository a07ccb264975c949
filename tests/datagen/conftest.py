"""A stage for the tests of the driver: every question is asked for a number, and a rating keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vlm_rlaif.datagen.engine import Completion, Request, VideoPart
from vlm_rlaif.datagen.job import Unreadable
from vlm_rlaif.warehouse.config import Frames
from vlm_rlaif.warehouse.records import Rating, Record, Spec, row_id
from vlm_rlaif.warehouse.spool import Row, Spool
from vlm_rlaif.warehouse.store import Warehouse


def spec(prompt: str) -> Spec:
    return Spec.make(
        stage="count", model="m", revision="r", prompt=prompt, prompt_hash=prompt, frames={"count": 2}, sampling={},
        upstream={},
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CountStage:
    """What its requests are called begins with the name of its spec."""

    spec: Spec = field(default_factory=lambda: spec("a"))
    choices: tuple[str, ...] = ()
    shows_video: bool = True
    name: str = "count"
    needs: str = "questions"

    def pending(self, warehouse: Warehouse, *, everything: bool = False) -> Spool:
        return warehouse.stream(
            "SELECT q.question_id, q.video_id, q.text FROM questions q WHERE $everything OR NOT EXISTS"
            " (SELECT 1 FROM ratings r WHERE r.question_id = q.question_id AND r.spec_id = $spec)"
            " ORDER BY q.video_id, q.question_id",
            {"spec": self.spec.spec_id, "everything": everything},
            row_id=lambda row: row_id("rating", self.spec.spec_id, row["question_id"]),
        )

    def request(self, warehouse: Warehouse, row: Row) -> Request:
        video = VideoPart(Path(row["video_id"]), Frames(count=2)) if self.shows_video else None
        return Request(
            row["row_id"], f"{self.spec.prompt}: {row['text']} {{}}", "count", video, choices=self.choices,
        )  # fmt: skip

    def parse(self, row: Row, completion: Completion, run_id: str) -> Sequence[Record]:
        if not completion.text.isdecimal():
            raise Unreadable("unparsable", f"{completion.text!r} is no number.")
        return [
            Rating(
                rating_id=row["row_id"], question_id=row["question_id"], response_id=None, spec_id=self.spec.spec_id,
                item="count", value=float(completion.text), reply=completion.text,
                cached_tokens=completion.cached_tokens, run_id=run_id,
            )
        ]  # fmt: skip


@pytest.fixture
def counting() -> type[CountStage]:
    return CountStage
