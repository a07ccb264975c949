"""`vlm-rlaif merge`, `remove` and `doctor`: warehouses united, videos taken out, damage found."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlm_rlaif.warehouse.cli import EXIT_FAILED_ROWS, print_rows, warehouse_argument
from vlm_rlaif.warehouse.errors import UserError, interruptible
from vlm_rlaif.warehouse.inspection.printing import printable

if TYPE_CHECKING:
    from vlm_rlaif.warehouse.care.doctor import Diagnosis
    from vlm_rlaif.warehouse.care.merge import Merged
    from vlm_rlaif.warehouse.care.remove import Plan


@click.command()
@warehouse_argument
@click.argument("others", metavar="OTHER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Compare, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON, with every row that differs.")
def merge(warehouse: Path, others: tuple[Path, ...], dry_run: bool, as_json: bool) -> int:
    """Unite other warehouses with this one, by ids.

    Where both have a row, the first stored one stands; rows that differ under one id are listed (exit code 3).
    """
    from vlm_rlaif.warehouse.care.merge import SHOWN
    from vlm_rlaif.warehouse.care.merge import merge as unite
    from vlm_rlaif.warehouse.store import Warehouse

    with interruptible():
        united = unite(Warehouse.open(warehouse), others, dry_run=dry_run, shown=sys.maxsize if as_json else SHOWN)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in united]))
    else:
        for one in united:
            _tell_merged(one, warehouse, dry_run)
    return EXIT_FAILED_ROWS if any(one.differing for one in united) else 0


def _tell_merged(one: Merged, warehouse: Path, dry_run: bool) -> None:
    new = ", ".join(f"{table} {count:,}" for table, count in one.new.items())
    said = [f"{sum(one.new.values()):,} rows {'would be new' if dry_run else 'new'} ({new})"] if new else []
    if one.moved:
        said.append(f"{one.moved:,} found at a new place")
    if one.readable:
        said.append(f"{one.readable:,} videos readable now")
    click.echo(f"merge: {one.other}: {', '.join(said) or 'nothing new'}")
    if one.journals:
        done = "are not in it yet, a merge brings them in first" if dry_run else "were merged into it first"
        click.echo(f"Journals of jobs that died beside it: {one.journals:,}; they {done}")
    if one.left_out:
        click.echo(f"Left out, of videos that were removed here: {sum(one.left_out.values()):,} rows")
    if one.differing:
        counts = ", ".join(f"{table} {count:,}" for table, count in one.differing.items())
        click.echo(f"Different under one id ({counts}); the rows that were here first stand:")
        print_rows([{**asdict(row), "columns": ", ".join(row.columns)} for row in one.differences])
        if (more := sum(one.differing.values()) - len(one.differences)) > 0:
            click.echo(f"and {more:,} more: vlm-rlaif merge {warehouse} {one.other} --json")
    if one.removed_there:
        click.echo("Removed there, and still here. To remove them here, too:")
        click.echo(f"  vlm-rlaif remove {warehouse} {_one_line(' '.join(one.removed_there))}")
    if one.elsewhere:
        click.echo("Checkpoints whose folders are not below this warehouse (they were not copied):")
        click.echo("\n".join(f"  {_one_line(place)}" for place in one.elsewhere))


@click.command()
@warehouse_argument
@click.argument("video_ids", metavar="VIDEO_ID...", nargs=-1)
@click.option("--reason", default="", help="Why; kept beside the video's hash.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--undo", is_flag=True, help="Let removed videos be added again. Their rows do not come back.")
@click.option("--purge", is_flag=True, help="Write the file anew, so that deleted words are not in its free blocks.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def remove(
    warehouse: Path, video_ids: tuple[str, ...], reason: str, dry_run: bool, yes: bool, undo: bool, purge: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Take videos out, with all that was made of them.

    The hash of a video stays, and `add`, `import` and `merge` refuse it from then on. Its file is not deleted.
    """
    from vlm_rlaif.warehouse.care import remove as removal
    from vlm_rlaif.warehouse.care.purge import purge as write_anew
    from vlm_rlaif.warehouse.store import Warehouse

    if not video_ids and not purge:
        raise UserError("Which video?", f'vlm-rlaif sql {warehouse} "SELECT video_id, uri FROM videos"')
    opened = Warehouse.open(warehouse)
    said: dict[str, Any] = {}
    with interruptible():
        if undo:
            said = {"may_be_added_again": removal.undo(opened, video_ids)}
        elif dry_run:
            said = {**asdict(removal.plan(opened, video_ids)), "dry_run": True}
        elif video_ids:
            if not yes:
                _ask(removal.plan(opened, video_ids), warehouse, video_ids)
            went, run_id = removal.remove(opened, video_ids, reason)
            said = {**asdict(went), "run_id": run_id}
        if purge and not dry_run:
            said["bytes_before"], said["bytes_after"] = write_anew(opened)
    click.echo(json.dumps(said, default=str) if as_json else _removed(said, warehouse))


def _ask(going: Plan, warehouse: Path, video_ids: tuple[str, ...]) -> None:
    """Let the person at the keyboard decide; nobody is there to ask when a script runs."""
    if not going.rows:
        return
    if not sys.stdin.isatty():
        command = f"vlm-rlaif remove {warehouse} {' '.join(video_ids)} --yes"
        raise UserError(f"{going.total:,} rows would go for good. To do it without being asked:", command)
    click.echo(_removed({**asdict(going), "dry_run": True}, warehouse), err=True)
    click.confirm("Take them out?", abort=True, err=True)


HOLDERS = {
    "versions": "Versions of the data set that held them keep ids and verdicts, no words",
    "exports": "Exports that hold them",
    "checkpoints": "Checkpoints that learned from them",
    "maybe": "Checkpoints that may have learned from them (which rows they read was not recorded)",
    "places": "The files stay where they are",
}


def _removed(said: dict[str, Any], warehouse: Path) -> str:
    """What `remove` did, in words."""
    lines = []
    if "may_be_added_again" in said:
        lines.append(f"remove: may be added again: {', '.join(said['may_be_added_again']) or 'nothing was removed'}")
    if "rows" in said:
        counts = {table: sum(by_video.values()) for table, by_video in said["rows"].items()}
        verb = "would go" if said.get("dry_run") else "taken out"
        each = ", ".join(f"{table} {count:,}" for table, count in counts.items())
        lines.append(f"remove: {sum(counts.values()):,} rows {verb} ({each})" if counts else "remove: nothing to do")
        for key, what in HOLDERS.items():
            if said[key]:
                lines += [f"{what}:", *(f"  {_one_line(line)}" for line in said[key])]
        if said["frames"]:
            lines.append(f"Files of cached frames and copies for browsers, deleted too: {len(said['frames']):,}")
        if counts and not said.get("dry_run") and "bytes_after" not in said:
            hint = f"vlm-rlaif remove {warehouse} --purge"
            lines.append(f"Deleted words may stay in free blocks of the file until it is written anew: {hint}")
    if "bytes_after" in said:
        lines.append(f"purge: written anew, {said['bytes_before']:,} bytes before, {said['bytes_after']:,} now")
    return "\n".join(lines)


def _one_line(text: object) -> str:
    """What comes from data, on one line and without power over the terminal."""
    return printable(str(text)).replace("\n", " ")


@click.command()
@warehouse_argument
@click.option("--hashes", is_flag=True, help="Read every byte: all blocks of the file, all ids, all videos.")
@click.option("--repair", is_flag=True, help="Mend what is safe to mend first. Never deletes a row.")
@click.option("--json", "as_json", is_flag=True, help="Print the diagnosis as JSON.")
def doctor(warehouse: Path, hashes: bool, repair: bool, as_json: bool) -> int:
    """Check a warehouse: its rows, ids, files, jobs, checkpoints; say how to mend what is wrong (exit code 3)."""
    from vlm_rlaif.warehouse.care.doctor import examine

    with interruptible():
        found = examine(warehouse, hashes=hashes, repair=repair)
    if as_json:
        click.echo(json.dumps({**asdict(found), "healthy": found.healthy}))
    else:
        _tell_diagnosis(found)
    return 0 if found.healthy else EXIT_FAILED_ROWS


def _tell_diagnosis(found: Diagnosis) -> None:
    for line in found.repaired:
        click.echo(f"repaired: {_one_line(line)}")
    for finding in sorted(found.findings, key=lambda finding: finding.harmless):
        click.echo(f"{'note' if finding.harmless else 'FOUND'}: {finding.what}: {finding.count:,}")
        for example in finding.examples:
            click.echo(f"    {_one_line(example)}")
        if finding.mend:
            click.echo(f"    mend: {finding.mend}")
    verdict = "is healthy" if found.healthy else "needs care"
    size = f"{sum(found.rows.values()):,} rows, {found.bytes / 1e6:,.1f} MB"
    click.echo(f"{found.path} {verdict}: {size}, DuckDB {found.duckdb}, format {found.storage}")
