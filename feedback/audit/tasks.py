"""What a plan shows: its pairs with their words, in the places that were drawn. One task of a server per pair."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vlm_rlaif.feedback.audit.results import shown_choice
from vlm_rlaif.feedback.known import plan_named
from vlm_rlaif.warehouse.care.keys import audit_task_id
from vlm_rlaif.warehouse.records import Failure, row_id
from vlm_rlaif.warehouse.store import Warehouse

WORDS = ("question", "context", "response_a", "response_b")
"""What a task shows of a pair, beside the video; a task that shows something else is of another pair."""
NO_CONTEXT = "(nothing: this judge saw the video alone)"
EMPTY = "(an empty answer)"
DEFAULT_FPS = 24.0
"""Of Label Studio's player, where the rate is not known: it counts frames, and no verdict depends on it."""
_TASKS = """
    SELECT t.pair_id, t.shown_order, t.annotators, q.text AS question, c.text AS context,
           a.text AS text_a, b.text AS text_b, v.video_id, v.uri, v.fps,
           p.choice, p.strength, p.judge, p.judge_prompt
    FROM audit_tasks t JOIN audit_plans n USING (plan_id)
    JOIN pairs x ON x.pair_id = t.pair_id
    JOIN questions q ON q.question_id = x.question_id
    JOIN responses a ON a.response_id = x.response_a
    JOIN responses b ON b.response_id = x.response_b
    JOIN videos v ON v.video_id = q.video_id
    LEFT JOIN preferences p ON p.pair_id = t.pair_id AND p.judge = n.judge
    LEFT JOIN contexts c ON c.context_id = p.context_id
    WHERE t.plan_id = ? ORDER BY t.pair_id
"""


@dataclass(frozen=True, slots=True)
class StandingPlan:
    """A plan of the warehouse, and where it was pushed to last."""

    name: str
    plan_id: str
    called: str
    """What commands name it by: its name, or its id where another plan has that name."""
    audit_project_id: str | None = None
    url: str | None = None
    project: int | None = None
    config_hash: str | None = None
    closed_at: datetime | None = None

    def annotation(self, number: object) -> str:
        """An annotation of the plan's project, as rows name it: other projects count from 1, too."""
        return f"{str(self.audit_project_id)[:8]}/{number}"


@dataclass(frozen=True, slots=True)
class AuditPair:
    """A pair of a plan, as people are to see it."""

    pair_id: str
    shown_order: str
    annotators: int
    video_id: str
    uri: str
    words: dict[str, Any]
    """What the page shows, by the names of the labeling config, but for the video's address."""
    prediction: dict[str, Any] | None
    """What the judge says, in the places shown."""


def find_plan(warehouse: Warehouse, name: str) -> StandingPlan:
    """The plan of a name, an id, or the beginning of one; raises `UserError` where none fits, or several do."""
    found = warehouse.rows(
        "SELECT n.name, n.plan_id, j.audit_project_id, j.url, j.project, j.config_hash, j.closed_at,"
        " CASE (SELECT count(*) FROM audit_plans o WHERE o.name = n.name) WHEN 1 THEN n.name ELSE n.plan_id END"
        " AS called"
        " FROM audit_plans n LEFT JOIN audit_projects j USING (plan_id) LEFT JOIN runs r ON r.run_id = j.run_id"
        " WHERE n.plan_id = ? ORDER BY r.started_at, j.project",
        [plan_named(warehouse, name)],
    )
    return StandingPlan(**found[-1])


def command(what: str, warehouse: Path, *more: str) -> str:
    """A command of an audit, to be copied."""
    return shlex.join(["vlm-rlaif", "feedback", "audit", what, str(warehouse), *more])


def pairs_of(warehouse: Warehouse, plan_id: str) -> list[AuditPair]:
    """All pairs of a plan, by id. Those that were removed from the warehouse are left out."""
    return [audit_pair(row) for row in warehouse.rows(_TASKS, [plan_id])]


def audit_pair(row: Mapping[str, Any]) -> AuditPair:
    first, second = ("text_a", "text_b") if row["shown_order"] == "ab" else ("text_b", "text_a")
    words = {
        "pair_id": row["pair_id"], "fps": float(row["fps"] or DEFAULT_FPS), "question": row["question"],
        "context": row["context"] or NO_CONTEXT,
        "response_a": row[first] if row[first].strip() else EMPTY,
        "response_b": row[second] if row[second].strip() else EMPTY,
    }  # fmt: skip
    return AuditPair(row["pair_id"], row["shown_order"], row["annotators"], row["video_id"], row["uri"], words,
                     _prediction(row))  # fmt: skip


def _prediction(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The judge's verdict as Label Studio keeps one; it is not shown to people."""
    if row["choice"] is None:
        return None
    choice = shown_choice(row["choice"], row["shown_order"])
    mark = {"from_name": "preference", "to_name": "video", "type": "choices", "value": {"choices": [choice]}}
    version = f"{row['judge_prompt']}@{row['judge'][:8]}"
    return {"model_version": version, "score": round(float(row["strength"]), 6), "result": [mark]}


def task_of(pair: AuditPair, video: str) -> dict[str, Any]:
    """A pair as a task to import; `video` is the address that a browser plays."""
    task: dict[str, Any] = {"data": {**pair.words, "video": video}}
    if pair.prediction is not None:
        task["predictions"] = [pair.prediction]
    return task


def shows(data: Mapping[str, Any], pair: AuditPair) -> bool:
    """Whether a task still shows the video and the words of its pair."""
    return pair.video_id in str(data.get("video")) and all(data.get(name) == pair.words[name] for name in WORDS)


def failure(
    plan: StandingPlan, pair_id: str | None, *, message: str, kind: str = "unparsable", annotation: str | None = None,
    updated_at: str | None = None, raw: object = None,
) -> Failure:  # fmt: skip
    """What went wrong with a pair, or with an annotation; whoever writes it adds the run.

    The reply holds what `open_failures` needs to know when it is repaired, and what the server sent.
    """
    row = audit_task_id(plan.plan_id, pair_id or "")
    if annotation is not None:
        row = row_id("refused audit", plan.plan_id, annotation, updated_at)
    reply = {"plan_id": plan.plan_id, "pair_id": pair_id, "annotation": annotation, "updated_at": updated_at,
             "sent": raw}  # fmt: skip
    return Failure(
        row_id=row, stage="audit", attempt=1, kind=kind, message=message, reply=json.dumps(reply), run_id=""
    )


def title_of(plan: StandingPlan) -> str:
    """The name of a plan's project: 50 characters are allowed, and the id must be among them."""
    return f"{plan.name[:26]} [{plan.plan_id}]"
