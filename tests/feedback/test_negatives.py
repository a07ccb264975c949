"""Are answers to spoilt videos worse? The judge says so blindly, in both orders, and the views count what it said."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Request, ScriptedEngine
from vlm_rlaif.datagen.job import run_stage, run_stages
from vlm_rlaif.datagen.policies import pairs_of, respond_stages
from vlm_rlaif.datagen.portion import Portion
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.warehouse.care.row_checks import check_ids, check_rows
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.exports.versions import Selection, create
from vlm_rlaif.warehouse.settings import Pairing, Perturbing
from vlm_rlaif.warehouse.store import Warehouse

SAID = {"": "clean", "reversed": "worse", "shuffled": "equal", "dropped": "better"}
"""What the policy says of a video as it is, and of one that was spoilt."""


@pytest.fixture
def spoiling(recipe: Recipe) -> Recipe:
    assert recipe.respond is not None
    return dataclasses.replace(
        recipe,
        respond=dataclasses.replace(recipe.respond, samples=1),
        pair=Pairing(perturb=Perturbing(kinds=["reversed", "shuffled", "dropped"])),
    )


def say(request: Request) -> str:
    assert request.video is not None
    return f"{SAID[request.video.frames.perturb]} {request.seed}"


def judge(request: Request) -> dict[str, float]:
    """Likes `better`, then `clean`; what is `equal` is a tie. It does not know which answer is a negative."""
    shown = request.user.partition(" A : ")[2].removesuffix(" verdict").split(" B : ")
    words = [answer.split()[0] for answer in shown]
    if "equal" in words:
        return {"A": 0.1, "B": 0.1, "C": 0.8}
    best = words.index("better" if "better" in words else "clean")
    return {"A": 0.9 - 0.8 * best, "B": 0.1 + 0.8 * best, "C": 0.0}


@pytest.fixture
def judged(asked: Warehouse, spoiling: Recipe) -> Warehouse:
    run_stages(asked, respond_stages(spoiling), lambda: ScriptedEngine(say), Portion())
    pairs_of(spoiling).make(asked)
    run_stage(asked, label_stage(spoiling, "none"), lambda: ScriptedEngine(judge))
    return asked


def test_negatives_are_counted_by_what_the_judge_said(judged: Warehouse) -> None:
    rows = judged.rows("SELECT * EXCLUDE (judge, judge_prompt) FROM negatives ORDER BY perturbation")
    assert rows == [
        {"perturbation": "dropped", "pairs": 6, "confirmed": 0, "tied": 0, "contradicted": 6, "confirmed_rate": 0.0},
        {"perturbation": "reversed", "pairs": 6, "confirmed": 6, "tied": 0, "contradicted": 0, "confirmed_rate": 1.0},
        {"perturbation": "shuffled", "pairs": 6, "confirmed": 0, "tied": 6, "contradicted": 0, "confirmed_rate": 0.0},
    ]


def test_a_negative_that_was_judged_in_one_order_is_not_counted_yet(asked: Warehouse, spoiling: Recipe) -> None:
    run_stages(asked, respond_stages(spoiling), lambda: ScriptedEngine(say), Portion())
    pairs_of(spoiling).make(asked)
    run_stage(asked, label_stage(spoiling, "none"), lambda: ScriptedEngine(judge), limit=1)
    assert asked.value("SELECT count(*) FROM negative_pairs") == 0


def test_training_data_can_be_restricted_to_confirmed_negatives(judged: Warehouse) -> None:
    confirmed = "pair_id NOT IN (SELECT pair_id FROM negative_pairs WHERE verdict <> 'confirmed')"
    made = create(judged, "confirmed", Selection(where=confirmed))
    assert made.version.preferences == 6
    assert judged.value("SELECT count(*) FROM dataset_preferences d JOIN pairs USING (pair_id)"
                        " WHERE strategy = 'perturb:reversed'") == 6  # fmt: skip


def test_nothing_is_pending_and_nothing_is_wrong(judged: Warehouse, spoiling: Recipe) -> None:
    assert judged.value("SELECT sum(rows_missing) FROM pending_work") == 0
    assert judged.value("SELECT rows_wanted FROM pending_work WHERE stage = 'label'") == 36
    judged.execute("DELETE FROM labels WHERE shown_order = 'ba'")
    assert judged.value("SELECT rows_missing FROM pending_work WHERE stage = 'label'") == 18
    assert len(label_stage(spoiling, "none").pending(judged)) == 18


def test_rows_of_spoilt_videos_have_the_ids_of_their_content(judged: Warehouse) -> None:
    assert list(check_ids(judged, everything=True)) == []
    wrong = [each for each in check_rows(judged) if each.check == "orphans" and "run_id" not in each.what]
    assert wrong == []


def test_an_answer_hangs_on_the_video_that_was_shown_for_it(asked: Warehouse, recipe: Recipe, command: Any) -> None:
    asked.execute("UPDATE videos SET split = 'train'")
    other = dataclasses.replace(recipe, pair=Pairing(perturb=Perturbing(kinds=["other_video"])))
    run_stages(asked, respond_stages(other), lambda: ScriptedEngine(lambda request: str(request.seed)), Portion())
    video = asked.value("SELECT video_id FROM videos WHERE uri = 'cat.mp4'")
    assert asked.value(f"SELECT count(*) FROM responses WHERE shown_video_id = '{video}'") == 2
    assert command("remove", asked.path, video, "--yes").code == 0
    assert asked.value(f"SELECT count(*) FROM responses WHERE shown_video_id = '{video}'") == 0
