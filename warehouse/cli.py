"""The `vlm-rlaif` command. The ground floor's own commands are here; every other floor plugs its own in.

The warehouse is the first argument of every command that reads one. Mistakes of the user end with exit code 2 and
no traceback; a job that finished with failed rows ends with 3.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlm_rlaif.warehouse.errors import UserError, nearest

if TYPE_CHECKING:
    from vlm_rlaif.warehouse.runs import Outcome

EXIT_USER_ERROR = 2
EXIT_FAILED_ROWS = 3
EXIT_INTERRUPTED = 130


class Floors(click.Group):
    """Commands of this floor, and those that the installed floors register as entry points."""

    @functools.cached_property
    def plugins(self) -> dict[str, Any]:
        return {entry.name: entry for entry in entry_points(group="vlm_rlaif.stages")}

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted({*super().list_commands(context), *self.plugins})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in self.plugins:
            loaded: click.Command = self.plugins[name].load()
            return loaded
        return super().get_command(context, name)

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(context, args[0]) is None and not args[0].startswith("-"):
            known = self.list_commands(context)
            raise UserError(f"There is no command {args[0]!r}.{nearest(args[0], known)}", "vlm-rlaif --help")
        return super().resolve_command(context, args)


@click.group(cls=Floors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("vlm-rlaif"))
def cli() -> None:
    """Videos become preferences, a reward model and a better policy, all in one DuckDB file."""


def warehouse_argument(command: Any) -> Any:
    """The first argument of every command that reads a warehouse."""
    return click.argument("warehouse", type=click.Path(path_type=Path))(command)


@cli.command()
@warehouse_argument
def init(warehouse: Path) -> None:
    """Make a new, empty warehouse (or bring an old one up to date)."""
    from vlm_rlaif.warehouse.store import Warehouse

    Warehouse.create(warehouse)
    click.echo(f"{warehouse} is ready. Next: vlm-rlaif add {warehouse} FOLDER_OF_VIDEOS")


@cli.command()
@warehouse_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def tables(warehouse: Path, as_json: bool) -> None:
    """List the tables and views with their row counts."""
    from vlm_rlaif.warehouse.store import Warehouse

    opened = Warehouse.open(warehouse)
    found = opened.rows(
        "SELECT table_name AS name, lower(table_type) AS kind FROM information_schema.tables"
        " WHERE table_name <> 'migrations' ORDER BY table_type, table_name"
    )
    quoted = (t["name"].replace('"', '""') for t in found)
    counts = opened.rows(
        " UNION ALL ".join(f'SELECT {i} AS i, count(*) AS n FROM "{t}"' for i, t in enumerate(quoted))
    )
    rows = {row["i"]: row["n"] for row in counts}
    print_rows([{**t, "kind": t["kind"].replace("base ", ""), "rows": rows[i]} for i, t in enumerate(found)],
         "json" if as_json else "table")  # fmt: skip


@cli.command()
@warehouse_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--limit", type=click.IntRange(min=1), default=30, show_default=True, help="Newest runs to show.")
def runs(warehouse: Path, as_json: bool, limit: int) -> None:
    """List the newest runs: what ran, when, on what, and what came of it."""
    from vlm_rlaif.warehouse.store import Warehouse

    rows = Warehouse.open(warehouse).rows(
        "SELECT run_id, stage, status, engine, started_at, round(epoch(ended_at - started_at), 1) AS seconds,"
        " rows_written, rows_failed, tokens_in, tokens_out FROM runs ORDER BY started_at DESC LIMIT ?",
        [limit],
    )
    print_rows(rows, "json" if as_json else "table")


@cli.command()
@warehouse_argument
@click.argument("query")
@click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json", "markdown"]), default="table",
    show_default=True, help="How to print the result.",
)  # fmt: skip
def sql(warehouse: Path, query: str, form: str) -> None:
    """Run a read-only query and print the result."""
    import duckdb

    from vlm_rlaif.warehouse.store import Warehouse

    try:
        found = Warehouse.open(warehouse).arrow(query)
        rows = found.to_pylist()
    except (duckdb.Error, OverflowError) as error:
        raise UserError(str(error), f"vlm-rlaif tables {warehouse}") from None
    print_rows(rows, form, found.column_names)


def finish(outcomes: Sequence[Outcome], as_json: bool) -> int:
    """Print how stages ended; the exit code of the command."""
    if as_json:
        click.echo(json.dumps([asdict(outcome) for outcome in outcomes]))
    else:
        for outcome in outcomes:
            click.echo(str(outcome))
    return EXIT_FAILED_ROWS if any(outcome.failed or outcome.failed_before for outcome in outcomes) else 0


def print_rows(rows: list[dict[str, Any]], form: str = "table", columns: Sequence[str] = ()) -> None:
    """Print rows as an aligned table, CSV, JSON or Markdown. `columns` names those of an empty result."""
    if form == "json":
        click.echo(json.dumps([{k: _finite(v) for k, v in row.items()} for row in rows], default=_plain, indent=1))
        return
    names = list(rows[0]) if rows else columns
    if form == "csv":
        import csv

        writer = csv.DictWriter(sys.stdout, names)
        writer.writeheader()
        writer.writerows(rows)
        return
    cells = [[_cell(row[name]) for name in names] for row in rows]
    if form == "markdown":
        cells = [[cell.replace("|", "\\|").replace("\n", "<br>") for cell in line] for line in cells]
        lines = [names, ["---"] * len(names), *cells]
        click.echo("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return
    if not rows:
        click.echo("no rows")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    for line in cells:
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False).print(table)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    """What JSON has no word for. DuckDB's sums of whole numbers and its constants are decimals."""
    if isinstance(value, Decimal):
        return int(value) if value == int(value) else float(value)
    return str(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"


def main() -> None:
    """Entry point of the console script."""
    try:
        code = cli.main(standalone_mode=False)
    except UserError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(EXIT_USER_ERROR)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_USER_ERROR)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted. What is finished is kept: the same command continues from here.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)
