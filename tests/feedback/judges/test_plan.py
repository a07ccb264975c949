"""A recipe's judges resolved: arms, judges and panels by name, and every slip told before anybody is asked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.plan import respond_stage
from vlm_rlaif.eval.conductor import check
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.feedback.judges.plan import judge_spec, judges_of, turns
from vlm_rlaif.feedback.judges.rate import rate_stages
from vlm_rlaif.train.run import taught_by, with_labels
from vlm_rlaif.warehouse.config import Recipe, Rewarding, Sampling, load
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.judge_settings import Grading, Panel
from vlm_rlaif.warehouse.store import Warehouse

WithJudges = Callable[..., Recipe]


def test_the_arms_come_first_with_the_specs_that_they_always_had(recipe: Recipe, with_judges: WithJudges) -> None:
    more = with_judges(recipe, {"name": "mine"}, panels=[Panel(name="all", of=["context", "none", "mine"])])
    found = judges_of(more)
    assert list(found) == ["context", "none", "mine", "all"]
    assert [found[arm].spec for arm in ("context", "none")] == [
        label_stage(recipe, a).spec for a in ("context", "none")
    ]
    assert judges_of(recipe).keys() == {"context", "none"}
    assert judges_of(dataclasses.replace(recipe, label=None)) == {}


def test_a_judge_that_is_asked_what_an_arm_is_asked_is_that_arm(recipe: Recipe, with_judges: WithJudges) -> None:
    assert recipe.label is not None
    twin = {"name": "twin", "prompt": "judge_context_compact_v1", "arm": "context", "frames": recipe.label.frames}
    assert judge_spec(with_judges(recipe, twin), "twin") == judge_spec(recipe, "context")


def test_a_judge_that_rates_as_the_recipe_does_reads_the_same_ratings(
    recipe: Recipe, with_judges: WithJudges
) -> None:
    assert recipe.label is not None
    rating = {"name": "mine", "method": "score", "prompt": "rate_compact_v1", "frames": recipe.label.frames}
    own = dataclasses.replace(
        recipe, rate=Grading(model=recipe.label.model, prompt="rate_compact_v1", frames=recipe.label.frames)
    )
    (stage,) = judges_of(with_judges(recipe, rating))["mine"].stages
    assert stage.spec == rate_stages(own)[0].spec


def test_votes_and_items_are_no_part_of_what_a_model_is_asked(recipe: Recipe, with_judges: WithJudges) -> None:
    def asked(**judge: Any) -> str:
        (stage,) = judges_of(with_judges(recipe, {"name": "mine", **judge}))["mine"].stages
        return stage.spec.spec_id

    words = {"verdict": "words", "sampling": Sampling(temperature=1.0)}
    assert asked(**words) == asked(**words, votes=3) != asked()
    listed = {"method": "checklist", "prompt": "checklist_v1"}
    one, two = {**listed, "items": ["One ?"]}, {**listed, "items": ["One ?", "Two ?"]}
    assert asked(**one) == asked(**two)
    labels = [judge_spec(with_judges(recipe, {"name": "mine", **judge}), "mine") for judge in (one, two)]
    assert labels[0] != labels[1]


def test_what_reads_the_rows_of_another_stage_waits_for_its_turn(recipe: Recipe, with_judges: WithJudges) -> None:
    claims = {"name": "claims", "method": "claims", "prompt": "claim_v1", "split_prompt": "claims_v1"}
    score = {"name": "score", "method": "score", "prompt": "rate_v1"}
    found = judges_of(with_judges(recipe, claims, score))
    assert [[stage.name for stage in turn] for turn in turns(list(found.values()))] == [
        ["label", "label", "split", "rate"], ["verify"],
    ]  # fmt: skip
    assert turns([]) == []


@pytest.mark.parametrize(
    ("judges", "panels", "said"),
    [
        (["one", "one"], [], "two judges or panels have the name 'one'"),
        (["one"], [("one", ["context", "none"])], "two judges or panels have the name 'one'"),
    ],
)
def test_a_name_is_given_once(
    recipe: Recipe, with_judges: WithJudges, judges: list[str], panels: list[tuple[str, list[str]]], said: str
) -> None:  # fmt: skip
    with pytest.raises(ValueError, match=said):
        with_judges(
            recipe, *({"name": name} for name in judges), panels=[Panel(name=name, of=of) for name, of in panels]
        )


def test_a_panel_knows_those_before_it_alone(recipe: Recipe, with_judges: WithJudges) -> None:
    first, second = Panel(name="first", of=["context", "none"]), Panel(name="second", of=["first", "none"])
    assert list(judges_of(with_judges(recipe, panels=[first, second])))[-2:] == ["first", "second"]
    with pytest.raises(UserError, match="no member 'first' before it"):
        judges_of(with_judges(recipe, panels=[second, first]))
    with pytest.raises(UserError, match=r"no member 'contxt' before it\. Did you mean 'context'"):
        judges_of(with_judges(recipe, panels=[Panel(name="first", of=["contxt", "none"])]))


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({"prompt": "judge_context_v1"}, r"asks for {context}, which the judge mine is not given"),
        ({"arm": "context"}, r"needs {context} in its prompt"),
        ({"prompt": "rate_v1"}, r"needs {response_a} in its prompt"),
        ({"method": "score"}, r"needs {response} in its prompt"),
        ({"method": "checklist", "items": ["One ?", "Two ?"], "prompt": "check_compact_v1"}, r"needs {item}"),
        ({"method": "claims", "prompt": "claim_v1", "split_prompt": "claim_v1"}, r"needs {response} in its prompt"),
        ({"prompt": "judg_v1"}, "Did you mean 'judge_v1'"),
    ],
)
def test_a_prompt_that_does_not_fit_is_told_at_the_door(
    recipe: Recipe, with_judges: WithJudges, judge: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        check(with_judges(recipe, {"name": "mine", **judge}))


def test_a_reward_model_learns_from_any_judge(recipe: Recipe, with_judges: WithJudges) -> None:
    assert recipe.label is not None
    reward = Rewarding(
        model=recipe.label.model, prompt="reward_compact_v1", frames=recipe.label.frames, labels="mine"
    )
    more = with_judges(recipe, {"name": "mine"}, panels=[Panel(name="all", of=["none", "mine"])])
    taught = dataclasses.replace(more, reward=reward)
    check(taught)
    assert judge_spec(taught, taught_by(taught)) == judges_of(taught)["mine"].spec
    assert taught_by(with_labels(taught, "all")) == "all"
    assert taught_by(with_labels(taught, "random")) == "context"
    with pytest.raises(ValueError, match=r"not 'al'\. Did you mean 'all'"):
        with_labels(taught, "al")


def test_a_recipe_with_an_unknown_teacher_is_refused_when_it_is_read(recipe_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    reward = (
        f"reward: {{model: {recipe_file.parent}, prompt: reward_compact_v1, frames: {{count: 2}}, labels: contxt}}"
    )
    path.write_text(f"{recipe_file.read_text()}{reward}\n")
    with pytest.raises(UserError, match=r"not 'contxt'\. Did you mean 'context'"):
        load(str(path))


def test_an_unknown_judge_is_told_with_all_of_them(
    paired: Warehouse, command: Any, recipe_file: Path
) -> None:  # fmt: skip
    wrong = command("feedback", "label", paired.path, "--recipe", recipe_file, "--judge", "contxt")
    assert wrong.code == 2
    assert "has no judge 'contxt'. Did you mean 'context'" in wrong.err and "Judges: context, none." in wrong.err


def test_a_panels_spec_names_its_members_and_is_asked_of_no_model(recipe: Recipe, with_judges: WithJudges) -> None:
    spec = judge_spec(with_judges(recipe, panels=[Panel(name="both", of=["context", "none"])]), "both")
    assert (spec.stage, spec.model, spec.prompt) == ("panel", "none", "both")
    assert json.loads(spec.upstream) == {arm: judge_spec(recipe, arm).spec_id for arm in ("context", "none")}
    assert respond_stage(recipe).spec.spec_id not in spec.upstream
