"""`vlm-rlaif dataset ...` and `vlm-rlaif export`: named versions of the preferences, and files for other trainers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlm_rlaif.warehouse.cli import EXIT_FAILED_ROWS, print_rows, warehouse_argument
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.inspection.printing import printable

if TYPE_CHECKING:
    from vlm_rlaif.warehouse.exports.export import Exported
    from vlm_rlaif.warehouse.exports.versions import Selection

LISTED_CHANGES = 20
LISTED_FILES = 5


def selection_options(command: Any) -> Any:
    """The options that choose preferences."""
    for option in reversed(
        [
            click.option("--judge", help="Spec id of the judge, or the name of its prompt."),
            click.option("--min-strength", type=click.FloatRange(0, 1), default=0.0, help="Leave out weaker ones."),
            click.option("--split", type=click.Choice(["train", "val", "test"]), help="Of this split alone."),
            click.option("--where", help="A condition of SQL on the view `preferences`."),
            click.option("--gold", is_flag=True, help="Take people's verdicts where they have judged a pair."),
        ]
    ):
        command = option(command)
    return command


def selection_of(
    judge: str | None, min_strength: float, split: str | None, where: str | None, gold: bool
) -> Selection:  # fmt: skip
    from vlm_rlaif.warehouse.exports.versions import Selection

    return Selection(judge=judge, min_strength=min_strength, split=split, where=where, gold=gold)


@click.group()
def dataset() -> None:
    """Named, immutable versions of the preferences: create, list, compare."""


@dataset.command()
@warehouse_argument
@click.argument("name")
@selection_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def create(warehouse: Path, name: str, as_json: bool, **chosen: Any) -> None:
    """Freeze preferences, with their verdicts as they are now, under NAME."""
    from vlm_rlaif.warehouse.exports import versions
    from vlm_rlaif.warehouse.store import Warehouse

    made = versions.create(Warehouse.open(warehouse), name, selection_of(**chosen))
    click.echo(json.dumps({**asdict(made.version), "fresh": made.fresh}) if as_json else str(made))


@dataset.command(name="list")
@warehouse_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(warehouse: Path, as_json: bool) -> None:
    """List the versions, the newest first: how many preferences, how they were chosen, the hash of their rows."""
    from vlm_rlaif.warehouse.exports.versions import list_versions
    from vlm_rlaif.warehouse.store import Warehouse

    print_rows(list_versions(Warehouse.open(warehouse)), "json" if as_json else "table")


@dataset.command()
@warehouse_argument
@click.argument("before")
@click.argument("after")
@click.option(
    "--format", "form", type=click.Choice(["table", "csv", "json", "markdown"]), default="table",
    show_default=True, help="How to print the rows that changed.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the counts, and the rows.")
@click.option("--limit", type=click.IntRange(min=0), default=LISTED_CHANGES, show_default=True, help="Rows to list.")
def diff(warehouse: Path, before: str, after: str, form: str, as_json: bool, limit: int) -> None:
    """Compare two versions: preferences added, removed, flipped, or with another probability."""
    from vlm_rlaif.warehouse.exports import versions
    from vlm_rlaif.warehouse.store import Warehouse

    found = versions.compare(Warehouse.open(warehouse), before, after, limit)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
        return
    click.echo(str(found), err=form in ("csv", "json"))
    if found.rows:
        print_rows(found.rows, form)
    if (more := found.changed - len(found.rows)) > 0:
        click.echo(f"... {more:,} more rows; --limit N lists N.", err=True)


@click.command()
@warehouse_argument
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", required=True, help="trl, llama-factory, ms-swift, llava, vlm-rlaif, parquet or hf."
)
@click.option("--dataset", "name", help="This version (vlm-rlaif dataset list); otherwise the selection is frozen.")
@selection_options
@click.option(
    "--videos", type=click.Choice(["path", "copy", "link"]), default="path", show_default=True,
    help="Name the videos by absolute path, or put them in OUT/videos.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), help="Write the first N preferences alone.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@click.option("--force", is_flag=True, help="Replace another export in OUT.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(
    warehouse: Path, out: Path, form: str, name: str | None, videos: str, limit: int | None, dry_run: bool,
    force: bool, as_json: bool, **chosen: Any,
) -> int:  # fmt: skip
    """Write preferences to the folder OUT for another trainer, with a card that says what they are."""
    from vlm_rlaif.warehouse.exports import versions
    from vlm_rlaif.warehouse.exports.export import AUTOMATIC, Asked, absolute, preview
    from vlm_rlaif.warehouse.exports.export import export as write
    from vlm_rlaif.warehouse.exports.formats import format_named
    from vlm_rlaif.warehouse.store import Warehouse

    kind, opened, selection = format_named(form), Warehouse.open(warehouse), selection_of(**chosen)
    taken = None
    if name is None:
        taken = versions.take(opened, selection)
        version = versions.version_of(opened, taken, AUTOMATIC, selection.query)
    elif selection == selection_of(None, 0.0, None, None, gold=False):
        version = versions.find(opened, name)
    else:
        raise UserError(f"--dataset {name} names the preferences: it goes without options that choose some.")
    asked = Asked(version=version, kind=kind, out=absolute(out), videos=videos, limit=limit)
    if dry_run:
        done = preview(opened, asked, taken or versions.taken_of(opened, version))
    else:
        done = write(opened, asked, force=force, taken=taken)
    if as_json:
        click.echo(json.dumps({**asdict(done), "written": done.fresh}))
    else:
        state = "would be written to" if dry_run else "written to" if done.fresh else "stand in"
        _tell(done, f"{state} {out}", missing=done.fresh or dry_run)
    return EXIT_FAILED_ROWS if done.missing and done.fresh else 0


def _tell(done: Exported, state: str, missing: bool) -> None:
    splits = ", ".join(f"{split} {rows:,}" for split, rows in done.rows.items())
    click.echo(f"export: {sum(done.rows.values()):,} preferences {state} as {done.format} ({splits})")
    click.echo(f"dataset {done.dataset}, rows {done.rows_hash}")
    if done.judges > 1:
        click.echo(f"{done.judges} judges: a pair may be there as many times (--judge takes one of them)")
    if done.ties:
        click.echo(f"{done.ties:,} ties are left out: this format names a better response")
    if done.unfit:
        click.echo(f"{done.unfit:,} are left out: their texts hold <video>, <image> or <audio>")
    if missing:
        for video in done.missing[:LISTED_FILES]:
            click.echo(f"missing video: {printable(video)}", err=True)
        if (more := len(done.missing) - LISTED_FILES) > 0:
            click.echo(f"... and {more:,} more missing videos (--json lists all)", err=True)
