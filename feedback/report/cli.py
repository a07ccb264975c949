"""`vlm-rlaif feedback report`: how far the labels of judges can be trusted."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vlm_rlaif.warehouse.cli import warehouse_argument
from vlm_rlaif.warehouse.errors import UserError


@click.command()
@warehouse_argument
@click.option(
    "--judge", "judges", multiple=True, help="Spec id, or name of the prompt; may be repeated [default: all]."
)
@click.option("--against", type=click.Choice(["humans", "truth"]), help="[default: humans, if any have judged]")
@click.option("--html", "page_path", type=click.Path(path_type=Path, dir_okay=False), help="Write a page, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def report(
    warehouse: Path, judges: tuple[str, ...], against: str | None, page_path: Path | None, as_json: bool
) -> None:
    """Accuracy, bias, probes, drift and calibration of judges, each with its interval and what would be good."""
    from vlm_rlaif.feedback.report.assess import assess
    from vlm_rlaif.feedback.report.lines import lines
    from vlm_rlaif.feedback.report.page import write_page
    from vlm_rlaif.warehouse.inspection.cli import page_width
    from vlm_rlaif.warehouse.store import Warehouse

    opened = Warehouse.open(warehouse)
    if page_path is not None and not page_path.parent.is_dir():
        raise UserError(f"There is no folder {page_path.parent} for the page.", f"mkdir -p {page_path.parent}")
    found = assess(opened, judges, against)
    if page_path is not None:
        write_page(found, f"Judges of {opened.path.name}", page_path)
    click.echo(json.dumps(found.as_json(), indent=1) if as_json else "\n".join(lines(found, page_width())))
    if page_path is not None and not as_json:
        click.echo(f"\nPage: {page_path}")
