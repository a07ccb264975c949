"""Which responses make a pair: strategies and filters as pure functions, some of them held against a slow twin."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.datagen.stages.choose_pairs import (
    BEYOND,
    GAP,
    LENGTH,
    NO_SCORE,
    SAME,
    SIMILAR,
    Answer,
    Balance,
    Chosen,
    choose,
    similarity,
    strategy_name,
)
from vlm_rlaif.warehouse.settings import Pairing, Perturbing

scores = st.none() | st.floats(-5, 5).map(lambda score: round(score, 1))
texts = st.lists(st.sampled_from(["a", "red", "blue", "circle", "moves"]), min_size=1, max_size=6).map(" ".join)
answers = st.lists(st.tuples(texts, scores), max_size=7).map(
    lambda said: [Answer(f"r{n}", text, score, n) for n, (text, score) in enumerate(said)]
)
pairings = st.builds(
    Pairing,
    strategy=st.sampled_from(["all", "best_worst", "best_rest"]), score=st.sampled_from(["quality", "logprob"]),
    min_gap=st.sampled_from([0.0, 0.5, 2.0]), max_similarity=st.none() | st.sampled_from([0.3, 0.8]),
    max_length_ratio=st.none() | st.sampled_from([1.0, 2.0]), most_per_question=st.none() | st.integers(1, 3),
    length_balanced=st.booleans(),
)  # fmt: skip


def said(*given: Any) -> list[Answer]:
    """Responses `r0`, `r1`, ... from their scores; the texts differ."""
    return [Answer(f"r{n}", f"answer number {n} is quite another one", score, n) for n, score in enumerate(given)]


def ids(pairs: list[Chosen]) -> set[tuple[str, str]]:
    return {(pair.first, pair.second) for pair in pairs}


@given(answers, pairings)
def test_what_is_chosen_and_what_is_dropped_is_all_there_was(given: list[Answer], settings: Pairing) -> None:
    kept, dropped = choose(given, settings)
    scored = [answer for answer in given if answer.score is not None]
    there = len(list(itertools.combinations(given, 2)))
    if settings.strategy != "all":
        there = min(1, len(scored) - 1) if settings.strategy == "best_worst" else len(scored) - 1
        there = max(0, there) + len(given) - len(scored)
    assert len(kept) + dropped.total() == there
    assert len(ids(kept)) == len(kept) and all(pair.first < pair.second for pair in kept)


@given(answers, pairings)
def test_the_order_of_the_responses_does_not_matter(given: list[Answer], settings: Pairing) -> None:
    assert {p.pair_id for p in choose(given, settings)[0]} == {p.pair_id for p in choose(given[::-1], settings)[0]}


@given(answers, pairings)
def test_every_chosen_pair_keeps_what_was_asked_for(given: list[Answer], settings: Pairing) -> None:
    by_id = {answer.response_id: answer for answer in given}
    kept, _ = choose(given, settings)
    assert settings.most_per_question is None or len(kept) <= settings.most_per_question
    for pair in kept:
        one, other = by_id[pair.first], by_id[pair.second]
        assert one.text != other.text
        if settings.max_similarity is not None:
            assert similarity(one.text, other.text) <= settings.max_similarity
        if settings.max_length_ratio is not None:
            shorter, longer = sorted((len(one.text), len(other.text)))
            assert longer <= settings.max_length_ratio * shorter
        if settings.strategy != "all":
            assert one.score is not None and other.score is not None
            assert pair.gap == abs(one.score - other.score) >= settings.min_gap and pair.gap > 0


@given(answers)
def test_best_and_worst_are_those_of_a_loop(given: list[Answer]) -> None:
    kept, _ = choose(given, Pairing(strategy="best_worst", score="quality"))
    best, worst = -9.0, 9.0
    for answer in given:
        if answer.score is not None:
            best, worst = max(best, answer.score), min(worst, answer.score)
    if best <= worst:
        assert kept == []
    elif kept:
        assert kept[0].gap == pytest.approx(best - worst)


def test_without_a_strategy_every_two_responses_are_compared() -> None:
    kept, dropped = choose(said(None, None, None), Pairing())
    assert ids(kept) == {("r0", "r1"), ("r0", "r2"), ("r1", "r2")} and not dropped


def test_the_best_is_compared_with_the_worst_or_with_all_others() -> None:
    given = said(3.0, 4.5, 1.0, 2.0)
    assert ids(choose(given, Pairing(strategy="best_worst", score="quality"))[0]) == {("r1", "r2")}
    assert ids(choose(given, Pairing(strategy="best_rest", score="quality"))[0]) == {
        ("r0", "r1"), ("r1", "r2"), ("r1", "r3"),
    }  # fmt: skip


def test_scores_too_close_make_no_pair() -> None:
    kept, dropped = choose(said(3.0, 2.8, 1.0), Pairing(strategy="best_rest", score="quality", min_gap=0.5))
    assert ids(kept) == {("r0", "r2")} and dropped == Counter({GAP: 1})
    assert choose(said(3.0, 3.0), Pairing(strategy="best_worst", score="quality")) == ([], Counter({GAP: 1}))


def test_a_response_without_a_score_is_neither_the_best_nor_the_worst() -> None:
    kept, dropped = choose(said(3.0, None, 1.0), Pairing(strategy="best_worst", score="logprob"))
    assert ids(kept) == {("r0", "r2")} and dropped == Counter({NO_SCORE: 1})


def test_the_same_words_make_no_pair_and_are_counted() -> None:
    twins = [Answer("r0", "a cat"), Answer("r1", "a cat"), Answer("r2", "a dog")]
    kept, dropped = choose(twins, Pairing())
    assert ids(kept) == {("r0", "r2"), ("r1", "r2")} and dropped == Counter({SAME: 1})


def test_near_duplicates_are_dropped() -> None:
    texts = ("A red circle moves left.", "a red circle moves left", "A dog.")
    close = [Answer(f"r{number}", text) for number, text in enumerate(texts)]
    kept, dropped = choose(close, Pairing(max_similarity=0.8))
    assert ids(kept) == {("r0", "r2"), ("r1", "r2")} and dropped == Counter({SIMILAR: 1})


@given(texts, texts)
def test_similarity_is_symmetric_and_knows_the_same_words(one: str, other: str) -> None:
    assert similarity(one, other) == similarity(other, one)
    assert 0 <= similarity(one, other) <= similarity(one, one.upper()) == 1


def test_texts_without_words_are_alike() -> None:
    assert similarity("?!", "...") == 1.0


def test_responses_of_very_different_length_are_dropped() -> None:
    given = [Answer("r0", "red"), Answer("r1", "a red circle that moves"), Answer("r2", "blue")]
    kept, dropped = choose(given, Pairing(max_length_ratio=2.0))
    assert ids(kept) == {("r0", "r2")} and dropped == Counter({LENGTH: 2})


def test_the_largest_gaps_are_kept() -> None:
    settings = Pairing(score="quality", most_per_question=1)
    kept, dropped = choose(said(1.0, 4.0, 2.0), settings)
    assert ids(kept) == {("r0", "r1")} and dropped == Counter({BEYOND: 2})


def test_a_negative_is_compared_with_the_policys_answer_of_the_same_number() -> None:
    given = [
        *said(None, None),
        Answer("x0", "quite another answer", negative="reversed"),
        Answer("x1", "answer number 1 is quite another one", sample_index=1, negative="shuffled"),
        Answer("o0", "of another policy", own=False),
    ]
    kept, dropped = choose(given, Pairing(perturb=Perturbing(kinds=["reversed", "shuffled"])))
    assert {(pair.first, pair.second, pair.negative) for pair in kept if pair.negative} == {("r0", "x0", "reversed")}
    assert dropped == Counter({f"shuffled: {SAME}": 1})
    assert len(kept) == 3 + 1


def leaning(pairs: list[Chosen]) -> list[int]:
    return [sum(pair.leaning == side for pair in pairs) for side in (1, -1, 0)]


sided = st.lists(st.sampled_from([1, 1, 1, -1, 0]), max_size=40).map(
    lambda sides: [Chosen(f"a{n}", f"b{n}", gap=1.0, leaning=side) for n, side in enumerate(sides)]
)


@given(sided)
def test_after_balancing_the_longer_response_scores_higher_as_often_as_the_shorter(pairs: list[Chosen]) -> None:
    balance = Balance.of(iter(pairs))
    kept = [pair for pair in pairs if balance.keeps(pair)]
    longer, shorter, neither = leaning(pairs)
    assert leaning(kept) == [min(longer, shorter), min(longer, shorter), neither]
    again = Balance.of(reversed(pairs))
    assert {pair.pair_id for pair in kept} == {pair.pair_id for pair in pairs if again.keeps(pair)}


@given(sided)
def test_a_balanced_set_stays_as_it_is(pairs: list[Chosen]) -> None:
    balance = Balance.of(pairs)
    kept = [pair for pair in pairs if balance.keeps(pair)]
    again = Balance.of(kept)
    assert [pair for pair in kept if again.keeps(pair)] == kept


def test_which_way_a_pair_leans() -> None:
    long, short = "a red circle moves", "a circle"
    cases = [((long, 3.0), (short, 1.0), 1), ((long, 1.0), (short, 3.0), -1), ((long, 1.0), (short, 1.0), 0)]
    for (one, score), (other, other_score), expected in cases:
        kept, _ = choose([Answer("r0", one, score), Answer("r1", other, other_score)], Pairing(score="quality"))
        assert kept[0].leaning == expected


def test_the_strategy_in_a_row_names_what_was_used() -> None:
    assert strategy_name(Pairing()) == "all"
    assert strategy_name(Pairing(perturb=Perturbing(kinds=["dropped"]))) == "all"
    settings = Pairing(strategy="best_rest", score="logprob", max_similarity=0.8, length_balanced=True)
    assert strategy_name(settings) == "best_rest(score=logprob, max_similarity=0.8, length_balanced=True)"


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"strategy": "best"}, "strategy"), ({"strategy": "best_worst"}, "score"), ({"score": "length"}, "score"),
        ({"length_balanced": True}, "score"), ({"max_similarity": 2.0}, "max_similarity"),
        ({"most_per_question": 0}, "most"),
        ({"max_length_ratio": 0.5}, "max_length_ratio"), ({"min_gap": -1.0, "score": "quality"}, "min_gap"),
    ],
)  # fmt: skip
def test_settings_without_a_meaning_are_a_mistake(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Pairing(**settings)


@pytest.mark.parametrize("kinds", [[], ["reversed", "reversed"], ["backwards"]])
def test_kinds_of_perturbation_are_named_once(kinds: list[str]) -> None:
    with pytest.raises(ValueError, match="kind"):
        Perturbing(kinds=kinds)
