"""`vlm-rlaif feedback agreement`, end to end: people, judges, thresholds and corrected rates out of rows."""

from __future__ import annotations

import json
import random
from datetime import datetime
from typing import Any

import pytest

from vlm_rlaif.feedback.agreement import measure
from vlm_rlaif.feedback.calibrate import fit_judge, write
from vlm_rlaif.feedback.known import known
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import (
    Audit,
    AuditPlan,
    AuditTask,
    Label,
    Pair,
    Question,
    Record,
    Response,
    Spec,
    Video,
)
from vlm_rlaif.warehouse.store import Warehouse

PAIRS = 120
PEOPLE = ("1", "2")


def spec(prompt: str, stage: str = "label") -> Spec:
    return Spec.make(
        stage=stage, model="m", revision="1", prompt=prompt, prompt_hash=prompt, frames={}, sampling={}, upstream={}
    )


JUDGE, OTHER, OLD, NEW = spec("judge_v1"), spec("judge_v2"), spec("old", "respond"), spec("new", "respond")


def pair_rows(number: int, video: str, wanted: str) -> list[Record]:
    """A pair of a short answer of the old policy and a longer one of the new; `wanted` is the truer one."""
    texts = {"a": ("there are 3 shapes .", "many"), "b": ("many", "there are 3 shapes ."), "tie": ("many", "few")}
    pair = f"p{number:03}"
    return [
        Question(question_id=f"q{pair}", video_id=video, text="how many ?", reference="there are 3 shapes .",
                 kind="count", source="shapes", run_id="r"),
        *(Response(response_id=f"{pair}{side}", question_id=f"q{pair}", spec_id=policy.spec_id, sample_index=0,
                   seed=0, text=text, tokens=tokens, finish="stop", logprob=None, run_id="r")
          for side, policy, tokens, text in zip("ab", (OLD, NEW), (5, 9), texts[wanted], strict=True)),
        Pair(pair_id=pair, question_id=f"q{pair}", response_a=f"{pair}a", response_b=f"{pair}b", strategy="all",
             run_id="r"),
    ]  # fmt: skip


def label_rows(judge: Spec, pair: str, p_a: float) -> list[Record]:
    choice = "tie" if p_a == 0.5 else "a" if p_a > 0.5 else "b"
    return [
        Label(label_id=f"{judge.prompt}/{pair}/{order}", pair_id=pair, spec_id=judge.spec_id, context_id=None,
              shown_order=order, vote=0, choice=choice, p_a=p_a, p_tie=0.0, reply="A", cached_tokens=0, run_id="r")
        for order in ("ab", "ba")
    ]  # fmt: skip


def audit_rows(pair: str, choice: str, annotator: str) -> list[Record]:
    return [
        Audit(audit_id=f"{pair}/{annotator}", plan_id="plan", pair_id=pair, annotator=annotator,
              annotation=f"{pair}/{annotator}",
                  choice=choice, shown_order="ab", updated_at=datetime(2026, 1, 1), reply="{}", run_id="r")
    ]  # fmt: skip


@pytest.fixture
def judged(warehouse: Warehouse) -> Warehouse:
    """120 pairs of 30 videos; the judge is right in 80 %, surer where it is. No person has looked yet."""
    rng = random.Random(0)
    rows: list[Record] = [JUDGE, OTHER, OLD, NEW]
    for number in range(PAIRS):
        video, wanted = f"v{number // 4}", rng.choice(["a", "b", "b", "tie"])
        rows.append(Video(video_id=video, uri=video, source="t", video_group=video, split="train", status="ok",
                          run_id="r"))  # fmt: skip
        rows += pair_rows(number, video, wanted)
        right = rng.random() < 0.8
        said = wanted if right else rng.choice(["a", "b", "tie"])
        sure = rng.uniform(0.3, 0.5) if right else rng.uniform(0.05, 0.3)
        rows += label_rows(JUDGE, f"p{number:03}", 0.5 + {"a": sure, "tie": 0.0, "b": -sure}[said])
        rows += label_rows(OTHER, f"p{number:03}", 0.5)
    warehouse.append(rows)
    return warehouse


@pytest.fixture
def audited(judged: Warehouse) -> Warehouse:
    """Two people have looked at 60 of the pairs, and said the truth but for some; half of them stand for three."""
    rows: list[Record] = [AuditPlan(plan_id="plan", name="first", judge=JUDGE.spec_id, config="{}", run_id="r")]
    truth = {row["pair_id"]: row for row in judged.rows("FROM preferences WHERE judge = ?", [JUDGE.spec_id])}
    rng = random.Random(1)
    for number, pair in enumerate(sorted(truth)[: PAIRS // 2]):
        stratum, weight = ("sure", 3.0) if number % 2 else ("unsure", 1.0)
        rows.append(AuditTask(audit_task_id=pair, plan_id="plan", pair_id=pair, stratum=stratum, weight=weight,
                              shown_order="ab", annotators=2, run_id="r"))  # fmt: skip
        for person in PEOPLE:
            said = truth[pair]["choice"] if rng.random() < 0.8 else rng.choice(["a", "b", "both_bad"])
            rows += audit_rows(pair, said, person)
    judged.append(rows)
    return judged


def test_judges_are_held_against_the_truth_where_nobody_has_looked(judged: Warehouse) -> None:
    found = measure(judged)
    assert (found.against, found.pairs, found.videos, found.weighted, found.people) == (
        "truth",
        PAIRS,
        30,
        False,
        None,
    )
    right, ties = found.judges
    assert (right.prompt, ties.prompt) == ("judge_v1", "judge_v2")
    assert right.agreement.value is not None and 0.75 < right.agreement.value < 0.95
    assert sum(map(sum, right.confusion)) == PAIRS and right.known == right.preferences == PAIRS
    assert ties.kappa.value == 0.0 and ties.curve == []


def test_people_are_held_against_each_other_and_judges_against_them(audited: Warehouse) -> None:
    found = measure(audited, judges=["judge_v1"])
    people, (judge,) = found.people, found.judges
    assert people is not None and found.against == "humans" and found.weighted
    assert (people.annotators, people.verdicts, people.pairs, people.overlap) == (2, PAIRS, 60, 60)
    assert people.both_bad == audited.value("SELECT count(*) FROM audits WHERE choice = 'both_bad'") > 0
    (couple,) = people.annotator_pairs
    assert couple.annotators == PEOPLE and couple.agreement.value == pytest.approx(people.agreement.value)
    assert people.alpha.low is not None and people.alpha_ordinal.value is not None
    assert judge.known == 60 and judge.preferences == PAIRS
    assert sum(map(sum, judge.confusion_weighted)) == pytest.approx(1)


def test_weights_move_the_agreement_towards_the_stratum_that_stands_for_more(audited: Warehouse) -> None:
    """The slow twin repeats every pair as often as it weighs."""
    (judge,) = measure(audited, judges=["judge_v1"]).judges
    rows = audited.rows(
        "SELECT p.choice = h.choice AS agrees, t.weight FROM preferences p JOIN human_preferences h USING (pair_id)"
        " JOIN audit_tasks t USING (pair_id) WHERE p.judge = ?",
        [JUDGE.spec_id],
    )
    repeated = [row["agrees"] for row in rows for _ in range(int(row["weight"]))]
    assert judge.agreement.value == pytest.approx(sum(repeated) / len(repeated))


def test_rates_are_corrected_for_the_longer_response_and_for_policies(judged: Warehouse) -> None:
    """Everything is known here, so the corrected rate is the true one."""
    judge = measure(judged, judges=["judge_v1"]).judges[0]
    rates = {rate.what: rate for rate in judge.rates}
    longer = rates["the longer response is better"].corrected
    assert longer is not None
    b_wins = sum(known(judged, "truth")["choice"] == "b") / PAIRS
    assert longer.corrected.value == pytest.approx(b_wins) and longer.rate.value != pytest.approx(b_wins)
    new_wins = f"m ({NEW.spec_id[:6]}) over m ({OLD.spec_id[:6]})"
    policy = rates[new_wins].corrected
    assert policy is not None and policy.corrected == longer.corrected and len(rates) == 4


def test_a_judge_of_which_no_rate_follows_says_why(judged: Warehouse) -> None:
    judge = measure(judged, judges=["judge_v2"]).judges[0]
    assert all(rate.corrected is None and "no rate follows" in rate.refused for rate in judge.rates)


def test_a_plan_takes_its_pairs_alone(audited: Warehouse) -> None:
    assert measure(audited, plan="first").pairs == 60
    with pytest.raises(UserError, match="Did you mean 'first'"):
        measure(audited, plan="firts")


def test_what_the_audit_has_not_reached_yet_is_said(audited: Warehouse, command: Any) -> None:
    audited.execute("DELETE FROM audits WHERE pair_id IN (SELECT pair_id FROM audit_tasks WHERE stratum = 'unsure')")
    said = command("feedback", "agreement", audited.path)
    assert "1 strata (25.0 % of the pairs) not judged yet: nothing here is about them" in said.out


def test_responses_without_tokens_are_as_long_as_their_words(judged: Warehouse) -> None:
    """As the report has it: imported responses have no tokens."""
    before = measure(judged, judges=["judge_v1"]).judges[0].rates[0]
    judged.execute("UPDATE responses SET tokens = 0")
    words = measure(judged, judges=["judge_v1"]).judges[0].rates[0]
    longer_in_words = judged.value(
        "SELECT count(*) FROM pairs JOIN responses a ON a.response_id = response_a JOIN responses b ON"
        " b.response_id = response_b WHERE len(string_split(a.text, ' ')) <> len(string_split(b.text, ' '))"
    )
    assert before.pairs == PAIRS and 0 < words.pairs == longer_in_words < PAIRS


def test_a_calibrated_judge_says_that_it_was_fitted_on_such_pairs(judged: Warehouse, command: Any) -> None:
    write(judged, fit_judge(judged, judge="judge_v1"))
    plain, _, fitted = sorted(measure(judged).judges, key=lambda each: len(each.fitted_to + each.prompt))
    assert (plain.fitted_to, fitted.fitted_to) == ("", JUDGE.spec_id)
    said = command("feedback", "agreement", judged.path, "--judge", fitted.judge)
    assert "so p fits these too well" in said.out


def test_a_judge_of_which_nothing_is_known_is_left_out(audited: Warehouse) -> None:
    audited.execute("DELETE FROM labels WHERE spec_id = ? AND pair_id < 'p060'", [OTHER.spec_id])
    assert [judge.prompt for judge in measure(audited).judges] == ["judge_v1"]


def test_the_command_prints_what_a_newcomer_needs(audited: Warehouse, command: Any) -> None:
    said = command("feedback", "agreement", audited.path, "--judge", "judge_v1", "--accuracy", "0.8")
    assert said.code == 0
    for words in (
        "60 pairs of 15 videos are known, by people, weighted by the strata of the audit", "two people  agreement",
        "people: 2 gave 120 verdicts on 60 pairs", "and count as ties", "judge judge_v1", "with people agreement",
        "80 % right: --min-strength", "the longer response is better", "sensitivity", "people: tie",
    ):  # fmt: skip
        assert words in said.out, words
    again = command("feedback", "agreement", audited.path, "--against", "truth")
    assert "by the exact truth" in again.out and "judge judge_v2" in again.out and "not corrected" in again.out


def test_the_command_speaks_json_and_writes_nothing(audited: Warehouse, command: Any) -> None:
    before = audited.path.read_bytes()
    found = json.loads(command("feedback", "agreement", audited.path, "--json").out)
    assert audited.path.read_bytes() == before
    assert found["against"] == "humans" and set(found["judges"][0]["kappa"]) == {"value", "low", "high", "n", "unit"}
    assert found["judges"][0]["curve"][0]["min_strength"] == 0.0
    assert found["judges"][0]["rates"][0]["corrected"]["corrected"]["unit"] == "fraction"


def test_what_is_missing_is_said_with_the_next_command(warehouse: Warehouse, command: Any) -> None:
    ended = command("feedback", "agreement", warehouse.path)
    assert ended.code == 2 and "feedback audit plan" in ended.err and "Traceback" not in ended.err
