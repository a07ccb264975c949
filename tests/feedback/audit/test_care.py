"""Audits in a warehouse that is looked after: their ids are checked, they merge, they go with their video."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.feedback.audit.pull import pull
from vlm_rlaif.feedback.audit.push import push
from vlm_rlaif.feedback.audit.tasks import AuditPair, find_plan, pairs_of
from vlm_rlaif.warehouse.care.row_checks import check_ids, check_rows
from vlm_rlaif.warehouse.store import Warehouse

Command = Any
Server = Any


@pytest.fixture
def audited(planned: Warehouse, server: Server) -> Warehouse:
    """Ten verdicts of one person, and one result that is none."""
    bring(planned, server)
    for number, pair in enumerate(pairs_of(planned, find_plan(planned, "spring").plan_id)[:11]):
        server.submit(pair.pair_id, "A" if number < 10 else "C")
    pull(planned, find_plan(planned, "spring"), server)
    return planned


def bring(warehouse: Warehouse, server: Server) -> None:
    def place(pair: AuditPair) -> str:
        return f"http://videos/{pair.video_id}"

    push(warehouse, find_plan(warehouse, "spring"), server, lambda *_: place)


def ids(warehouse: Warehouse) -> list[str]:
    """The audit tables whose ids are wrong."""
    return [found.what for found in check_ids(warehouse, everything=True) if "audit" in found.what]


def test_ids_are_the_hashes_of_what_was_asked(audited: Warehouse) -> None:
    assert audited.value("SELECT count(*) FROM audits") == 10 and ids(audited) == []
    assert not [found for found in check_rows(audited) if "audit" in found.what]


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("audit_plans", "name = name || '!'"),
        ("audit_tasks", "pair_id = reverse(pair_id)"),
        ("audit_projects", "project = 99"),
        ("audits", "updated_at = updated_at + INTERVAL 1 SECOND"),
    ],
)
def test_a_row_that_was_changed_by_hand_is_found(audited: Warehouse, table: str, change: str) -> None:
    audited.execute(f"UPDATE {table} SET {change}")
    assert [what.startswith(table) for what in ids(audited)] == [True]


def test_two_halves_of_an_audit_merge(planned: Warehouse, server: Server, command: Command, tmp_path: Path) -> None:
    bring(planned, server)
    other = Warehouse(Path(shutil.copy(planned.path, tmp_path / "other.duckdb")))
    pairs = pairs_of(planned, find_plan(planned, "spring").plan_id)
    server.submit(pairs[0].pair_id, "A")
    pull(planned, find_plan(planned, "spring"), server)
    server.submit(pairs[1].pair_id, "B", user=2)
    pull(other, find_plan(other, "spring"), server)
    planned.execute("UPDATE audit_projects SET closed_at = TIMESTAMP '2026-11-25 10:00:00', config_hash = 'newer'")
    merged = command("merge", planned.path, other.path)
    assert merged.code == 0, merged.err + merged.out
    assert planned.value("SELECT count(*) FROM audits") == 2
    assert planned.value("SELECT count(*) FROM audit_tasks") == 30
    assert find_plan(planned, "spring").closed_at is not None


def test_verdicts_and_refused_words_go_with_their_video(audited: Warehouse, command: Command) -> None:
    (refused,) = audited.rows(
        "SELECT row_id, reply->>'$.pair_id' AS pair_id FROM open_failures WHERE stage = 'audit'"
    )
    of = "JOIN pairs USING (pair_id) JOIN questions USING (question_id)"
    video = audited.value(f"SELECT video_id FROM audit_tasks {of} WHERE pair_id = ?", [refused["pair_id"]])
    tasks = audited.value(f"SELECT count(*) FROM audit_tasks {of} WHERE video_id = ?", [video])
    done = command("remove", audited.path, video, "--yes")
    assert done.code == 0, done.err
    assert audited.value("SELECT count(*) FROM audit_tasks") == 30 - tasks
    assert audited.value("SELECT count(*) FROM failures WHERE stage = 'audit'") == 0
    assert audited.value("SELECT count(*) FROM audits a ANTI JOIN pairs p USING (pair_id)") == 0


def test_show_has_what_people_said(audited: Warehouse, command: Command) -> None:
    row = audited.rows("FROM audits ORDER BY pair_id LIMIT 1")[0]
    shown = command("show", audited.path, row["pair_id"])
    assert shown.code == 0
    (line,) = [line for line in shown.out.splitlines() if line.strip().startswith("ann@x")]
    assert line.split()[:2] == ["ann@x", row["choice"]]
