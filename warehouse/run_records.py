"""The records of the work itself: runs, specs, failures, versions of the data set, checkpoints, steps.

Those of what is said about videos are in `records.py`, which names all of them.

>>> row_id("response", "spec", "question", 0) == row_id("response", "spec", "question", 0)
True
>>> row_id("a", "bc") == row_id("ab", "c")
False
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar


def row_id(*parts: Any) -> str:
    """20 hex digits that identify a request by its parts; the order and the borders of the parts count."""
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One command that wrote something."""

    table: ClassVar[str] = "runs"
    run_id: str
    stage: str
    config: str
    """JSON: the resolved settings of this stage."""
    code_version: str
    engine: str
    host: str
    started_at: datetime
    ended_at: datetime | None = None
    status: str = "running"
    """`running`, `done`, `interrupted` or `failed`."""
    rows_written: int = 0
    rows_failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the engine had computed before and found again."""
    seconds: float = 0.0
    """From the start to the end; stages that run together share them by their rows."""
    gpu_seconds: float = 0.0
    """Seconds times graphics cards."""
    bound_by: str = ""
    """What held it back: `engine`, `decode`, `prompt` or `warehouse`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a stage was asked to do. Written once; part of the key of every row made with it."""

    table: ClassVar[str] = "specs"
    spec_id: str
    stage: str
    model: str
    revision: str
    """Hash of the weights for a local folder, commit for a hub id."""
    adapter: str
    """Hash of the adapter's weights, empty without one."""
    prompt: str
    prompt_hash: str
    frames: str
    """JSON: how frames were taken."""
    sampling: str
    """JSON: how tokens were sampled."""
    upstream: str
    """JSON: the specs (by stage) whose rows this spec reads, where that is part of the request."""
    run_id: str

    @staticmethod
    def make(
        *, stage: str, model: str, revision: str, adapter: str = "", prompt: str, prompt_hash: str,
        frames: dict[str, Any], sampling: dict[str, Any], upstream: dict[str, str], run_id: str = "",
    ) -> Spec:  # fmt: skip
        """A spec with its id: the hash of everything but the run and the prompt's name."""
        parts = {
            "adapter": adapter, "prompt_hash": prompt_hash, "frames": json.dumps(frames, sort_keys=True),
            "sampling": json.dumps(sampling, sort_keys=True), "upstream": json.dumps(upstream, sort_keys=True),
        }  # fmt: skip
        spec_id = row_id(stage, model if not revision else "", revision, *parts.values())
        return Spec(
            spec_id=spec_id, stage=stage, model=model, revision=revision, prompt=prompt, run_id=run_id, **parts
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request that gave no row: what was wrong, with the model's words where there were any."""

    table: ClassVar[str] = "failures"
    row_id: str
    """The id that the row would have had."""
    stage: str
    attempt: int
    kind: str
    """`engine`, `video`, `empty`, `unparsable` or `too_long`."""
    message: str
    reply: str | None
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The metrics of one training step: learning curves in SQL."""

    table: ClassVar[str] = "steps"
    run_id: str
    step: int
    metrics: str
    """JSON: name -> number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A named, immutable version of the preferences: which rows, and what each said at the time."""

    table: ClassVar[str] = "datasets"
    name: str
    rows_hash: str
    """Hash of its rows: equal selections have equal hashes, whatever their names."""
    query: str
    """How the rows were chosen."""
    preferences: int
    ties: int
    videos: int
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRow:
    """One preference of a version. The words stay where they are; the verdict is as it was."""

    table: ClassVar[str] = "dataset_rows"
    rows_hash: str
    pair_id: str
    judge: str
    choice: str
    """`a`, `b` or `tie`."""
    p_a: float
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """Files that a version was written to."""

    table: ClassVar[str] = "exports"
    export_id: str
    rows_hash: str
    format: str
    path: str
    rows: int
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A trained model on disk."""

    table: ClassVar[str] = "checkpoints"
    checkpoint_id: str
    """Hash of (trainer settings, parent, data)."""
    kind: str
    """`sft`, `reward` or `ppo`."""
    path: str
    step: int
    parent: str
    """Hash of the weights that training started from."""
    data_hash: str
    """Hash of the rows that were read; for a reward model, the `rows_hash` of its version of the data set."""
    config: str
    run_id: str
