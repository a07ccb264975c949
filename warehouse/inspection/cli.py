"""`vlm-rlaif show` and `snapshot`: one pair with everything around it, and a copy to look at while jobs write."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import click

from vlm_rlaif.warehouse.cli import warehouse_argument
from vlm_rlaif.warehouse.inspection.printing import finite, plain, printable

LISTED_PAIRS = 20
PAGE_WIDTH = 100
"""Columns, at most: longer lines of prose are hard to read."""


def page_width() -> int:
    """Columns of a page of prose on this terminal."""
    return min(PAGE_WIDTH, shutil.get_terminal_size().columns) if sys.stdout.isatty() else PAGE_WIDTH


@click.command()
@warehouse_argument
@click.argument("row_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(warehouse: Path, row_id: str, as_json: bool) -> None:
    """Print one pair with everything around it: video, context, question, responses, labels, preferences, failures.

    ID is that of a pair, or of one of its labels or responses; with the id of a question or a video, its pairs are
    listed. The first six characters of an id are enough where no other id begins with them.
    """
    from vlm_rlaif.warehouse.inspection.card import lines
    from vlm_rlaif.warehouse.inspection.show import card, list_pairs, pairs_of
    from vlm_rlaif.warehouse.store import Warehouse

    opened = Warehouse.open(warehouse)
    found, pairs = pairs_of(opened, row_id)
    if len(pairs) == 1:
        shown = card(opened, pairs[0])
        text = (
            json.dumps(finite(shown), default=plain, indent=1) if as_json else "\n".join(lines(shown, page_width()))
        )
        click.echo(text)
        return
    listed = list_pairs(opened, pairs[:LISTED_PAIRS])
    if as_json:
        click.echo(json.dumps({"table": found.table, "id": found.id, "pairs": len(pairs), "first": listed}, indent=1))
        return
    click.echo(f"The {found.table.removesuffix('s')} {found.id} has {len(pairs) or 'no'} pairs.")
    for row in listed:
        click.echo("")
        for name in ("question", "response_a", "response_b"):
            click.echo(f"{name.replace('_', ' '):<12}{printable(row[name] or '(missing)')}")
        click.echo(f"vlm-rlaif show {warehouse} {row['pair_id']}")
    if len(pairs) > LISTED_PAIRS:
        click.echo(f"... {len(pairs) - LISTED_PAIRS:,} more pairs")


@click.command()
@warehouse_argument
@click.argument("target", metavar="COPY", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def snapshot(warehouse: Path, target: Path, force: bool, as_json: bool) -> None:
    """Copy a warehouse, whole and consistent, while jobs write to it: COPY may stay open as long as you like."""
    from vlm_rlaif.warehouse.inspection.snapshot import take
    from vlm_rlaif.warehouse.store import Warehouse

    taken = take(Warehouse.open(warehouse), target, force=force)
    if as_json:
        click.echo(json.dumps(asdict(taken)))
        return
    later = f"; {taken.journaled_rows:,} finished rows of jobs are not in it yet" if taken.journaled_rows else ""
    click.echo(f"{taken.path}: {taken.bytes / 1e6:.1f} MB{later}")
