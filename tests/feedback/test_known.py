"""What people said of pairs, and what the shapes world knows, in one shape; judges by their names."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from vlm_rlaif.feedback.known import find_judge, known, unjudged
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

TEXTS = {"p0": ("there are 3 shapes .", "there are 4 shapes ."), "p1": ("many", "there are 3 shapes ."),
         "p2": ("none", "there are 9 shapes ."), "p3": ("there are 3 shapes .", "few")}  # fmt: skip
JUDGE = Spec.make(
    stage="label", model="m", revision="1", prompt="judge_v1", prompt_hash="h", frames={}, sampling={}, upstream={}
)


def pairs(source: str = "shapes") -> list[Record]:
    """Four pairs about two videos; the truth prefers a, b, neither, a."""
    rows: list[Record] = []
    for number, (pair, texts) in enumerate(TEXTS.items()):
        video = f"v{number // 2}"
        rows += [
            Video(video_id=video, uri=video, source="t", video_group=video, split="train", status="ok", run_id="r"),
            Question(question_id=f"q{pair}", video_id=video, text="how many ?", reference="there are 3 shapes .",
                     kind="count", source=source, run_id="r"),
            *(Response(response_id=f"{pair}{side}", question_id=f"q{pair}", spec_id="policy", sample_index=i, seed=i,
                       text=text, tokens=5, finish="stop", logprob=None, run_id="r")
              for i, (side, text) in enumerate(zip("ab", texts, strict=True))),
            Pair(pair_id=pair, question_id=f"q{pair}", response_a=f"{pair}a", response_b=f"{pair}b", strategy="all",
                 run_id="r"),
        ]  # fmt: skip
    return rows


def plan(name: str, tasks: dict[str, tuple[str, float]]) -> list[Record]:
    """A plan with, per pair, its stratum and weight."""
    return [
        AuditPlan(plan_id=f"id-{name}", name=name, judge=JUDGE.spec_id, config="{}", run_id="r"),
        *(AuditTask(audit_task_id=f"{name}/{pair}", plan_id=f"id-{name}", pair_id=pair, stratum=stratum,
                    weight=weight, shown_order="ab", annotators=1, run_id="r")
          for pair, (stratum, weight) in tasks.items()),
    ]  # fmt: skip


def said(name: str, pair: str, choice: str, annotator: str = "1", second: int = 0) -> Audit:
    return Audit(
        audit_id=f"{name}/{pair}/{annotator}/{second}", plan_id=f"id-{name}", pair_id=pair, annotator=annotator,
        annotation=f"{pair}/{annotator}", choice=choice, shown_order="ab",
        updated_at=datetime(2026, 1, 1, 0, 0, second), reply="{}", run_id="r",
    )  # fmt: skip


def labels(*specs: Spec) -> list[Record]:
    return [
        row
        for spec in specs
        for row in (
            spec,
            Label(label_id=spec.spec_id, pair_id="p0", spec_id=spec.spec_id, context_id=None, shown_order="ab",
                  vote=0, choice="a", p_a=1.0, p_tie=0.0, reply="A", cached_tokens=0, run_id="r"),
        )
    ]  # fmt: skip


def by_pair(warehouse: Warehouse, column: str, *arguments: Any) -> dict[str, Any]:
    frame = known(warehouse, *arguments)
    assert frame.columns == ["pair_id", "cluster", "choice", "p_a", "weight", "stratum"]
    return dict(zip(frame["pair_id"], frame[column], strict=True))


def test_the_truth_of_the_shapes_world_is_known_and_equal_truths_are_a_tie(warehouse: Warehouse) -> None:
    warehouse.append(pairs())
    assert by_pair(warehouse, "choice", "truth") == {"p0": "a", "p1": "b", "p2": "tie", "p3": "a"}
    assert by_pair(warehouse, "p_a", "truth") == {"p0": 1.0, "p1": 0.0, "p2": 0.5, "p3": 1.0}
    assert set(by_pair(warehouse, "weight", "truth").values()) == {1.0}
    assert by_pair(warehouse, "cluster", "truth")["p3"] == "v1"


def test_people_outrank_the_truth_where_nobody_says_which_is_meant(warehouse: Warehouse) -> None:
    warehouse.append(pairs())
    assert by_pair(warehouse, "choice", None)["p0"] == "a"
    warehouse.append([*plan("one", {"p0": ("s", 1.0)}), said("one", "p0", "b")])
    assert by_pair(warehouse, "choice", None) == {"p0": "b"}
    assert len(known(warehouse, "truth")) == 4


def test_the_newest_verdict_of_everybody_counts_and_both_bad_is_a_tie(warehouse: Warehouse) -> None:
    warehouse.append([*pairs(), *plan("one", {"p0": ("s", 1.0), "p1": ("s", 1.0)})])
    warehouse.append([said("one", "p0", "a"), said("one", "p0", "b", second=1), said("one", "p1", "both_bad")])
    assert by_pair(warehouse, "choice", "humans") == {"p0": "b", "p1": "tie"}
    assert by_pair(warehouse, "p_a", "humans") == {"p0": 0.0, "p1": 0.5}


def test_tasks_that_nobody_judged_hand_their_weight_to_the_others_of_their_stratum(warehouse: Warehouse) -> None:
    tasks = {"p0": ("easy", 10.0), "p1": ("easy", 10.0), "p2": ("hard", 3.0), "p3": ("hard", 3.0)}
    warehouse.append([*pairs(), *plan("one", tasks), *(said("one", pair, "a") for pair in ("p0", "p2", "p3"))])
    assert by_pair(warehouse, "weight", "humans") == {"p0": 20.0, "p2": 3.0, "p3": 3.0}
    assert by_pair(warehouse, "stratum", "humans") == {"p0": "easy", "p2": "hard", "p3": "hard"}


def test_a_pair_of_two_plans_stands_for_both_and_a_named_plan_for_itself(warehouse: Warehouse) -> None:
    warehouse.append([*pairs(), *plan("one", {"p0": ("x", 2.0), "p1": ("x", 2.0)}), *plan("two", {"p0": ("y", 5.0)})])
    warehouse.append([said("one", "p0", "a"), said("one", "p1", "a"), said("two", "p0", "a", annotator="2")])
    assert by_pair(warehouse, "weight", "humans") == {"p0": 7.0, "p1": 2.0}
    assert by_pair(warehouse, "stratum", "humans") == {"p0": None, "p1": "x"}
    assert by_pair(warehouse, "weight", "humans", "two") == {"p0": 5.0}


def test_cuts_of_one_source_are_one_cluster(warehouse: Warehouse) -> None:
    warehouse.append([*pairs(), *plan("one", {"p0": ("s", 1.0), "p3": ("s", 1.0)})])
    warehouse.append([said("one", "p0", "a"), said("one", "p3", "a")])
    warehouse.execute("UPDATE videos SET video_group = 'film'")
    for against in ("truth", "humans"):
        assert set(by_pair(warehouse, "cluster", against).values()) == {"film"}


def test_a_person_who_judged_a_pair_in_two_plans_votes_once_and_the_last_word_counts(warehouse: Warehouse) -> None:
    warehouse.append([*pairs(), *plan("one", {"p0": ("s", 1.0)}), *plan("two", {"p0": ("s", 1.0)})])
    warehouse.append([said("one", "p0", "b"), said("two", "p0", "a", second=5), said("one", "p0", "tie", "2")])
    assert warehouse.rows("SELECT choice, p_a, verdicts, annotators FROM human_preferences") == [
        {"choice": "tie", "p_a": 0.75, "verdicts": 2, "annotators": 2}
    ]


def test_a_named_plan_has_the_verdicts_of_that_plan_alone(warehouse: Warehouse) -> None:
    warehouse.append([*pairs(), *plan("one", {"p0": ("s", 1.0)}), *plan("two", {"p0": ("s", 1.0)})])
    warehouse.append([said("one", "p0", "b"), said("two", "p0", "a", "1", 5), said("two", "p0", "both_bad", "2")])
    assert by_pair(warehouse, "choice", "humans", "one") == {"p0": "b"}
    assert by_pair(warehouse, "p_a", "humans", "two") == {"p0": 0.75}
    assert by_pair(warehouse, "choice", "humans", "two") == {"p0": "tie"}


def test_a_stratum_that_nobody_has_judged_is_not_forgotten(warehouse: Warehouse) -> None:
    tasks = {"p0": ("easy", 10.0), "p1": ("easy", 10.0), "p2": ("hard", 3.0), "p3": ("hard", 2.0)}
    warehouse.append([*pairs(), *plan("one", tasks), said("one", "p0", "a")])
    assert unjudged(warehouse) == unjudged(warehouse, "one") == (1, 0.2)
    warehouse.append([said("one", "p3", "a")])
    assert unjudged(warehouse) == (0, 0.0)


def test_who_asks_for_what_is_not_known_is_told_how_to_get_it(warehouse: Warehouse) -> None:
    warehouse.append(pairs(source="imported"))
    with pytest.raises(UserError, match="feedback audit plan"):
        known(warehouse, None)
    with pytest.raises(UserError, match="No person has judged"):
        known(warehouse, "humans")
    with pytest.raises(UserError, match="The truth is known of the shapes world"):
        known(warehouse, "truth")
    with pytest.raises(UserError, match="Did you mean 'humans'"):
        known(warehouse, "human")
    warehouse.append(plan("first", {"p0": ("s", 1.0)}))
    with pytest.raises(UserError, match=r"audit pull .* first"):
        known(warehouse, "humans", "first")
    with pytest.raises(UserError, match="Did you mean 'first'"):
        known(warehouse, "humans", "frist")
    with pytest.raises(UserError, match="goes with --against humans"):
        known(warehouse, "truth", "first")


def test_a_judge_is_found_by_its_id_its_beginning_or_its_prompt(warehouse: Warehouse) -> None:
    with pytest.raises(UserError, match="No judge has labeled"):
        find_judge(warehouse, None)
    warehouse.append(labels(JUDGE))
    for name in (None, JUDGE.spec_id, JUDGE.spec_id[:6], "judge_v1"):
        assert find_judge(warehouse, name) == JUDGE.spec_id


def test_a_judge_that_is_not_clear_is_asked_for_with_all_there_are(warehouse: Warehouse) -> None:
    other = replace(JUDGE, spec_id="0" * 20, model="other")
    warehouse.append(labels(JUDGE, other))
    for name in (None, "judge_v1"):
        with pytest.raises(UserError, match="2 judges fit") as error:
            find_judge(warehouse, name)
        assert f"{JUDGE.spec_id}  judge_v1 by m, 1 labels" in str(error.value)
    assert find_judge(warehouse, "000") == other.spec_id
    with pytest.raises(UserError, match="Did you mean 'judge_v1'"):
        find_judge(warehouse, "judge_v2")
