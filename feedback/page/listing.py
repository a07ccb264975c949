"""The pairs of a snapshot as a list: filtered, sorted, page by page, in milliseconds for a million labels.

One table, `page_rows`, is made once: a row per judge and pair, with all that is filtered and sorted by; pairs that
nobody has judged have a row of their own. A page begins after a row, never after a number of rows, so the last page
is as quick as the first.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

import duckdb
import pyarrow as pa

from vlm_rlaif.warehouse.errors import UserError, nearest
from vlm_rlaif.warehouse.inspection.find import records
from vlm_rlaif.warehouse.inspection.printing import printable

PAGE_ROWS = 50
UNSURE = 0.2
"""Strength (twice the distance of p from one half) below which a judge is unsure."""
NOBODY = "nobody"
"""Stands for the judge of pairs that no judge has judged."""
SHOWS = {
    "all": ("All pairs", "TRUE"),
    "conflicts": ("Conflicts of both orders", "conflict"),
    "ties": ("Ties", "choice = 'tie' AND NOT conflict"),
    "unsure": ("Low confidence", f"strength < {UNSURE}"),
    "half": ("Judged in one order so far", "NOT complete"),
    "audited": ("People have judged", "human IS NOT NULL"),
    "disagree": ("People disagree", "human <> choice"),
}
"""Which pairs are listed: words, and the condition."""
SORTS = {
    "video": ("by video", "place"),
    "unsure": ("least sure first", "coalesce(strength, 0)"),
    "sure": ("surest first", "-coalesce(strength, 0)"),
    "gap": ("longest gap first", "-abs(gap)"),
}
"""Orders of the list: words, and what grows in it; equals stand by video."""
MAKE = """
CREATE OR REPLACE TABLE page_rows AS
SELECT row_number() OVER (ORDER BY f.judge, v.uri, q.question_id, p.pair_id) AS place,
       coalesce(f.judge, 'nobody') AS judge, p.pair_id, p.question_id, p.response_a, p.response_b, q.video_id,
       coalesce(q.kind, '') AS kind, v.split, f.choice, f.p_a AS p, f.strength,
       coalesce(f.conflict, FALSE) AS conflict, coalesce(f.complete, TRUE) AS complete, h.choice AS human,
       coalesce(length(a.text) - length(b.text), 0) AS gap
FROM pairs p LEFT JOIN questions q ON q.question_id = p.question_id LEFT JOIN videos v ON v.video_id = q.video_id
LEFT JOIN responses a ON a.response_id = p.response_a LEFT JOIN responses b ON b.response_id = p.response_b
LEFT JOIN preferences f ON f.pair_id = p.pair_id LEFT JOIN human_preferences h ON h.pair_id = p.pair_id
ORDER BY place
"""
FIND = """
WITH words AS MATERIALIZED (SELECT response_id FROM responses WHERE contains(lower(text), $text)),
asked AS MATERIALIZED (
    SELECT question_id FROM questions q LEFT JOIN videos v USING (video_id)
    WHERE contains(lower(q.text), $text) OR contains(lower(v.uri), $text)
)
SELECT place FROM page_rows
WHERE question_id IN (FROM asked) OR response_a IN (FROM words) OR response_b IN (FROM words) OR pair_id = $text
"""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Filter:
    """What is listed, and in which order; an address says it."""

    judge: str
    """A spec id, or `nobody`."""
    show: str = "all"
    kind: str | None = None
    """Of the question; None: every kind."""
    split: str | None = None
    text: str = ""
    """Is searched for in questions, answers and names of files, as it stands, in capitals or not."""
    sort: str = "video"

    @classmethod
    def read(cls, query: str, judge: str) -> Filter:
        """Of an address, where `judge` need not be named; raises `UserError` for words that mean nothing."""
        asked = dict(parse_qsl(query, keep_blank_values=True))
        known = {field.name for field in fields(cls)}
        found = cls(**{"judge": judge, **{name: value for name, value in asked.items() if name in known}})
        for name, words, value in (("show", SHOWS, found.show), ("sort", SORTS, found.sort)):
            if value not in words:
                raise UserError(f"The list knows no {name}={printable(value)}.{nearest(value, words)}")
        return replace(found, text=found.text.strip())

    def but(self, **changes: Any) -> Filter:
        return replace(self, **changes)

    def said(self) -> dict[str, str]:
        """What differs from the default; the judge always, so that an address means the same tomorrow."""
        others = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        defaults = Filter(self.judge)
        return {"judge": self.judge} | {n: value for n, value in others.items() if value != getattr(defaults, n)}

    @property
    def query(self) -> str:
        """What an address says after `?`."""
        return urlencode(self.said())


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of the list, and whether there are others before and after."""

    rows: list[Row]
    before: bool
    after: bool


class Listing:
    """The list of one snapshot. Every question is asked on a connection of its own, so threads need not wait."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self.find = functools.lru_cache(8)(self._find)

    @staticmethod
    def make(connection: duckdb.DuckDBPyConnection) -> None:
        """Write the table; the connection is to the snapshot, before it is read-only."""
        connection.execute(MAKE)

    @functools.cached_property
    def judges(self) -> list[Row]:
        """Who judges how many pairs, the busiest first; and how many nobody has judged."""
        return self.rows(
            "WITH counted AS (SELECT judge, count(*) AS pairs FROM page_rows GROUP BY judge)"
            " SELECT c.judge, s.prompt, s.model, c.pairs FROM counted c LEFT JOIN specs s ON s.spec_id = c.judge"
            f" ORDER BY c.judge = '{NOBODY}', c.pairs DESC, s.prompt, c.judge"
        )

    def counts(self, filter: Filter) -> dict[str, int]:
        """How many pairs every show would list."""
        counted = ", ".join(f"count_if({condition}) AS {name}" for name, (_, condition) in SHOWS.items())
        (row,) = self.rows(f"SELECT {counted} FROM page_rows WHERE {_where(filter.but(show='all'))}", filter)
        return {name: int(value or 0) for name, value in row.items()}

    def values(self, filter: Filter, column: str) -> list[tuple[str, int]]:
        """The kinds of questions, or the splits, with how many pairs each would list."""
        rows = self.rows(
            f"SELECT {column} AS value, count(*) AS n FROM page_rows WHERE {_where(filter.but(**{column: None}))}"
            " GROUP BY value ORDER BY n DESC, value",
            filter,
        )
        return [(row["value"] or "", row["n"]) for row in rows]

    def page(
        self, filter: Filter, after: int | None = None, before: int | None = None, rows: int = PAGE_ROWS
    ) -> Page:
        """The rows after a place, or those before one; a place that is not there begins at the front."""
        at = before if before is not None else after
        _, key = SORTS[filter.sort]
        begin = self.rows(f"SELECT {key} AS key FROM page_rows WHERE place = $at", at=at)
        backwards = bool(begin) and before is not None
        way, direction = ("<", "DESC") if backwards else (">", "ASC")
        beyond = f"AND ({key}, place) {way} ($key, $at)" if begin else ""
        found = self.rows(
            f"SELECT * FROM page_rows WHERE {_where(filter)} {beyond}"
            f" ORDER BY {key} {direction}, place {direction} LIMIT {rows + 1}",
            filter,
            at=at,
            key=begin[0]["key"] if begin else None,
        )
        more, found = len(found) > rows, found[:rows]
        if backwards:
            return Page(found[::-1], before=more, after=True)
        return Page(found, before=bool(begin), after=more)

    def position(self, filter: Filter, place: int) -> int:
        """How many rows there are up to this one."""
        _, key = SORTS[filter.sort]
        (row,) = self.rows(
            f"SELECT count(*) AS n FROM page_rows WHERE {_where(filter)}"
            f" AND ({key}, place) <= (SELECT ({key}, place) FROM page_rows WHERE place = $at)",
            filter,
            at=place,
        )
        return int(row["n"])

    def words(self, rows: list[Row]) -> dict[str, str]:
        """The texts of the questions and responses of some rows, and the files of their videos, by their ids."""
        found: dict[str, str] = {}
        for table, key, text, columns in (
            ("questions", "question_id", "text", ("question_id",)),
            ("responses", "response_id", "text", ("response_a", "response_b")),
            ("videos", "video_id", "uri", ("video_id",)),
        ):
            ids = [row[column] for row in rows for column in columns if row[column]]
            sql = f"SELECT {key} AS id, {text} AS text FROM {table} WHERE {key} IN (SELECT unnest($ids::VARCHAR[]))"
            found |= {row["id"]: row["text"] for row in self.rows(sql, ids=ids)}
        return found

    def rows(self, sql: str, filter: Filter | None = None, **parameters: Any) -> list[Row]:
        """The rows of a query, in which a filter's values are `$judge`, `$kind`, `$split`, and `found` its search."""
        if filter is not None:
            parameters |= {"judge": filter.judge, "kind": filter.kind, "split": filter.split}
        with self._connection.cursor() as cursor:
            if filter is not None and filter.text:
                cursor.register("found", self.find(filter.text))
            return records(cursor, sql, {name: value for name, value in parameters.items() if f"${name}" in sql})

    def _find(self, text: str) -> pa.Table:
        """The places of rows that hold a text."""
        with self._connection.cursor() as cursor:
            return cursor.sql(FIND, params={"text": text.lower()}).to_arrow_table()


def _where(filter: Filter) -> str:
    """The conditions of a filter."""
    asked = ["judge = $judge", SHOWS[filter.show][1]]
    asked += [f"{column} = ${column}" for column in ("kind", "split") if getattr(filter, column) is not None]
    return " AND ".join([*asked, *(["place IN (SELECT place FROM found)"] if filter.text else [])])
