"""The records: one frozen dataclass is one table, one field is one column.

Ids are hashes of what was *asked for*, never of what came back, so the same work has the same id on every
machine and a second run of it writes nothing. Every row carries the run that wrote it. This file has the records of
what is said about videos; those of the work itself are in `run_records.py`, those of how far feedback can
be trusted in `feedback_records.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar

from vlm_rlaif.warehouse.feedback_records import Anchor, Audit, AuditPlan, AuditProject, AuditTask, Probe
from vlm_rlaif.warehouse.run_records import (
    Checkpoint,
    Dataset,
    DatasetRow,
    Export,
    Failure,
    Run,
    Spec,
    Step,
    row_id,
)  # fmt: skip

__all__ = [
    "PRIMARY_KEYS", "RECORDS", "Anchor", "Answer", "Audit", "AuditPlan", "AuditProject", "AuditTask", "Caption",
    "Checkpoint", "Clip", "Context", "Dataset", "DatasetRow", "Export", "Failure", "Label", "Pair", "Probe",
    "Question", "Rating", "Record", "Removal", "Response", "Run", "Score", "Spec", "Step", "Transcript", "Video",
    "VideoFile", "primary_key", "row_id",
]  # fmt: skip


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
    cached_tokens: int = 0
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The narrative of a video: its clips' captions in time order. The judge reads it."""

    table: ClassVar[str] = "contexts"
    context_id: str
    video_id: str
    spec_id: str
    caption_ids: list[str]
    transcript_ids: list[str] = field(default_factory=list)
    """What is said in the video, where the narrative has it."""
    base_context_id: str | None = None
    """The context that this one refines or sums up."""
    text: str
    cached_tokens: int = 0
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """Something that is said or written in a video, from a file of subtitles."""

    table: ClassVar[str] = "transcripts"
    transcript_id: str
    video_id: str
    start_s: float
    end_s: float
    text: str
    source: str
    """Name of the file."""
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
    """`imported`, `shapes`, or the stage that wrote it: `ask`, `templates`."""
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
    shown_video_id: str | None = None
    """The video that was shown in place of the question's own; NULL: its own."""
    cached_tokens: int = 0
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """A number that a judge gives to one response, or to a question."""

    table: ClassVar[str] = "ratings"
    rating_id: str
    question_id: str
    response_id: str | None
    """NULL: it is the question that is rated."""
    spec_id: str
    item: str
    """What is rated: `quality`, `answerable`, an item of a checklist, a claim; `claims`: those of a response, one a
    line of the reply; `rank forward ...`, `rank reversed ...`, with a hash of the responses that were ranked
    together."""
    value: float
    reply: str
    cached_tokens: int
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
    """`ab`; `ba` when `response_b` was shown first; `unknown` for imported labels; `both` for derived ones (of
    ratings, a panel, a calibration), which stand for both orders at once."""
    vote: int
    choice: str
    """`a`, `b` or `tie`."""
    p_a: float
    p_tie: float
    reply: str
    cached_tokens: int
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
    cached_tokens: int = 0
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


Record = (
    Run | Spec | Video | VideoFile | Removal | Transcript | Clip | Caption | Context | Question | Response
    | Rating | Pair | Label | Anchor | Probe | AuditPlan | AuditTask | AuditProject | Audit | Failure | Dataset
    | DatasetRow | Export | Checkpoint | Answer | Score | Step
)  # fmt: skip
RECORDS: tuple[type[Record], ...] = (
    Run, Spec, Video, VideoFile, Removal, Transcript, Clip, Caption, Context, Question, Response, Rating, Pair,
    Label, Anchor, Probe, AuditPlan, AuditTask, AuditProject, Audit, Failure, Dataset, DatasetRow, Export,
    Checkpoint, Answer, Score, Step,
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
