"""What is in a warehouse: tables and how many rows they have, views and the question that each answers.

Rows of views are not counted: some of them read everything there is.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from vlm_rlaif.warehouse import schema
from vlm_rlaif.warehouse.records import RECORDS
from vlm_rlaif.warehouse.store import Warehouse

_VIEW = re.compile(r"((?:^--[^\n]*\n)+)CREATE OR REPLACE VIEW (\w+)", re.MULTILINE)


def contents(warehouse: Warehouse) -> list[dict[str, Any]]:
    """Tables, then views, by name; those of other people, too."""
    there = warehouse.rows(
        "SELECT table_name AS name, lower(replace(table_type, 'BASE ', '')) AS kind FROM information_schema.tables"
        " WHERE table_name <> 'migrations' ORDER BY kind, name"
    )
    tables = [row["name"] for row in there if row["kind"] == "table"]
    quoted = (name.replace('"', '""') for name in tables)
    counted = warehouse.rows(
        " UNION ALL ".join(f'SELECT {n} AS n, count(*) AS rows FROM "{name}"' for n, name in enumerate(quoted))
    )
    rows = {tables[row["n"]]: row["rows"] for row in counted}
    about = {record.table: _first_sentence(inspect.getdoc(record) or "") for record in RECORDS} | questions()
    return [{**row, "rows": rows.get(row["name"]), "about": about.get(row["name"], "")} for row in there]


def questions() -> dict[str, str]:
    """View -> the question that it answers: the first sentence of its comment."""
    found = {}
    for comment, name in _VIEW.findall(schema.create_views()):
        words = " ".join(line.removeprefix("--").strip() for line in comment.splitlines())
        found[name] = _first_sentence(words)
    return found


def _first_sentence(words: str) -> str:
    return re.split(r"(?<=[?.])\s", words)[0]
