"""`vlm-rlaif feedback audit ...`: people judge a sample of the pairs, in Label Studio."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlm_rlaif.warehouse.cli import EXIT_FAILED_ROWS, warehouse_argument
from vlm_rlaif.warehouse.inspection.printing import printable

if TYPE_CHECKING:
    from vlm_rlaif.feedback.audit.label_studio import Task
    from vlm_rlaif.feedback.audit.planning import Plan
    from vlm_rlaif.feedback.audit.pull import Lacking, Pulled
    from vlm_rlaif.feedback.audit.push import Pushed
    from vlm_rlaif.feedback.audit.status import Status

LISTED = 20
"""Refused results that are printed; `failures` has them all."""
DEFAULT_HALF_WIDTH = 0.05

url_option = click.option("--url", help="Label Studio [default: LABEL_STUDIO_URL, or http://127.0.0.1:8080].")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def audit() -> None:
    """Let people judge a sample of the pairs in Label Studio: plan, push, serve, status, pull, close."""


@audit.command()
@warehouse_argument
@click.argument("name")
@click.option("--judge", help="Whose labels: its spec, or the name of its prompt [default: the only judge].")
@click.option("--size", type=click.IntRange(min=1), help="How many pairs.")
@click.option("--half-width", type=click.FloatRange(0.001, 0.5), help="As many pairs as a 95 % interval of the"
              f" agreement of +- this needs [default: {DEFAULT_HALF_WIDTH}].")  # fmt: skip
@click.option("--agreement", type=click.FloatRange(0.01, 0.99), default=0.5, show_default=True,
              help="Agreement that is expected; 0.5 needs the most pairs.")  # fmt: skip
@click.option("--correlation", type=click.FloatRange(0, 1), default=0.1, show_default=True,
              help="Of the errors within a video.")  # fmt: skip
@click.option("--overlap", type=click.FloatRange(0, 1), default=0.2, show_default=True,
              help="Share of the pairs that several people see.")  # fmt: skip
@click.option("--annotators", type=click.IntRange(1, 100), default=2, show_default=True, help="How many see those.")
@click.option("--strata", default="confidence,conflict,length,source", show_default=True,
              help="What the sample is balanced by; `none` for nothing.")  # fmt: skip
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Pairs of this split alone.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another one draws another sample.")
@click.option("--dry-run", is_flag=True, help="Say what would be planned, and write nothing.")
@json_option
def plan(
    warehouse: Path, name: str, judge: str | None, size: int | None, half_width: float | None, strata: str,
    dry_run: bool, as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Draw the pairs that people are to judge, and on which side each answer is shown."""
    from vlm_rlaif.feedback.audit.planning import Asked, plan_audit
    from vlm_rlaif.feedback.known import find_judge
    from vlm_rlaif.warehouse.store import Warehouse

    opened = Warehouse.open(warehouse)
    wanted = DEFAULT_HALF_WIDTH if size is None and half_width is None else half_width
    names = [] if strata == "none" else [stratum.strip() for stratum in strata.split(",")]
    asked = Asked(judge=find_judge(opened, judge), size=size, half_width=wanted, strata=names, **settings)
    made = plan_audit(opened, name, asked, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(asdict(made)))
    else:
        _tell_plan(made, asked, dry_run, warehouse)


def _tell_plan(made: Plan, asked: Any, dry_run: bool, warehouse: Path) -> None:
    from vlm_rlaif.feedback.audit.planning import arithmetic
    from vlm_rlaif.feedback.audit.tasks import command
    from vlm_rlaif.warehouse.cli import print_rows

    for line in arithmetic(made, asked):
        click.echo(line)
    rows = [asdict(stratum) | {"weight": round(stratum.population / stratum.pairs, 2)} for stratum in made.strata]
    print_rows(rows, "table", limit=len(rows))
    verdicts = made.size.pairs + made.shared * (asked.annotators - 1)
    click.echo(f"{made.shared:,} of the pairs are seen by {asked.annotators} people: {verdicts:,} verdicts in all.")
    state = "stands already" if not made.fresh else "is not written (--dry-run)" if dry_run else "is written"
    click.echo(f"audit-plan: {made.name} {state}.")
    if not dry_run or not made.fresh:
        click.echo(f"Next: {command('push', warehouse, made.name)}")


@audit.command()
@warehouse_argument
@click.argument("name")
@url_option
@click.option("--videos", help="Address of `audit serve`, as browsers reach it [default: http://127.0.0.1:8078].")
@click.option("--local-files", type=click.Path(path_type=Path, file_okay=False),
              help="Copy the videos below this folder, the document root of Label Studio, instead.")  # fmt: skip
@click.option("--new-project", is_flag=True, help="Make another project, because the old one is gone, or was"
              " spoilt. Pull first: what was not pulled from the old one stays there.")  # fmt: skip
@click.option(
    "--restore-config",
    is_flag=True,
    help="Put the labeling config back, if somebody changed it, or this version has another.",
)
@json_option
def push(
    warehouse: Path, name: str, url: str | None, videos: str | None, local_files: Path | None, new_project: bool,
    restore_config: bool, as_json: bool,
) -> int:  # fmt: skip
    """Make a project on the server with a task for every pair that is not there yet."""
    from vlm_rlaif.feedback.audit import places
    from vlm_rlaif.feedback.audit.label_studio import connect
    from vlm_rlaif.feedback.audit.push import push as bring
    from vlm_rlaif.feedback.audit.tasks import command, find_plan
    from vlm_rlaif.warehouse.errors import UserError
    from vlm_rlaif.warehouse.store import Warehouse

    if videos and local_files:
        raise UserError("Videos come from --videos or from --local-files, not from both.")
    opened = Warehouse.open(warehouse)
    found = find_plan(opened, name)
    server = connect(url, found.url)
    serving = ""

    def place_in(project: int, there: Sequence[Task]) -> places.Place:
        nonlocal serving
        if local_files:
            return places.local_files(opened, server, project, found.plan_id, local_files)
        base = videos or places.address_of(there)
        if base is None:
            return places.forgotten
        serving = command("serve", warehouse, found.called) if base == places.DEFAULT_VIDEOS else ""
        return places.served(opened, base)

    def tell(line: str) -> None:
        click.echo(f"audit-push: {line}", err=True)

    done = bring(
        opened, found, server, place_in, new_project=new_project, restore_config=restore_config,
        move=bool(videos or local_files), tell=tell,
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps(asdict(done)))
    else:
        _tell_push(done, warehouse, serving)
    return EXIT_FAILED_ROWS if done.left_out else 0


def _tell_push(done: Pushed, warehouse: Path, serving: str) -> None:
    """`serving` is the command that serves the videos, where it is ours."""
    mended = f", {done.mended:,} set right" if done.mended else ""
    moved = f", {done.moved:,} play their videos from another address now" if done.moved else ""
    click.echo(f"audit-push: {done.created:,} tasks created, {done.stood:,} were there{mended}{moved}.")
    for video, why in list(done.wrong_videos.items())[:LISTED]:
        click.echo(f"no browser can play {video}: {printable(why)}", err=True)
    if done.left_out:
        doctor = shlex.join(["vlm-rlaif", "doctor", str(warehouse)])
        click.echo(f"{done.left_out:,} pairs of {len(done.wrong_videos):,} such videos are left out; once the videos"
                   f" are mended ({doctor}), push again.", err=True)  # fmt: skip
    if done.surplus:
        click.echo(f"{done.surplus:,} tasks were there twice, and those that nobody had begun with are deleted.")
    if done.doubled:
        click.echo(
            f"{len(done.doubled):,} pairs have more than one task; every verdict counts all the same.", err=True
        )
    if serving:
        click.echo(f"Serve the videos while people work: {serving}")
    click.echo(f"People work here: {done.url}/projects/{done.project}/data?labeling=1")


@audit.command()
@warehouse_argument
@click.argument("name")
@url_option
@click.option("--port", type=click.IntRange(0, 65535), default=8078, show_default=True, help="On 127.0.0.1.")
def serve(warehouse: Path, name: str, url: str | None, port: int) -> None:
    """Serve the videos of a plan to browsers on this machine, until Ctrl-C."""
    from vlm_rlaif.feedback.audit import places
    from vlm_rlaif.feedback.audit.label_studio import address
    from vlm_rlaif.feedback.audit.tasks import find_plan, pairs_of
    from vlm_rlaif.warehouse.store import Warehouse

    opened = Warehouse.open(warehouse)
    found = find_plan(opened, name)
    pairs = pairs_of(opened, found.plan_id)
    studio = address(url, found.url)
    with places.serving(opened, pairs, studio, port) as served:
        videos = len({pair.video_id for pair in pairs})
        click.echo(f"audit-serve: {videos:,} videos at {served}/video/ID, for pages of {studio}. Ctrl-C stops it.")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            click.echo("audit-serve: stopped.")


@audit.command()
@warehouse_argument
@click.argument("name")
@url_option
@json_option
def pull(warehouse: Path, name: str, url: str | None, as_json: bool) -> int:
    """Bring what people submitted into the warehouse; edits are kept beside what they replace."""
    from vlm_rlaif.feedback.audit.label_studio import connect
    from vlm_rlaif.feedback.audit.pull import pull as bring
    from vlm_rlaif.feedback.audit.tasks import find_plan
    from vlm_rlaif.warehouse.store import Warehouse

    opened = Warehouse.open(warehouse)
    found = find_plan(opened, name)
    done = bring(opened, found, connect(url, found.url))
    if as_json:
        click.echo(json.dumps(_as_data(done)))
    else:
        _tell_pull(done, warehouse, found.called)
    return EXIT_FAILED_ROWS if done.refused or done.gone else 0


def _as_data(done: Pulled) -> dict[str, Any]:
    refused = [{"where": refusal.where, "why": refusal.why} for refusal in done.refused]
    return {"tasks": done.tasks, "verdicts": done.verdicts, "written": done.written, "skipped": done.skipped,
            "withdrawn": done.withdrawn, "refused": refused, "gone": done.gone, "people": done.people}  # fmt: skip


def _tell_pull(done: Pulled, warehouse: Path, name: str) -> None:
    from vlm_rlaif.feedback.audit.tasks import command

    said = f", {done.skipped:,} skipped" if done.skipped else ""
    said += f", {done.withdrawn:,} withdrawn" if done.withdrawn else ""
    click.echo(f"audit: {done.written:,} rows written; {done.verdicts:,} verdicts on {done.tasks:,} tasks{said}.")
    for person, verdicts in done.people.items():
        click.echo(f"  {printable(person)}: {verdicts:,}")
    for refusal in done.refused[:LISTED]:
        click.echo(f"refused: {printable(refusal.where)}: {printable(refusal.why)}", err=True)
    if done.refused:
        every = f"vlm-rlaif sql {shlex.quote(str(warehouse))} \"FROM open_failures WHERE stage = 'audit'\""
        click.echo(f"{len(done.refused):,} results are no verdicts; all of them: {every}", err=True)
    if done.gone:
        click.echo(f"{len(done.gone):,} pairs have no task on the server (deleted, or not pushed yet):"
                   f" {', '.join(done.gone[:5])}{' ...' if len(done.gone) > 5 else ''}", err=True)  # fmt: skip
        click.echo(f"{command('push', warehouse, name)}   (puts them there)", err=True)


@audit.command()
@warehouse_argument
@click.argument("name")
@url_option
@click.option("--offline", is_flag=True, help="By the rows of the warehouse alone, without asking the server.")
@json_option
def status(warehouse: Path, name: str, url: str | None, offline: bool, as_json: bool) -> None:
    """Say how far an audit is, and what it lacks."""
    from vlm_rlaif.feedback.audit.label_studio import connect
    from vlm_rlaif.feedback.audit.status import status_of
    from vlm_rlaif.feedback.audit.tasks import find_plan
    from vlm_rlaif.warehouse.store import Warehouse

    opened = Warehouse.open(warehouse)
    found = find_plan(opened, name)
    asked = not offline and found.project is not None
    state = status_of(opened, found, connect(url, found.url) if asked else None)
    if as_json:
        click.echo(json.dumps(asdict(state), default=str))
    else:
        _tell_status(state, warehouse)


def _tell_status(state: Status, warehouse: Path) -> None:
    from vlm_rlaif.feedback.audit.tasks import command

    name, there = state.plan.name, state.server
    begin = command("push", warehouse, state.plan.called)
    ended = f", closed on {state.plan.closed_at:%Y-%m-%d %H:%M} UTC" if state.plan.closed_at else ""
    where = f"{state.plan.url}, project {state.plan.project}" if state.plan.url else f"on no server yet ({begin})"
    click.echo(f"{name}: {state.pairs:,} pairs, {state.shared:,} of them for several people; {where}{ended}")
    if there is not None:
        click.echo(f"on the server: {there.tasks:,} tasks, {there.verdicts:,} verdicts, {there.new:,} of them not"
                   f" pulled yet; {there.skipped:,} skipped, {there.refused:,} that are no verdicts")  # fmt: skip
        if there.config_changed:
            click.echo(f"its labeling config was changed: {begin} --restore-config")
    took = f", {state.seconds:.0f} s each" if state.seconds is not None else ""
    click.echo(f"in the warehouse: {state.verdicts:,} verdicts{took}")
    for person, pairs in state.people.items():
        click.echo(f"  {printable(person)}: {pairs:,} pairs")
    _tell_lack(state.lack)


def _tell_lack(lack: Lacking) -> None:
    click.echo(f"lacking: {len(lack.unseen):,} pairs that nobody has judged, {len(lack.overlap):,} that wait for"
               " another person")  # fmt: skip


@audit.command()
@warehouse_argument
@click.argument("name")
@url_option
@click.option("--force", is_flag=True, help="Close it with pairs that wait for another person, or refused results.")
def close(warehouse: Path, name: str, url: str | None, force: bool) -> int:
    """Pull a last time, say what is missing, and record that the audit is over."""
    from vlm_rlaif.feedback.audit.label_studio import connect
    from vlm_rlaif.feedback.audit.pull import close as end
    from vlm_rlaif.feedback.audit.tasks import find_plan
    from vlm_rlaif.warehouse.store import Warehouse

    opened = Warehouse.open(warehouse)
    found = find_plan(opened, name)
    pulled, lack = end(opened, found, connect(url, found.url), force=force)
    _tell_pull(pulled, warehouse, found.called)
    _tell_lack(lack)
    click.echo(f"audit-close: {found.name} is closed.")
    agreement = ["vlm-rlaif", "feedback", "agreement", str(warehouse), "--plan", found.called]
    click.echo(f"Next: {shlex.join(agreement)}")
    return EXIT_FAILED_ROWS if pulled.refused or pulled.gone else 0
