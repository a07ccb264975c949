"""What the warehouse knows about a version: judges, models, licences, lengths, and the words of the prompts.

A prompt is quoted only where a file has the words of the recorded hash: its name alone proves nothing.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import duckdb

from vlm_rlaif.warehouse.exports.versions import MEMORY_LIMIT
from vlm_rlaif.warehouse.records import Dataset
from vlm_rlaif.warehouse.store import Warehouse


@dataclass(frozen=True, slots=True)
class Facts:
    """What the warehouse knows about a version."""

    warehouse: str
    judges: list[dict[str, Any]]
    agreement: list[dict[str, Any]]
    models: list[dict[str, Any]]
    """Specs of captions, contexts, questions, responses and labels."""
    licences: dict[str, int]
    """Licence, or nothing where it is not known -> videos."""
    mean_token_gap: float | None
    longer_wins: float | None
    people: int = 0
    """Preferences with the verdict of people."""


_VERSION = """
    CREATE TEMP TABLE version AS
    SELECT r.judge, r.choice, r.pair_id, q.video_id, q.spec_id AS ask, a.spec_id AS respond_a, b.spec_id AS respond_b,
           a.tokens - b.tokens AS gap
    FROM dataset_rows r JOIN pairs p USING (pair_id) JOIN questions q ON q.question_id = p.question_id
    JOIN responses a ON a.response_id = p.response_a JOIN responses b ON b.response_id = p.response_b
    WHERE r.rows_hash = $rows_hash
"""
_JUDGES = """
    SELECT v.judge, s.prompt, s.model, count(*) AS preferences, avg((v.choice = 'tie')::INT) AS ties,
           avg(p.conflict::INT) AS conflicts
    FROM version v JOIN specs s ON s.spec_id = v.judge
    JOIN preferences p ON p.pair_id = v.pair_id AND p.judge = v.judge GROUP BY ALL ORDER BY ALL
"""
_AGREEMENT = """
    SELECT a.judge AS judge_1, b.judge AS judge_2, count(*) AS pairs, avg((a.choice = b.choice)::INT) AS agreement
    FROM version a JOIN version b ON a.pair_id = b.pair_id AND a.judge < b.judge GROUP BY ALL ORDER BY ALL
"""
_MODELS = """
    WITH RECURSIVE asked AS (
        SELECT DISTINCT judge AS spec_id FROM version
        UNION
        SELECT unnest(if(s.stage = 'verify', [s.upstream->>'$.split'], json_extract_string(s.upstream, '$.*')))
        FROM asked JOIN specs s USING (spec_id) WHERE s.stage IN ('rated', 'panel', 'calibrate', 'verify')
    ), read AS (
        SELECT DISTINCT spec_id FROM contexts WHERE context_id IN
            (SELECT context_id FROM labels WHERE spec_id IN (SELECT judge FROM version))
    ), used AS (
        SELECT judge AS spec_id FROM version UNION SELECT respond_a FROM version UNION SELECT respond_b FROM version
        UNION SELECT ask FROM version UNION FROM read
        UNION SELECT upstream->>'$.caption' FROM specs WHERE spec_id IN (FROM read)
        UNION FROM asked
    )
    SELECT stage, spec_id, model, revision, prompt, prompt_hash FROM specs WHERE spec_id IN (FROM used)
    ORDER BY list_position(['caption', 'context', 'ask', 'respond', 'label', 'rate', 'check', 'split',
        'verify', 'rank', 'rated', 'panel', 'calibrate', 'import'], stage), spec_id
"""
_LENGTH = """
    SELECT avg(CASE choice WHEN 'a' THEN gap ELSE -gap END) AS mean_token_gap,
           avg(CASE WHEN gap <> 0 THEN ((gap > 0) = (choice = 'a'))::INT END) AS longer_wins
    FROM version WHERE choice <> 'tie'
"""


def look(warehouse: Warehouse, version: Dataset) -> Facts:
    """Count what a card says."""
    with warehouse.visit(read_only=True, memory_limit=MEMORY_LIMIT) as connection:
        connection.execute(_VERSION, {"rows_hash": version.rows_hash}).fetchall()

        def rows(sql: str) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = connection.sql(sql).to_arrow_table().to_pylist()
            return found

        licences = rows(
            "SELECT coalesce(licence, '') AS licence, count(*) AS videos FROM videos"
            " WHERE video_id IN (SELECT video_id FROM version) GROUP BY ALL ORDER BY ALL"
        )
        return Facts(
            warehouse.path.name, rows(_JUDGES), rows(_AGREEMENT), rows(_MODELS),
            {row["licence"]: row["videos"] for row in licences}, **rows(_LENGTH)[0],
            people=_people(connection, version),
        )  # fmt: skip


def _people(connection: duckdb.DuckDBPyConnection, version: Dataset) -> int:
    """As counted when the version was made: people may have judged more pairs since."""
    found = connection.execute(
        "SELECT (r.config->>'$.people')::BIGINT FROM datasets d JOIN runs r USING (run_id) WHERE d.name = ?",
        [version.name],
    ).fetchone()
    return (found and found[0]) or 0


def prompt_text(name: str, prompt_hash: str) -> str | None:
    """The file of a prompt that ships with the first floor, or lies where its name says; None without these words.

    That floor is above this one: its files are read as files, and split at their marks as it does.
    """
    path = Path(name) if name.endswith(".md") else resources.files("vlm_rlaif.datagen") / "prompts" / f"{name}.md"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    parts = re.split(r"^\[(system|user)\]\s*$", text, flags=re.MULTILINE)
    said = {mark: words.strip() for mark, words in zip(parts[1::2], parts[2::2], strict=True)} or {
        "user": text.strip()
    }
    words = f"{said.get('system', '')}\0{said.get('user', '')}"
    return text if hashlib.sha256(words.encode()).hexdigest()[:16] == prompt_hash else None
