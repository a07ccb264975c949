"""`vlm-rlaif feedback calibrate`: calibrated labels are rows of a further judge. And people outrank judges."""

from __future__ import annotations

import json
import random
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.feedback.calibrate import FEWEST, fit_judge, write
from vlm_rlaif.feedback.known import known
from vlm_rlaif.warehouse.care.row_checks import check_ids
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.exports.versions import Selection, create
from vlm_rlaif.warehouse.records import (
    Audit,
    Context,
    Label,
    Pair,
    Question,
    Record,
    Response,
    Run,
    Spec,
    Video,
    row_id,
)
from vlm_rlaif.warehouse.store import Warehouse

PAIRS = 100
TRUE, FALSE = "there are 3 shapes .", "many"
JUDGE = Spec.make(
    stage="label", model="m", revision="1", prompt="judge_v1", prompt_hash="h", frames={}, sampling={},
    upstream={"context": "c"},
)  # fmt: skip
POLICY = Spec.make(
    stage="respond", model="m", revision="1", prompt="answer_v1", prompt_hash="h", frames={}, sampling={}, upstream={}
)


def orders(pair: str, context: str, first: float, second: float) -> list[Record]:
    """What the judge says of response a in both orders."""
    return [
        Label(label_id=row_id("label", JUDGE.spec_id, pair, context, order, 0), pair_id=pair, spec_id=JUDGE.spec_id,
              context_id=context, shown_order=order, vote=0, choice="a" if p > 0.5 else "b", p_a=p, p_tie=0.0,
              reply="A", cached_tokens=0, run_id="r")
        for order, p in (("ab", first), ("ba", second))
    ]  # fmt: skip


@pytest.fixture
def judged(warehouse: Warehouse) -> Warehouse:
    """100 pairs of 25 videos; the judge is 95 % sure and right in 70 %. In each tenth pair it contradicts itself."""
    rng = random.Random(0)
    rows: list[Record] = [JUDGE, POLICY]
    for number in range(PAIRS):
        video, question = f"v{number // 4}", f"q{number:03}"
        wanted = rng.choice("ab")
        ids = [f"r{number:03}{side}" for side in "ab"]
        pair, context = row_id("pair", *ids), f"c{video}"
        rows += [
            Video(video_id=video, uri=video, source="t", video_group=video, split="train", status="ok", run_id="r"),
            Context(context_id=context, video_id=video, spec_id="c", caption_ids=[], text="", run_id="r"),
            Question(question_id=question, video_id=video, text="how many ?", reference=TRUE, kind="count",
                     source="shapes", run_id="r"),
            *(Response(response_id=one, question_id=question, spec_id=POLICY.spec_id, sample_index=i, seed=i,
                       text=TRUE if wanted == "ab"[i] else FALSE, tokens=5, finish="stop", logprob=None,
                       run_id="r")
              for i, one in enumerate(ids)),
            Pair(pair_id=pair, question_id=question, response_a=ids[0], response_b=ids[1], strategy="all",
                 run_id="r"),
        ]  # fmt: skip
        said = wanted if rng.random() < 0.7 else "ab"[wanted == "a"]
        p = 0.95 if said == "a" else 0.05
        rows += orders(pair, context, p, p) if number % 10 else orders(pair, context, 0.9, 0.3)
    warehouse.append(rows)
    return warehouse


def people_say(warehouse: Warehouse, choice: str, pairs: int, annotator: str = "1") -> None:
    chosen = warehouse.query("SELECT pair_id FROM pairs ORDER BY pair_id")["pair_id"].to_list()[:pairs]
    warehouse.append(
        [
            Audit(audit_id=f"{pair}/{annotator}", plan_id="plan", pair_id=pair, annotator=annotator,
                  annotation=f"{pair}/{annotator}",
                  choice=choice, shown_order="ab", updated_at=datetime(2026, 1, 1), reply="{}", run_id="r")
            for pair in chosen
        ]
    )  # fmt: skip


def count(warehouse: Warehouse, table: str) -> int:
    return int(warehouse.value(f"SELECT count(*) FROM {table}"))


def wrong_labels(warehouse: Warehouse) -> list[str]:
    """Labels whose id the doctor does not find in what they were asked; it knows the other rows of this test less."""
    found = [each for each in check_ids(warehouse, everything=True) if each.what.startswith("labels")]
    return [example for each in found for example in each.examples]


def test_calibrated_labels_are_further_rows_and_a_second_run_writes_nothing(judged: Warehouse) -> None:
    before = judged.rows("FROM labels ORDER BY label_id")
    fitted = fit_judge(judged, judge="judge_v1")
    assert fitted.method == "temperature" and fitted.after.ece < fitted.before.ece
    assert write(judged, fitted).written == PAIRS
    assert judged.rows("FROM labels WHERE shown_order <> 'both' ORDER BY label_id") == before
    runs = count(judged, "runs")
    assert write(judged, fit_judge(judged, judge="judge_v1")).written == 0
    assert (count(judged, "runs"), count(judged, "labels")) == (runs, 3 * PAIRS)


def test_a_calibrated_preference_is_more_modest_complete_and_has_the_context(judged: Warehouse) -> None:
    fitted = fit_judge(judged, judge="judge_v1")
    write(judged, fitted)
    rows = judged.rows(
        "SELECT o.p_a AS before, n.* FROM preferences n JOIN preferences o USING (pair_id)"
        " WHERE n.judge = ? AND o.judge = ?",
        [fitted.spec.spec_id, JUDGE.spec_id],
    )
    assert len(rows) == PAIRS and all(row["complete"] and row["order_agreement"] is None for row in rows)
    for row in rows:
        assert abs(row["p_a"] - 0.5) < abs(row["before"] - 0.5) and (row["p_a"] > 0.5) == (row["before"] > 0.5)
        assert row["context_id"] is not None
    label = judged.rows("FROM labels WHERE spec_id = ? LIMIT 1", [fitted.spec.spec_id])[0]
    assert json.loads(label["reply"])["p_before"] in (0.95, 0.05, 0.6)


def test_a_conflict_stays_a_tie_though_its_p_leans(judged: Warehouse) -> None:
    fitted = fit_judge(judged, judge="judge_v1")
    write(judged, fitted)
    rows = judged.rows("FROM preferences WHERE judge = ? AND choice = 'tie'", [fitted.spec.spec_id])
    assert len(rows) == PAIRS // 10 and all(row["p_a"] > 0.5 for row in rows)


def test_more_verdicts_make_a_further_judge_and_leave_the_first(judged: Warehouse) -> None:
    people_say(judged, "a", 60)
    first = fit_judge(judged, judge="judge_v1", against="humans")
    write(judged, first)
    people_say(judged, "b", 5, annotator="2")
    second = fit_judge(judged, judge="judge_v1", against="humans")
    write(judged, second)
    assert first.spec.spec_id != second.spec.spec_id and first.spec.prompt != second.spec.prompt
    assert count(judged, "labels") == 4 * PAIRS
    sampling = json.loads(second.spec.sampling)
    assert sampling["method"] == "temperature" and set(sampling) == {"method", "parameters", "verdicts"}
    assert json.loads(second.spec.upstream) == {"label": JUDGE.spec_id}


def test_the_ids_are_those_of_their_content_and_why_tells_the_parts(judged: Warehouse, command: Any) -> None:
    fitted = fit_judge(judged, judge="judge_v1")
    write(judged, fitted)
    assert wrong_labels(judged) == []
    label = judged.value("SELECT min(label_id) FROM labels WHERE spec_id = ?", [fitted.spec.spec_id])
    said = command("why", judged.path, label).out
    assert f"upstream.label{'':12} {JUDGE.spec_id} (judge_v1 by m)" in said and "sampling.parameters.slope" in said
    judged.execute("UPDATE labels SET pair_id = (SELECT max(pair_id) FROM pairs) WHERE label_id = ?", [label])
    assert wrong_labels(judged) == [label]


def test_nothing_is_pending_because_of_a_calibration(judged: Warehouse) -> None:
    before = judged.rows("FROM pending_work ORDER BY ALL")
    write(judged, fit_judge(judged, judge="judge_v1"))
    assert judged.rows("FROM pending_work ORDER BY ALL") == before


def test_a_calibration_goes_with_the_videos_of_its_pairs(judged: Warehouse, command: Any) -> None:
    write(judged, fit_judge(judged, judge="judge_v1"))
    assert command("remove", judged.path, "v0", "--yes").code == 0
    assert count(judged, "labels") == 3 * (PAIRS - 4)


def test_too_few_verdicts_are_refused_with_how_many_and_why(judged: Warehouse) -> None:
    people_say(judged, "a", 20)
    with pytest.raises(
        UserError, match=f"judged, 20 are known by people. temperature needs {FEWEST['temperature']}: .* 7 points"
    ) as error:
        fit_judge(judged, judge="judge_v1", against="humans")
    assert "feedback audit plan" in str(error.value)
    with pytest.raises(UserError, match="isotonic needs 200"):
        fit_judge(judged, judge="judge_v1", method="isotonic", against="truth")
    judged.execute("UPDATE questions SET video_id = 'v0'")
    with pytest.raises(UserError, match="are of 1 videos"):
        fit_judge(judged, judge="judge_v1", against="truth")


def test_a_calibrated_judge_is_not_calibrated_again(judged: Warehouse) -> None:
    fitted = fit_judge(judged, judge="judge_v1")
    write(judged, fitted)
    with pytest.raises(UserError, match="is calibrated already"):
        fit_judge(judged, judge=fitted.spec.spec_id)
    with pytest.raises(UserError, match="Did you mean 'isotonic'"):
        fit_judge(judged, judge="judge_v1", method="isotonik")


def test_the_command_measures_first_and_writes_afterwards(judged: Warehouse, command: Any) -> None:
    asked = ("feedback", "calibrate", judged.path, "--judge", "judge_v1")
    dry = command(*asked, "--dry-run")
    assert dry.code == 0 and "nothing is written" in dry.out and count(judged, "labels") == 2 * PAIRS
    done = command(*asked)
    assert (
        "temperature, fitted to the exact truth on 100 pairs of 25 videos" in done.out
        and "calibrate: 100 rows written" in done.out
    )
    assert (
        "by chance alone" in done.out
        and "before" in done.out
        and "calibrated judge: judge_v1+temperature-" in done.out
    )
    found = json.loads(command(*asked, "--json").out)
    assert found["rows_written"] == 0 and found["before"]["ece"] > found["after"]["ece"]
    assert {"by_chance", "ece_equal_width", "brier", "bins"} < set(found["after"])
    few = command(*asked, "--against", "humans")
    assert few.code == 2 and "No person has judged" in few.err


# Gold: people outrank judges


def gold_rows(warehouse: Warehouse) -> list[dict[str, Any]]:
    people_say(warehouse, "b", 7)
    people_say(warehouse, "both_bad", 2, annotator="2")
    return warehouse.preferences(judge="judge_v1", gold=True).to_dicts()


def test_gold_has_the_verdict_of_people_where_there_is_one(judged: Warehouse) -> None:
    rows = gold_rows(judged)
    people = [row for row in rows if row["source"] == "human"]
    assert len(rows) == PAIRS and len(people) == 7
    assert sorted(row["p_a"] for row in people) == [0.0] * 5 + [0.25] * 2
    plain = {row["pair_id"]: row for row in judged.preferences(judge="judge_v1").to_dicts()}
    for row in rows:
        assert row["judge_p_a"] == plain[row["pair_id"]]["p_a"]
        if row["source"] == "judge":
            assert (row["choice"], row["p_a"]) == (plain[row["pair_id"]]["choice"], plain[row["pair_id"]]["p_a"])
    with pytest.raises(UserError, match="goes without gold"):
        judged.preferences(dataset="v1", gold=True)


def test_what_people_have_judged_is_gold_though_the_judge_saw_one_order(judged: Warehouse) -> None:
    people_say(judged, "b", 2)
    judged.execute("DELETE FROM labels WHERE shown_order = 'ba'")
    rows = judged.rows("SELECT source, complete FROM gold ORDER BY source")
    assert [(row["source"], row["complete"]) for row in rows] == [("human", True)] * 2 + [("judge", False)] * 98


def test_a_gold_version_keeps_what_people_said_at_the_time(judged: Warehouse, command: Any) -> None:
    gold_rows(judged)
    made = command("dataset", "create", judged.path, "v1", "--judge", "judge_v1", "--gold")
    assert made.code == 0 and "100 preferences" in made.out
    people_say(judged, "a", 50, annotator="3")
    people_say(judged, "a", 50, annotator="4")
    rows = judged.preferences(dataset="v1")
    assert (rows["p_a"] < 0.01).sum() == 5 and len(rows) == PAIRS
    (version,) = judged.rows("FROM datasets")
    assert version["query"].startswith("gold: complete AND 'judge_v1'")
    config = judged.value("SELECT config FROM runs WHERE run_id = ?", [version["run_id"]])
    assert json.loads(config)["people"] == 7
    again = create(judged, "v2", Selection(judge="judge_v1", gold=True))
    assert again.fresh and again.version.rows_hash != version["rows_hash"]


def test_strength_and_conditions_choose_among_the_gold_verdicts(judged: Warehouse) -> None:
    gold_rows(judged)
    strong = create(judged, "strong", Selection(judge="judge_v1", gold=True, min_strength=0.99))
    assert strong.version.preferences == 5
    human = create(judged, "human", Selection(gold=True, where="source = 'human'"))
    assert human.version.preferences == 7
    with pytest.raises(UserError, match="cannot be selected"):
        create(judged, "plain", Selection(where="source = 'human'"))


def test_the_card_of_a_gold_version_says_how_many_rows_are_peoples(
    judged: Warehouse, command: Any, tmp_path: Path
) -> None:
    gold_rows(judged)
    judged.append([Run(run_id="r", stage="label", config="{}", code_version="0", engine="e", host="h",
                       started_at=datetime(2026, 1, 1))])  # fmt: skip
    out = tmp_path / "out"
    ended = command("export", judged.path, out, "--format", "parquet", "--judge", "judge_v1", "--gold")
    assert "100 preferences" in ended.out
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "7 of the 100 preferences have the verdict of people" in card
    assert '--gold --where "complete AND' in card


def test_the_card_of_a_calibrated_judge_names_the_judge_behind_it(
    judged: Warehouse, command: Any, tmp_path: Path
) -> None:
    fitted = fit_judge(judged, judge="judge_v1")
    write(judged, fitted)
    command("export", judged.path, tmp_path / "out", "--format", "parquet", "--judge", fitted.spec.spec_id)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert (
        "| calibrate | none |" in card and "| label | m |" in card and "people" not in card.split("## Who wrote")[0]
    )


def test_what_is_known_of_a_pair_does_not_change_by_a_calibration(judged: Warehouse) -> None:
    before = known(judged, "truth")
    write(judged, fit_judge(judged, judge="judge_v1"))
    assert known(judged, "truth").equals(before)
