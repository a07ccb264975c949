"""One pair with everything around it: video, narrative, question, both responses, every verdict, what failed.

Rows are looked up by their ids and nothing is joined as a whole, so a large warehouse answers as a small one does.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from statistics import fmean, pstdev
from typing import Any

import duckdb

from vlm_rlaif.warehouse.care.keys import MOST_SAMPLES, label_id
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.inspection.find import Found, find, records
from vlm_rlaif.warehouse.inspection.printing import printable
from vlm_rlaif.warehouse.store import Warehouse

TABLES = ("pairs", "labels", "responses", "questions", "videos")
"""What `show` understands, each with its pairs."""
PAIRS = {
    "responses": "question_id = $question_id AND (response_a = $response_id OR response_b = $response_id)",
    "questions": "question_id = $question_id",
    "videos": "question_id IN (SELECT question_id FROM questions WHERE video_id = $video_id)",
}
"""Which pairs hang on a row of a table."""
SIDES = ("response_a", "response_b")
ORDERS = {"label": ("ab", "ba"), **dict.fromkeys(("rated", "panel", "calibrate"), ("both",))}
"""Stage -> the orders that its labels stand for."""

Row = dict[str, Any]


def pairs_of(warehouse: Warehouse, given: str) -> tuple[Found, list[str]]:
    """The row that is meant, and the ids of its pairs."""
    with warehouse.visit(read_only=True) as connection:
        found = find(connection, given, TABLES)
        if found is None:
            raise UserError(
                f"There is no pair, label, response, question or video {printable(given)}.",
                f'vlm-rlaif sql {warehouse.path} "SELECT pair_id, question_id FROM pairs LIMIT 5"',
            )
        if "pair_id" in found.row:
            return found, [found.row["pair_id"]]
        given_keys = {name: value for name, value in found.row.items() if f"${name}" in PAIRS[found.table]}
        sql = f"SELECT pair_id FROM pairs WHERE {PAIRS[found.table]} ORDER BY question_id, pair_id"
        return found, [pair for (pair,) in connection.execute(sql, given_keys).fetchall()]


def list_pairs(warehouse: Warehouse, pair_ids: Sequence[str]) -> list[Row]:
    """The words of some pairs: the question and both responses."""
    with warehouse.visit(read_only=True) as connection:
        return [_words(connection, pair_id) for pair_id in pair_ids]


def _words(connection: duckdb.DuckDBPyConnection, pair_id: str) -> Row:
    pair = _one(connection, "pairs", "pair_id", pair_id)
    sides = {side: _one(connection, "responses", "response_id", pair[side]) for side in SIDES}
    question = _one(connection, "questions", "question_id", pair["question_id"])
    return {"pair_id": pair_id, "question": question.get("text")} | {s: row.get("text") for s, row in sides.items()}


def card(warehouse: Warehouse, pair_id: str) -> Row:
    """A pair and everything around it, as plain data."""
    with warehouse.visit(read_only=True) as connection:
        pair = _one(connection, "pairs", "pair_id", pair_id)
        question = _one(connection, "questions", "question_id", pair["question_id"])
        video = _one(connection, "videos", "video_id", question.get("video_id"))
        responses = [_one(connection, "responses", "response_id", pair[side]) for side in SIDES]
        sql = "SELECT * FROM contexts WHERE video_id = ? ORDER BY context_id"
        contexts = records(connection, sql, [video["video_id"]])
        answers = _answers(connection, question["question_id"])
        specs = {row["spec_id"]: row for row in records(connection, "SELECT * FROM specs")}
        asked = _asked(pair_id, contexts, specs.values())
        labels = _labels(connection, pair_id, list(asked))
        failures = _failures(connection, asked, {label["label_id"] for label in labels})
        humans = records(connection, "SELECT * FROM human_verdicts WHERE pair_id = ? ORDER BY updated_at", [pair_id])
    read = {label["context_id"] for label in labels}
    shown = [context for context in contexts if context["context_id"] in read] or contexts

    def named(rows: Iterable[Row]) -> list[Row]:
        return [row | _names(specs.get(row.get("spec_id", ""), {})) for row in rows]

    return {
        "pair": pair, "video": video, "question": question, "contexts": named(shown), "responses": named(responses),
        "labels": named(labels), "preferences": named(preferences(labels)), "humans": humans,
        "failures": named(failures), "answers": named(answers),
    }  # fmt: skip


def _one(connection: duckdb.DuckDBPyConnection, table: str, key: str, value: Any) -> Row:
    """A row by its id; nothing but the id where the row is missing."""
    found = records(connection, f"SELECT * FROM {table} WHERE {key} = ?", [value])
    return found[0] if found else {key: value}


def _names(spec: Row) -> Row:
    """What people call a spec."""
    return {"prompt": spec.get("prompt"), "model": spec.get("model")}


def _answers(connection: duckdb.DuckDBPyConnection, question_id: str) -> list[Row]:
    """What models answered to the question in an evaluation, each answer with its scores."""
    sql = "SELECT * FROM answers WHERE question_id = ? ORDER BY spec_id, sample_index"
    answers = records(connection, sql, [question_id])
    ids = [answer["answer_id"] for answer in answers]
    sql = "SELECT answer_id, metric, judge, value FROM scores WHERE answer_id IN (SELECT unnest(?)) ORDER BY metric"
    scores = records(connection, sql, [ids]) if ids else []
    of = {i: {s["metric"]: s["value"] for s in scores if s["answer_id"] == i} for i in ids}
    return [answer | {"scores": of[answer["answer_id"]]} for answer in answers]


def _asked(pair_id: str, contexts: Sequence[Row], specs: Iterable[Row]) -> dict[str, Row]:
    """Whatever any judge could have been asked about a pair, by the id of the label."""
    read = [None, *(context["context_id"] for context in contexts)]
    return {
        label_id(spec["spec_id"], pair_id, context, order, vote):
            {"spec_id": spec["spec_id"], "context_id": context, "shown_order": order, "vote": vote}
        for spec in specs
        for context, order, vote in itertools.product(read, ORDERS.get(spec["stage"], ()), range(_votes(spec)))
    }  # fmt: skip


def _votes(spec: Row) -> int:
    """How many votes are looked for: a judge that gives more than one answers in words."""
    return MOST_SAMPLES if "verdict" in json.loads(spec["sampling"]) else 1


def _labels(connection: duckdb.DuckDBPyConnection, pair_id: str, asked: list[str]) -> list[Row]:
    """The labels of a pair.

    Those that a judge was asked for, or that were made of others, are found by their ids, and imported ones and
    further votes in the few parts of the table that hold any. Only where there are none of these are all labels
    looked through.
    """
    order = "ORDER BY spec_id, shown_order, vote"
    found = records(
        connection,
        "SELECT * FROM labels WHERE label_id IN (SELECT unnest($asked::VARCHAR[]))"
        " UNION SELECT * FROM labels WHERE pair_id = $pair AND shown_order = 'unknown'"
        f" UNION SELECT * FROM labels WHERE pair_id = $pair AND shown_order <> 'unknown' AND vote > 0 {order}",
        {"asked": asked, "pair": pair_id},
    )
    return found or records(connection, f"SELECT * FROM labels WHERE pair_id = ? {order}", [pair_id])


def _failures(connection: duckdb.DuckDBPyConnection, asked: dict[str, Row], stand: set[str]) -> list[Row]:
    """The newest failure of every label that was asked for in vain."""
    failures = records(
        connection, "SELECT * FROM failures WHERE row_id IN (SELECT unnest(?::VARCHAR[])) ORDER BY row_id, attempt",
        [list(asked)],
    )  # fmt: skip
    newest = {row["row_id"]: row | asked[row["row_id"]] for row in failures if row["row_id"] not in stand}
    return list(newest.values())


def preferences(labels: Sequence[Row]) -> list[Row]:
    """What the view `preferences` says about one pair's labels, which are sorted by judge and order.

    The view reads all labels to know it; the two are tested to agree.
    """
    found = []
    for judge, verdicts in itertools.groupby(labels, key=lambda label: label["spec_id"]):
        orders = [list(votes) for _, votes in itertools.groupby(verdicts, key=lambda label: label["shown_order"])]
        named = {_majority([vote["choice"] for vote in votes]) for votes in orders}
        p_a = fmean(fmean(vote["p_a"] + vote["p_tie"] / 2 for vote in votes) for votes in orders)
        spreads = [pstdev(vote["p_a"] + vote["p_tie"] / 2 for vote in votes) for votes in orders if len(votes) > 1]
        whole = len(orders) == 2 or orders[0][0]["shown_order"] in ("both", "unknown")
        conflict = {"a", "b"} <= named
        winner = "a" if "a" in named and p_a > 0.5 else "b" if "b" in named and p_a < 0.5 else "tie"
        found.append({"spec_id": judge, "choice": "tie" if conflict else winner, "p_a": p_a,
                      "strength": abs(2 * p_a - 1), "orders": len(orders), "complete": whole, "conflict": conflict,
                      "vote_spread": fmean(spreads) if spreads else None})  # fmt: skip
    return found


def _majority(choices: Sequence[str]) -> str:
    """The choice of most votes; a tie where no response has more than each of the others."""
    counts = {choice: choices.count(choice) for choice in ("a", "b", "tie")}
    best = max(counts.values())
    return next((c for c in ("a", "b") if counts[c] == best and list(counts.values()).count(best) == 1), "tie")
