"""The views, each against a slow twin that reads the rows itself."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from datetime import datetime, timedelta
from itertools import combinations
from typing import Any

import pytest

from vlm_rlaif.warehouse.records import Caption, Context, Failure, Label, Question, Record, Run, Spec
from vlm_rlaif.warehouse.store import Warehouse

Rows = list[dict[str, Any]]


def run(run_id: str, stage: str = "label", seconds: float | None = 2.0, engine: str = "vllm", **counts: Any) -> Run:
    started = datetime(2026, 1, 1)
    return Run(
        run_id=run_id, stage=stage, config=json.dumps(counts.pop("config", {})), code_version="0", engine=engine,
        host="h", started_at=started, ended_at=started + timedelta(seconds=seconds) if seconds is not None else None,
        **counts,
    )  # fmt: skip


def verdicts(warehouse: Warehouse) -> dict[str, dict[str, str]]:
    """Judge -> pair -> choice."""
    found: dict[str, dict[str, str]] = {}
    for row in warehouse.rows("SELECT judge, pair_id, choice FROM preferences"):
        found.setdefault(row["judge"], {})[row["pair_id"]] = row["choice"]
    return found


def third_judge(warehouse: Warehouse) -> list[Record]:
    """A judge that prefers response a, always; so its habits alone explain what it agrees on."""
    first = warehouse.rows("SELECT * FROM specs WHERE stage = 'label' LIMIT 1")[0]
    pairs = warehouse.rows("SELECT pair_id FROM pairs ORDER BY 1 LIMIT 40")
    return [
        Spec(**{**first, "spec_id": "third", "prompt": "third_v1"}),
        *(
            Label(
                label_id=f"{pair['pair_id']}/{order}", pair_id=pair["pair_id"], spec_id="third", context_id=None,
                shown_order=order, vote=0, choice="a", p_a=0.9, p_tie=0.0, reply="", cached_tokens=0, run_id="r",
            )
            for pair in pairs
            for order in ("ab", "ba")
        ),
    ]  # fmt: skip


def test_agreement_and_kappa_are_those_of_the_textbook(full: Warehouse) -> None:
    full.append(third_judge(full))
    known = verdicts(full)
    wanted = {}
    for one, other in combinations(sorted(known), 2):
        shared = [(known[one][pair], known[other][pair]) for pair in known[one].keys() & known[other].keys()]
        observed = sum(a == b for a, b in shared) / len(shared)
        a, b = Counter(a for a, _ in shared), Counter(b for _, b in shared)
        chance = sum(a[choice] * b[choice] for choice in ("a", "b", "tie")) / len(shared) ** 2
        wanted[one, other] = (len(shared), observed, (observed - chance) / (1 - chance))
    found = full.rows("FROM label_agreement")
    assert len(found) == 3
    for row in found:
        pairs, agreement, kappa = wanted[row["judge_1"], row["judge_2"]]
        assert row["pairs"] == pairs
        assert row["agreement"] == pytest.approx(agreement) and row["kappa"] == pytest.approx(kappa)
    assert all(abs(row["kappa"]) < 1e-9 for row in found if "third" in (row["judge_1"], row["judge_2"]))


def test_two_judges_who_always_say_the_same_have_no_kappa(full: Warehouse) -> None:
    full.append(third_judge(full))
    full.execute("DELETE FROM labels WHERE spec_id <> 'third'")
    copies = full.rows("SELECT * FROM labels")
    full.append([Label(**{**row, "label_id": f"{row['label_id']}!", "spec_id": "fourth"}) for row in copies])
    full.append([Spec(**{**full.rows("SELECT * FROM specs WHERE spec_id = 'third'")[0], "spec_id": "fourth"})])
    (row,) = full.rows("SELECT agreement, kappa FROM label_agreement")
    assert row == {"agreement": 1.0, "kappa": None}


def test_a_conflict_shows_what_each_order_said(full: Warehouse) -> None:
    labels = full.rows("SELECT pair_id, spec_id, shown_order, choice, p_a + p_tie / 2 AS p FROM labels")
    by_order = {(row["pair_id"], row["spec_id"], row["shown_order"]): row for row in labels}
    wanted = {
        (pair, judge): (row["p"], by_order[pair, judge, "ba"]["p"])
        for (pair, judge, order), row in by_order.items()
        if order == "ab" and {row["choice"], by_order[pair, judge, "ba"]["choice"]} == {"a", "b"}
    }
    found = full.rows("FROM conflicts")
    assert len(found) == len(wanted) > 10
    for row in found:
        first, second = wanted[row["pair_id"], row["judge"]]
        assert (row["p_a_shown_first"], row["p_a_shown_second"]) == (pytest.approx(first), pytest.approx(second))
        assert row["gap"] == pytest.approx(abs(first - second))
        (words,) = full.rows(
            "SELECT q.text AS question, a.text AS text_a, b.text AS text_b FROM pairs p"
            " JOIN questions q USING (question_id) JOIN responses a ON a.response_id = p.response_a"
            " JOIN responses b ON b.response_id = p.response_b WHERE p.pair_id = ?",
            [row["pair_id"]],
        )
        assert words == {name: row[name] for name in words}


def test_bias_counts_verdicts_by_what_was_shown_first(full: Warehouse) -> None:
    for row in full.rows("FROM judge_bias"):
        labels = full.rows("SELECT choice, shown_order FROM labels WHERE spec_id = ?", [row["judge"]])
        decided = [each for each in labels if each["choice"] != "tie"]
        first = sum((each["choice"] == "a") == (each["shown_order"] == "ab") for each in decided)
        conflicts = full.value("SELECT count(*) FROM conflicts WHERE judge = ?", [row["judge"]])
        assert row["verdicts"] == len(labels) == 200
        assert row["first_position_rate"] == pytest.approx(first / len(decided))
        assert row["tie_rate"] == pytest.approx(1 - len(decided) / len(labels))
        assert row["conflict_rate"] == pytest.approx(conflicts / 100)


def test_labels_of_no_order_name_no_place_and_half_judged_pairs_agree_with_nobody(full: Warehouse) -> None:
    full.append(third_judge(full))
    full.execute("UPDATE labels SET shown_order = 'both', choice = 'b' WHERE spec_id = 'third'")
    (row,) = full.rows("FROM judge_bias WHERE judge = 'third'")
    assert (row["first_position_rate"], row["conflict_rate"]) == (None, None)
    torn = full.rows("SELECT pair_id, judge FROM preferences WHERE conflict ORDER BY ALL LIMIT 1")[0]
    rate, pairs = "SELECT conflict_rate FROM judge_bias WHERE judge = ?", "SELECT sum(pairs) FROM label_agreement"
    before, shared = full.value(rate, [torn["judge"]]), full.value(pairs)
    full.execute("DELETE FROM labels WHERE pair_id = ? AND spec_id = ? AND shown_order = 'ba'", [*torn.values()])
    assert full.value(rate, [torn["judge"]]) == pytest.approx((100 * before - 1) / 99)
    judged_by = full.value("SELECT count(DISTINCT spec_id) FROM labels WHERE pair_id = ?", [torn["pair_id"]])
    assert full.value(pairs) == shared - (judged_by - 1)


def test_cost_is_told_by_stage_model_and_engine(warehouse: Warehouse) -> None:
    small, large = {"model": "small"}, {"model": "large"}
    warehouse.append(
        [
            run("1", config=small, rows_written=10, tokens_in=100, tokens_out=20),
            run("2", config=small, rows_written=30, tokens_in=100, tokens_out=20, rows_failed=5),
            run("3", config=large, rows_written=4, tokens_in=8, tokens_out=0, engine="transformers", seconds=4.0),
            run("4", config=large, rows_written=7, engine="transformers", seconds=None),
            run("5", stage="reward", config={"settings": {"model": "large"}}, engine="torch", rows_written=1),
            run("6", stage="clip", engine="none", rows_written=1, seconds=0.0),
        ]
    )
    found = {(row["stage"], row["model"], row["engine"]): row for row in warehouse.rows("FROM cost")}
    vllm = found["label", "small", "vllm"]
    assert (vllm["runs"], vllm["rows_written"], vllm["rows_failed"], vllm["seconds"]) == (2, 40, 5, 4.0)
    assert (vllm["rows_per_s"], vllm["tokens_per_s"]) == (10.0, 60.0)
    running = found["label", "large", "transformers"]
    assert (running["runs"], running["rows_written"], running["rows_per_s"]) == (2, 11, 1.0)
    assert found["reward", "large", "torch"]["rows_per_s"] == 0.5
    assert found["clip", None, "none"]["rows_per_s"] is None


def test_cost_tells_the_hit_rate_the_hours_of_graphics_cards_and_what_held_the_longest_run_back(
    warehouse: Warehouse,
) -> None:
    shares = {"tokens_in": 1000, "cached_tokens": 600, "gpu_seconds": 1800.0, "rows_written": 30}
    warehouse.append(
        [
            dataclasses.replace(run("1", **shares), seconds=30.0, bound_by="decode"),  # of a job of two stages
            dataclasses.replace(run("2", tokens_in=1000, rows_written=30), seconds=0.5, bound_by="engine"),
        ]
    )
    (row,) = warehouse.rows("FROM cost")
    assert (row["hit_rate"], row["gpu_hours"], row["bound_by"], row["seconds"]) == (0.3, 0.5, "decode", 30.5)
    assert row["rows_per_s"] == pytest.approx(60 / 30.5)


def failure(row_id: str, attempt: int = 1, run_id: str = "r") -> Failure:
    return Failure(
        row_id=row_id,
        stage="label",
        attempt=attempt,
        kind="engine",
        message=f"no {attempt}",
        reply=None,
        run_id=run_id,
    )


def test_a_failure_is_open_until_its_row_stands(full: Warehouse) -> None:
    full.execute("DELETE FROM failures")
    repaired = [
        full.value(f"SELECT {key} FROM {table} LIMIT 1")
        for table, key in (("captions", "caption_id"), ("questions", "question_id"), ("responses", "response_id"),
                           ("labels", "label_id"), ("answers", "answer_id"), ("scores", "score_id"))
    ]  # fmt: skip
    full.append([*map(failure, repaired), failure("mine"), failure("mine", 2), failure("other")])
    found = full.rows("SELECT row_id, attempt, message FROM open_failures ORDER BY row_id")
    assert found == [
        {"row_id": "mine", "attempt": 2, "message": "no 2"}, {"row_id": "other", "attempt": 1, "message": "no 1"},
    ]  # fmt: skip


def pending(warehouse: Warehouse) -> dict[str, tuple[int, int, int, int]]:
    return {
        row["prompt"]: (row["rows_wanted"], row["rows_standing"], row["rows_missing"], row["open_failures"])
        for row in warehouse.rows("FROM pending_work WHERE stage <> 'respond' OR model NOT LIKE '%/merged'")
    }


def test_nothing_is_pending_after_a_whole_run(full: Warehouse) -> None:
    assert pending(full) == {
        "caption_compact_v1": (96, 96, 0, 0), "context_compact_v1": (40, 40, 0, 0),
        "respond_compact_v1": (320, 320, 0, 0), "judge_compact_v1": (200, 200, 0, 0),
        "judge_context_compact_v1": (200, 200, 0, 0),
    }  # fmt: skip


def test_rows_that_are_gone_are_missing_and_their_failures_are_counted(full: Warehouse) -> None:
    (caption,) = full.rows("SELECT caption_id FROM captions LIMIT 1")
    judge = full.value("SELECT spec_id FROM specs WHERE prompt = 'judge_compact_v1'")
    full.execute("DELETE FROM captions WHERE caption_id = ?", [caption["caption_id"]])
    full.execute(
        "DELETE FROM responses WHERE sample_index = 1 AND question_id IN (SELECT min(question_id) FROM questions"
        " WHERE question_id NOT IN (SELECT question_id FROM pairs))"
    )
    (lost,) = full.rows("SELECT label_id FROM labels WHERE spec_id = ? LIMIT 1", [judge])
    full.execute("DELETE FROM labels WHERE label_id = ?", [lost["label_id"]])
    full.append([run("judging", config={"spec_id": judge}), failure(lost["label_id"], run_id="judging")])
    found = pending(full)
    assert found["caption_compact_v1"] == (96, 95, 1, 0)
    assert found["respond_compact_v1"] == (320, 319, 1, 0)
    assert found["judge_compact_v1"] == (200, 199, 1, 1)


def test_a_new_video_makes_work_for_every_spec(full: Warehouse) -> None:
    """A clip of it is wanted by the captioner; a narrative without questions by whoever asks them."""
    caption, context = (full.value("SELECT spec_id FROM specs WHERE stage = ?", [s]) for s in ("caption", "context"))
    full.execute("INSERT INTO videos BY NAME SELECT * REPLACE ('new' AS video_id) FROM videos LIMIT 1")
    full.execute("INSERT INTO clips BY NAME SELECT * REPLACE ('c' AS clip_id, 'new' AS video_id) FROM clips LIMIT 1")
    asks = {"spec_id": "asks", "stage": "ask", "model": "m", "revision": "r", "adapter": "", "prompt": "ask_v1",
            "prompt_hash": "h", "frames": "{}", "sampling": "{}", "run_id": "r"}  # fmt: skip
    full.append([Spec(**asks, upstream=json.dumps({"context": context}))])
    assert pending(full)["caption_compact_v1"] == (97, 96, 1, 0)
    assert pending(full)["context_compact_v1"] == (41, 40, 1, 0)
    assert "ask_v1" not in pending(full)
    narrative = Context(context_id="x", video_id="new", spec_id=context, caption_ids=["k"], text="", run_id="r")
    full.append([Caption(caption_id="k", clip_id="c", spec_id=caption, text="a cat", run_id="r"), narrative])
    assert pending(full)["ask_v1"] == (1, 0, 1, 0)
    asked = {"video_id": "new", "source": "ask", "spec_id": "asks", "run_id": "r"}
    full.append([Question(question_id=f"q{number}", text=f"{number} ?", **asked) for number in range(3)])
    assert pending(full)["ask_v1"] == (1, 1, 0, 0)
    assert pending(full)["respond_compact_v1"] == (320, 320, 0, 0), "it has answered no question of that spec"


def test_length_gap_is_of_chosen_and_rejected(full: Warehouse) -> None:
    tokens = {row["response_id"]: row["tokens"] for row in full.rows("SELECT response_id, tokens FROM responses")}
    for row in full.rows("FROM length_gap"):
        gaps = [
            tokens[each["chosen"]] - tokens[each["rejected"]]
            for each in full.rows("SELECT chosen, rejected FROM preferences WHERE judge = ?", [row["judge"]])
            if each["chosen"]
        ]
        assert row["mean_token_gap"] == pytest.approx(sum(gaps) / len(gaps))
        assert row["longer_wins_rate"] == pytest.approx(sum(g > 0 for g in gaps) / sum(g != 0 for g in gaps))
