"""All that a snapshot knows of one pair: its video, what judges and people said, and where it comes from.

Rows are looked up table by table, by their ids where there is an index, so a large warehouse answers as a small one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import duckdb

from vlm_rlaif.warehouse.inspection.find import records

SIDES = ("response_a", "response_b")
UNPINNED = ("", "none")
"""Revisions that do not say which weights they are."""

Row = dict[str, Any]


def look_up(connection: duckdb.DuckDBPyConnection, pair_id: str) -> Row | None:
    """A pair with everything around it, as plain data; None where there is no such pair."""

    def rows(sql: str, *parameters: Any) -> list[Row]:
        return records(connection, sql, parameters)

    def one(table: str, key: str, value: Any) -> Row:
        return next(iter(rows(f"SELECT * FROM {table} WHERE {key} = ?", value)), {key: value})

    found = rows("SELECT * FROM pairs WHERE pair_id = ?", pair_id)
    if not found:
        return None
    pair = found[0]
    question = one("questions", "question_id", pair["question_id"])
    video = one("videos", "video_id", question.get("video_id"))
    responses = [one("responses", "response_id", pair[side]) for side in SIDES]
    ids = [pair[side] for side in SIDES]
    labels = rows("SELECT * FROM labels WHERE pair_id = ? ORDER BY spec_id, shown_order, vote", pair_id)
    contexts = rows("SELECT * FROM contexts WHERE video_id = ? ORDER BY context_id", video["video_id"])
    read = {label["context_id"] for label in labels}
    card: Row = {
        "pair": pair,
        "question": question,
        "video": video,
        "responses": responses,
        "labels": labels,
        "contexts": [context for context in contexts if context["context_id"] in read] or contexts,
        "captions": rows(
            "SELECT t.*, c.start_s, c.end_s FROM clips c JOIN captions t USING (clip_id) WHERE c.video_id = ?"
            " ORDER BY t.spec_id, c.start_s, c.end_s",
            video["video_id"],
        ),
        "transcripts": rows(
            "SELECT * FROM transcripts WHERE video_id = ? ORDER BY start_s, end_s", video["video_id"]
        ),
        "ratings": rows(
            "SELECT * FROM ratings WHERE response_id IN (?, ?) OR (response_id IS NULL AND question_id = ?)"
            " ORDER BY spec_id, item, response_id",
            *ids,
            question["question_id"],
        ),
        "humans": rows(
            "SELECT h.*, p.name AS plan FROM human_verdicts h LEFT JOIN audit_plans p USING (plan_id)"
            " WHERE h.pair_id = ? ORDER BY plan, annotator",
            pair_id,
        ),
        "probes": rows(
            "SELECT * FROM probe_results WHERE response_a IN (?, ?) OR response_b IN (?, ?)"
            " ORDER BY judge_prompt, kind, probe_id, shown_order",
            *ids,
            *ids,
        ),
        "places": rows("SELECT * FROM page_rows WHERE pair_id = ? ORDER BY place", pair_id),
    }
    specs = {row["spec_id"]: row for row in rows("SELECT * FROM specs")}
    wanted = {row.get("run_id") for row in made(card)}
    runs = rows("SELECT run_id, stage, engine, started_at FROM runs WHERE run_id IN (SELECT unnest(?::VARCHAR[]))",
                sorted(run for run in wanted if run))  # fmt: skip
    policies = [specs.get(response.get("spec_id"), {}) for response in responses]
    return card | {
        "specs": specs,
        "runs": {row["run_id"]: row for row in runs},
        "self_judges": {
            judge for judge in {label["spec_id"] for label in labels} if _is_one_of(specs.get(judge, {}), policies)
        },
    }


def made(card: Row) -> Iterable[Row]:
    """The rows that a pair hangs on, from the video to the verdicts."""
    return itertools.chain(
        [card["video"]], card["captions"], card["contexts"], [card["question"]], card["responses"], [card["pair"]],
        card["ratings"], card["labels"],
    )  # fmt: skip


def _is_one_of(judge: Row, policies: list[Row]) -> bool:
    """Whether the judge has the weights of one whose answers it compares."""
    weights = (judge.get("revision"), judge.get("adapter"))
    return weights[0] not in (None, *UNPINNED) and weights in [
        (p.get("revision"), p.get("adapter")) for p in policies
    ]
