"""What people submitted becomes rows: read strictly, turned back to the pair's own sides, an edit as a further row.

The server stores any result that it is sent, so everything is looked at here. What cannot be a verdict is refused,
kept among the failures with the server's words, and listed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from vlm_rlaif.feedback.audit.label_studio import Server
from vlm_rlaif.feedback.audit.push import closed, require_config, require_server, require_title
from vlm_rlaif.feedback.audit.results import Annotation, Refused, own_choice, read_annotation, skipped
from vlm_rlaif.feedback.audit.tasks import AuditPair, StandingPlan, command, failure, pairs_of, shows
from vlm_rlaif.warehouse.care.keys import audit_id
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Audit, Failure, Record
from vlm_rlaif.warehouse.runs import derive
from vlm_rlaif.warehouse.store import Warehouse


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something of an export that is no verdict."""

    where: str
    why: str
    failure: Failure


@dataclass(slots=True)
class Found:
    """What an export holds; the rows have no run yet."""

    audits: list[Audit] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    skipped: int = 0
    """Tasks that a person left out."""
    standing: set[str] = field(default_factory=set)
    """Annotations that are there, whatever they say, as rows name them."""
    seen: set[str] = field(default_factory=set)
    """Pairs that have a task."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull came to."""

    tasks: int
    verdicts: int
    """On the server, that can be read."""
    written: int
    skipped: int
    withdrawn: int
    """Verdicts of earlier pulls that are not on the server any more, or that their people left out since."""
    refused: list[Refusal]
    gone: list[str]
    """Pairs without a task on the server."""
    people: dict[str, int]
    """Who submitted how many."""


@dataclass(frozen=True, slots=True)
class Lacking:
    """What an audit still lacks, by the rows of the warehouse."""

    unseen: list[str]
    """Pairs that nobody has judged."""
    overlap: list[str]
    """Pairs that somebody has judged, and fewer people than were wanted."""


def pull(warehouse: Warehouse, plan: StandingPlan, server: Server) -> Pulled:
    """Write the verdicts that are new. Raises `UserError` where the project is gone or was changed."""
    if plan.closed_at is not None:
        raise closed(warehouse, plan)
    exported = export(warehouse, plan, server)
    pairs = pairs_of(warehouse, plan.plan_id)
    found = read_export(plan, exported, pairs, server.users())
    gone = [pair.pair_id for pair in pairs if pair.pair_id not in found.seen]
    lost = [failure(plan, pair, kind="gone", message="it has no task on the server") for pair in gone]
    taken_back = withdrawn(warehouse, plan, found)
    rows: list[Audit | Failure] = [*found.audits, *taken_back,
                                   *(refusal.failure for refusal in found.refused), *lost]  # fmt: skip

    def owned(run_id: str) -> Iterator[Record]:
        yield from (replace(row, run_id=run_id) for row in rows)

    outcome = derive(warehouse, "audit", {"plan": plan.name, "project": plan.project}, owned)
    people = Counter(audit.annotator for audit in found.audits)
    return Pulled(len(exported), len(found.audits), outcome.written, found.skipped, len(taken_back),
                  found.refused, gone, dict(people.most_common()))  # fmt: skip


def export(warehouse: Warehouse, plan: StandingPlan, server: Server) -> list[dict[str, Any]]:
    """All tasks of the plan's project, if it is that project still."""
    if plan.project is None:
        raise UserError(
            f"The audit {plan.name!r} is on no server yet.",
            command("push", warehouse.path, plan.called),
        )
    require_server(warehouse, plan, server)
    project = server.project(plan.project)
    require_title(plan, project)
    require_config(warehouse, plan, project)
    return server.export(plan.project)


def read_export(
    plan: StandingPlan, exported: Sequence[object], pairs: Sequence[AuditPair], users: Mapping[int, str]
) -> Found:
    """All verdicts of an export, and everything that is none."""
    found, known = Found(), {pair.pair_id: pair for pair in pairs}
    for place, task in enumerate(exported):
        where, data, annotations = _task(task, place)
        pair_id = data.get("pair_id")
        pair = known.get(pair_id) if isinstance(pair_id, str) else None
        if pair is not None:
            found.seen.add(pair.pair_id)
        for number, annotation in enumerate(annotations):
            if skipped(annotation):
                found.skipped += 1
                continue
            if isinstance(annotation, Mapping):
                found.standing.add(plan.annotation(annotation.get("id")))
            try:
                read = read_annotation(annotation)
                found.audits.append(_audit(plan, pair, data, read, users, annotation))
            except Refused as refused:
                found.refused.append(_refusal(plan, pair, where, number, annotation, str(refused)))
    return found


def withdrawn(warehouse: Warehouse, plan: StandingPlan, found: Found) -> list[Audit]:
    """Verdicts that were pulled from the plan's project and are no longer there, each as a version that says so.

    Its time is a microsecond after that of the verdict, so a further pull finds it written already.
    """
    rows = warehouse.rows(
        "SELECT pair_id, annotator, annotation, shown_order, updated_at FROM audits"
        " WHERE plan_id = ? AND starts_with(annotation, ?) AND choice <> 'withdrawn'"
        " QUALIFY row_number() OVER (PARTITION BY annotation ORDER BY updated_at DESC, audit_id) = 1"
        " ORDER BY annotation",
        [plan.plan_id, plan.annotation("")],
    )
    ends = {row["annotation"]: row["updated_at"] + timedelta(microseconds=1) for row in rows}
    return [
        Audit(audit_id=audit_id(plan.plan_id, row["annotation"], ends[row["annotation"]]), plan_id=plan.plan_id,
              choice="withdrawn", reply="[]", run_id="", **row | {"updated_at": ends[row["annotation"]]})
        for row in rows if row["annotation"] not in found.standing
    ]  # fmt: skip


def _task(task: object, place: int) -> tuple[str, Mapping[str, Any], Sequence[object]]:
    """(what to call it, its data, its annotations), of a task that may be anything."""
    if not isinstance(task, Mapping):
        return f"task in place {place}", {}, [task]
    data, annotations = task.get("data"), task.get("annotations")
    return (
        f"task {task.get('id', f'in place {place}')}",
        data if isinstance(data, Mapping) else {},
        annotations if isinstance(annotations, list) else [annotations] if annotations is not None else [],
    )


def _audit(
    plan: StandingPlan, pair: AuditPair | None, data: Mapping[str, Any], read: Annotation,
    users: Mapping[int, str], annotation: Any,
) -> Audit:  # fmt: skip
    if pair is None:
        raise Refused("it is about a pair that is not in this audit")
    if not shows(data, pair):
        raise Refused("the task does not show the video and the words of its pair: somebody changed it")
    if read.user not in users:
        raise Refused(f"the server knows no user {read.user} any more")
    annotation_name = plan.annotation(read.number)
    return Audit(
        audit_id=audit_id(plan.plan_id, annotation_name, read.updated_at), plan_id=plan.plan_id, pair_id=pair.pair_id,
        annotator=users[read.user], annotation=annotation_name,
        choice=own_choice(read.verdict.choice, pair.shown_order), reasons=list(read.verdict.reasons),
        confidence=read.verdict.confidence, comment=read.verdict.comment, seconds=read.seconds,
        shown_order=pair.shown_order, updated_at=read.updated_at,
        reply=json.dumps(annotation["result"], ensure_ascii=False), run_id="",
    )  # fmt: skip


def _refusal(
    plan: StandingPlan, pair: AuditPair | None, where: str, place: int, annotation: object, why: str
) -> Refusal:
    """What is wrong with which annotation. One without a number is known by its place."""
    number, time = f"{where}, place {place}", None
    if isinstance(annotation, Mapping):
        number = str(annotation.get("id", number))
        time = annotation.get("updated_at")
    kept = failure(
        plan, pair.pair_id if pair else None, message=why, annotation=plan.annotation(number), updated_at=str(time),
        raw=annotation,
    )  # fmt: skip
    return Refusal(f"{where}, annotation {number}", why, kept)


def lacking(warehouse: Warehouse, plan: StandingPlan) -> Lacking:
    """What an audit still lacks."""
    rows = warehouse.rows(
        "SELECT t.pair_id, t.annotators, count(DISTINCT a.annotator) AS people FROM audit_tasks t"
        " LEFT JOIN human_verdicts a ON a.plan_id = t.plan_id AND a.pair_id = t.pair_id"
        " WHERE t.plan_id = ? GROUP BY ALL ORDER BY t.pair_id",
        [plan.plan_id],
    )
    unseen = [row["pair_id"] for row in rows if row["people"] == 0]
    return Lacking(unseen, [row["pair_id"] for row in rows if 0 < row["people"] < row["annotators"]])


def close(warehouse: Warehouse, plan: StandingPlan, server: Server, *, force: bool = False) -> tuple[Pulled, Lacking]:
    """Pull a last time, and record that the audit is over. Raises `UserError` while something is open."""
    pulled = pull(warehouse, plan, server)
    lack = lacking(warehouse, plan)
    if not force and (lack.overlap or pulled.refused or not pulled.verdicts):
        reasons = [
            f"{len(lack.overlap):,} pairs wait for another person" if lack.overlap else "",
            f"{len(pulled.refused):,} results were refused" if pulled.refused else "",
            "" if pulled.verdicts else "nobody has judged a pair",
        ]
        raise UserError(
            f"The audit {plan.name!r} is not closed: {', '.join(filter(None, reasons))}."
            " What could be read is in the warehouse.",
            f"{command('close', warehouse.path, plan.called, '--force')}   (closes it all the same)",
        )
    warehouse.execute(
        "UPDATE audit_projects SET closed_at = ? WHERE audit_project_id = ?",
        [datetime.now(UTC).replace(tzinfo=None), plan.audit_project_id],
    )
    return pulled, lack
