"""Questions: written as JSON, from templates, and only those that the narrative answers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable
from math import inf, log, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.datagen.engine import Request, ScriptedEngine
from vlm_rlaif.datagen.job import Unreadable, run_stage
from vlm_rlaif.datagen.plan import (
    answerable_stage,
    ask_stage,
    asked_by,
    caption_stage,
    fill_templates,
    narrate_videos,
    part,
    questions_of,
    respond_stage,
    template_spec,
)
from vlm_rlaif.datagen.stages.answerable import left_out, yes_probability
from vlm_rlaif.datagen.stages.ask import SCHEMA, read_json, read_lines
from vlm_rlaif.datagen.stages.clip import clip
from vlm_rlaif.datagen.stages.templates import fill
from vlm_rlaif.eval.overview_learning import overview
from vlm_rlaif.eval.relatives import explain_pending
from vlm_rlaif.warehouse.care.keys import failed_ids
from vlm_rlaif.warehouse.care.relations import gather
from vlm_rlaif.warehouse.care.row_checks import check_ids
from vlm_rlaif.warehouse.config import Recipe, load
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.inspection.why import explain
from vlm_rlaif.warehouse.runs import Outcome
from vlm_rlaif.warehouse.settings import Answerability, Asking, Template
from vlm_rlaif.warehouse.store import Warehouse

Script = Callable[[Request], Any]


def say(warehouse: Warehouse, stage: Any, script: Script, **options: Any) -> Outcome:
    return run_stage(warehouse, stage, lambda: ScriptedEngine(script), **options)


def asking(recipe: Recipe, **settings: Any) -> Recipe:
    """The recipe with other settings of `ask:`; its model stays, unless there are templates."""
    model = {} if "templates" in settings else {"model": part(recipe, "caption").model, "prompt": "ask_v1"}
    return dataclasses.replace(recipe, ask=Asking(**{**model, **settings}))


@pytest.fixture(scope="module")
def told_file(asked_file: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a warehouse of three videos with narratives and without questions, to be copied."""
    told = Warehouse(Path(shutil.copy(asked_file, tmp_path_factory.mktemp("told") / "w.duckdb")))
    told.execute("DELETE FROM questions")
    clip(told, part(recipe, "clip"))
    say(told, caption_stage(recipe), lambda request: f"a picture at {request.video and request.video.start_s:g}")
    narrate_videos(told, recipe)
    return told.path


@pytest.fixture
def told(told_file: Path, tmp_path: Path) -> Warehouse:
    """Three videos with narratives and without questions."""
    return Warehouse(Path(shutil.copy(told_file, tmp_path / "w.duckdb")))


def as_json(*questions: tuple[str, str, str]) -> str:
    return json.dumps({"questions": [dict(zip(("question", "answer", "kind"), q, strict=True)) for q in questions]})


# JSON


def test_questions_come_with_answers_and_kinds(told: Warehouse, recipe: Recipe) -> None:
    stage = ask_stage(asking(recipe, prompt="ask_json_v1", form="json"))
    reply = as_json(("Who runs?", "A dog.", "detail"), ("How  many?", "Two.", "number"), ("how many?", "3", "number"))

    def write(request: Request) -> str:
        assert request.json_schema == SCHEMA
        return reply

    outcome = say(told, stage, write)
    assert (outcome.pending, outcome.written) == (3, 6)
    rows = told.rows("SELECT DISTINCT text, reference, kind FROM questions ORDER BY text")
    assert [tuple(row.values()) for row in rows] == [
        ("How  many?", "Two.", "number"), ("Who runs?", "A dog.", "detail"),
    ]  # fmt: skip


def test_a_reply_in_a_fence_is_read() -> None:
    assert read_json(f"```json\n{as_json(('Why?', 'So.', 'x'))}\n```\n")[0].text == "Why?"


GOOD = {"question": "Why?", "answer": "So.", "kind": "x"}


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("Here you are: {}", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        (json.dumps([GOOD]), 'list of "questions"'),
        (json.dumps({"questions": GOOD}), 'list of "questions"'),
        (json.dumps({"questions": []}), "is empty"),
        (json.dumps({"questions": [GOOD], "more": 1}), "nothing else"),
        (json.dumps({"questions": [GOOD, {**GOOD, "answer": " "}]}), 'The "answer" of question 2'),
        (json.dumps({"questions": [{**GOOD, "kind": 3}]}), 'The "kind" of question 1'),
        (json.dumps({"questions": [{"question": "Why?"}]}), "Question 1 has not exactly the keys"),
        (json.dumps({"questions": ["Why?"]}), "Question 1 has not exactly the keys"),
    ],
)
def test_what_does_not_fit_the_schema_is_unreadable(said: str, problem: str) -> None:
    with pytest.raises(Unreadable, match=problem) as error:
        read_json(said)
    assert error.value.kind == "unparsable"


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_reply_is_read_or_unreadable(reply: str) -> None:
    for read in (read_json, read_lines):
        with contextlib.suppress(Unreadable):
            assert all(each.text.strip() for each in read(reply))


def test_a_bad_reply_is_asked_for_once_more_and_then_is_a_failure(told: Warehouse, recipe: Recipe) -> None:
    stage = ask_stage(asking(recipe, prompt="ask_json_v1", form="json"))
    again = 0

    def mend(request: Request) -> str:
        nonlocal again
        again += "could not be used: The reply is not JSON." in request.user
        return as_json(("Why?", "So.", "x")) if "could not be used" in request.user and again > 1 else "no"

    outcome = say(told, stage, mend)
    assert (outcome.written, outcome.failed, again) == (2, 1, 3)
    assert told.rows("SELECT kind, reply FROM open_failures") == [{"kind": "unparsable", "reply": "no"}]


def test_json_and_lines_are_asked_apart(recipe: Recipe) -> None:
    lines, as_object = asking(recipe), asking(recipe, form="json")
    assert ask_stage(lines).spec == ask_stage(recipe).spec != ask_stage(as_object).spec


# Templates

TEMPLATES = [
    Template(question="What is seen from {start_s} to {end_s} s?", reference="{caption}", kind="clip"),
    Template(question="How do the {duration_s} s end?"),
    Template(question="how do the {duration_s} s  end?"),
]


def test_a_template_of_a_clip_is_asked_of_every_clip(told: Warehouse, recipe: Recipe) -> None:
    asked = asking(recipe, templates=TEMPLATES)
    assert fill_templates(told, asked).written == 9 and fill_templates(told, asked).run_id is None
    rows = told.rows("SELECT q.* FROM questions q JOIN videos USING (video_id) WHERE uri = 'cat.mp4' ORDER BY text")
    assert [(row["text"], row["reference"], row["kind"]) for row in rows] == [
        ("How do the 4 s end?", None, None),
        ("What is seen from 0 to 2 s?", "a picture at 0", "clip"),
        ("What is seen from 2 to 4 s?", "a picture at 2", "clip"),
    ]
    assert {row["spec_id"] for row in rows} == {asked_by(asked)} and {row["source"] for row in rows} == {"templates"}
    assert list(check_ids(told, everything=True)) == []
    assert len(respond_stage(asked).pending(told)) == 18


def test_what_is_filled_in_stays_as_it_is() -> None:
    clips = [{"caption": "{duration_s} {nothing}"}]
    assert (
        fill([Template(question="Is it so: {caption}?")], 4.0, clips)[0].text == "Is it so: {duration_s} {nothing}?"
    )


def test_templates_wait_for_the_captions_that_they_fill_in(asked: Warehouse, recipe: Recipe) -> None:
    asked.execute("DELETE FROM questions WHERE text LIKE '%cat%' OR text LIKE '%dog%'")
    wants = asking(recipe, templates=TEMPLATES)
    assert fill_templates(asked, wants).written == 0
    clip(asked, part(recipe, "clip"))
    say(asked, caption_stage(recipe), lambda request: "seen", limit=3)
    assert fill_templates(asked, wants).written == 3, "one of the two has all its captions"
    seconds = asking(recipe, templates=TEMPLATES[1:])
    assert fill_templates(asked, seconds).written == 2, "the owl has questions of its own"


def test_a_template_reads_no_more_than_it_fills_in(recipe: Recipe) -> None:
    upstream = [json.loads(template_spec(asking(recipe, templates=[t])).upstream) for t in TEMPLATES[:2]]
    assert [sorted(each) for each in upstream] == [["caption", "clip"], []]


def test_mistakes_of_templates_are_told(recipe: Recipe, told: Warehouse) -> None:
    wrong = asking(recipe, templates=[Template(question="What of {clip}?")])
    with pytest.raises(UserError, match=r"has a field \{clip\}\. There are: caption, duration_s"):
        fill_templates(told, wrong)
    with pytest.raises(UserError, match="takes its questions from templates"):
        ask_stage(asking(recipe, templates=TEMPLATES))


@pytest.mark.parametrize(
    "text", ["{}", "{model: m}", "{model: m, prompt: p, templates: [{question: w}]}", "{form: x}"]
)
def test_a_recipe_asks_in_one_way(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(f"ask: {text}")
    with pytest.raises(UserError, match=r"either `model` and `prompt`, or `templates`|`form` is one of"):
        load(str(tmp_path / "r.yaml"))


# Answerable


@pytest.fixture
def doubting(recipe: Recipe) -> Recipe:
    return asking(recipe, answerable=Answerability(model=part(recipe, "caption").model, prompt="answerable_v1"))


def doubt(request: Request) -> dict[str, float]:
    """Who: yes. Anything else: hardly."""
    return {"A": 0.9, "B": 0.1} if "Question: Who" in request.user else {"A": 0.15, "B": 0.35}


def test_only_questions_that_can_be_answered_are_answered(told: Warehouse, doubting: Recipe) -> None:
    say(told, ask_stage(doubting), lambda request: "Who runs?\nHow fast?")
    assert len(respond_stage(doubting).pending(told)) == 0, "nothing is known yet"
    stage = answerable_stage(doubting)
    assert say(told, stage, doubt).written == 6 and say(told, stage, doubt).run_id is None
    assert {row["text"] for row in respond_stage(doubting).pending(told)} == {"Who runs?"}
    rows = told.rows(
        "SELECT DISTINCT text, value, reply, item, response_id FROM ratings JOIN questions USING (question_id)"
    )
    assert sorted((row["text"], round(row["value"], 6), row["reply"]) for row in rows) == [
        ("How fast?", 0.3, "B"), ("Who runs?", 0.9, "A"),
    ]  # fmt: skip
    assert left_out(told, stage) == "answerable: 3 of 6 written questions are left out, below 0.5"
    assert told.rows("SELECT questions, below_half FROM answerability") == [{"questions": 6, "below_half": 3}]


def test_another_threshold_asks_nothing_again(told: Warehouse, doubting: Recipe) -> None:
    say(told, ask_stage(doubting), lambda request: "Who runs?\nHow fast?")
    say(told, answerable_stage(doubting), doubt)
    settings = dataclasses.replace(part(doubting, "ask.answerable"), at_least=0.2)
    lenient = dataclasses.replace(doubting, ask=dataclasses.replace(part(doubting, "ask"), answerable=settings))
    assert len(answerable_stage(lenient).pending(told)) == 0
    assert len(respond_stage(lenient).pending(told)) == 12
    assert respond_stage(lenient).spec == respond_stage(doubting).spec
    assert left_out(told, answerable_stage(lenient)).startswith("answerable: 0 of 6")


def test_imported_questions_are_not_doubted(asked: Warehouse, doubting: Recipe) -> None:
    clip(asked, part(doubting, "clip"))
    say(asked, caption_stage(doubting), lambda request: "seen")
    narrate_videos(asked, doubting)
    assert len(answerable_stage(doubting).pending(asked)) == 0 and left_out(asked, answerable_stage(doubting)) == ""
    assert len(respond_stage(doubting).pending(asked)) == 12


def test_the_narrative_and_the_question_are_read_in_that_order(told: Warehouse, doubting: Recipe) -> None:
    """So that the questions of one video share the beginning of their prompts."""
    say(told, ask_stage(doubting), lambda request: "Who runs?\nHow fast?")
    stage = answerable_stage(doubting)
    prompts = [stage.request(told, row).user for row in stage.pending(told)]
    for one, other in zip(prompts[::2], prompts[1::2], strict=True):
        shared = one.partition("Question:")[0]
        assert "a picture at 0" in shared and other.startswith(shared)


@given(st.floats(-800, 0), st.floats(-800, 0))
def test_yes_is_a_share_of_yes_and_no(yes: float, no: float) -> None:
    value = yes_probability({"A": yes, "B": no})
    assert value is not None and 0 <= value <= 1
    assert yes_probability({"A": no, "B": yes}) == pytest.approx(1 - value, abs=1e-12)


@pytest.mark.parametrize("logprobs", [{}, {"A": -inf, "B": -inf}, {"A": nan, "B": 0.0}])
def test_what_says_nothing_is_no_answer(logprobs: dict[str, float]) -> None:
    assert yes_probability(logprobs) is None


def test_one_label_alone_is_certain() -> None:
    assert yes_probability({"A": log(0.2)}) == 1.0 and yes_probability({"B": log(0.2)}) == 0.0


def test_plan_why_and_pending_work_know_doubted_questions(told: Warehouse, doubting: Recipe) -> None:
    def planned(stage: str) -> tuple[int, int, int, str]:
        line = next(line for line in overview(told, doubting) if line.stage == stage)
        return line.stands, line.pending, line.later, line.bound

    assert planned("answerable") == (0, 0, 3, "about")
    say(told, ask_stage(doubting), lambda request: "Who runs?\nHow fast?")
    assert planned("answerable") == (0, 6, 0, "") and planned("respond") == (0, 0, 12, "at most")
    stage = answerable_stage(doubting)
    pending = next(iter(stage.pending(told)))["row_id"]
    found = explain_pending(told, doubting, pending)
    assert found is not None and found["stage"] == "answerable" and found["from"][0]["table"] == "questions"
    say(told, stage, doubt)
    assert planned("answerable") == (6, 0, 0, "") and planned("respond") == (0, 6, 0, "")
    explained = explain(told, pending)
    assert explained is not None and explained["table"] == "ratings"
    assert list(check_ids(told, everything=True)) == []
    say(told, respond_stage(doubting), lambda request: f"{request.seed}")
    rows = {row["stage"]: row for row in told.rows("FROM pending_work")}
    counts = [(rows[name]["rows_wanted"], rows[name]["rows_missing"]) for name in ("answerable", "respond")]
    assert counts == [(6, 0), (6, 0)]


def test_failures_of_the_new_stages_go_with_their_video(told: Warehouse, doubting: Recipe) -> None:
    say(told, ask_stage(doubting), lambda request: "Who runs?")

    def fail(request: Request) -> str:
        raise ValueError("out of memory")

    assert say(told, answerable_stage(doubting), fail).failed == 3
    videos = [row["video_id"] for row in told.rows("SELECT video_id FROM videos")]
    with told.visit() as connection:
        gather(connection, videos)
        assert len(failed_ids(connection, "")) == 3


def test_questions_without_doubts_are_read_by_their_spec_alone(recipe: Recipe) -> None:
    assert questions_of(recipe).parameters == {"ask": asked_by(recipe)}
    assert questions_of(dataclasses.replace(recipe, ask=None)).parameters == {"ask": None}


# Commands


def test_templates_run_from_the_command(told: Warehouse, command: Any, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("ask: {templates: [{question: 'How do the {duration_s} s end?'}]}")
    given = ("datagen", "ask", told.path, "--recipe", tmp_path / "r.yaml")
    assert command(*given).out == "templates: 3 rows written\n"
    assert command(*given).out == "templates: nothing to do\n"
    assert command(*given, "--dry-run").code == 2
    missing = command("datagen", "answerable", told.path, "--recipe", tmp_path / "r.yaml")
    assert missing.code == 2 and "has no `ask.answerable:` part." in missing.err
    for stage in ("refine", "summarise"):
        missing = command("datagen", stage, told.path, "--recipe", "shapes")
        assert missing.code == 2 and f"has no `context.{stage}:` part." in missing.err
