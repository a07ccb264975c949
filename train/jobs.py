"""Training as a job of the warehouse: rows in, a checkpoint row and its learning curve out.

A checkpoint's id is the hash of its settings, its parent's weights and the ids of the rows it reads. If it stands,
there is nothing to do; if a run was killed, the same command goes on from its last saved step.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_rlaif.datagen import models, prompt
from vlm_rlaif.warehouse.config import key_parts
from vlm_rlaif.warehouse.journal import only_one, replay
from vlm_rlaif.warehouse.records import Checkpoint, Step, row_id
from vlm_rlaif.warehouse.runs import record_run
from vlm_rlaif.warehouse.store import Warehouse


@dataclass(frozen=True, slots=True)
class Trained:
    """Where a trained model is."""

    kind: str
    checkpoint_id: str
    path: Path
    fresh: bool
    """False: it stood already."""

    @property
    def where(self) -> str:
        """`trained at PATH`, or `stands at PATH` when there was nothing to do."""
        return f"{'trained' if self.fresh else 'stands'} at {self.path}"

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}"


MEMORY_ONLY = ("micro_batch", "save_every")
"""Settings that change what training costs and not what it learns."""


def identity(settings: Any) -> tuple[dict[str, Any], list[str]]:
    """What of a trainer's settings decides its result: their values, and the wording of its prompts.

    The model is known by its revision, a prompt by its text, a version of the data set by its rows; their names are
    not part of it.
    """
    values = key_parts(settings)
    names = (values["prompt"], values.get("context_prompt"))
    wording = [prompt.load(name).text_hash for name in names if name]
    left_out = ("model", "prompt", "context_prompt", "dataset", *MEMORY_ONLY)
    return {k: v for k, v in values.items() if k not in left_out}, wording


@dataclass(frozen=True, slots=True)
class Job:
    """What to train, before anything heavy is loaded."""

    kind: str
    settings: Any
    data: list[str]
    """Ids of the rows that training reads, in order."""
    inputs: dict[str, str]
    """Other checkpoints that it builds on, by role."""

    @property
    def parent(self) -> str:
        return models.revision(self.settings.model)

    @property
    def data_hash(self) -> str:
        """For a reward model, the `rows_hash` of the version of the data set that it reads."""
        return row_id(*sorted(self.data))

    @property
    def checkpoint_id(self) -> str:
        return row_id(self.kind, *identity(self.settings), self.parent, self.data_hash, self.inputs)


Train = Callable[[Path, Callable[[int, dict[str, float]], None]], int]
"""(folder, log) -> steps taken."""


def run_training(warehouse: Warehouse, job: Job, train: Train) -> Trained:
    """Train unless the checkpoint stands; its folder lies in `models/` beside the warehouse."""
    folder = warehouse.folder / "models" / f"{job.kind}-{job.checkpoint_id[:10]}"
    with only_one(warehouse, f"{job.kind}-{job.checkpoint_id[:10]}"):
        replay(warehouse)
        if stands := find(warehouse, job):
            return stands
        config = {
            "checkpoint_id": job.checkpoint_id, "settings": dataclasses.asdict(job.settings),
            "inputs": job.inputs,
        }  # fmt: skip
        with record_run(warehouse, job.kind, config, "torch") as run:

            def log(step: int, metrics: dict[str, float]) -> None:
                run.journal.append([Step(run_id=run.run_id, step=step, metrics=json.dumps(metrics))])

            steps = train(folder, log)
            run.written = warehouse.append(
                [
                    Checkpoint(
                        checkpoint_id=job.checkpoint_id, kind=job.kind,
                        path=str(folder.relative_to(warehouse.folder)), step=steps,
                        parent=job.parent, data_hash=job.data_hash,
                        config=json.dumps(config, sort_keys=True), run_id=run.run_id,
                    )
                ]
            )  # fmt: skip
    return Trained(job.kind, job.checkpoint_id, folder, True)


def find(warehouse: Warehouse, job: Job) -> Trained | None:
    """The checkpoint of a job, if its row and its folder are there."""
    known = warehouse.rows("SELECT path FROM checkpoints WHERE checkpoint_id = ?", [job.checkpoint_id])
    if not known or not (warehouse.folder / known[0]["path"]).is_dir():
        return None
    return Trained(job.kind, job.checkpoint_id, warehouse.folder / known[0]["path"], False)
