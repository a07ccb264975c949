"""`why`: the parts of a row's key, the run that wrote it, where it comes from, and what made a pending row new."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Request, ScriptedEngine
from vlm_rlaif.datagen.job import Stage, run_stage
from vlm_rlaif.datagen.plan import ask_stage, caption_stage, context_spec, part, respond_stage
from vlm_rlaif.eval.answer import answer_stage
from vlm_rlaif.eval.overview import MADE, spec_column
from vlm_rlaif.eval.relatives import RELATIVES, explain_pending
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.warehouse.config import Evaluation, Recipe, Sampling
from vlm_rlaif.warehouse.inspection.find import KEYS
from vlm_rlaif.warehouse.inspection.why import KEY_PARTS, explain
from vlm_rlaif.warehouse.records import RECORDS, Question, Spec, Video, primary_key
from vlm_rlaif.warehouse.store import Warehouse

Command = Any
LABEL = "13620b66355221853cbe"


def first_pending(warehouse: Warehouse, stage: Stage) -> str:
    return str(next(iter(stage.pending(warehouse)))["row_id"])


def changed(warehouse: Warehouse, recipe: Recipe, stage: Stage) -> list[str]:
    """What `why` says that changed for the first pending row of a stage."""
    found = explain_pending(warehouse, recipe, first_pending(warehouse, stage))
    assert found is not None and found["stage"] == stage.name
    return list(found["changed"])


def with_prompt(recipe: Recipe, folder: Path, stage: str, text: str) -> Recipe:
    """The recipe with a prompt of its own for one stage."""
    (folder / "my_own.md").write_text(text)
    settings = dataclasses.replace(part(recipe, stage), prompt=str(folder / "my_own.md"))
    return dataclasses.replace(recipe, **{stage: settings})


# Rows that stand


@pytest.mark.parametrize(
    "table",
    [
        name
        for name in KEYS
        if name not in ("removals", "transcripts", "ratings", "datasets", "exports", "failures", "anchors", "probes")
        and not name.startswith("audit")
    ],
)
def test_any_id_of_any_table_is_explained(journey: Warehouse, command: Command, table: str) -> None:
    row_id = journey.value(f"SELECT {KEYS[table]} FROM {table} ORDER BY 1 LIMIT 1")
    shown = command("why", journey.path, row_id)
    assert shown.code == 0 and shown.out.startswith(f"{table.removesuffix('s')} {row_id}\n")
    found = json.loads(command("why", journey.path, row_id, "--json").out)
    assert (found["table"], found["id"]) == (table, row_id)
    assert found["run"]["stage"] and (found["key"] or table in ("videos", "specs"))


def test_every_table_with_a_key_of_parts_is_known() -> None:
    """A new kind of row needs its line, unless its id is no hash of other columns."""
    without = {"runs", "specs", "videos", "removals", "failures"}
    single = {record.table for record in RECORDS if len(primary_key(record)) == 1}
    assert single - without == set(KEY_PARTS)


def test_a_label_is_explained_down_to_its_video(journey: Warehouse) -> None:
    found = explain(journey, LABEL)
    assert found is not None
    (row,) = journey.rows("SELECT * FROM labels WHERE label_id = ?", [LABEL])
    assert found["key"] == {name: row[name] for name in ("spec_id", "pair_id", "context_id", "shown_order", "vote")}
    assert found["spec"]["prompt"] == "judge_context_compact_v1" and found["run"]["run_id"] == row["run_id"]
    assert [each["table"] for each in found["from"]] == [
        "pairs", "responses", "responses", "questions", "contexts", "captions", "clips", "videos",
    ]  # fmt: skip


def test_the_beginning_of_an_id_is_enough_where_it_is_the_only_one(journey: Warehouse, command: Command) -> None:
    assert command("why", journey.path, LABEL[:6]).out == command("why", journey.path, LABEL).out
    short = command("why", journey.path, LABEL[:5])
    assert short.code == 2 and f"No row has the id {LABEL[:5]}." in short.err
    several = command("why", journey.path, "20261124")
    assert several.code == 2 and "20261124 is how several ids begin:" in several.err and "(runs)" in several.err


def test_a_row_without_its_neighbours_is_explained(warehouse: Warehouse) -> None:
    warehouse.append([Question(question_id="q1q1q1", video_id="gone", text="why ?", source="x", run_id="gone")])
    found = explain(warehouse, "q1q1q1")
    assert found is not None and found["run"] is None and found["from"] == []
    assert found["key"] == {"video_id": "gone", "text": "why ?"}


def test_words_from_data_do_not_reach_the_terminal(warehouse: Warehouse, command: Command) -> None:
    words = "\x1b[2J\u202eno"
    warehouse.append(
        [
            Video(video_id="v1v1v1", uri=words, source="", video_group="", split="train", status="ok", run_id="r"),
            Question(question_id="q1q1q1", video_id="v1v1v1", text=words, source="x", run_id="r"),
        ]
    )
    for name in ("q1q1q1", "v1v1v1", "\x1b[2Jnothing"):
        shown = command("why", warehouse.path, name)
        assert "\x1b" not in shown.out + shown.err and "\u202e" not in shown.out + shown.err


# Failures


def fail(request: Request) -> str:
    raise ValueError("out of memory")


def test_a_failure_tells_its_attempts_and_the_command_that_tries_again(
    asked: Warehouse, recipe: Recipe, recipe_file: Path, command: Command
) -> None:
    stage = respond_stage(recipe)
    for retry in (False, True):
        run_stage(asked, stage, lambda: ScriptedEngine(fail), limit=1, retry_failed=retry)
    row_id = asked.value("SELECT row_id FROM failures WHERE attempt = 2")
    shown = command("why", asked.path, row_id).out
    assert "attempt 1, run " in shown and "attempt 2, run " in shown and shown.count("engine: out of memory") == 2
    assert f"vlm-rlaif datagen respond {asked.path} --recipe RECIPE --retry-failed" in shown
    shown = command("why", asked.path, row_id, "--recipe", recipe_file).out
    assert shown.startswith(f"pending respond {row_id}") and "sample_index  0" in shown
    assert f"vlm-rlaif datagen respond {asked.path} --recipe {recipe_file} --retry-failed" in shown


def test_a_repaired_failure_is_part_of_its_rows_past(asked: Warehouse, recipe: Recipe, scripted: Any) -> None:
    stage = respond_stage(recipe)
    run_stage(asked, stage, lambda: ScriptedEngine(fail), limit=1)
    row_id = asked.value("SELECT row_id FROM failures")
    run_stage(asked, stage, scripted, retry_failed=True)
    found = explain(asked, row_id)
    assert found is not None and found["table"] == "responses"
    assert [each["message"] for each in found["failures"]] == ["out of memory"]


# Pending rows


def test_a_changed_prompt_is_named(asked: Warehouse, recipe: Recipe, walk: Any, tmp_path: Path) -> None:
    walk(asked, recipe)
    mine = with_prompt(recipe, tmp_path, "respond", "Answer: {question}")
    before, after = respond_stage(recipe).spec, respond_stage(mine).spec
    assert changed(asked, mine, respond_stage(mine)) == [
        f"prompt_hash: {before.prompt_hash} -> {after.prompt_hash} (respond_compact_v1 -> my_own)"
    ]


def test_a_changed_setting_is_named_with_both_values(asked: Warehouse, recipe: Recipe, walk: Any) -> None:
    walk(asked, recipe)
    sampling = Sampling(temperature=0.7, top_p=0.9)
    respond = dataclasses.replace(part(recipe, "respond"), sampling=sampling)
    mine = dataclasses.replace(recipe, respond=respond)
    assert changed(asked, mine, respond_stage(mine)) == [
        "sampling.temperature: 1.0 -> 0.7", "sampling.top_p: 1.0 -> 0.9",
    ]  # fmt: skip


def test_another_model_is_named_beside_its_revision(
    asked: Warehouse, recipe: Recipe, walk: Any, tmp_path: Path
) -> None:
    walk(asked, recipe, upto="caption")
    (tmp_path / "config.json").write_text('{"other": 1}')
    mine = dataclasses.replace(recipe, caption=dataclasses.replace(part(recipe, "caption"), model=str(tmp_path)))
    before, after = caption_stage(recipe).spec, caption_stage(mine).spec
    assert changed(asked, mine, caption_stage(mine)) == [
        f"revision: {before.revision} -> {after.revision} ({before.model} -> {tmp_path})"
    ]


def test_a_change_further_up_is_followed_to_where_it_was_made(
    asked: Warehouse, recipe: Recipe, walk: Any, tmp_path: Path
) -> None:
    """A judge's label is new because a caption's prompt is: context, then caption, then its prompt."""
    walk(asked, recipe)
    mine = with_prompt(recipe, tmp_path, "caption", "Describe what you see.")
    for name in ("caption", "context"):
        walk(asked, mine, only=name)
    stage = label_stage(mine, "context")
    (old_context, new_context) = (context_spec(each).spec_id for each in (recipe, mine))
    old, new = caption_stage(recipe).spec, caption_stage(mine).spec
    context_id, *rest = changed(asked, mine, stage)
    assert context_id.startswith("context_id: ")
    assert rest == [
        f"upstream.context: {old_context} -> {new_context}",
        f"context.upstream.caption: {old.spec_id} -> {new.spec_id}",
        f"context.caption.prompt_hash: {old.prompt_hash} -> {new.prompt_hash} (caption_compact_v1 -> my_own)",
    ]


def test_the_relative_of_a_label_is_of_its_own_arm(
    asked: Warehouse, recipe: Recipe, walk: Any, tmp_path: Path
) -> None:
    walk(asked, recipe)
    (tmp_path / "judge.md").write_text("{question} {response_a} {response_b} A, B or C?")
    label = dataclasses.replace(part(recipe, "label"), prompt=str(tmp_path / "judge.md"))
    mine = dataclasses.replace(recipe, label=label)
    (only,) = changed(asked, mine, label_stage(mine, "none"))
    assert only.endswith("(judge_compact_v1 -> judge)")


def test_where_the_inputs_are_new_the_nearest_spec_or_question_is_compared(
    asked: Warehouse, recipe: Recipe, walk: Any, recipe_file: Path, command: Command
) -> None:
    walk(asked, recipe)
    video = asked.value("SELECT video_id FROM videos LIMIT 1")
    asked.append([Question(question_id="new", video_id=video, text="new ?", source="x", run_id="r")])
    row_id = first_pending(asked, respond_stage(recipe))
    shown = command("why", asked.path, row_id, "--recipe", recipe_file).out
    assert "12 rows of its spec stand: its inputs are new." in shown and "changed" not in shown
    assert f"vlm-rlaif show-prompt {asked.path} respond --recipe {recipe_file} --row {row_id}" in shown


@pytest.mark.parametrize("name", ["caption", "respond", "label"])
def test_nothing_that_stands_is_like_the_first_row_of_a_stage(
    asked: Warehouse, recipe: Recipe, walk: Any, recipe_file: Path, command: Command, name: str
) -> None:
    walk(asked, recipe, upto={"caption": "clip", "respond": "context", "label": "pair"}[name])
    stage = {"caption": caption_stage, "respond": respond_stage}.get(name, lambda r: label_stage(r, "none"))(recipe)
    shown = command("why", asked.path, first_pending(asked, stage)[:8], "--recipe", recipe_file)
    assert shown.code == 0 and "No row of its spec stands yet." in shown.out and "changed" not in shown.out


def test_a_question_to_be_written_is_explained(asked: Warehouse, recipe: Recipe, walk: Any) -> None:
    asked.execute("DELETE FROM questions")
    walk(asked, recipe, upto="context")
    found = explain_pending(asked, recipe, first_pending(asked, ask_stage(recipe)))
    assert found is not None and [each["table"] for each in found["from"]] == ["contexts", "captions", "captions",
                                                                              "clips", "clips", "videos"]  # fmt: skip


def test_an_id_that_is_nobodys_leads_to_the_plan(asked: Warehouse, recipe_file: Path, command: Command) -> None:
    alone = command("why", asked.path, "nobody")
    assert alone.code == 2 and f"vlm-rlaif why {asked.path} nobody --recipe RECIPE" in alone.err
    said = command("why", asked.path, "nobody", "--recipe", recipe_file)
    assert said.code == 2 and f"vlm-rlaif plan {asked.path} {recipe_file} --json" in said.err
    missing = command("why", "none.duckdb", "nobody")
    assert missing.code == 2 and "vlm-rlaif init none.duckdb" in missing.err


def test_specs_of_a_recipe_need_not_have_run(asked: Warehouse, recipe: Recipe, walk: Any) -> None:
    """An upstream spec that no run has written is taken from the recipe."""
    walk(asked, recipe, upto="caption")
    asked.execute("DELETE FROM specs")
    asked.append([Spec(**{**dataclasses.asdict(caption_stage(recipe).spec), "spec_id": "old", "prompt_hash": "old"})])
    asked.execute("UPDATE captions SET spec_id = 'old'")
    (only,) = changed(asked, recipe, caption_stage(recipe))
    assert only.startswith("prompt_hash: old -> ")


def test_an_answer_is_compared_with_that_of_another_setting(asked: Warehouse, recipe: Recipe, scripted: Any) -> None:
    evaluated = dataclasses.replace(recipe, evaluate=Evaluation(split="train", best_of=0))
    run_stage(asked, answer_stage(evaluated), scripted)
    sampling = Sampling(temperature=1.0, max_new_tokens=64)
    respond = dataclasses.replace(part(recipe, "respond"), sampling=sampling)
    mine = dataclasses.replace(evaluated, respond=respond)
    assert changed(asked, mine, answer_stage(mine)) == ["sampling.max_new_tokens: 256 -> 64"]


@pytest.mark.parametrize("stage", RELATIVES)
def test_the_relatives_of_a_standing_row_are_found_with_it_among_them(journey: Warehouse, stage: str) -> None:
    """The queries of all stages, those too that no scripted engine reaches."""
    table = MADE[stage]
    of_stage = (
        f"SELECT * FROM {table} WHERE {spec_column(stage)} IN (SELECT spec_id FROM specs WHERE stage = ?) LIMIT 1"
    )
    for row in journey.rows(of_stage, [stage]):
        more = journey.rows("SELECT video_id FROM clips WHERE clip_id = ?", [row.get("clip_id")])
        given = {**(more[0] if more else {}), **row}
        for sql in RELATIVES[stage]:
            known = {name: value for name, value in given.items() if f"${name}" in sql}
            found = journey.rows(f"SELECT {sql}", known)
            assert row[KEYS[table]] in {each[KEYS[table]] for each in found}
            assert all(each["spec_id"] for each in found)
