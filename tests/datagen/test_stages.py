"""The stages one by one: clips, captions, contexts, asked questions, responses, pairs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engine import Request, ScriptedEngine
from vlm_rlaif.datagen.job import Stage, run_stage
from vlm_rlaif.datagen.plan import ask_stage, caption_stage, clip_method, context_spec, respond_stage
from vlm_rlaif.datagen.stages.clip import clip, cut
from vlm_rlaif.datagen.stages.context import context, narrate
from vlm_rlaif.datagen.stages.pair import pair
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.warehouse.config import Captioning, Clips, Recipe
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Response, Video
from vlm_rlaif.warehouse.runs import Outcome
from vlm_rlaif.warehouse.store import Warehouse

Command = Any
Script = Callable[[Request], Any]


def say(warehouse: Warehouse, stage: Stage, script: Script | None = None, **options: Any) -> Outcome:
    """Run a stage with a script that says the part of the video that it is shown."""
    return run_stage(warehouse, stage, lambda: ScriptedEngine(script or shown), **options)


def shown(request: Request) -> str:
    assert request.video is not None
    return f"{request.video.path.name} from {request.video.start_s} to {request.video.end_s}"


def narrate_all(warehouse: Warehouse, recipe: Recipe) -> Outcome:
    return context(warehouse, context_spec(recipe), caption_stage(recipe).spec.spec_id, clip_method(recipe))


def captioned(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other settings of its captions."""
    assert isinstance(recipe.caption, Captioning)
    return dataclasses.replace(recipe, caption=dataclasses.replace(recipe.caption, **changes))


# Clips


@given(st.floats(0.3, 10_000), st.integers(1, 20) | st.floats(0.25, 100))
def test_clips_cover_the_video_without_a_gap(duration_s: float, size: int | float) -> None:
    settings = Clips(parts=size) if isinstance(size, int) else Clips(seconds=max(size, duration_s / 1000))
    parts = cut(duration_s, settings)
    assert parts[0][0] == 0.0 and parts[-1][1] == pytest.approx(duration_s)
    assert all(start < end for start, end in parts)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(parts))


def test_clips_are_cut_once_per_method(asked: Warehouse) -> None:
    assert clip(asked, Clips(parts=2)).written == 6
    assert clip(asked, Clips(parts=2)).run_id is None
    assert clip(asked, Clips(seconds=1.0)).written == 12


@pytest.mark.parametrize("wrong", [Clips(), Clips(parts=2, seconds=1.0), Clips(parts=0), Clips(seconds=-1.0)])
def test_clips_of_no_size_are_refused(asked: Warehouse, wrong: Clips) -> None:
    with pytest.raises(UserError, match="clip: "):
        clip(asked, wrong)


# Captions and contexts


def test_a_caption_is_of_its_own_part_of_the_video(asked: Warehouse, recipe: Recipe) -> None:
    clip(asked, Clips(parts=2))
    assert say(asked, caption_stage(recipe)).written == 6
    for row in asked.rows("SELECT * FROM captions JOIN clips USING (clip_id) JOIN videos USING (video_id)"):
        assert row["text"] == f"{row['uri']} from {row['start_s']} to {row['end_s']}"


def test_a_context_is_the_captions_of_a_video_in_time_order(asked: Warehouse, recipe: Recipe) -> None:
    clip(asked, Clips(parts=2))
    say(asked, caption_stage(recipe))
    assert narrate_all(asked, recipe).written == 3
    assert narrate_all(asked, recipe).run_id is None
    texts = {row["text"] for row in asked.rows("SELECT text FROM contexts")}
    assert "0 s cat.mp4 from 0.0 to 2.0\n2 s cat.mp4 from 2.0 to 4.0" in texts


def test_a_video_with_a_missing_caption_has_no_context_yet(asked: Warehouse, recipe: Recipe) -> None:
    def forgetful(request: Request) -> str:
        return "" if "cat" in shown(request) and "from 0.0" in shown(request) else shown(request)

    clip(asked, Clips(parts=2))
    assert say(asked, caption_stage(recipe), forgetful).failed == 1
    assert narrate_all(asked, recipe).written == 2
    say(asked, caption_stage(recipe), retry_failed=True)
    assert narrate_all(asked, recipe).written == 1


def test_a_narrative_tells_seconds_in_plain_figures() -> None:
    line = prompt.parse("line", "{start_s}-{end_s}: {caption}")
    parts = [
        {"start_s": 0.0, "end_s": 2 / 3, "text": "{start_s}"},
        {"start_s": 2 / 3, "end_s": 3725.25, "text": "b"},
    ]
    assert narrate(line, parts, " | ") == "0-0.67: {start_s} | 0.67-3725.25: b"


# Questions that a model writes


def test_a_model_asks_about_videos_without_questions(asked: Warehouse, recipe: Recipe) -> None:
    asked.execute("DELETE FROM questions WHERE text LIKE '%cat%'")
    clip(asked, Clips(parts=2))
    say(asked, caption_stage(recipe))
    narrate_all(asked, recipe)
    reply = "Here you are:\n1. What happens?\n- Why {so}?\n\n2) What happens?\n"
    outcome = say(asked, ask_stage(recipe), lambda request: reply)
    assert (outcome.pending, outcome.written) == (1, 2)
    assert say(asked, ask_stage(recipe)).run_id is None
    rows = asked.rows("SELECT text, spec_id FROM questions WHERE source = 'ask' ORDER BY text")
    assert rows == [
        {"text": text, "spec_id": ask_stage(recipe).spec.spec_id} for text in ("What happens?", "Why {so}?")
    ]


def test_a_reply_without_a_question_is_kept_and_can_be_tried_again(asked: Warehouse, recipe: Recipe) -> None:
    asked.execute("DELETE FROM questions")
    clip(asked, Clips(parts=2))
    say(asked, caption_stage(recipe))
    narrate_all(asked, recipe)
    assert say(asked, ask_stage(recipe), lambda request: "I would rather not.").failed == 3
    assert asked.rows("SELECT DISTINCT kind, reply FROM open_failures") == [
        {"kind": "unparsable", "reply": "I would rather not."}
    ]
    assert say(asked, ask_stage(recipe), lambda request: "Why?\nWho?", retry_failed=True).written == 6
    assert asked.value("SELECT count(*) FROM open_failures") == 0


def test_ids_of_asked_questions_come_from_the_request(asked: Warehouse, recipe: Recipe) -> None:
    asked.execute("DELETE FROM questions")
    clip(asked, Clips(parts=2))
    say(asked, caption_stage(recipe))
    narrate_all(asked, recipe)
    say(asked, ask_stage(recipe), lambda request: "Why?\nWho?")
    first = asked.rows("SELECT question_id FROM questions ORDER BY 1")
    asked.execute("DELETE FROM questions")
    say(asked, ask_stage(recipe), lambda request: "How?\nWhen?")
    assert asked.rows("SELECT question_id FROM questions ORDER BY 1") == first


# Responses and pairs


def test_a_request_carries_the_question_as_it_is(asked: Warehouse, recipe: Recipe) -> None:
    asked.execute("UPDATE questions SET text = 'what is {question} ?'")
    say(asked, respond_stage(recipe), lambda request: f"{{answer}} to {request.user}", limit=1)
    assert asked.value("SELECT text FROM responses") == "{answer} to what is {question} ?"


def test_every_response_has_a_seed_of_its_own(asked: Warehouse, recipe: Recipe) -> None:
    say(asked, respond_stage(recipe))
    assert asked.value("SELECT count(DISTINCT seed) FROM responses") == 12
    assert asked.rows("SELECT sample_index, count(*) AS n FROM responses GROUP BY 1 ORDER BY 1") == [
        {"sample_index": 0, "n": 6}, {"sample_index": 1, "n": 6},
    ]  # fmt: skip


def test_more_samples_add_to_those_that_stand(asked: Warehouse, recipe: Recipe) -> None:
    assert recipe.respond is not None
    say(asked, respond_stage(recipe))
    more = dataclasses.replace(recipe, respond=dataclasses.replace(recipe.respond, samples=3))
    assert say(asked, respond_stage(more)).written == 6


def test_responses_with_different_words_make_a_pair(asked: Warehouse, recipe: Recipe) -> None:
    spec = respond_stage(recipe).spec.spec_id
    say(asked, respond_stage(recipe), lambda request: "same" if "colour" in request.user else f"{request.seed}")
    assert pair(asked, spec).written == 3
    assert pair(asked, spec).run_id is None
    assert asked.value("SELECT count(*) FROM pairs WHERE response_a < response_b") == 3


def test_three_responses_make_three_pairs(asked: Warehouse) -> None:
    question = asked.value("SELECT min(question_id) FROM questions")
    asked.append(
        [
            Response(response_id=name, question_id=question, spec_id="s", sample_index=n, seed=n, text=name, tokens=1,
                     finish="stop", logprob=None, run_id="r")
            for n, name in enumerate("zxy")
        ]
    )  # fmt: skip
    pair(asked, "s")
    rows = asked.rows("SELECT response_a || response_b AS ab FROM pairs ORDER BY 1")
    assert [row["ab"] for row in rows] == ["xy", "xz", "yz"]


# What a change of the recipe computes anew


def specs(recipe: Recipe) -> dict[str, str]:
    return {
        "caption": caption_stage(recipe).spec.spec_id,
        "context": context_spec(recipe).spec_id,
        "ask": ask_stage(recipe).spec.spec_id,
        "respond": respond_stage(recipe).spec.spec_id,
        "label with context": label_stage(recipe, "context").spec.spec_id,
        "label without": label_stage(recipe, "none").spec.spec_id,
    }


def changed(one: Recipe, other: Recipe) -> set[str]:
    before, after = specs(one), specs(other)
    return {stage for stage in before if before[stage] != after[stage]}


def test_another_wording_of_one_prompt_changes_what_depends_on_it(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "mine_v1.md").write_text("describe the clip at length .")
    assert changed(recipe, captioned(recipe, prompt=str(tmp_path / "mine_v1.md"))) == {
        "caption", "context", "ask", "label with context",
    }  # fmt: skip


def test_the_same_wording_under_another_name_changes_nothing(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "copy_v1.md").write_text("A copy.\n[user]\ndescribe the clip .")
    assert changed(recipe, captioned(recipe, prompt=str(tmp_path / "copy_v1.md"))) == set()


def test_other_clips_change_what_is_made_of_clips(recipe: Recipe) -> None:
    assert changed(recipe, dataclasses.replace(recipe, clip=Clips(parts=3))) == {
        "caption", "context", "ask", "label with context",
    }  # fmt: skip


def test_another_policy_changes_its_responses_and_their_labels(recipe: Recipe, tmp_path: Path) -> None:
    assert recipe.respond is not None
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"another": "model"}')
    respond = dataclasses.replace(recipe.respond, model=str(other))
    assert changed(recipe, dataclasses.replace(recipe, respond=respond)) == {
        "respond", "label with context", "label without",
    }  # fmt: skip


def test_a_changed_prompt_computes_its_own_rows_beside_the_old_ones(
    asked: Warehouse, recipe: Recipe, tmp_path: Path
) -> None:
    clip(asked, Clips(parts=2))
    say(asked, caption_stage(recipe))
    say(asked, respond_stage(recipe))
    narrate_all(asked, recipe)
    (tmp_path / "mine_v1.md").write_text("describe the clip at length .")
    other = captioned(recipe, prompt=str(tmp_path / "mine_v1.md"))
    assert narrate_all(asked, other).written == 0
    assert say(asked, caption_stage(other)).written == 6
    assert say(asked, respond_stage(other)).run_id is None
    assert narrate_all(asked, other).written == 3
    assert asked.rows("SELECT count(*) AS n FROM captions GROUP BY spec_id") == [{"n": 6}, {"n": 6}]


def test_one_more_video_computes_one_more_video(asked: Warehouse, recipe: Recipe) -> None:
    clip(asked, Clips(parts=2))
    say(asked, caption_stage(recipe))
    new = Video(video_id="new", uri="new.mp4", source="test", video_group="new", split="train", status="ok",
                duration_s=4.0, run_id="test")  # fmt: skip
    asked.append([new])
    assert clip(asked, Clips(parts=2)).written == 2
    assert say(asked, caption_stage(recipe)).written == 2


# The command


def test_a_dry_run_says_what_would_be_computed_and_writes_nothing(
    asked: Warehouse, command: Command, recipe_file: Path
) -> None:
    result = command("datagen", "respond", asked.path, "--recipe", recipe_file, "--dry-run")
    assert result.code == 0
    assert "respond: 12 rows would be computed" in result.out and "24 frames" in result.out
    assert asked.value("SELECT count(*) FROM runs") == 0


def test_stages_without_a_model_run_from_the_command(asked: Warehouse, command: Command, recipe_file: Path) -> None:
    assert command("datagen", "clip", asked.path, "--recipe", recipe_file).out == "clip: 6 rows written\n"
    for stage in ("clip", "context", "pair"):
        result = command("datagen", stage, asked.path, "--recipe", recipe_file)
        assert (result.code, result.out) == (0, f"{stage}: nothing to do\n")


MISTAKES = {
    "a missing warehouse": (["add", "none.duckdb", "."], "vlm-rlaif init none.duckdb"),
    "a missing folder": (["add", "w.duckdb", "none"], "There is no folder none."),
    "an empty folder": (["add", "w.duckdb", "empty"], "There is no video below empty."),
    "a missing question file": (["add", "w.duckdb", ".", "--questions", "none"], "There is no question file none."),
    "an unknown recipe": (["datagen", "clip", "w.duckdb", "--recipe", "shaeps"], "Did you mean 'shapes'?"),
    "a recipe without the part": (["datagen", "clip", "w.duckdb", "--recipe", "bare.yaml"], "has no `clip:` part"),
    "an unknown model": (
        ["datagen", "caption", "w.duckdb", "--recipe", "TINY", "--model", "embedded:jugde"],
        "There is no embedded model 'jugde'. Did you mean 'judge'?",
    ),
    "a model that is nowhere": (
        ["datagen", "caption", "w.duckdb", "--recipe", "TINY", "--model", "./none"],
        "There is no model folder ./none.",
    ),
    "a word for a model": (
        ["datagen", "caption", "w.duckdb", "--recipe", "TINY", "--model", "gpt"],
        "There is no model 'gpt'.",
    ),
    "a folder without a model": (
        ["datagen", "caption", "w.duckdb", "--recipe", "TINY", "--model", "./empty"],
        "empty is not a model: it has no config.json.",
    ),
    "no recipe": (["datagen", "clip", "w.duckdb"], "--recipe"),
    "an unknown engine": (
        ["datagen", "caption", "w.duckdb", "--recipe", "TINY", "--engine", "vlm"],
        "'vlm' is not one of",
    ),
    "less than nothing": (["datagen", "caption", "w.duckdb", "--recipe", "TINY", "--limit", "-1"], "--limit"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_with_2_and_says_what_to_do(
    warehouse: Warehouse, command: Command, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    mistake: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare.yaml").write_text("name: bare")
    arguments, said = MISTAKES[mistake]
    result = command(*(recipe_file if argument == "TINY" else argument for argument in arguments))
    assert result.code == 2
    assert said in result.err
    assert result.out == "" and "Traceback" not in result.err
    assert warehouse.value("SELECT count(*) FROM runs") == 0
