"""The model behind a judge, and how it is asked: one row, one request.

Every method asks through here, so that a judge is shown video and narrative in the same way whatever it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engine import Request, VideoPart
from vlm_rlaif.datagen.plan import model_spec
from vlm_rlaif.datagen.stages.respond import seed_of
from vlm_rlaif.warehouse.config import Frames, Sampling
from vlm_rlaif.warehouse.records import Spec
from vlm_rlaif.warehouse.spool import Row
from vlm_rlaif.warehouse.store import Warehouse

ONE_TOKEN = Sampling(temperature=0.0, max_new_tokens=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeModel:
    """What of a judge's settings goes into the keys of its rows."""

    model: str
    adapter: str = ""
    prompt: str
    """The one that it is asked with: with `{context}` if it reads the narrative."""
    frames: Frames | None
    """None: it sees no video."""
    sampling: Sampling | None = None
    """None: it answers with one token, whose probability is read."""

    def spec(self, stage: str, upstream: dict[str, str], **further: Any) -> Spec:
        return model_spec(stage, self, upstream, **further)

    def ask(self, warehouse: Warehouse, row: Row, choices: tuple[str, ...] = (), **values: str) -> Request:
        """The request of a row with `row_id`, `video_id`, `uri` and, where it reads one, `context`."""
        if row["context_id"] is not None:
            values["context"] = row["context"]
        said = prompt.load(self.prompt).render(**values)
        video = None if self.frames is None else VideoPart.of(warehouse, row, self.frames)
        if self.sampling is None:
            return Request(
                row["row_id"], said.user, said.system, video, choices=choices, sampling=ONE_TOKEN,
                adapter=self.adapter,
            )  # fmt: skip
        return Request(
            row["row_id"], said.user, said.system, video, sampling=self.sampling, seed=seed_of(row["row_id"]),
            adapter=self.adapter,
        )  # fmt: skip
