"""The records: one frozen dataclass is one table, one field is one column.

Ids are hashes of what was *asked for*, never of what came back, so the same work has the same id on every
machine and a second run of it writes nothing. Every row carries the run that wrote it.

>>> row_id("response", "spec", "question", 0) == row_id("response", "spec", "question", 0)
True
>>> row_id("a", "bc") == row_id("ab", "c")
False
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
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
    gpu_seconds: float = 0.0


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
class Video:
    """One video file. An unreadable file is a row too, and its `status` says why."""

    table: ClassVar[str] = "videos"
    video_id: str
    """Hash of the file's bytes."""
    uri: str
    source: str
    video_group: str
    """Cuts of one source share a group; the default is the video itself."""
    split: str
    """`train`, `val` or `test`: a hash of the group (80/10/10) or as imported. Never changed afterwards."""
    status: str
    """`ok`, or what is wrong with the file."""
    duration_s: float | None = None
    fps: float | None = None
    frames: int | None = None
    """As the header promises; headers lie, so nothing depends on it."""
    width: int | None = None
    height: int | None = None
    codec: str | None = None
    rotation: int | None = None
    """Degrees counter-clockwise by which frames are turned to be upright."""
    licence: str | None = None
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFile:
    """A place where a video's bytes lie; one video may have several. `videos.uri` is the one that is read."""

    table: ClassVar[str] = "video_files"
    video_id: str
    uri: str
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """A video that was taken out, with all that hung on it. Its hash stays, so that it does not come back."""

    table: ClassVar[str] = "removals"
    video_id: str
    uri: str
    reason: str
    rows_removed: int
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A part of a video."""

    table: ClassVar[str] = "clips"
    clip_id: str
    video_id: str
    start_s: float
    end_s: float
    method: str
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """A detailed description of one clip."""

    table: ClassVar[str] = "captions"
    caption_id: str
    clip_id: str
    spec_id: str
    text: str
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The narrative of a video: its clips' captions in time order. The judge reads it."""

    table: ClassVar[str] = "contexts"
    context_id: str
    video_id: str
    spec_id: str
    caption_ids: list[str]
    text: str
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Something to ask about a video."""

    table: ClassVar[str] = "questions"
    question_id: str
    video_id: str
    text: str
    reference: str | None = None
    kind: str | None = None
    source: str
    """`imported`, `shapes`, or the stage that wrote it."""
    spec_id: str | None = None
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One sampled answer to a question."""

    table: ClassVar[str] = "responses"
    response_id: str
    question_id: str
    spec_id: str
    sample_index: int
    seed: int
    text: str
    tokens: int
    finish: str
    """`stop` or `length`."""
    logprob: float | None
    """Sum of the tokens' log-probabilities under the sampling model."""
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two responses to compare, unordered: `response_a` < `response_b` by id."""

    table: ClassVar[str] = "pairs"
    pair_id: str
    question_id: str
    response_a: str
    response_b: str
    strategy: str
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One verdict of one judge on one pair, shown in one order.

    `choice`, `p_a` and `p_tie` always speak of the pair's `response_a`, never of the place shown.
    """

    table: ClassVar[str] = "labels"
    label_id: str
    pair_id: str
    spec_id: str
    context_id: str | None
    """NULL: the judge saw no context."""
    shown_order: str
    """`ab`; `ba` when `response_b` was shown first; `unknown` for imported labels."""
    vote: int
    choice: str
    """`a`, `b` or `tie`."""
    p_a: float
    p_tie: float
    reply: str
    cached_tokens: int
    run_id: str


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A model's answer to a question of an evaluation set."""

    table: ClassVar[str] = "answers"
    answer_id: str
    benchmark: str
    question_id: str
    spec_id: str
    sample_index: int
    text: str
    tokens: int
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One number about one answer, or NULL where there is none: missing is not zero."""

    table: ClassVar[str] = "scores"
    score_id: str
    answer_id: str
    metric: str
    judge: str
    value: float | None
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


Record = (
    Run | Spec | Video | VideoFile | Removal | Clip | Caption | Context | Question | Response | Pair | Label
    | Failure | Dataset | DatasetRow | Export | Checkpoint | Answer | Score | Step
)  # fmt: skip
RECORDS: tuple[type[Record], ...] = (
    Run, Spec, Video, VideoFile, Removal, Clip, Caption, Context, Question, Response, Pair, Label, Failure,
    Dataset, DatasetRow, Export, Checkpoint, Answer, Score, Step,
)  # fmt: skip
"""Every table, parents before children."""

PRIMARY_KEYS: dict[str, tuple[str, ...]] = {
    "video_files": ("video_id", "uri"),
    "dataset_rows": ("rows_hash", "pair_id", "judge"),
    "failures": ("row_id", "attempt"),
    "steps": ("run_id", "step"),
}
"""Tables whose key is not simply their first column."""


def primary_key(record: type[Record]) -> tuple[str, ...]:
    return PRIMARY_KEYS.get(record.table, (fields(record)[0].name,))
