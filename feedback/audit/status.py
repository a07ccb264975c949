"""How far an audit is: on the server, and in the warehouse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlm_rlaif.feedback.audit.label_studio import Server
from vlm_rlaif.feedback.audit.pull import Lacking, lacking, read_export
from vlm_rlaif.feedback.audit.push import hash_config, require_server
from vlm_rlaif.feedback.audit.tasks import StandingPlan, pairs_of
from vlm_rlaif.warehouse.store import Warehouse


@dataclass(frozen=True, slots=True)
class OnServer:
    """What the server has, which may be more than was pulled."""

    title: str
    config_changed: bool
    tasks: int
    verdicts: int
    refused: int
    skipped: int
    new: int
    """Verdicts that a pull would write."""


@dataclass(frozen=True, slots=True)
class Status:
    """How far an audit is."""

    plan: StandingPlan
    pairs: int
    shared: int
    """Pairs that several people are to see."""
    verdicts: int
    people: dict[str, int]
    """Who has judged how many pairs."""
    lack: Lacking
    server: OnServer | None = None
    seconds: float | None = None
    """That a verdict took, in the middle (median)."""


def status_of(warehouse: Warehouse, plan: StandingPlan, server: Server | None) -> Status:
    """How far an audit is; without a server, by the rows of the warehouse alone."""
    counts = warehouse.rows(
        "SELECT count(*) AS pairs, count_if(annotators > 1)::BIGINT AS shared FROM audit_tasks WHERE plan_id = ?",
        [plan.plan_id],
    )[0]
    people = warehouse.rows(
        "SELECT annotator, count(*) AS pairs FROM human_verdicts WHERE plan_id = ?"
        " GROUP BY annotator ORDER BY pairs DESC, annotator",
        [plan.plan_id],
    )
    seconds = warehouse.value("SELECT median(seconds) FROM human_verdicts WHERE plan_id = ?", [plan.plan_id])
    there = None if server is None or plan.project is None else _on_server(warehouse, plan, server)
    judged = {row["annotator"]: row["pairs"] for row in people}
    return Status(plan, counts["pairs"], counts["shared"], sum(judged.values()), judged, lacking(warehouse, plan),
                  there, seconds)  # fmt: skip


def _on_server(warehouse: Warehouse, plan: StandingPlan, server: Server) -> OnServer:
    assert plan.project is not None
    require_server(warehouse, plan, server)
    project = server.project(plan.project)
    exported = server.export(plan.project)
    found = read_export(plan, exported, pairs_of(warehouse, plan.plan_id), server.users())
    rows: list[Any] = list(found.audits)
    return OnServer(project.title, plan.config_hash != hash_config(project.config), len(exported), len(rows),
                    len(found.refused), found.skipped, len(warehouse.unknown(rows)))  # fmt: skip
