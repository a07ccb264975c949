"""Why a row is what it is: the parts of its key, the run that wrote it, what it was made from, what failed before it.

For rows that stand, and for failures. What is pending is known to the stages of a recipe: `eval/relatives.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import duckdb

from vlm_rlaif.warehouse.inspection.card import aligned, beside
from vlm_rlaif.warehouse.inspection.find import KEYS, Found, find, records
from vlm_rlaif.warehouse.inspection.printing import printable
from vlm_rlaif.warehouse.inspection.specs import called, flat, parts
from vlm_rlaif.warehouse.store import Warehouse

KEY_PARTS = {
    "clips": ("video_id", "method", "start_s", "end_s"),
    "captions": ("spec_id", "clip_id"),
    "transcripts": ("video_id", "start_s", "end_s", "text"),
    "contexts": ("spec_id", "caption_ids", "transcript_ids", "base_context_id"),
    "questions": ("spec_id", "video_id"),
    "responses": ("spec_id", "question_id", "sample_index"),
    "ratings": ("spec_id", "question_id", "response_id", "item"),
    "pairs": ("response_a", "response_b"),
    "labels": ("spec_id", "pair_id", "context_id", "shown_order", "vote"),
    "anchors": ("name", "pair_id"),
    "probes": (
        "spec_id",
        "kind",
        "anchor",
        "engine",
        "question_id",
        "response_a",
        "response_b",
        "context_id",
        "shown_order",
    ),
    "audit_plans": ("name", "judge", "config"),
    "audit_tasks": ("plan_id", "pair_id"),
    "audit_projects": ("plan_id", "url", "project"),
    "audits": ("plan_id", "annotation", "updated_at"),
    "answers": ("benchmark", "spec_id", "question_id", "sample_index"),
    "scores": ("answer_id", "metric", "judge"),
    "checkpoints": ("kind", "parent", "data_hash"),
    "datasets": ("rows_hash",),
    "exports": ("rows_hash", "format", "path", "rows"),
}
"""Table -> what the id of a row is the hash of. Settings come to it for a checkpoint, and a number for each question
that a model wrote about a video. A video's id is the hash of its bytes; that of a run is made at its start."""
REFERENCES = {
    "answer_id": "answers", "old_id": "answers", "pair_id": "pairs", "response_a": "responses",
    "response_b": "responses", "question_id": "questions", "context_id": "contexts",
    "base_context_id": "contexts", "response_id": "responses", "shown_video_id": "videos", "clip_id": "clips",
    "video_id": "videos",
}  # fmt: skip
"""Column -> the table whose id it holds."""
COMMANDS = {
    "caption": "datagen caption", "refine": "datagen refine", "summarise": "datagen summarise",
    "ask": "datagen ask", "answerable": "datagen answerable", "respond": "datagen respond", "rate": "feedback rate",
    **dict.fromkeys(("label", "check", "split", "verify", "rank", "rated", "panel"), "feedback label"),
    "probe": "feedback probe", "anchor": "feedback anchor judge", "answer": "eval answer", "win": "run",
}  # fmt: skip
"""Stage -> the command that runs it."""
SAID = 60
"""Characters of a text that are shown of a row that another was made from."""

Row = dict[str, Any]


def explain(warehouse: Warehouse, given: str) -> Row | None:
    """All that is known about the row with this id (or its first characters), or None."""
    with warehouse.visit(read_only=True) as connection:
        found = find(connection, given)
        return _explain(connection, found) if found else None


def _explain(connection: duckdb.DuckDBPyConnection, found: Found) -> Row:
    row = found.row
    run = _by_id(connection, "runs", row.get("run_id"))
    spec_id = row.get("spec_id") or row.get("judge")
    if found.table == "failures":
        spec_id = json.loads(run["config"]).get("spec_id") if run else None
    spec = row if found.table == "specs" else _by_id(connection, "specs", spec_id)
    sql = "SELECT attempt, kind, message, reply, run_id FROM failures WHERE row_id = ? ORDER BY attempt"
    return {
        "table": found.table,
        "id": found.id,
        "stage": row.get("stage") if found.table in ("failures", "runs", "specs") else (run or {}).get("stage"),
        "key": _key(found, imported=spec is not None and spec["stage"] == "import"),
        "spec": spec,
        "upstream": upstream_names(connection),
        "run": row if found.table == "runs" else run,
        "from": origins(connection, found.table, row),
        "failures": records(connection, sql, [found.id]),
    }


def _key(found: Found, imported: bool) -> Row:
    names = KEY_PARTS.get(found.table, ())
    if found.table == "responses" and imported:
        names = ("question_id", "text")
    if found.table == "questions" and found.row["spec_id"] is None:
        names = ("video_id", "text")
    if found.table == "ratings" and found.row["item"] in ("quality", "answerable"):  # all that is asked for
        names = names[:-1]
    if found.table == "probes" and found.row["kind"] not in ("repeat", "anchor"):  # asked once, whatever the engine
        names = tuple(name for name in names if name != "engine")
    key = {name: found.row[name] for name in names if found.row[name] not in (None, [])}
    settings = flat(json.loads(found.row["config"])) if found.table in ("checkpoints", "runs") else {}
    return key | {name: value for name, value in settings.items() if name != "checkpoint_id"}


def _by_id(connection: duckdb.DuckDBPyConnection, table: str, row_id: Any) -> Row | None:
    rows = records(connection, f"SELECT * FROM {table} WHERE {KEYS[table]} = ?", [row_id]) if row_id else []
    return rows[0] if rows else None


def origins(connection: duckdb.DuckDBPyConnection, table: str, row: Row) -> list[Row]:
    """The rows that a row was made from, and those that they were made from, down to the video."""
    found: dict[tuple[str, str], Row] = {}
    waiting = list(_inputs(table, row))
    while waiting:
        place, row_id = waiting.pop(0)
        if (place, row_id) in found or (parent := _by_id(connection, place, row_id)) is None:
            continue
        found[place, row_id] = {"table": place, "id": row_id, "said": said(place, parent), "run_id": parent["run_id"]}
        waiting += _inputs(place, parent)
    places = list(KEYS)
    return sorted(found.values(), key=lambda each: -places.index(each["table"]))


def _inputs(table: str, row: Row) -> Iterator[tuple[str, str]]:
    for column, place in REFERENCES.items():
        if row.get(column) is not None and column != KEYS.get(table):
            yield place, row[column]
    for caption in row.get("caption_ids") or ():
        yield "captions", caption
    for cue in row.get("transcript_ids") or ():
        yield "transcripts", cue
    if table == "checkpoints":
        for checkpoint in json.loads(row["config"]).get("inputs", {}).values():
            yield "checkpoints", checkpoint


def upstream_names(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Spec id -> what people call it."""
    return {
        spec["spec_id"]: spec["prompt"] + (f" by {spec['model']}" if spec["model"] != "none" else "")
        for spec in records(connection, "SELECT spec_id, prompt, model FROM specs")
    }


def said(table: str, row: Row) -> str:
    """A row in a few words."""
    if table == "videos":
        words = row["uri"]
    elif table == "clips":
        words = f"{row['start_s']:g} to {row['end_s']:g} s, {row['method']}"
    elif table == "checkpoints":
        words = f"{row['kind']} at {row['path']}"
    else:
        words = " ".join((row.get("text") or "").split())
    return words if len(words) <= SAID else f"{words[:SAID]}..."


def lines(explained: Row, width: int) -> Iterator[str]:
    """What is known about a row, for a terminal."""
    kind = explained["stage"] or "" if explained["table"] == "pending" else ""
    yield f"{explained['table'].removesuffix('s')} {kind}".rstrip() + f" {explained['id']}"
    sections = (
        (
            "settings" if explained["table"] == "runs" else "key",
            [[name, _plain(value)] for name, value in explained["key"].items()],
        ),
        ("spec", list(_spec(explained["spec"], explained["upstream"])) if explained["spec"] else []),
        ("run", list(_run(explained["run"])) if explained["run"] else []),
        ("made from", [[each["table"], each["id"], each["said"]] for each in explained["from"]]),
    )
    for name, rows in sections:
        if rows:
            yield ""
            yield from aligned(name, [], rows, width)
    if changed := explained.get("changed"):
        yield ""
        relative = f"against the row of {explained['relative']['table']} {explained['relative']['id']}"
        yield from beside("changed", "\n".join(changed), width, relative)
    for failure in explained["failures"]:
        yield ""
        text = f"{failure['kind']}: {failure['message']}\n{failure['reply'] or ''}".rstrip()
        yield from beside("failure", text, width, f"attempt {failure['attempt']}, run {failure['run_id']}")
    if notes := explained.get("notes"):
        yield ""
        yield from aligned("next", [], [[note] for note in notes], sys.maxsize)  # commands are copied whole


def _spec(spec: Row, upstream: dict[str, str]) -> Iterator[list[str]]:
    yield ["spec_id", spec["spec_id"]]
    yield ["stage", spec["stage"]]
    for name, value in parts(spec).items():
        known = called(spec, name) or upstream.get(value, value)
        yield [name, value if known == value else f"{value} ({known})"]


def _run(run: Row) -> Iterator[list[str]]:
    yield ["run_id", run["run_id"]]
    yield ["stage", f"{run['stage']}, {run['status']}"]
    yield ["started_at", f"{run['started_at']:%Y-%m-%d %H:%M:%S} UTC" + _lasted(run)]
    yield ["by", f"vlm-rlaif {run['code_version']} with {run['engine']} on {run['host']}"]
    yield ["rows", f"{run['rows_written']:,} written, {run['rows_failed']:,} failed"]


def _lasted(run: Row) -> str:
    return f", {(run['ended_at'] - run['started_at']).total_seconds():.1f} s" if run["ended_at"] else ""


def _plain(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else printable(str(value))
