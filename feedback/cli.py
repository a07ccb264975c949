"""`vlm-rlaif feedback ...`: which answer is better?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vlm_rlaif.datagen.cli import adapter_option, run_stages, stage_options
from vlm_rlaif.feedback.audit.cli import audit
from vlm_rlaif.feedback.judges.cli import anchor, engine_of, probe
from vlm_rlaif.feedback.report.cli import report
from vlm_rlaif.warehouse.cli import warehouse_argument


@click.group()
def feedback() -> None:
    """Which answer is better: AI preference labels."""


for command in (audit, probe, anchor, report):
    feedback.add_command(command)


@feedback.command()
@stage_options
@adapter_option
def rate(warehouse: Path, recipe_name: str, model: str | None, adapter: str | None, **options: Any) -> int:
    """Let the judge rate every response by itself, from 1 to 5."""
    from vlm_rlaif.feedback.judges.rate import rate_stages
    from vlm_rlaif.warehouse.config import load

    return run_stages(warehouse, rate_stages(load(recipe_name, model, adapter)), **options)


@feedback.command()
@stage_options
@adapter_option
@click.option("--arm", "--context", "arms", multiple=True, help="context, none, or both: of `label:` alone.")
@click.option("--judge", "names", multiple=True, help="A judge or panel of the recipe by name; may be repeated.")
def label(
    warehouse: Path, recipe_name: str, model: str | None, adapter: str | None, arms: tuple[str, ...],
    names: tuple[str, ...], **options: Any,
) -> int:  # fmt: skip
    """Let the judges of a recipe label every pair: the arms of `label:`, then `judges:`, then `panels:`."""
    from vlm_rlaif.datagen.plan import part
    from vlm_rlaif.feedback.judges.pairwise import LabelStage, label_stage
    from vlm_rlaif.feedback.judges.plan import Judging, judge_named, judges_of, turns
    from vlm_rlaif.feedback.judges.probe import anchor_stages
    from vlm_rlaif.warehouse.config import load
    from vlm_rlaif.warehouse.store import Warehouse

    recipe = load(recipe_name, model, adapter)
    if not (arms or names or recipe.judges):
        part(recipe, "label")
    stages = [label_stage(recipe, arm) for arm in arms]
    judges = [Judging(stage.name, stage.spec, (stage,)) for stage in stages]
    judges += [judge_named(recipe, name) for name in names]
    if not judges:
        judges = list(judges_of(recipe).values())
    derived = {judge.name: judge.derive for judge in judges if judge.derive is not None}
    first, *later = turns(judges) or [[]]
    compares = [stage for judge in judges for stage in judge.stages if isinstance(stage, LabelStage)]
    first += anchor_stages(Warehouse.open(warehouse), compares, engine_of(options))
    code = run_stages(warehouse, first, later=later, derived=list(derived.values()), **options)
    if options["dry_run"] and derived and not options["as_json"]:
        click.echo(f"Without a model, of the rows of others: the labels of {', '.join(derived)}.")
    return code


@feedback.command()
@warehouse_argument
@click.option("--judge", help="Spec id of a judge, or the name of its prompt [default: every judge].")
@click.option("--against", type=click.Choice(["humans", "truth"]), help="[default: humans, if any have judged]")
@click.option("--plan", help="The pairs of this audit plan alone.")
@click.option(
    "--accuracy", type=click.FloatRange(0.5, 1), default=0.9, show_default=True,
    help="Wanted of the labels that are kept; the strength above which they have it is printed.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def agreement(
    warehouse: Path, judge: str | None, against: str | None, plan: str | None, accuracy: float, as_json: bool
) -> None:
    """Hold judges against people, or against the exact truth: agreement, kappa, alpha, corrected rates."""
    from vlm_rlaif.feedback.agreement import measure
    from vlm_rlaif.feedback.agreement_lines import lines
    from vlm_rlaif.warehouse.inspection.cli import page_width
    from vlm_rlaif.warehouse.store import Warehouse

    found = measure(Warehouse.open(warehouse), judges=[judge] if judge else [], against=against, plan=plan)
    click.echo(json.dumps(found.as_json(), indent=1) if as_json else "\n".join(lines(found, accuracy, page_width())))


@feedback.command()
@warehouse_argument
@click.option("--judge", help="Spec id of the judge, or the name of its prompt.")
@click.option(
    "--method", type=click.Choice(["temperature", "isotonic"]),
    help="One number, or a curve that never falls [default: isotonic from 1,000 known pairs on].",
)  # fmt: skip
@click.option("--against", type=click.Choice(["humans", "truth"]), help="[default: humans, if any have judged]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--dry-run", is_flag=True, help="Measure, and write nothing.")
def calibrate(
    warehouse: Path, judge: str | None, method: str | None, against: str | None, as_json: bool, dry_run: bool
) -> None:
    """Make a judge's probabilities honest, by what is known: writes the labels of a calibrated judge."""
    from vlm_rlaif.feedback.calibrate import fit_judge, write
    from vlm_rlaif.warehouse.store import Warehouse

    opened = Warehouse.open(warehouse)
    fitted = fit_judge(opened, judge=judge, method=method, against=against)
    outcome = None if dry_run else write(opened, fitted)
    if as_json:
        click.echo(json.dumps({**fitted.as_json(), "rows_written": outcome.written if outcome else 0}, indent=1))
        return
    click.echo(str(fitted))
    click.echo(str(outcome) if outcome else "nothing is written: --dry-run")
    click.echo(f"calibrated judge: {fitted.spec.prompt} ({fitted.spec.spec_id})")
