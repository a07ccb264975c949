"""Prompts: files with a version, filled in with words exactly as they are."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.datagen.prompt import load, parse
from vlm_rlaif.warehouse.errors import UserError

SHIPPED = sorted(p.name.removesuffix(".md") for p in (resources.files("vlm_rlaif.datagen") / "prompts").iterdir())
JUDGE = parse("judge", "[system]\nJudge {question}\n[user]\nQ: {question} A: {response_a} B: {response_b}")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_prompt_can_be_read_and_has_a_version(name: str) -> None:
    prompt = load(name)
    assert prompt.user and prompt.name == name
    assert name.rpartition("_v")[2].isdigit()


@given(st.text(), st.text(), st.text())
def test_words_are_filled_in_exactly_as_they_are(question: str, a: str, b: str) -> None:
    said = JUDGE.render(question=question, response_a=a, response_b=b)
    assert said.user == f"Q: {question} A: {a} B: {b}"


def test_braces_and_backslashes_in_an_answer_stay_as_they_are() -> None:
    said = JUDGE.render(question="{response_a}", response_a=r"\1 {question} {{x}} %s", response_b="{nothing}")
    assert said.user == r"Q: {response_a} A: \1 {question} {{x}} %s B: {nothing}"


def test_fields_of_the_systems_turn_are_filled_in_too() -> None:
    assert JUDGE.render(question="why?", response_a="", response_b="").system == "Judge why?"
    assert "rubric" in parse("p", "[system]\n{rubric}\n[user]\nhello").fields


def test_a_field_that_the_stage_does_not_give_is_named() -> None:
    with pytest.raises(UserError, match=r"The prompt judge asks for \{response_b\}") as error:
        JUDGE.render(question="q", response_a="a")
    assert "It gives: question, response_a." in str(error.value)


def test_json_in_a_prompt_is_not_a_field() -> None:
    prompt = parse("p", 'Answer like {"choice": "A"} or {}.')
    assert prompt.fields == frozenset()
    assert prompt.render().user == 'Answer like {"choice": "A"} or {}.'


def test_an_unknown_prompt_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no prompt 'respond_v2'\. Did you mean 'respond_v1'") as error:
        load("respond_v2")
    assert "judge_context_v1" in str(error.value)


def test_a_prompt_may_be_a_file_of_your_own(tmp_path: Path) -> None:
    (tmp_path / "mine_v1.md").write_text("For people.\n[user]\n{question}\n", encoding="utf-8")
    assert load(str(tmp_path / "mine_v1.md")).render(question="é?").user == "é?"
    with pytest.raises(UserError, match="cannot be read"):
        load(str(tmp_path / "yours_v1.md"))
    (tmp_path / "old_v1.md").write_bytes("[user]\nÜber was?".encode("latin-1"))
    with pytest.raises(UserError, match="cannot be read"):
        load(str(tmp_path / "old_v1.md"))


def test_a_file_without_marks_is_the_users_turn() -> None:
    prompt = parse("p", "\n  What happens in [this] video?\n")
    assert (prompt.system, prompt.user) == ("", "What happens in [this] video?")


@pytest.mark.parametrize("text", ["[system]\nhello", "[user]\n\n", "[system]\nhello\n[user]\n"])
def test_a_prompt_without_words_of_the_user_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"has no \[user\] part"):
        parse("p", text)


def test_the_hash_is_of_the_wording_alone() -> None:
    prompt = parse("p_v1", "About it.\n[system]\ns\n[user]\nu")
    assert prompt.text_hash == parse("p_v2", "Something else.\n[system]\ns\n\n[user]\nu\n").text_hash
    assert prompt.text_hash != parse("p_v1", "[system]\ns\n[user]\nu2").text_hash
    assert prompt.text_hash != parse("p_v1", "[system]\ns2\n[user]\nu").text_hash
    assert prompt.text_hash != parse("p_v1", "su").text_hash
