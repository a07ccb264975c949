"""Several policies, answers to spoilt videos, and the pairs that are chosen among them, in a warehouse."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Engine, Request, ScriptedEngine
from vlm_rlaif.datagen.job import run_models
from vlm_rlaif.datagen.plan import respond_stage
from vlm_rlaif.datagen.policies import negative_stages, pairs_of, policy_stages, respond_stages
from vlm_rlaif.datagen.portion import Portion
from vlm_rlaif.eval.answer import answer_stage
from vlm_rlaif.warehouse.config import Recipe, Sampling, load
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.runs import Outcome
from vlm_rlaif.warehouse.settings import FurtherPolicy, Pairing, Perturbing
from vlm_rlaif.warehouse.store import Warehouse

Command = Any
Script = Callable[[Request], Any]


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("other")
    (folder / "config.json").write_text('{"another": "model"}')
    return str(folder)


def responding(recipe: Recipe, **changes: Any) -> Recipe:
    assert recipe.respond is not None
    return dataclasses.replace(recipe, respond=dataclasses.replace(recipe.respond, **changes))


def pairing(recipe: Recipe, **settings: Any) -> Recipe:
    return dataclasses.replace(recipe, pair=Pairing(**settings))


def spoiling(recipe: Recipe, *kinds: str, **settings: Any) -> Recipe:
    return pairing(recipe, perturb=Perturbing(kinds=list(kinds), **settings))


def answer(warehouse: Warehouse, recipe: Recipe, script: Script, **portion: Any) -> list[Outcome]:
    """Run the responses of a recipe; the script is told the model by the name of its folder."""

    def engine_of(model: str) -> Callable[[], Engine]:
        return lambda: ScriptedEngine(script)

    return run_models(warehouse, respond_stages(recipe), engine_of, Portion(**portion))


def by_seed(request: Request) -> str:
    return f"answer {request.seed}"


def counts(warehouse: Warehouse, sql: str) -> dict[Any, int]:
    return {next(iter(row.values())): row["n"] for row in warehouse.rows(sql)}


# Several policies


def test_every_policy_has_a_spec_and_seeds_of_its_own(asked: Warehouse, recipe: Recipe, other_model: str) -> None:
    several = responding(
        recipe, also=[FurtherPolicy(model=other_model, samples=1), FurtherPolicy(sampling=Sampling(temperature=0.5))]
    )
    own, other, cooler = policy_stages(several)
    assert own.spec == respond_stage(recipe).spec
    assert other.spec.model == other_model and cooler.spec.model == own.spec.model
    assert [outcome.written for outcome in answer(asked, several, by_seed)] == [12, 12, 6]
    assert counts(asked, "SELECT spec_id, count(*) AS n FROM responses GROUP BY 1") == {
        own.spec.spec_id: 12, other.spec.spec_id: 6, cooler.spec.spec_id: 12,
    }  # fmt: skip
    assert asked.value("SELECT count(DISTINCT seed) FROM responses") == 30
    assert [outcome.run_id for outcome in answer(asked, several, by_seed)] == [None, None, None]


def test_two_policies_that_come_to_the_same_are_one(recipe: Recipe) -> None:
    assert len(policy_stages(responding(recipe, also=[FurtherPolicy()]))) == 1


def test_an_evaluation_asks_the_recipes_own_policy_alone(recipe: Recipe) -> None:
    several = responding(recipe, also=[FurtherPolicy(samples=2)])
    assert answer_stage(several).spec == answer_stage(recipe).spec


def test_policies_are_compared_with_each_other(asked: Warehouse, recipe: Recipe, other_model: str) -> None:
    several = responding(recipe, also=[FurtherPolicy(model=other_model, samples=1)])
    answer(asked, several, by_seed)
    assert pairs_of(recipe).make(asked).written == 6
    outcome = pairs_of(several).make(asked)
    assert outcome.written == 12  # 3 pairs of each question, one of which stands
    assert pairs_of(several).make(asked).run_id is None
    assert asked.value("SELECT count(*) FROM pairs") == 18


def test_another_prompt_file_lies_beside_the_recipe(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "brief_v1.md").write_text("Briefly: {question}")
    text = recipe_file.read_text().replace("frames: {count: 2}}\nlabel", "frames: {count: 2}, PLACE}\nlabel")
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("PLACE", "also: [{prompt: brief_v1.md}]"))
    loaded = load(str(path))
    assert policy_stages(loaded)[1].recipe.prompt == str(tmp_path / "brief_v1.md")
    path.write_text(text.replace("PLACE", "also: [{modle: x}]"))
    with pytest.raises(UserError, match="Did you mean 'model'"):
        load(str(path))
    path.write_text(text.replace("PLACE", "also: [{sampling: {temperature: 0}}]"))
    with pytest.raises(UserError, match="greedy"):
        load(str(path))


# Spoilt videos


def test_the_policy_answers_from_spoilt_videos_in_specs_of_their_own(asked: Warehouse, recipe: Recipe) -> None:
    asked.execute("UPDATE videos SET split = 'train'")
    kinds = ("reversed", "shuffled", "dropped", "other_video")
    shown: list[tuple[str, str]] = []

    def look(request: Request) -> str:
        assert request.video is not None
        shown.append((request.video.frames.perturb, request.video.path.name))
        return by_seed(request)

    spoilt = spoiling(recipe, *kinds, seed=3)
    answer(asked, spoilt, look)
    assert asked.value("SELECT count(*) FROM responses") == 12 + 4 * 6
    assert {kind for kind, _ in shown} == {"", "reversed", "shuffled", "dropped"}
    specs = asked.rows("SELECT frames->>'$.perturb' AS kind, frames->>'$.perturb_seed' AS seed FROM specs ORDER BY 1")
    assert [(row["kind"], row["seed"]) for row in specs] == [
        ("dropped", "3"), ("reversed", "3"), ("shuffled", "3"), (None, None), (None, None),
    ]  # fmt: skip
    assert len({stage.spec.spec_id for stage in respond_stages(spoilt)}) == 5


def test_another_video_is_one_of_another_source_in_the_same_split(asked: Warehouse, recipe: Recipe) -> None:
    asked.execute("UPDATE videos SET split = 'train', video_group = if(uri = 'owl.mp4', 'dog', video_group)")
    asked.execute("UPDATE videos SET video_group = 'dog' WHERE uri = 'dog.mp4'")
    spoilt = spoiling(recipe, "other_video")
    seen: list[str] = []

    def look(request: Request) -> str:
        assert request.video is not None
        seen.append(f"{request.user} {request.video.path.name}")
        return by_seed(request)

    answer(asked, spoilt, look)
    rows = asked.rows(
        "SELECT v.uri, u.uri AS shown FROM responses r JOIN questions q USING (question_id)"
        " JOIN videos v USING (video_id) JOIN videos u ON u.video_id = r.shown_video_id"
    )
    assert len(rows) == 6
    groups = {"cat.mp4": "cat", "dog.mp4": "dog", "owl.mp4": "dog"}
    assert all(groups[row["uri"]] != groups[row["shown"]] for row in rows)
    assert all(f"the cat ? {row['shown']}" in " ".join(seen) for row in rows if row["uri"] == "cat.mp4")
    assert asked.value("SELECT count(*) FROM responses WHERE shown_video_id IS NULL") == 12


def test_a_split_with_one_source_has_no_other_video(asked: Warehouse, recipe: Recipe) -> None:
    asked.execute("UPDATE videos SET split = 'train', video_group = 'one'")
    stage = negative_stages(spoiling(recipe, "other_video"))["other_video"]
    assert len(stage.pending(asked)) == 0


def test_a_negative_is_paired_and_identical_words_are_counted(asked: Warehouse, recipe: Recipe) -> None:
    spoilt = spoiling(recipe, "reversed", "dropped")

    def say(request: Request) -> str:
        assert request.video is not None
        unclear = request.video.frames.perturb == "dropped" or "colour" in request.user
        return "unclear" if unclear else by_seed(request)

    answer(asked, spoilt, say)
    outcome = pairs_of(spoilt).make(asked)
    assert counts(asked, "SELECT strategy, count(*) AS n FROM pairs GROUP BY 1") == {
        "all": 3, "perturb:reversed": 3, "perturb:dropped": 3,
    }  # fmt: skip
    assert outcome.dropped == {
        "of the same words": 3, "reversed: of the same words": 3, "dropped: of the same words": 3,
    }  # fmt: skip
    assert "pair: 9 rows written, 9 dropped (" in str(outcome)


@pytest.mark.parametrize(
    ("settings", "changes", "word"),
    [({"samples": 3}, {}, "no partner"), ({}, {"frames": {"count": 1}}, "at least 2")],
)
def test_negatives_that_cannot_be_made_are_a_mistake(
    recipe: Recipe, settings: dict[str, Any], changes: dict[str, Any], word: str
) -> None:
    assert recipe.respond is not None
    frames = dataclasses.replace(recipe.respond.frames, **changes.get("frames", {}))
    with pytest.raises(UserError, match=word):
        respond_stages(spoiling(responding(recipe, frames=frames), "reversed", **settings))


# Pairs


def scored(warehouse: Warehouse, recipe: Recipe) -> None:
    """Three samples a question, with 1 to 3 tokens of a log-probability of -3 in all."""
    answer(warehouse, recipe, by_seed)
    warehouse.execute("UPDATE responses SET tokens = sample_index + 1, logprob = -3")


def test_log_probabilities_choose_the_best_and_the_worst(asked: Warehouse, recipe: Recipe) -> None:
    chosen = pairing(responding(recipe, samples=3), strategy="best_worst", score="logprob")
    scored(asked, chosen)
    assert pairs_of(chosen).make(asked).written == 6
    rows = asked.rows(
        "SELECT DISTINCT p.strategy, least(a.sample_index, b.sample_index) AS worst,"
        " greatest(a.sample_index, b.sample_index) AS best FROM pairs p"
        " JOIN responses a ON a.response_id = p.response_a JOIN responses b ON b.response_id = p.response_b"
    )
    assert rows == [{"strategy": "best_worst(score=logprob)", "worst": 0, "best": 2}]


def test_a_response_without_a_log_probability_is_not_chosen(asked: Warehouse, recipe: Recipe) -> None:
    chosen = pairing(responding(recipe, samples=3), strategy="best_worst", score="logprob")
    scored(asked, chosen)
    asked.execute("UPDATE responses SET logprob = NULL WHERE sample_index = 2")
    asked.execute("UPDATE responses SET tokens = 0 WHERE sample_index = 1")
    asked.execute("UPDATE responses SET logprob = '-inf' WHERE sample_index = 0")
    outcome = pairs_of(chosen).make(asked)
    assert (outcome.written, outcome.dropped) == (0, {"without a score": 18})
    assert str(outcome) == "pair: nothing to do, 18 dropped (18 without a score)"


def test_what_stands_is_not_removed_by_another_strategy(asked: Warehouse, recipe: Recipe) -> None:
    three = responding(recipe, samples=3)
    scored(asked, three)
    every, few = pairs_of(three), pairs_of(pairing(three, strategy="best_worst", score="logprob"))
    assert every.make(asked).written == 18
    assert few.make(asked).written == 0
    assert counts(asked, "SELECT strategy, count(*) AS n FROM pairs GROUP BY 1") == {"all": 18}
    assert len(few.ids(asked)) == 6 and set(few.ids(asked)) < set(every.ids(asked))


def test_a_pair_that_two_warehouses_chose_for_different_reasons_is_one_pair(
    asked: Warehouse, recipe: Recipe, command: Command, tmp_path: Path
) -> None:
    three = responding(recipe, samples=3)
    scored(asked, three)
    other = Warehouse(Path(shutil.copy(asked.path, tmp_path / "other.duckdb")))
    pairs_of(three).make(asked)
    pairs_of(pairing(three, strategy="best_worst", score="logprob")).make(other)
    result = command("merge", asked.path, other.path)
    assert result.code == 0 and "differ" not in result.out, result.out
    assert counts(asked, "SELECT strategy, count(*) AS n FROM pairs GROUP BY 1") == {"all": 18}


def test_a_new_score_changes_the_choice_and_keeps_the_pairs(asked: Warehouse, recipe: Recipe) -> None:
    chosen = pairing(responding(recipe, samples=3), strategy="best_worst", score="logprob")
    scored(asked, chosen)
    before = set(pairs_of(chosen).ids(asked))
    pairs_of(chosen).make(asked)
    asked.execute("UPDATE responses SET tokens = 9 - tokens")
    asked.execute("UPDATE responses SET logprob = -90 WHERE sample_index = 1")
    after = set(pairs_of(chosen).ids(asked))
    assert not before & after and pairs_of(chosen).make(asked).written == 6
    assert asked.value("SELECT count(*) FROM pairs") == 12


def test_the_closing_line_says_how_length_and_score_go_together(asked: Warehouse, recipe: Recipe) -> None:
    """The longest response has the highest score, but to three of six questions it is the second of three."""
    chosen = pairing(responding(recipe, samples=3), score="logprob", length_balanced=True)
    answer(asked, chosen, by_seed)
    asked.execute(
        "UPDATE responses SET text = repeat('word ', sample_index::INT + 1), tokens = 1, logprob = if(question_id IN"
        " (SELECT question_id FROM questions WHERE text LIKE '%colour%'), [0, 1, 2], [0, 2, 1])[sample_index + 1]"
    )
    outcome = pairs_of(chosen).make(asked)
    assert outcome.note == "the longer response has the higher score in 50% of the pairs, 83% before balancing"
    assert (outcome.written, outcome.dropped) == (6, {"for balance": 12})


def test_pairs_are_chosen_by_a_command(asked: Warehouse, command: Command, recipe_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(recipe_file.read_text() + "pair: {max_similarity: 0.4}\n")
    chosen = load(str(path))
    answer(asked, chosen, by_seed)
    result = command("datagen", "pair", asked.path, "--recipe", path)
    assert (result.code, result.out) == (0, "pair: 6 rows written\n")
    path.write_text(recipe_file.read_text() + "pair: {max_similarity: 0.2}\n")
    result = command("datagen", "pair", asked.path, "--recipe", path)
    assert (result.code, result.out) == (0, "pair: nothing to do, 6 dropped (6 near-duplicates)\n")
    path.write_text(recipe_file.read_text() + "pair: {strategy: best_worst, score: quality}\n")
    result = command("datagen", "pair", asked.path, "--recipe", path)
    assert result.code == 2 and "has no `rate:` part" in result.err


def test_a_dry_run_tells_of_every_policy(
    asked: Warehouse, command: Command, recipe_file: Path, tmp_path: Path, other_model: str
) -> None:
    path = tmp_path / "mine.yaml"
    text = recipe_file.read_text().replace("frames: {count: 2}}\nlabel", "frames: {count: 2}, PLACE}\nlabel")
    path.write_text(text.replace("PLACE", f"also: [{{model: {other_model}, samples: 1}}]"))
    result = command("datagen", "respond", asked.path, "--recipe", path, "--dry-run")
    assert result.code == 0
    assert "12 rows would be computed" in result.out and "6 rows would be computed" in result.out
