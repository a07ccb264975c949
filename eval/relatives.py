"""Why a row is pending: the parts of its key, and what changed against the row that is most like it.

A relative is a row that stands, of the same stage and over the same inputs (or, where there is none, over the same
question or video), made with another spec. The nearest shares most parts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import duckdb

from vlm_rlaif.datagen.job import Stage
from vlm_rlaif.datagen.plan import (
    answerable_stage,
    ask_stage,
    caption_stage,
    context_spec,
    narrative_spec,
    refine_stages,
    summarise_stage,
)
from vlm_rlaif.datagen.policies import respond_stages
from vlm_rlaif.eval.answer import answer_stage
from vlm_rlaif.eval.overview import MADE, spec_column
from vlm_rlaif.eval.win import win_stage
from vlm_rlaif.feedback.judges.plan import judges_of
from vlm_rlaif.feedback.judges.rate import rate_stages
from vlm_rlaif.train.jobs import find
from vlm_rlaif.train.run import MERGED, after_sft, sft_job, standing
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.inspection.find import KEYS, LISTED, SHORTEST, records
from vlm_rlaif.warehouse.inspection.specs import Change, changes, nearest
from vlm_rlaif.warehouse.inspection.why import origins, upstream_names
from vlm_rlaif.warehouse.records import Spec
from vlm_rlaif.warehouse.store import Warehouse

KEY = {
    "caption": ("clip_id",), "refine": ("base_context_id",), "summarise": ("base_context_id",),
    "ask": ("context_id",), "answerable": ("question_id",), "respond": ("question_id", "sample_index"),
    "rate": ("question_id", "response_id"), "label": ("pair_id", "context_id", "shown_order", "vote"),
    "split": ("question_id", "response_id"),
    **dict.fromkeys(("check", "verify", "rank"), ("question_id", "response_id", "item")),
    "answer": ("question_id", "sample_index"),
    "win": ("answer_id", "old_id", "shown_order"),
}  # fmt: skip
"""Stage -> what the id of a row is the hash of, beside its spec."""
RELATIVES = {
    "caption": (
        "* FROM captions WHERE clip_id = $clip_id",
        "x.* FROM captions x JOIN clips c USING (clip_id) WHERE c.video_id = $video_id",
    ),
    **dict.fromkeys(
        ("refine", "summarise"),
        ("* FROM contexts WHERE base_context_id = $base_context_id",),
    ),
    "ask": ("* FROM questions WHERE video_id = $video_id AND spec_id IS NOT NULL",),
    "answerable": ("* FROM ratings WHERE question_id = $question_id AND item = 'answerable'",),
    "respond": (
        "* FROM responses WHERE question_id = $question_id AND sample_index = $sample_index",
        "* FROM responses WHERE question_id = $question_id",
    ),
    "rate": (
        "* FROM ratings WHERE response_id = $response_id",
        "* FROM ratings WHERE question_id = $question_id AND item = 'quality'",
    ),
    "split": ("* FROM ratings WHERE response_id = $response_id AND item = 'claims'",),
    **dict.fromkeys(
        ("check", "verify", "rank"),
        (
            "* FROM ratings WHERE response_id = $response_id AND item = $item",
            "* FROM ratings WHERE response_id = $response_id",
        ),
    ),
    "label": (
        "* FROM labels WHERE pair_id = $pair_id AND shown_order = $shown_order AND vote = $vote",
        "l.* FROM labels l JOIN pairs p USING (pair_id) WHERE l.shown_order = $shown_order"
        " AND p.question_id = (SELECT question_id FROM pairs WHERE pair_id = $pair_id)",
    ),
    "answer": ("* FROM answers WHERE question_id = $question_id AND sample_index = $sample_index",),
    "win": (
        "s.judge AS spec_id, s.* FROM scores s JOIN specs p ON p.spec_id = s.judge"
        " WHERE p.stage = 'win' AND s.answer_id = $answer_id",
    ),
}
"""Stage -> the rows over the same inputs, and failing these, over less of them."""

Row = dict[str, Any]


def explain_pending(warehouse: Warehouse, recipe: Recipe, given: str) -> Row | None:
    """All that is known about a pending row of a recipe, by its id or the first characters of it; or None."""
    found: list[tuple[Recipe, Stage, Row]] = []
    for resolved, stage in _stages(warehouse, recipe):
        for row in stage.pending(warehouse):
            if row["row_id"] == given:
                return _explain(warehouse, resolved, stage, row)
            if len(given) >= SHORTEST and row["row_id"].startswith(given):
                found.append((resolved, stage, row))
    if len(found) > 1:
        listed = [f"  {row['row_id']} (pending {stage.name})" for _, stage, row in found[:LISTED]]
        raise UserError(f"{given} is how {len(found)} ids begin:", *listed)
    return _explain(warehouse, *found[0]) if found else None


def _stages(warehouse: Warehouse, recipe: Recipe) -> Iterator[tuple[Recipe, Stage]]:
    """Every stage of a recipe that asks a model, as far as its model stands, with the recipe as it is by then."""
    if recipe.caption is not None:
        yield recipe, caption_stage(recipe)
    if recipe.context is not None:
        yield from ((recipe, stage) for stage in refine_stages(recipe))
    if recipe.context is not None and recipe.context.summarise is not None:
        yield recipe, summarise_stage(recipe)
    if recipe.ask is not None and not recipe.ask.templates:
        yield recipe, ask_stage(recipe)
    if recipe.ask is not None and recipe.ask.answerable is not None:
        yield recipe, answerable_stage(recipe)
    if recipe.sft is not None:
        if not (tuned := find(warehouse, sft_job(warehouse, recipe)[0])):
            return
        recipe = after_sft(recipe, tuned)
    if recipe.respond is None:
        return
    yield from ((recipe, stage) for stage in respond_stages(recipe))
    yield from ((recipe, stage) for stage in (rate_stages(recipe) if recipe.rate else ()))
    yield from ((recipe, stage) for judge in judges_of(recipe).values() for stage in judge.stages)
    if recipe.evaluate is None:
        return
    sizes = [samples for samples in (1, recipe.evaluate.best_of) if samples]
    for samples in sizes:
        yield recipe, answer_stage(recipe, samples=samples)
    untuned = dataclasses.replace(recipe, sft=None)
    if not (policy := standing(warehouse, untuned)[1].get("policy")):
        return
    model = str(policy.path / MERGED)
    for samples in sizes:
        yield recipe, answer_stage(recipe, model, samples=samples)
    if recipe.label is not None:
        yield recipe, win_stage(recipe, *(answer_stage(recipe, which).spec.spec_id for which in (model, None)))


def _explain(warehouse: Warehouse, recipe: Recipe, stage: Stage, row: Row) -> Row:
    spec, key = asdict(stage.spec), {name: row[name] for name in KEY[stage.name] if row[name] is not None}
    with warehouse.visit(read_only=True) as connection:
        specs = {each["spec_id"]: each for each in records(connection, "SELECT * FROM specs")}
        relative = _relative(connection, stage, row, specs)
        failures = "SELECT attempt, kind, message, reply, run_id FROM failures WHERE row_id = ? ORDER BY attempt"
        return {
            "table": "pending", "id": row["row_id"], "stage": stage.name, "run": None, "spec": spec,
            "key": {"spec_id": spec["spec_id"]} | key,
            "upstream": upstream_names(connection),
            "from": origins(connection, MADE[stage.name], row),
            "failures": records(connection, failures, [row["row_id"]]),
            "rows_of_spec": _rows_of(connection, stage),
            "relative": relative,
            "changed": list(map(str, _changed(recipe, stage, row, relative, specs))) if relative else [],
        }  # fmt: skip


def _rows_of(connection: duckdb.DuckDBPyConnection, stage: Stage) -> int:
    """How many rows of the stage's own spec stand."""
    sql = f"SELECT count(*) AS n FROM {MADE[stage.name]} WHERE {spec_column(stage.name)} = ?"
    return int(records(connection, sql, [stage.spec.spec_id])[0]["n"])


def _relative(connection: duckdb.DuckDBPyConnection, stage: Stage, row: Row, specs: Mapping[str, Row]) -> Row | None:
    """The nearest row over the same inputs; failing that, the nearest spec of the stage."""
    spec = asdict(stage.spec)
    for sql in RELATIVES[stage.name]:
        given = {name: value for name, value in row.items() if re.search(rf"\${name}\b", sql)}
        found = records(connection, f"SELECT {sql}", given)
        rows = {each["spec_id"]: each for each in found if each["spec_id"] in specs}
        if like := nearest(spec, (specs[spec_id] for spec_id in rows)):
            table, row = MADE[stage.name], rows[like["spec_id"]]
            return {"table": table, "id": row[KEYS[table]], **row}
    others = (each for each in specs.values() if each["stage"] == stage.name and each["spec_id"] != spec["spec_id"])
    like = nearest(spec, others)
    return {"table": "specs", "id": like["spec_id"], "spec_id": like["spec_id"]} if like else None


def _changed(recipe: Recipe, stage: Stage, row: Row, relative: Row, specs: Mapping[str, Row]) -> Iterator[Change]:
    for name in KEY[stage.name]:
        if name in relative and relative[name] != row[name]:
            yield Change(name, str(relative[name]), str(row[name]))
    known = {**specs, **{spec.spec_id: asdict(spec) for spec in _upstream(recipe)}}
    yield from changes(asdict(stage.spec), specs[relative["spec_id"]], known)


def _upstream(recipe: Recipe) -> Iterator[Spec]:
    """Specs of the recipe that others name as theirs; no run may have written them yet."""
    if recipe.caption is not None:
        yield caption_stage(recipe).spec
    if recipe.context is not None:
        yield narrative_spec(recipe)
        yield from (stage.spec for stage in refine_stages(recipe))
        yield context_spec(recipe)
    if recipe.respond is not None:
        yield from (stage.spec for stage in respond_stages(recipe))
