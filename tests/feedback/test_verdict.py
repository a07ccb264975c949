"""Verdicts: what one judgement says, what two orders say together, and the view that says it in SQL."""

from __future__ import annotations

import itertools
import random
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.feedback.verdict import (
    CHOICES,
    Preference,
    Verdict,
    combine,
    combine_votes,
    from_ratings,
    log_odds,
    majority,
    mean,
    read_choice,
    read_words,
)
from vlm_rlaif.warehouse.records import Label, Pair, Question, Record, Response, Spec, Video
from vlm_rlaif.warehouse.store import Warehouse

A, B, TIE = Verdict(0.7, 0.2, 0.1), Verdict(0.2, 0.7, 0.1), Verdict(0.2, 0.2, 0.6)
logprobs = st.fixed_dictionaries({choice: st.floats(-30, 0) for choice in CHOICES})
orders = st.sampled_from(["ab", "ba"])


def judgement(rng: random.Random) -> dict[str, float]:
    """Log-probabilities as judges give them: often exactly equal, for few of their bits are kept."""
    return {choice: rng.choice([-0.25, -0.5, -1.0, -1.25, -4.0, -rng.expovariate(1)]) for choice in CHOICES}


def label(pair_id: str, shown_order: str, verdict: Verdict, spec_id: str = "judge", vote: int = 0) -> Label:
    return Label(
        label_id=f"{pair_id}-{spec_id}-{shown_order}-{vote}", pair_id=pair_id, spec_id=spec_id, context_id=None,
        shown_order=shown_order, vote=vote, choice=verdict.choice, p_a=verdict.p_a, p_tie=verdict.p_tie, reply="",
        cached_tokens=0, run_id="r",
    )  # fmt: skip


@pytest.fixture
def paired(warehouse: Warehouse) -> Warehouse:
    """A warehouse with pairs `p0` to `p299` of one question, and the judge `judge`."""
    video = Video(video_id="v", uri="v.mp4", source="s", video_group="v", split="val", status="ok", run_id="r")
    question = Question(question_id="q", video_id="v", text="what ?", source="imported", run_id="r")
    judge = Spec(
        spec_id="judge", stage="label", model="m", revision="", adapter="", prompt="judge_v1", prompt_hash="",
        frames="{}", sampling="{}", upstream="{}", run_id="r",
    )  # fmt: skip
    rows: list[Record] = [video, question, judge]
    for n in range(300):
        for side in "ab":
            rows.append(
                Response(response_id=f"{side}{n}", question_id="q", spec_id="s", sample_index=0, seed=0,
                         text=f"{side} {n}", tokens=2, finish="stop", logprob=None, run_id="r")
            )  # fmt: skip
        rows.append(
            Pair(pair_id=f"p{n}", question_id="q", response_a=f"a{n}", response_b=f"b{n}", strategy="s", run_id="r")
        )
    warehouse.append(rows)
    return warehouse


def test_the_most_probable_choice_is_the_choice() -> None:
    assert [verdict.choice for verdict in (A, B, TIE)] == ["a", "b", "tie"]


def test_nothing_that_stands_out_is_a_tie() -> None:
    even = Verdict(0.4, 0.4, 0.2), Verdict(0.4, 0.2, 0.4), Verdict(0.2, 0.4, 0.4), Verdict(1 / 3, 1 / 3, 1 / 3)
    assert {verdict.choice for verdict in even} == {"tie"}


@given(logprobs, orders)
def test_a_verdict_is_a_distribution(said: dict[str, float], shown_order: str) -> None:
    verdict = read_choice(said, shown_order)
    assert verdict.p_a + verdict.p_b + verdict.p_tie == pytest.approx(1.0, abs=1e-11)
    assert 0 <= verdict.soft <= 1 + 1e-11


@given(logprobs)
def test_the_exchanged_order_speaks_of_the_same_responses(said: dict[str, float]) -> None:
    exchanged = {"A": said["B"], "B": said["A"], "C": said["C"]}
    assert read_choice(said, "ab") == read_choice(exchanged, "ba")
    assert read_choice(said, "ab") == read_choice(said, "ba").swap()


@given(logprobs, orders, st.floats(-1000, 0))
def test_what_else_the_judge_might_have_said_does_not_matter(
    said: dict[str, float], shown_order: str, lost: float
) -> None:
    one = read_choice(said, shown_order)
    other = read_choice({choice: value + lost for choice, value in said.items()}, shown_order)
    assert (one.p_a, one.p_b, one.p_tie) == pytest.approx((other.p_a, other.p_b, other.p_tie), abs=1e-9)


def test_an_impossible_label_has_no_probability() -> None:
    assert read_choice({"A": log(0.5), "B": -float("inf"), "C": log(0.5)}, "ab") == Verdict(0.5, 0.0, 0.5)


@pytest.mark.parametrize(
    ("verdicts", "choice", "conflict"),
    [
        ((A, A), "a", False),
        ((B, B), "b", False),
        ((A, B), "tie", True),
        ((A, TIE), "a", False),
        ((TIE, B), "b", False),
        ((TIE, TIE), "tie", False),
        ((A,), "a", False),
        ((Verdict(0.9, 0.0, 0.1), Verdict(0.1, 0.2, 0.7)), "a", False),
        ((Verdict(0.4, 0.3, 0.3), Verdict(0.0, 0.4, 0.6)), "tie", False),
    ],
)
def test_opposite_winners_are_a_tie_and_a_winner_beside_a_tie_stands(
    verdicts: tuple[Verdict, ...], choice: str, conflict: bool
) -> None:
    preference = combine(verdicts)
    assert (preference.choice, preference.conflict) == (choice, conflict)


@given(logprobs, logprobs)
def test_it_does_not_matter_which_response_is_called_a(one: dict[str, float], other: dict[str, float]) -> None:
    verdicts = read_choice(one, "ab"), read_choice(other, "ba")
    preference, swapped = combine(verdicts), combine([verdict.swap() for verdict in verdicts])
    assert swapped.choice == {"a": "b", "b": "a", "tie": "tie"}[preference.choice]
    assert swapped.p_a == pytest.approx(1 - preference.p_a, abs=1e-11)
    assert swapped.conflict == preference.conflict


def test_the_view_of_preferences_is_combine_in_sql(paired: Warehouse) -> None:
    rng = random.Random(1)
    expected, rows = {}, []
    for n in range(300):
        shown = ["ab", "ba"] if n % 10 else [rng.choice(["ab", "ba"])]
        verdicts = [read_choice(judgement(rng), order) for order in shown]
        expected[f"p{n}"] = combine(verdicts)
        rows += [label(f"p{n}", order, verdict) for order, verdict in zip(shown, verdicts, strict=True)]
    paired.append(rows)
    found = {row["pair_id"]: row for row in paired.rows("SELECT * FROM preferences")}
    assert found.keys() == expected.keys()
    for pair_id, preference in expected.items():
        row, number = found[pair_id], pair_id[1:]
        assert row["choice"] == preference.choice, pair_id
        assert row["p_a"] == pytest.approx(preference.p_a, abs=1e-12)
        assert row["strength"] == pytest.approx(preference.strength, abs=1e-12)
        assert row["conflict"] == preference.conflict
        chosen = {
            "a": (f"a{number}", f"b{number}"),
            "b": (f"b{number}", f"a{number}"),
            "tie": (None, None),
        }[preference.choice]
        assert (row["chosen"], row["rejected"]) == chosen
    assert {row["choice"] for row in found.values()} == {"a", "b", "tie"}


def test_the_view_knows_exact_ties(paired: Warehouse) -> None:
    """Figures that sum to one in no binary fraction: 1 - p_a - p_tie is not p_b."""
    even = [Verdict(0.4, 0.4, 0.2), read_choice(dict.fromkeys(CHOICES, -1.0), "ab"), Verdict(0.45, 0.45, 0.1)]
    cases = list(itertools.product(even, [A, B, TIE, *even]))
    paired.append(
        [
            row
            for n, (one, other) in enumerate(cases)
            for row in (label(f"p{n}", "ab", one), label(f"p{n}", "ba", other))
        ]
    )
    found = {row["pair_id"]: row["choice"] for row in paired.rows("SELECT pair_id, choice FROM preferences")}
    assert found == {f"p{n}": combine(case).choice for n, case in enumerate(cases)}


def test_votes_of_one_order_count_by_majority(paired: Warehouse) -> None:
    paired.append(
        [
            *(label("p0", "ab", verdict, vote=vote) for vote, verdict in enumerate((A, A, B))),
            *(label("p0", "ba", verdict, vote=vote) for vote, verdict in enumerate((A, TIE, A))),
        ]
    )
    (row,) = paired.rows("SELECT choice, orders, conflict, order_agreement FROM preferences")
    assert row == {"choice": "a", "orders": 2, "conflict": False, "order_agreement": True}


def test_a_pair_judged_in_one_order_is_no_preference_yet(paired: Warehouse) -> None:
    """What one order says may be position bias: nobody trains on it, and the view shows what is there."""
    paired.append([label("p0", "ab", A)])
    assert paired.preferences().is_empty()
    (row,) = paired.rows("SELECT choice, orders, order_agreement FROM preferences")
    assert row == {"choice": "a", "orders": 1, "order_agreement": None}
    paired.append([label("p0", "ba", A)])
    assert paired.preferences()["choice"].to_list() == ["a"]


def test_judges_do_not_mix(paired: Warehouse) -> None:
    second = Spec(
        spec_id="other", stage="label", model="m", revision="", adapter="", prompt="judge_v2", prompt_hash="",
        frames="{}", sampling="{}", upstream="{}", run_id="r",
    )  # fmt: skip
    for order in ("ab", "ba"):
        paired.append([label("p0", order, A), label("p0", order, B, spec_id="other"), label("p1", order, TIE)])
    paired.append([second])
    frame = paired.preferences(judge="judge_v2")
    assert frame.select("pair_id", "choice", "text_a", "split").rows() == [("p0", "b", "a 0", "val")]
    assert paired.preferences(judge="judge")["choice"].to_list() == ["a", "tie"]
    assert paired.preferences(judge="judge", min_strength=0.1)["pair_id"].to_list() == ["p0"]
    assert paired.preferences(split="train").is_empty()
    assert paired.rows("SELECT pairs, agreement FROM label_agreement") == [{"pairs": 1, "agreement": 0.0}]


# Votes


def vote(rng: random.Random) -> Verdict:
    """What a judge that writes says, or one whose probabilities are read."""
    named = rng.choice([Verdict(1.0, 0.0, 0.0), Verdict(0.0, 1.0, 0.0), Verdict(0.0, 0.0, 1.0)])
    return named if rng.random() < 0.7 else read_choice(judgement(rng), "ab")


def test_the_view_of_votes_is_its_slow_twin(paired: Warehouse) -> None:
    rng = random.Random(2)
    expected, rows = {}, []
    for n in range(300):
        orders = [[vote(rng) for _ in range(rng.randint(1, 5))] for _ in range(rng.choice([1, 2, 2, 2]))]
        expected[f"p{n}"] = combine_votes(orders)
        for order, votes in zip(("ab", "ba"), orders, strict=False):
            rows += [label(f"p{n}", order, verdict, vote=number) for number, verdict in enumerate(votes)]
    paired.append(rows)
    for row in paired.rows("SELECT * FROM preferences"):
        twin = expected.pop(row["pair_id"])
        assert (row["choice"], row["conflict"]) == (twin.choice, twin.conflict), row["pair_id"]
        assert row["p_a"] == pytest.approx(twin.p_a, abs=1e-12)
        assert row["vote_spread"] == (None if twin.vote_spread is None else pytest.approx(twin.vote_spread, abs=1e-9))
    assert not expected


votes = st.lists(
    st.sampled_from([Verdict(1.0, 0.0, 0.0), Verdict(0.0, 1.0, 0.0), Verdict(0.0, 0.0, 1.0)]), min_size=1
)


@given(votes)
def test_p_of_votes_is_wins_and_half_the_ties(said: list[Verdict]) -> None:
    choices = [verdict.choice for verdict in said]
    preference = combine_votes([said])
    assert preference.p_a == pytest.approx((choices.count("a") + choices.count("tie") / 2) / len(said))
    assert (preference.vote_spread is None) == (len(said) == 1)
    assert 0 <= (preference.vote_spread or 0) <= 0.5


@given(votes, votes, st.randoms())
def test_the_order_of_votes_and_the_name_of_a_response_do_not_matter(
    one: list[Verdict], other: list[Verdict], rng: random.Random
) -> None:
    said = combine_votes([one, other])
    again = combine_votes([rng.sample(other, len(other)), rng.sample(one, len(one))])
    swapped = combine_votes([[verdict.swap() for verdict in order] for order in (one, other)])
    assert (again.choice, again.conflict) == (said.choice, said.conflict)
    assert swapped.choice == {"a": "b", "b": "a", "tie": "tie"}[said.choice]
    assert swapped.p_a == pytest.approx(1 - said.p_a) and swapped.vote_spread == pytest.approx(said.vote_spread)


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("Verdict: A", "a"), ("verdict - B.", "b"), ("So:\n\nVERDICT: C (tie)\n", "tie"), ("**Verdict: tie**", "tie"),
        ("A", "a"), ("`B`", "b"), ("C", "tie"), ("Verdict: (A)", "a"),
        ("", None), ("a", None), ("Verdict:", None), ("Verdict: A or B", None), ("A is better", None),
        ("Verdict: A\nThat is all.", None), ("Verdict: A (tie)", None), ("Verdict: D", None), ("Verdict: AB", None),
    ],
)  # fmt: skip
def test_words_are_read_strictly(reply: str, choice: str | None) -> None:
    verdict = read_words(reply, "ab")
    assert (verdict and verdict.choice) == choice
    swapped = read_words(reply, "ba")
    assert (swapped and swapped.swap()) == verdict


# Ratings and panels

numbers = st.floats(-5, 5)


@given(numbers, numbers, st.floats(0.01, 10), st.floats(0, 3))
def test_labels_of_ratings_know_no_side_and_grow_with_the_difference(
    a: float, b: float, scale: float, margin: float
) -> None:
    said, swapped = from_ratings(a, b, scale=scale), from_ratings(b, a, scale=scale)
    assert swapped.p_a == pytest.approx(1 - said.p_a, abs=1e-11)
    assert (said.p_a - 0.5) * (a - b) >= 0 and 0 <= said.p_a <= 1
    assert from_ratings(a + 1, b, scale=scale).p_a >= said.p_a
    tied = from_ratings(a, b, scale=scale, tie_margin=margin)
    assert tied.p_a == said.p_a and tied.choice == ("tie" if abs(a - b) <= margin else said.choice)


members = st.lists(st.builds(Preference, st.sampled_from(["a", "b", "tie"]), st.floats(0, 1)), min_size=1)


@given(members)
def test_a_panel_of_one_mind_is_that_mind_and_knows_no_side(said: list[Preference]) -> None:
    other = [Preference({"a": "b", "b": "a", "tie": "tie"}[each.choice], 1 - each.p_a) for each in said]
    for unite in (majority, mean):
        one, swapped = unite(said), unite(other)
        assert swapped.p_a == pytest.approx(1 - one.p_a, abs=1e-9)
        assert (one.p_a > 0.5 or one.choice != "a") and (one.p_a < 0.5 or one.choice != "b")
    assert majority([said[0]] * 3).choice == said[0].choice
    assert mean([said[0]] * 3).p_a == pytest.approx(said[0].p_a, abs=1e-11)
    assert mean(said, [2.0] * len(said)).p_a == pytest.approx(mean(said).p_a, abs=1e-11)


@given(st.integers(1, 500), st.data())
def test_the_weight_of_a_judge_grows_with_what_it_has_right(judged: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, judged - 1))
    assert 0 <= log_odds(right, judged) <= log_odds(right + 1, judged) < 7
    assert (log_odds(right, judged) > 0) == (right > judged / 2)
