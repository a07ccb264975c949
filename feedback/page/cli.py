"""`vlm-rlaif view`: a page to look at the pairs, in a browser on this machine."""

from __future__ import annotations

import signal
import time
import webbrowser
from datetime import datetime
from pathlib import Path

import click

from vlm_rlaif.warehouse.cli import warehouse_argument

PORT = 8765
SLOW_BYTES = 100_000_000
"""Of a warehouse whose snapshot takes so long that somebody wonders."""


@click.command()
@warehouse_argument
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0: any that is free.")
@click.option(
    "--judge", help="Spec id of the judge to begin with, or its prompt [default: the one with most labels]."
)
@click.option("--no-browser", is_flag=True, help="Print the address, and open no browser.")
def view(warehouse: Path, port: int, judge: str | None, no_browser: bool) -> None:
    """Look at videos, answers and verdicts in a browser; reads a snapshot, while jobs go on writing."""
    from vlm_rlaif.feedback.known import find_judge
    from vlm_rlaif.feedback.page.listing import Listing
    from vlm_rlaif.feedback.page.server import Pages, PageServer
    from vlm_rlaif.feedback.page.shell import About
    from vlm_rlaif.feedback.page.snapshot import frozen
    from vlm_rlaif.warehouse.store import Warehouse

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended politely, it leaves nothing behind either
    opened = Warehouse.open(warehouse)
    chosen = find_judge(opened, judge) if judge else None
    if (size := warehouse.stat().st_size) > SLOW_BYTES:
        click.echo(f"Copying {size / 1e6:,.0f} MB and listing the pairs, which takes a moment ...", err=True)
    with PageServer(port) as server, frozen(opened) as copy:
        about = About(warehouse, datetime.now())
        server.show(Pages(opened, about, copy.connection, Listing(copy.connection), chosen))
        click.echo(f"Snapshot of {warehouse}: {copy.bytes / 1e6:,.0f} MB, made in {copy.seconds:.1f} s.")
        if copy.journaled_rows:
            click.echo(f"{copy.journaled_rows:,} finished rows of running jobs are not in it yet.")
        click.echo(f"{server.url}/  (Ctrl-C ends it)")
        if not no_browser:
            webbrowser.open(server.url)
        try:
            while True:  # a wait without an end is never interrupted where polars has its hands on Ctrl-C
                time.sleep(0.2)
        except KeyboardInterrupt:
            for signum in (signal.SIGINT, signal.SIGTERM):  # a second one need not disturb the end
                signal.signal(signum, signal.SIG_IGN)
            click.echo("\nEnded; the snapshot is gone.")
