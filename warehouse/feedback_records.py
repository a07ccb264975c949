"""The records of how far feedback can be trusted: probes of judges, pinned anchors, and audits by people.

Those of what is said about videos are in `records.py`, which names all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A pair that is judged again whenever a judge, its prompt or its engine changes."""

    table: ClassVar[str] = "anchors"
    anchor_id: str
    name: str
    """Of the anchor set. A set is never changed."""
    pair_id: str
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A verdict that tests a judge, and is no preference.

    `choice`, `p_a` and `p_tie` speak of `response_a`, never of the place shown.
    """

    table: ClassVar[str] = "probes"
    probe_id: str
    spec_id: str
    """The judge: the spec of its labels."""
    kind: str
    """`same`: a response with itself; `other_answer`: `response_b` answers another video; `repeat`; `anchor`."""
    anchor: str | None
    """Name of the anchor set, of `anchor`."""
    engine: str
    """What ran the judge, with its version. Part of the key: another engine is asked again."""
    question_id: str
    response_a: str
    response_b: str
    context_id: str | None
    shown_order: str
    choice: str
    p_a: float
    p_tie: float
    reply: str
    cached_tokens: int
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """Which labels people are to check, and why so many."""

    table: ClassVar[str] = "audit_plans"
    plan_id: str
    name: str
    judge: str
    """The judge whose labels are audited (a spec); the strata are made by them."""
    config: str
    """JSON: size, wanted width of the interval, strata, overlap, seed; a hash of the pairs that were drawn."""
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditTask:
    """One pair of a plan."""

    table: ClassVar[str] = "audit_tasks"
    audit_task_id: str
    plan_id: str
    pair_id: str
    stratum: str
    weight: float
    """How many pairs of the stratum it stands for."""
    shown_order: str
    """`ab`, or `ba` when `response_b` is shown as A. Drawn once, so that nobody sees a habit."""
    annotators: int
    """How many people are to see it."""
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditProject:
    """Where a plan was pushed to."""

    table: ClassVar[str] = "audit_projects"
    audit_project_id: str
    plan_id: str
    url: str
    project: int
    """Its number on that server."""
    config_hash: str
    """Of the labeling config, so that a changed one is found."""
    closed_at: datetime | None = None
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """A verdict of a person on a pair, as it was submitted; an edit is a row of its own. It edits no label.

    `choice` speaks of the pair's `response_a`, never of the place shown.
    """

    table: ClassVar[str] = "audits"
    audit_id: str
    plan_id: str
    pair_id: str
    annotator: str
    annotation: str
    """The beginning of `audit_project_id`, and its number on that server: `1a2b3c4d/22`. Edits share it."""
    choice: str
    """`a`, `b`, `tie` or `both_bad`; `withdrawn`: the person took it back, or it was deleted on the server."""
    reasons: list[str] = field(default_factory=list)
    confidence: int | None = None
    """1 to 5 stars."""
    comment: str | None = None
    seconds: float | None = None
    """What the person took."""
    shown_order: str
    updated_at: datetime
    reply: str
    """JSON: the result as the server gave it."""
    run_id: str
