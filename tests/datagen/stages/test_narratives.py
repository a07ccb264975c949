"""Narratives with what is said in the video, refined by a model that sees it, and summed up."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Request, ScriptedEngine
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.plan import (
    ask_stage,
    caption_stage,
    context_spec,
    narrate_videos,
    narrative_spec,
    part,
    refine_stages,
    summarise_stage,
)
from vlm_rlaif.datagen.prompt import parse
from vlm_rlaif.datagen.stages.clip import clip
from vlm_rlaif.datagen.stages.context import narrate
from vlm_rlaif.eval.overview_learning import overview
from vlm_rlaif.eval.relatives import explain_pending
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.warehouse.care.row_checks import check_ids, check_rows
from vlm_rlaif.warehouse.config import Frames, Recipe
from vlm_rlaif.warehouse.inspection.why import explain
from vlm_rlaif.warehouse.records import Transcript, row_id
from vlm_rlaif.warehouse.runs import Outcome
from vlm_rlaif.warehouse.settings import Refining, Summarising
from vlm_rlaif.warehouse.store import Warehouse

Script = Callable[[Request], Any]


def say(warehouse: Warehouse, stage: Any, script: Script, **options: Any) -> Outcome:
    return run_stage(warehouse, stage, lambda: ScriptedEngine(script), **options)


def with_context(recipe: Recipe, **changes: Any) -> Recipe:
    return dataclasses.replace(recipe, context=dataclasses.replace(part(recipe, "context"), **changes))


@pytest.fixture(scope="module")
def captioned_file(asked_file: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of `captioned`, to be copied."""
    made = Warehouse(Path(shutil.copy(asked_file, tmp_path_factory.mktemp("captioned") / "w.duckdb")))
    clip(made, part(recipe, "clip"))
    say(made, caption_stage(recipe), lambda request: f"a picture at {request.video and request.video.start_s:g}")
    cat = made.value("SELECT video_id FROM videos WHERE uri = 'cat.mp4'")
    lines = [(0.5, 1.0, "Look!"), (1.2, 2.5, "It moves."), (3.0, 3.5, "Gone.")]
    made.append(
        [
            Transcript(transcript_id=row_id("transcript", cat, *line), video_id=cat, start_s=line[0], end_s=line[1],
                       text=line[2], source="cat.srt", run_id="r")
            for line in lines
        ]
    )  # fmt: skip
    return made.path


@pytest.fixture
def captioned(captioned_file: Path, tmp_path: Path) -> Warehouse:
    """Every clip has a caption, and the video of the cat a transcript."""
    return Warehouse(Path(shutil.copy(captioned_file, tmp_path / "w.duckdb")))


@pytest.fixture
def refining(recipe: Recipe) -> Recipe:
    model = part(recipe, "caption").model
    refine = Refining(model=model, prompt="refine_v1", frames=Frames(count=4), rounds=2)
    return with_context(recipe, refine=refine)


@pytest.fixture
def summing(recipe: Recipe) -> Recipe:
    model = part(recipe, "caption").model
    return with_context(recipe, summarise=Summarising(model=model, prompt="summarise_v1", above_words=12))


# What is said


def test_what_is_said_stands_after_the_clip_in_which_it_begins() -> None:
    clips = [{"start_s": 0.0, "end_s": 2.0, "text": "a"}, {"start_s": 2.0, "end_s": 4.0, "text": "b"}]
    speech = [
        {"start_s": start, "end_s": end, "text": text}
        for start, end, text in ((0.5, 3.0, "one"), (1.0, 2.0, "two"), (2.0, 2.5, "three"), (9.0, 9.5, "four"))
    ]
    told = narrate(parse("l", "[{caption}]"), clips, " ", parse("s", "{start_s}-{end_s}: {text}"), speech)
    assert told == "[a] 0.5-3: one two [b] 2-9.5: three four"


def test_a_narrative_tells_what_is_seen_and_said_in_time_order(captioned: Warehouse, recipe: Recipe) -> None:
    heard = with_context(recipe, transcripts="speech_v1")
    assert narrate_videos(captioned, heard).written == 3 and narrate_videos(captioned, heard).run_id is None
    (cat,) = captioned.rows("SELECT x.* FROM contexts x JOIN videos USING (video_id) WHERE uri = 'cat.mp4'")
    assert cat["text"].splitlines() == [
        "0 s a picture at 0", 'From 0.5 s to 2.5 s somebody says: "Look! It moves."',
        "2 s a picture at 2", 'From 3 s to 3.5 s somebody says: "Gone."',
    ]  # fmt: skip
    ordered = captioned.rows("SELECT transcript_id FROM transcripts ORDER BY start_s")
    assert cat["transcript_ids"] == [row["transcript_id"] for row in ordered]


def test_videos_without_a_transcript_have_the_narrative_that_they_had(captioned: Warehouse, recipe: Recipe) -> None:
    narrate_videos(captioned, recipe)
    narrate_videos(captioned, with_context(recipe, transcripts="speech_v1"))
    texts = captioned.rows(
        "SELECT uri, count(DISTINCT text) AS n FROM contexts JOIN videos USING (video_id) GROUP BY ALL ORDER BY ALL"
    )
    assert {row["uri"]: row["n"] for row in texts} == {"cat.mp4": 2, "dog.mp4": 1, "owl.mp4": 1}
    assert captioned.value("SELECT count(*) FROM contexts") == 6, "of two specs"


def test_narratives_that_were_made_before_the_transcripts_are_counted(
    captioned: Warehouse, recipe: Recipe, command: Any
) -> None:
    narrate_videos(captioned, with_context(recipe, transcripts="speech_v1"))
    file = captioned.path.parent / "dog.srt"
    file.write_text("00:01.0 --> 00:02.0\nwoof\n")
    said = command("transcripts", captioned.path, file).err
    assert said == "1 narratives were made before, without what is said, and stay as they are.\n"


# Refined contexts


def test_every_round_is_written_from_the_round_before(captioned: Warehouse, refining: Recipe) -> None:
    narrate_videos(captioned, refining)
    first, second = refine_stages(refining)
    assert say(captioned, second, lambda request: "").missing, "there is nothing of the first round yet"
    seen: list[Request] = []

    def write(request: Request) -> str:
        seen.append(request)
        return f"version {len(seen)}"

    assert [say(captioned, stage, write).written for stage in (first, second)] == [3, 3]
    assert say(captioned, second, write).run_id is None
    assert all(request.video is not None and request.video.frames.count == 4 for request in seen)
    assert all("0 s a picture at 0" in request.user for request in seen[:3])
    assert ["version 1" in seen[3].user, "version 2" in seen[4].user] == [True, True]
    chain = captioned.rows(
        "SELECT c.spec_id AS last, b.spec_id AS before, a.spec_id AS base FROM contexts c"
        " JOIN contexts b ON b.context_id = c.base_context_id JOIN contexts a ON a.context_id = b.base_context_id"
    )
    base = narrative_spec(refining).spec_id
    assert chain == [{"last": second.spec.spec_id, "before": first.spec.spec_id, "base": base}] * 3


def test_readers_read_the_last_round(captioned: Warehouse, refining: Recipe, recipe: Recipe) -> None:
    second = refine_stages(refining)[1].spec.spec_id
    assert context_spec(refining).spec_id == second != context_spec(recipe).spec_id
    assert label_stage(refining, "context").context_spec == second and ask_stage(refining).context_spec == second
    assert label_stage(refining, "none").spec == label_stage(recipe, "none").spec


def test_one_more_round_computes_that_round(captioned: Warehouse, refining: Recipe) -> None:
    narrate_videos(captioned, refining)
    for stage in refine_stages(refining):
        say(captioned, stage, lambda request: "better")
    settings = part(refining, "context").refine
    more = with_context(refining, refine=dataclasses.replace(settings, rounds=3))
    assert [len(stage.pending(captioned)) for stage in refine_stages(more)] == [0, 0, 3]


def test_a_context_that_a_model_does_not_write_is_a_failure_and_no_context(
    captioned: Warehouse, refining: Recipe
) -> None:
    narrate_videos(captioned, refining)
    first, second = refine_stages(refining)
    said = iter(["", "b", "c"])
    outcome = say(captioned, first, lambda request: next(said))
    assert (outcome.written, outcome.failed) == (2, 1)
    assert len(second.pending(captioned)) == 2
    assert say(captioned, first, lambda request: "a", retry_failed=True).written == 1
    assert captioned.value("SELECT count(*) FROM open_failures") == 0


# Summaries


def test_only_what_is_too_long_is_summed_up(captioned: Warehouse, summing: Recipe) -> None:
    summing = with_context(summing, transcripts="speech_v1")
    narrate_videos(captioned, summing)
    stage = summarise_stage(summing)
    words = {row["uri"]: row["n"] for row in captioned.rows(
        "SELECT uri, len(string_split(text, ' ')) AS n FROM contexts JOIN videos USING (video_id)"
    )}  # fmt: skip
    assert words["cat.mp4"] > 12 >= words["dog.mp4"]
    assert stage.pass_short(captioned).written == 2 and stage.pass_short(captioned).run_id is None
    outcome = say(captioned, stage, lambda request: f"short: {request.video}")
    assert (outcome.pending, outcome.written) == (1, 1)
    read = captioned.rows(
        "SELECT uri, x.text, b.text AS base FROM contexts x JOIN contexts b ON b.context_id = x.base_context_id"
        " JOIN videos v ON v.video_id = x.video_id WHERE x.spec_id = ? ORDER BY uri",
        [context_spec(summing).spec_id],
    )
    assert read[0]["text"] == "short: None" and all(row["text"] == row["base"] for row in read[1:])


def test_words_are_counted_as_a_reader_would(captioned: Warehouse, summing: Recipe) -> None:
    """The slow twin is `str.split`."""
    narrate_videos(captioned, summing)
    texts = [row["text"] for row in captioned.rows("SELECT text FROM contexts")]
    for most in range(1, 14):
        settings = dataclasses.replace(part(summing, "context").summarise, above_words=most)
        stage = summarise_stage(with_context(summing, summarise=settings))
        assert len(stage.pending(captioned)) == sum(len(text.split()) > most for text in texts)


# Everything around it


def test_plan_why_doctor_and_pending_work_know_rewritten_contexts(
    captioned: Warehouse, refining: Recipe, summing: Recipe
) -> None:
    whole = with_context(
        refining, transcripts="speech_v1", summarise=part(summing, "context").summarise
    )  # fmt: skip

    def planned() -> dict[str, tuple[int, int, int]]:
        lines = overview(captioned, whole)
        return {f"{line.stage} {line.form}".strip(): (line.stands, line.pending, line.later) for line in lines}

    first = planned()
    assert first["context"] == (0, 3, 0) and first["refine round 1"] == first["refine round 2"] == (0, 0, 3)
    assert first["summarise above 12 words"] == (0, 0, 3)
    narrate_videos(captioned, whole)
    one, two = refine_stages(whole)
    assert planned()["refine round 1"] == (0, 3, 0)
    say(captioned, one, lambda request: "more " * 20)
    pending = next(iter(two.pending(captioned)))["row_id"]
    found = explain_pending(captioned, whole, pending)
    assert found is not None and {each["table"] for each in found["from"]} >= {"contexts", "captions", "videos"}
    say(captioned, two, lambda request: "more " * 20)
    summarise_stage(whole).pass_short(captioned)
    say(captioned, summarise_stage(whole), lambda request: "less")
    assert {name: counts for name, counts in planned().items() if counts[1:] != (0, 0)}.keys() <= {
        "respond", "pair", "label context", "label none",
    }  # fmt: skip
    last = captioned.value(
        "SELECT x.context_id FROM contexts x JOIN videos USING (video_id) WHERE uri = 'cat.mp4' AND x.spec_id = ?",
        [context_spec(whole).spec_id],
    )
    explained = explain(captioned, last)
    assert explained is not None and set(explained["key"]) == {"spec_id", "base_context_id"}
    tables = [each["table"] for each in explained["from"]]
    assert tables.count("contexts") == 3 and tables.count("transcripts") == 3 and tables.count("captions") == 2
    assert list(check_ids(captioned, everything=True)) == []
    assert [f for f in check_rows(captioned) if "written from" in f.what or "base_context" in f.what] == []
    rows = captioned.rows(
        "SELECT stage, rows_wanted, rows_missing FROM pending_work WHERE stage LIKE '%e' ORDER BY 1"
    )
    assert [row for row in rows if row["stage"] in ("refine", "summarise")] == [
        {"stage": stage, "rows_wanted": 3, "rows_missing": 0} for stage in ("refine", "refine", "summarise")
    ]  # fmt: skip


def test_a_missing_base_is_an_orphan(captioned: Warehouse, refining: Recipe) -> None:
    narrate_videos(captioned, refining)
    say(captioned, refine_stages(refining)[0], lambda request: "more")
    captioned.execute("DELETE FROM contexts WHERE base_context_id IS NULL")
    found = [finding for finding in check_rows(captioned) if "base_context_id" in finding.what]
    assert [finding.count for finding in found] == [3]
