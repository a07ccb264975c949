"""The `vlm-rlaif` command. The ground floor's own commands are here; every other floor plugs its own in.

The warehouse is the first argument of every command that reads one. Mistakes of the user end with exit code 2 and
no traceback; a job that finished with failed rows ends with 3.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlm_rlaif.warehouse.errors import UserError, nearest
from vlm_rlaif.warehouse.inspection.printing import FORMS, SHOWN_ROWS
from vlm_rlaif.warehouse.inspection.printing import print_rows as print_rows

if TYPE_CHECKING:
    from vlm_rlaif.warehouse.runs import Outcome

EXIT_USER_ERROR = 2
EXIT_FAILED_ROWS = 3
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141


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
    """List the tables with their row counts, and the views with the questions that they answer."""
    from vlm_rlaif.warehouse.inspection.contents import contents
    from vlm_rlaif.warehouse.store import Warehouse

    print_rows(contents(Warehouse.open(warehouse)), "json" if as_json else "table")


@cli.command()
@warehouse_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--limit", type=click.IntRange(min=1), default=30, show_default=True, help="Newest runs to show.")
def runs(warehouse: Path, as_json: bool, limit: int) -> None:
    """List the newest runs: what ran, when, on what, and what came of it."""
    from vlm_rlaif.warehouse.store import Warehouse

    rows = Warehouse.open(warehouse).rows(
        "SELECT run_id, stage, status, engine, started_at, round(epoch(ended_at - started_at), 1) AS seconds,"
        " rows_written, rows_failed, tokens_in, tokens_out, bound_by FROM runs ORDER BY started_at DESC LIMIT ?",
        [limit],
    )
    print_rows(rows, "json" if as_json else "table", limit=limit)


@cli.command()
@warehouse_argument
@click.argument("query")
@click.option(
    "--format", "form", type=click.Choice(FORMS), default="table", show_default=True, help="How to print the result."
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    help=f"Print the first rows [default: {SHOWN_ROWS} of a table or Markdown, all of CSV or JSON].",
)
def sql(warehouse: Path, query: str, form: str, limit: int | None) -> None:
    """Run a query and print the result: one that reads this warehouse, and can do nothing else.

    QUERY is SQL, @FILE (a file with the query), or - (read it from standard input).
    """
    from vlm_rlaif.warehouse.inspection.query import ask, given
    from vlm_rlaif.warehouse.store import Warehouse

    names, rows = ask(Warehouse.open(warehouse), given(query))
    print_rows(rows, form, names, limit)


def finish(outcomes: Sequence[Outcome], as_json: bool) -> int:
    """Print how stages ended; the exit code of the command."""
    if as_json:
        click.echo(json.dumps([asdict(outcome) for outcome in outcomes]))
    else:
        for outcome in outcomes:
            click.echo(str(outcome))
    return exit_code(outcomes)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Of a command that ran to its end."""
    return EXIT_FAILED_ROWS if any(outcome.failed or outcome.failed_before for outcome in outcomes) else 0


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
    except BrokenPipeError:  # `vlm-rlaif ... | head`: nobody reads on, and Python must not say so when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_PIPE)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted. What is finished is kept: the same command continues from here.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)
