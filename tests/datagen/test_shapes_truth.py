"""The exact judge: references are entirely true, every change costs, and nothing makes it raise."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.datagen.shapes.truth import corrupt, say, scenes_of, score
from vlm_rlaif.datagen.shapes.world import COLOURS, KINDS, MOTIONS, ORDINALS, SHAPES, ShapesQuestion, World, questions

QUESTIONS = [question for video in World(seed=5).videos(200) for question in questions(video)]
WORDS = ["a", "the", "and", ".", "is", "there", "are", "3", "shapes", "moves", *ORDINALS, *COLOURS, *SHAPES, *MOTIONS]
some_question = st.sampled_from(QUESTIONS)
babble = st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join)


def test_the_reference_of_every_question_of_two_hundred_videos_is_entirely_true() -> None:
    for question in QUESTIONS:
        assert score(question.kind, question.reference, question.reference).fully_right, question


def test_an_answer_to_another_question_is_not_entirely_true() -> None:
    for one, other in itertools.pairwise(QUESTIONS):
        if one.reference != other.reference:
            assert not score(one.kind, one.reference, other.reference).fully_right


@given(some_question, st.text() | babble)
def test_any_answer_has_a_truth_between_nothing_and_everything(question: ShapesQuestion, answer: str) -> None:
    truth = score(question.kind, question.reference, answer)
    assert 0.0 <= truth.fraction <= 1.0
    assert truth.fully_right == (truth.fraction == 1.0)
    assert sum(truth.total.values()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_saying_nothing_is_worth_nothing(kind: str) -> None:
    for question in QUESTIONS:
        if question.kind == kind:
            assert score(kind, question.reference, "").fraction == 0.0


@pytest.mark.parametrize("edits", [1, 2, 3])
def test_changed_facts_lower_the_truth_unless_the_changes_cancel(edits: int) -> None:
    rng = random.Random(edits)
    for question in QUESTIONS:
        answer = corrupt(rng, question.kind, question.reference, edits)
        unchanged = answer == question.reference
        assert score(question.kind, question.reference, answer).fully_right == unchanged
        assert edits > 1 or not unchanged


def test_no_edit_is_no_change() -> None:
    for question in QUESTIONS:
        assert corrupt(random.Random(0), question.kind, question.reference, 0) == question.reference


def test_a_corrupted_description_keeps_the_worlds_order() -> None:
    rng = random.Random(0)
    for question in QUESTIONS:
        if question.kind in ("describe", "after"):
            for scene in scenes_of(question.kind, corrupt(rng, question.kind, question.reference, 3)):
                places = [(COLOURS.index(colour), SHAPES.index(shape)) for colour, shape, _ in scene]
                assert places == sorted(places)


def test_words_and_scenes_are_two_forms_of_one_thing() -> None:
    for question in QUESTIONS:
        if question.kind in ("describe", "after"):
            assert say(question.kind, scenes_of(question.kind, question.reference)) == question.reference


@pytest.mark.parametrize(
    ("kind", "reference", "answer", "fraction"),
    [
        ("describe", "first a red circle grows .", "first a red circle grows and a blue cross blinks .", 0.5),
        ("describe", "first a red circle grows and a blue cross blinks .", "first a red circle grows .", 0.5),
        ("describe", "first a red circle grows .", "first a red circle moves left .", 2 / 3),
        ("describe", "first a red circle grows . then a red cross grows .", "first a red circle grows .", 0.5),
        ("describe", "first a red circle grows .", "a red circle grows .", 0.0),
        ("after", "then a red circle grows and a blue cross blinks .",
         "then a blue cross blinks and a red circle grows .", 1.0),
        ("action", "the red circle moves left .", "the red circle moves right .", 0.0),
        ("action", "the red circle grows .", "the blue circle grows .", 0.0),
        ("colour", "the circle is red .", "I think the circle is red .", 1.0),
        ("count", "there are 3 shapes .", "there are 3 shapes .", 1.0),
        ("count", "there are 3 shapes .", "there are 13 shapes .", 0.0),
    ],
)  # fmt: skip
def test_facts_count_one_by_one(kind: str, reference: str, answer: str, fraction: float) -> None:
    assert score(kind, reference, answer).fraction == pytest.approx(fraction)


def test_saying_everything_does_not_win() -> None:
    everything = " and ".join(f"a {c} {s} {m}" for c in COLOURS for s in SHAPES for m in MOTIONS)
    assert score("describe", "first a red circle grows .", f"first {everything} .").fraction < 0.05
