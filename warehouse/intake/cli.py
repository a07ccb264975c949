"""`vlm-rlaif add`, `import`, `transcripts` and `relocate`: what comes into a warehouse, and where it lies."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlm_rlaif.warehouse.cli import EXIT_FAILED_ROWS, finish, warehouse_argument
from vlm_rlaif.warehouse.intake.meanings import COLUMNS

if TYPE_CHECKING:
    from vlm_rlaif.warehouse.runs import Outcome

SHOWN = 20
"""How many bad records, and missing videos, are shown."""


@click.command()
@warehouse_argument
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--questions", type=click.Path(path_type=Path), help="JSONL with a `question` a line.")
@click.option("--frames", is_flag=True, help="A folder of images (jpg, png) is a video, too.")
@click.option("--licence", help="The licence of new videos; the card of an export names it.")
@click.option("--again", is_flag=True, help="Take back videos that `vlm-rlaif remove` took out.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def add(
    warehouse: Path, folder: Path, questions: Path | None, frames: bool, licence: str | None, again: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """Add the videos below FOLDER, and questions about them."""
    from vlm_rlaif.warehouse.intake.add import add_questions, add_videos
    from vlm_rlaif.warehouse.intake.questions import read_questions
    from vlm_rlaif.warehouse.store import Warehouse

    opened = Warehouse.open(warehouse)
    if questions:
        read_questions(questions)  # complain about a bad file before any video is read
    added = add_videos(opened, folder, frames=frames, again=again, licence=licence)
    for problem in added.unreadable:
        click.echo(f"unreadable: {problem}", err=True)
    for video_id, path in added.removed.items():
        click.echo(f"left out: {path}: its video {video_id} was taken out. To take it back:", err=True)
        click.echo(shlex.join(["vlm-rlaif", "add", str(warehouse), path, "--again"]), err=True)
    outcomes: list[Outcome] = [added]
    if questions:
        outcomes.append(add_questions(opened, questions, added.video_ids))
    finish(outcomes, as_json)
    return EXIT_FAILED_ROWS if added.unreadable else 0


def column_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--question-column NAME` and its like."""
    for what in reversed(list(COLUMNS)):
        held = what.replace("-", " ")
        command = click.option(f"--{what}-column", metavar="NAME", help=f"The column of the {held}.")(command)
    return command


@click.command(name="import")
@warehouse_argument
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE_OR_FOLDER...")
@click.option(
    "--videos", required=True, type=click.Path(path_type=Path), metavar="ROOT",
    help="The folder below which the videos, or their frames, lie.",
)  # fmt: skip
@click.option("--format", "form", default="auto", show_default=True, help="How the records are written.")
@click.option("--source", help="What the rows are called. [default: the name of each file]")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="The split of new videos.")
@column_options
@click.option("--strict", is_flag=True, help="Write nothing if a record is bad.")
@click.option("--limit", type=click.IntRange(min=1), help="Read this many records.")
@click.option("--dry-run", is_flag=True, help="Read everything, videos too, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON, with all bad records.")
def import_(
    warehouse: Path, paths: tuple[Path, ...], videos: Path, form: str, source: str | None, split: str | None,
    strict: bool, limit: int | None, dry_run: bool, as_json: bool, **columns: str | None,
) -> int:  # fmt: skip
    """Read other people's files: conversations, questions and answers, preferences.

    The format is recognised by the first records; docs/import.md shows each.
    """
    from vlm_rlaif.warehouse.intake.importing import import_files
    from vlm_rlaif.warehouse.intake.sources import Wishes
    from vlm_rlaif.warehouse.store import Warehouse

    named = {what: name for what in COLUMNS if (name := columns[f"{what.replace('-', '_')}_column"]) is not None}
    wishes = Wishes(
        videos=videos, format=form, source=source, split=split, columns=named, limit=limit, strict=strict,
        dry_run=dry_run, every_bad=as_json,
    )  # fmt: skip
    imported = import_files(Warehouse.open(warehouse), paths, wishes)
    for reason in imported.bad[:SHOWN]:
        click.echo(f"bad: {reason}", err=True)
    if imported.failed > SHOWN:
        click.echo(f"... and {imported.failed - SHOWN} more; --json lists all", err=True)
    if not as_json:
        for file, taken, records in imported.files:
            click.echo(f"{file}: {records} records, read as {taken}")
    return finish([imported], as_json)


@click.command()
@warehouse_argument
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--language", help="Of several files for one video, the one that is called cat.LANGUAGE.srt.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON, with all problems.")
def transcripts(warehouse: Path, folder: Path, language: str | None, as_json: bool) -> int:
    """Add what is said in the videos: files of subtitles (.srt, .vtt) that are named like them."""
    from vlm_rlaif.warehouse.intake.transcripts import add_transcripts
    from vlm_rlaif.warehouse.store import Warehouse

    done = add_transcripts(Warehouse.open(warehouse), folder, language)
    for problem in done.problems[:SHOWN]:
        click.echo(f"left out: {problem}", err=True)
    if done.failed > SHOWN:
        click.echo(f"... and {done.failed - SHOWN} more; --json lists all", err=True)
    if done.late:
        click.echo(f"{done.late} narratives were made before, without what is said, and stay as they are.", err=True)
    return finish([done], as_json)


@click.command()
@warehouse_argument
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def relocate(warehouse: Path, folder: Path, as_json: bool) -> int:
    """Find videos that have moved to FOLDER, by their bytes. Nothing is added."""
    from vlm_rlaif.warehouse.intake.relocate import relocate_videos
    from vlm_rlaif.warehouse.store import Warehouse

    relocated = relocate_videos(Warehouse.open(warehouse), folder)
    for uri in relocated.missing_uris[:SHOWN]:
        click.echo(f"missing: {uri}", err=True)
    if relocated.failed > SHOWN:
        click.echo(f"... and {relocated.failed - SHOWN} more; --json lists all", err=True)
    return finish([relocated], as_json)
