"""Recipes: every mistake is an error with its place, and names the neighbour."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_rlaif.warehouse.config import Frames, Recipe, load, replace_models, shipped
from vlm_rlaif.warehouse.errors import UserError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mine.yaml"


def mistake(path: Path, text: str) -> str:
    """What the user is told about a recipe with this text."""
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load(str(path))
    return str(error.value)


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_can_be_read(name: str) -> None:
    assert load(name).name == name


def test_a_recipe_of_your_own_is_named_as_it_was_given(recipe_file: Path) -> None:
    """So that a command in a message can be typed as it stands."""
    recipe = load(str(recipe_file))
    assert recipe.name == str(recipe_file)
    assert recipe.caption is not None and recipe.caption.frames == Frames(count=2)
    assert recipe.sft is None


def test_a_recipe_may_name_itself(path: Path) -> None:
    path.write_text("name: ours\nclip: {parts: 3}")
    assert load(str(path)).name == "ours"


def test_a_prompt_file_is_looked_for_beside_the_recipe(path: Path) -> None:
    path.write_text("ask: {model: m, prompt: prompts/ask_v2.md}\ncontext: {prompt: context_v1}")
    recipe = load(str(path))
    assert recipe.ask is not None and recipe.ask.prompt == str(path.parent / "prompts" / "ask_v2.md")
    assert recipe.context is not None and recipe.context.prompt == "context_v1"


def test_an_empty_recipe_asks_for_nothing(path: Path) -> None:
    path.write_text("")
    assert load(str(path)) == Recipe(name=str(path))


def test_an_unknown_key_names_its_place_and_its_neighbour(path: Path) -> None:
    assert "unknown key 'captoin'. Did you mean 'caption'?" in mistake(path, "captoin: {}")
    said = mistake(path, "respond: {model: m, prompt: p, frames: {cuont: 2}}")
    assert "respond: frames: unknown key 'cuont'. Did you mean 'count'?" in said


def test_all_mistakes_of_a_level_are_told_at_once(path: Path) -> None:
    said = mistake(path, "caption: {modle: m, promt: p, frames: {count: 1}}")
    for part in ("'modle'", "'promt'", "the key 'model' is missing", "the key 'prompt' is missing"):
        assert part in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clip: {parts: three}", "clip: parts: expected int, found 'three'"),
        ("clip: {parts: true}", "clip: parts: expected int, found True"),
        ("clip: {parts: 2.5}", "clip: parts: expected int, found 2.5"),
        ("clip: {seconds: fast}", "clip: seconds: expected float, found 'fast'"),
        ("clip: 3", "clip: expected keys and values, found 3"),
        ("context: {prompt: 3}", "context: prompt: expected str, found 3"),
        ("context: {prompt: null}", "context: prompt: expected str, found None"),
        ("reward: {use_video: 1, model: m, prompt: p, frames: {count: 1}}", "use_video: expected bool, found 1"),
        ("label: {arms: none, model: m, prompt: p, context_prompt: c, frames: {count: 1}}", "arms: expected a list"),
        ("- clip\n- caption", "expected keys and values, found ['clip', 'caption']"),
        ("clip: {parts: 3", "is not YAML"),
    ],
)
def test_a_wrong_value_is_told_with_its_place(path: Path, text: str, expected: str) -> None:
    assert expected in mistake(path, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("caption: {model: m, prompt: p, frames: {count: 0}}", "caption: frames: `count` is at least 1, not 0"),
        ("caption: {model: m, prompt: p, frames: {count: 1, size: 0}}", "`size` is at least 1, not 0"),
        ("world: {size: 33}", "world: `size` is even"),
        ("ask: {model: m, prompt: p, sampling: {temperature: -1}}", "`temperature` is at least 0, not -1"),
        ("ask: {model: m, prompt: p, sampling: {top_p: 0}}", "`top_p` lies above 0"),
        ("evaluate: {split: tset}", "`split` is one of train, val, test, not 'tset'. Did you mean 'test'?"),
        ("reward: {model: m, prompt: p, frames: {count: 1}, labels: contxt}", "Did you mean 'context'?"),
        ("label: {arms: [some], model: m, prompt: p, context_prompt: c, frames: {count: 1}}", "`arms` is one of"),
        (
            "respond: {model: m, prompt: p, frames: {count: 1}, sampling: {max_new_tokens: 9}}",
            "respond: `sampling` is greedy",
        ),
        (
            "ppo: {model: m, prompt: p, frames: {count: 1}, sampling: {temperature: 0.6}}",
            "ppo: `sampling` of PPO is at temperature 1",
        ),
    ],
)
def test_a_value_that_cannot_be_meant_is_told_before_anything_runs(path: Path, text: str, expected: str) -> None:
    assert expected in mistake(path, text)


def test_a_recipe_that_is_not_utf_8_is_said(path: Path) -> None:
    path.write_bytes("# für mich\nclip: {parts: 3}".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8"):
        load(str(path))


@pytest.mark.parametrize(("written", "meant"), [("2", 2.0), ("0.5", 0.5), ("1e-3", 0.001), ("2.5E2", 250.0)])
def test_a_number_may_be_written_as_people_write_it(path: Path, written: str, meant: float) -> None:
    path.write_text(f"clip: {{seconds: {written}}}")
    recipe = load(str(path))
    assert recipe.clip is not None and recipe.clip.seconds == meant


def test_null_leaves_an_optional_part_out(path: Path) -> None:
    path.write_text("caption: null\nclip: {parts: 2, seconds: null}")
    recipe = load(str(path))
    assert recipe.caption is None
    assert recipe.clip is not None and recipe.clip.seconds is None


def test_an_unknown_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe 'shaeps'\. Did you mean 'shapes'") as error:
        load("shaeps")
    assert "A file of your own ends in .yaml" in str(error.value)
    with pytest.raises(UserError, match="There is no recipe file"):
        load(str(tmp_path / "none.yaml"))


def test_one_model_can_replace_all(recipe: Recipe) -> None:
    changed = replace_models(recipe, "other")
    assert {getattr(changed, stage).model for stage in ("caption", "respond", "label")} == {"other"}
    assert changed.sft is None and changed.clip == recipe.clip
