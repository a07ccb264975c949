"""`show`: one pair with everything around it, readable, quick, and deaf to what a model's words ask of a terminal."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_rlaif.warehouse.care.keys import label_id
from vlm_rlaif.warehouse.inspection.card import lines
from vlm_rlaif.warehouse.inspection.show import card, preferences
from vlm_rlaif.warehouse.records import Failure, Label, Pair, Question, Record, Response, Spec, Video
from vlm_rlaif.warehouse.store import Warehouse

Command = Any
PAIR = "7f09a881bb49adf24b14"
"""A pair of the fixture: with context its two orders contradict each other."""


def spec(name: str, prompt: str = "judge_v1") -> Spec:
    return Spec(
        spec_id=name, stage="label", model="m", revision="r", adapter="", prompt=prompt, prompt_hash="h", frames="{}",
        sampling="{}", upstream="{}", run_id="test",
    )  # fmt: skip


def label(
    pair: str, judge: str, order: str, p_a: float, *, vote: int = 0, p_tie: float = 0.1, reply: str = "A"
) -> Label:
    choice = max((("a", p_a), ("b", 1 - p_a - p_tie), ("tie", p_tie)), key=lambda each: each[1])[0]
    return Label(
        label_id=f"{label_id(judge, pair, None, order)}{vote or ''}", pair_id=pair, spec_id=judge, context_id=None,
        shown_order=order, vote=vote, choice=choice, p_a=p_a, p_tie=p_tie, reply=reply, cached_tokens=0,
        run_id="test",
    )  # fmt: skip


def scene(words: str = "plain words") -> list[Record]:
    """One video, one question, one pair; every text of a model is `words`."""
    response = {"question_id": "q1q1q1", "spec_id": "s", "seed": 1, "tokens": 3, "finish": "length", "run_id": "test"}
    return [
        Video(video_id="v1v1v1", uri="cat.mp4", source="", video_group="", split="train", status="ok", run_id="test"),
        Question(question_id="q1q1q1", video_id="v1v1v1", text=words, reference=words, source="x", run_id="test"),
        Response(response_id="a1a1a1", sample_index=0, text=words, logprob=None, **response),
        Response(response_id="b1b1b1", sample_index=1, text=words, logprob=-1.0, **response),
        Pair(pair_id="p1p1p1", question_id="q1q1q1", response_a="a1a1a1", response_b="b1b1b1", strategy="all",
             run_id="test"),
        spec("judge one"),
    ]  # fmt: skip


def test_a_pair_is_shown_with_everything_around_it(command: Command, full: Warehouse) -> None:
    shown = command("show", full.path, PAIR)
    assert shown.code == 0
    for words in (
        "videos/shapes-1-96/00020.mp4 · 4 s · 96 x 96 · train", "context_compact_v1 d57d80c240e9250c1bee",
        "0 s a blue cross blinks . 2 s a red square grows", "describe the video .", "reference   first a blue cross",
        "embedded:policy-start · respond_compact_v1 · sample 0 · 25 tokens · logprob -13.83",
        "judge_context_compact_v1  context  b, a   b       0.293  0.152  A",
        "judge_context_compact_v1  tie     0.447  0.107     the two orders contradict each other",
    ):  # fmt: skip
        assert words in shown.out, words
    assert max(map(len, shown.out.splitlines())) <= 100


def test_a_pair_a_label_and_a_response_name_the_same_pair(command: Command, full: Warehouse) -> None:
    (row,) = full.rows(
        "SELECT p.response_a, p.question_id, l.label_id FROM pairs p JOIN labels l USING (pair_id) WHERE pair_id = ?"
        " ORDER BY 3 LIMIT 1",
        [PAIR],
    )
    shown = command("show", full.path, PAIR).out
    for name in (PAIR[:6], row["label_id"], row["response_a"], row["question_id"]):
        assert command("show", full.path, name).out == shown


def test_the_pairs_of_a_video_are_listed_with_the_commands_that_show_them(command: Command, full: Warehouse) -> None:
    (video,) = full.rows("SELECT video_id, count(*) AS n FROM preferences GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1")
    listed = command("show", full.path, video["video_id"])
    commands = re.findall(rf"^vlm-rlaif show {full.path} (\w+)$", listed.out, re.MULTILINE)
    wanted = full.rows(
        "SELECT pair_id FROM pairs JOIN questions q USING (question_id) WHERE q.video_id = ?", [video["video_id"]]
    )
    assert sorted(commands) == sorted(row["pair_id"] for row in wanted) and len(commands) > 1
    as_json = json.loads(command("show", full.path, video["video_id"], "--json").out)
    assert [row["pair_id"] for row in as_json["first"]] == commands


def test_json_holds_the_rows_as_they_are(command: Command, full: Warehouse) -> None:
    shown = json.loads(command("show", full.path, PAIR, "--json").out)
    assert shown["pair"]["pair_id"] == PAIR
    rows = full.rows("SELECT label_id, p_a, reply FROM labels WHERE pair_id = ? ORDER BY label_id", [PAIR])
    found = [{name: row[name] for name in ("label_id", "p_a", "reply")} for row in shown["labels"]]
    assert sorted(found, key=lambda row: row["label_id"]) == rows


def test_preferences_are_those_of_the_view(full: Warehouse) -> None:
    """The view reads all labels, `show` those of one pair."""
    labels = full.rows("SELECT * FROM labels ORDER BY pair_id, spec_id, shown_order, vote")
    found = [
        (pair, *_told(each))
        for pair, group in itertools.groupby(labels, key=lambda row: row["pair_id"])
        for each in preferences(list(group))
    ]
    assert found == _view(full, "pair_id, ") and len(found) == 200


def _told(preference: dict[str, Any]) -> tuple[Any, ...]:
    names = ("spec_id", "choice", "conflict", "orders")
    return (*(preference[name] for name in names), pytest.approx(preference["p_a"]))


def _view(warehouse: Warehouse, more: str = "") -> list[tuple[Any, ...]]:
    with warehouse.visit(read_only=True) as connection:
        return connection.execute(
            f"SELECT {more} judge, choice, conflict, orders, p_a FROM preferences ORDER BY {more} judge"
        ).fetchall()


VERDICT = st.tuples(
    st.sampled_from(["one", "two"]), st.sampled_from(["ab", "ba", "unknown"]), st.integers(0, 2),
    st.sampled_from([0.05, 0.3, 0.45, 0.55, 0.9]), st.sampled_from([0.0, 0.1, 0.5]),
)  # fmt: skip


def test_preferences_of_any_votes_are_those_of_the_view(warehouse: Warehouse) -> None:
    warehouse.append([*scene(), spec("one"), spec("two")])

    @settings(max_examples=15)
    @given(st.lists(VERDICT, min_size=1, max_size=12, unique_by=lambda v: v[:3]))
    def agree(verdicts: list[tuple[str, str, int, float, float]]) -> None:
        warehouse.execute("DELETE FROM labels")
        warehouse.append(
            [label("p1p1p1", judge, order, p_a, vote=vote, p_tie=min(p_tie, 1 - p_a))
             for judge, order, vote, p_a, p_tie in verdicts]
        )  # fmt: skip
        mine = preferences(warehouse.rows("SELECT * FROM labels ORDER BY spec_id, shown_order, vote"))
        assert [_told(each) for each in mine] == _view(warehouse)

    agree()


def test_failures_of_its_labels_and_long_replies_are_shown(command: Command, warehouse: Warehouse) -> None:
    reply = " ".join(f"reason {number} against response a," for number in range(12))
    failed = Failure(
        row_id=label_id("judge one", "p1p1p1", None, "ba"), stage="label", attempt=2, kind="unparsable",
        message="no label", reply="Both are fine.", run_id="test",
    )  # fmt: skip
    warehouse.append([*scene(), label("p1p1p1", "judge one", "ab", 0.7, reply=reply), failed])
    shown = command("show", warehouse.path, "p1p1p1").out
    assert "judge_v1 · shown b, a · attempt 2" in shown and "unparsable: no label" in shown
    assert " ".join(shown.split()).count(reply) == 1 and "judged in one order so far" in shown
    assert "3 tokens, cut off" in shown


def test_labels_are_found_whatever_their_ids(warehouse: Warehouse) -> None:
    """By their keys, as imported ones, as further votes; and with ids of another maker where there are no others."""
    asked, imported = label("p1p1p1", "judge one", "ab", 0.7), label("p1p1p1", "other", "unknown", 0.7, vote=1)
    voted = replace(label("p1p1p1", "judge one", "ba", 0.7, vote=2), label_id="2")
    warehouse.append([*scene(), spec("other"), asked, imported, voted])
    assert [row["label_id"] for row in card(warehouse, "p1p1p1")["labels"]] == [
        asked.label_id,
        "2",
        imported.label_id,
    ]
    warehouse.execute("DELETE FROM labels")
    warehouse.append([replace(asked, label_id="mine"), replace(asked, label_id="yours", pair_id="p2p2p2")])
    assert [row["label_id"] for row in card(warehouse, "p1p1p1")["labels"]] == ["mine"]


def test_a_failure_that_was_repaired_is_not_shown(warehouse: Warehouse) -> None:
    row = label("p1p1p1", "judge one", "ab", 0.7)
    failed = Failure(
        row_id=row.label_id, stage="label", attempt=1, kind="engine", message="no", reply=None, run_id="r"
    )
    warehouse.append([*scene(), failed])
    assert [each["message"] for each in card(warehouse, "p1p1p1")["failures"]] == ["no"]
    warehouse.append([replace(failed, attempt=2, message="still no")])
    assert [each["message"] for each in card(warehouse, "p1p1p1")["failures"]] == ["still no"]
    warehouse.append([row])
    assert card(warehouse, "p1p1p1")["failures"] == []


def test_a_pair_whose_neighbours_are_missing_is_shown_all_the_same(command: Command, warehouse: Warehouse) -> None:
    warehouse.append([row for row in scene() if isinstance(row, Pair)])
    shown = command("show", warehouse.path, "p1p1p1")
    assert shown.code == 0
    assert "(not in this warehouse)" in shown.out and "(missing)" in shown.out and "labels      none" in shown.out


HOSTILE = "\x1b[2J\x1b]8;;http://x\x07link\r\x9b31m[bold]no markup[/bold]\u202e\n\n# heading"


def test_words_of_a_model_cannot_reach_the_terminal(command: Command, warehouse: Warehouse) -> None:
    failed = Failure(
        row_id=label_id("judge one", "p1p1p1", None, "ba"), stage="label", attempt=1, kind="engine", message=HOSTILE,
        reply=HOSTILE, run_id="test",
    )  # fmt: skip
    warehouse.append([*scene(HOSTILE), label("p1p1p1", "judge one", "ab", 0.7, reply=HOSTILE), failed])
    for name in ("p1p1p1", "v1v1v1"):
        shown = command("show", warehouse.path, name).out
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]", shown)
        assert "[bold]no markup[/bold]" in shown
    as_json = command("show", warehouse.path, "p1p1p1", "--json").out
    assert json.loads(as_json)["question"]["text"] == HOSTILE and "\x1b" not in as_json


def test_a_narrow_page_loses_no_word(full: Warehouse) -> None:
    shown = card(full, PAIR)
    text = "\n".join(lines(shown, 40))
    for row in (shown["question"], *shown["responses"], *shown["contexts"]):
        assert " ".join(row["text"].split()) in " ".join(text.split())


def test_an_id_that_fits_several_names_them(command: Command, full: Warehouse) -> None:
    pairs = [f"abcdef{n}" for n in range(7)]
    full.append(
        [Pair(pair_id=p, question_id="q", response_a="a", response_b="b", strategy="s", run_id="r") for p in pairs]
    )
    said = command("show", full.path, "abcdef")
    assert said.code == 2 and "abcdef is how several ids begin:" in said.err
    assert "abcdef0 (pairs)" in said.err and "..." in said.err and "abcdef6" not in said.err


@pytest.mark.parametrize("name", ["nothing", "abc", "", "'; DROP TABLE pairs; --", "%", "\x1b[2J"])
def test_an_unknown_id_is_said_with_the_next_command(command: Command, full: Warehouse, name: str) -> None:
    said = command("show", full.path, name)
    assert said.code == 2 and "There is no pair" in said.err and "\x1b" not in said.err
    assert f"vlm-rlaif sql {full.path}" in said.err


def test_a_missing_or_broken_warehouse_is_said(command: Command, tmp_path: Path) -> None:
    assert "vlm-rlaif init" in command("show", tmp_path / "none.duckdb", PAIR).err
    (tmp_path / "broken.duckdb").write_bytes(b"no database" * 1000)
    said = command("show", tmp_path / "broken.duckdb", PAIR)
    assert said.code == 2 and "cannot be opened" in said.err and "Traceback" not in said.err


def test_all_orders_and_judges_are_told_apart(warehouse: Warehouse) -> None:
    rows = [label("p1p1p1", judge, order, p_a) for (judge, p_a), order in
            itertools.product((("one", 0.8), ("two", 0.1)), ("ab", "ba", "unknown"))]  # fmt: skip
    warehouse.append([*scene(), spec("one", "judge_a"), spec("two", "judge_b"), *rows])
    text = "\n".join(lines(card(warehouse, "p1p1p1"), 100))
    for words in ("judge_a        a, b     a", "judge_b        b, a     b", "judge_a        unknown  a"):
        assert words in text
