"""Rows on standard output: an aligned table, CSV, JSON or Markdown.

Text from data is shown and never obeyed: what a model wrote cannot move the cursor of a terminal, end a cell of a
Markdown table or become a link in it. CSV and JSON keep every character, so that a program reads back what was there.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from decimal import Decimal
from itertools import islice
from typing import Any, Protocol

import click

FORMS = ("table", "csv", "json", "markdown")
SHOWN_ROWS = 1000
"""Rows of a table for people; a program reads CSV or JSON, which have no end."""
WIDTH = 160
"""Columns of a table that goes to no terminal."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_MARKDOWN = re.compile(r"[\\`*\[\]<&~|]|(?<!\w)_|_(?!\w)")


class Rows(Sized, Iterable[dict[str, Any]], Protocol):
    """A list of rows, or rows that lie on the disk."""


def printable(text: str) -> str:
    """Text that a terminal can only show: control characters, and marks that turn text around, become their codes.

    >>> print(printable("red" + chr(27) + "[2J"))
    red\\x1b[2J
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def print_rows(rows: Rows, form: str = "table", columns: Sequence[str] = (), limit: int | None = None) -> None:
    """Print rows as an aligned table, CSV, JSON or Markdown.

    `columns` names the columns, which a list with rows in it knows by itself. `limit` None prints everything as CSV
    or JSON, and the first rows as a table or as Markdown; what is left out is counted on standard error.
    """
    names = list(columns) or list(next(iter(rows), {}))
    most = limit if limit is not None else len(rows) if form in ("csv", "json") else SHOWN_ROWS
    {"csv": _csv, "json": _json, "markdown": _markdown, "table": _table}[form](names, islice(rows, most))
    if (rest := len(rows) - most) > 0:
        click.echo(f"... {rest:,} more rows. --format csv prints all of them, --limit N the first N.", err=True)


def _csv(names: list[str], rows: Iterator[dict[str, Any]]) -> None:
    import csv

    shown = printable if sys.stdout.isatty() else str
    writer = csv.writer(sys.stdout)
    writer.writerow(map(shown, names))
    for row in rows:
        writer.writerow(shown(value) if isinstance(value, str) else value for value in row.values())


def _json(names: list[str], rows: Iterator[dict[str, Any]]) -> None:
    before = "["
    for row in rows:
        text = json.dumps(finite(row), default=plain, indent=1)
        sys.stdout.write(f"{before}\n " + text.replace("\n", "\n "))
        before = ","
    sys.stdout.write("[]\n" if before == "[" else "\n]\n")


def _markdown(names: list[str], rows: Iterator[dict[str, Any]]) -> None:
    click.echo(_line(map(_escape, names)))
    click.echo(_line(["---"] * len(names)))
    for row in rows:
        click.echo(_line(_escape(cell(value)) for value in row.values()))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """Text as the cell of a Markdown table, without markup of its own."""
    escaped = _MARKDOWN.sub(lambda m: {"<": "&lt;", "&": "&amp;"}.get(m[0], f"\\{m[0]}"), text)
    return printable(escaped).replace("\t", " ").replace("\n", "<br>")


def _table(names: list[str], rows: Iterator[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(printable(name), overflow="fold")
    for row in rows:
        table.add_row(*(printable(cell(value)) for value in row.values()))
    if not table.row_count:
        click.echo("no rows")
        return
    console = Console(width=None if sys.stdout.isatty() else WIDTH, markup=False, emoji=False, highlight=False)
    with console.capture() as shown:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in shown.get().splitlines()))


def cell(value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are null, inside of lists and structs, too."""
    if isinstance(value, dict):
        return {str(name): finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain(value: Any) -> Any:
    """What JSON has no word for. DuckDB's sums of whole numbers and its constants are decimals."""
    if isinstance(value, Decimal):
        return int(value) if value == int(value) else float(value)
    return str(value)
