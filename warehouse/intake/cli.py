"""`vlm-rlaif add`: videos and questions come in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vlm_rlaif.warehouse.cli import EXIT_FAILED_ROWS, finish, warehouse_argument

if TYPE_CHECKING:
    from vlm_rlaif.warehouse.runs import Outcome


@click.command()
@warehouse_argument
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--questions", type=click.Path(path_type=Path), help="JSONL with a `question` a line.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def add(warehouse: Path, folder: Path, questions: Path | None, as_json: bool) -> int:
    """Add the videos below FOLDER, and questions about them."""
    from vlm_rlaif.warehouse.intake.add import add_questions, add_videos
    from vlm_rlaif.warehouse.intake.questions import read_questions
    from vlm_rlaif.warehouse.store import Warehouse

    opened = Warehouse.open(warehouse)
    if questions:
        read_questions(questions)  # complain about a bad file before any video is read
    added = add_videos(opened, folder)
    for problem in added.unreadable:
        click.echo(f"unreadable: {problem}", err=True)
    outcomes: list[Outcome] = [added]
    if questions:
        outcomes.append(add_questions(opened, questions, added.video_ids))
    finish(outcomes, as_json)
    return EXIT_FAILED_ROWS if added.unreadable else 0
