"""Versions of the data set: frozen once, the same everywhere, compared in SQL, and of no use when words are gone."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.exports import versions
from vlm_rlaif.warehouse.exports.versions import Selection, create, find, freeze, hash_of, row_key, take, taken_from
from vlm_rlaif.warehouse.journal import only_one
from vlm_rlaif.warehouse.records import Label, Pair, Question, Record, Response, Spec, Video, row_id
from vlm_rlaif.warehouse.store import Warehouse

FIXTURE = Path(__file__).parents[1] / "fixtures" / "m001_initial.duckdb.gz"
SPLITS = {"cat": "train", "dog": "train", "owl": "val", "eel": "test"}
JUDGES = {"judge_v1": "plain", "judge_context_v1": "reads"}


def verdict(pair: str, judge: str, p_a: float, orders: str = "ab ba", name: str = "") -> list[Record]:
    return [
        Label(
            label_id=f"{pair}/{judge}/{order}{name}", pair_id=pair, spec_id=judge, context_id=None, shown_order=order,
            vote=0, choice="a" if p_a > 0.5 else "b" if p_a < 0.5 else "tie", p_a=p_a, p_tie=0.0, reply="A",
            cached_tokens=0, run_id="r",
        )
        for order in orders.split()
    ]  # fmt: skip


def pair_of(name: str, question: str) -> Pair:
    return Pair(
        pair_id=name, question_id=question, response_a=f"{question}/a", response_b=f"{question}/b", strategy="all",
        run_id="r",
    )  # fmt: skip


def compared(video: str, number: int) -> list[Record]:
    name = f"{video}{number}"
    return [
        Question(question_id=name, video_id=video, text=f"what is {name} ?", source="imported", run_id="r"),
        *(
            Response(
                response_id=f"{name}/{side}", question_id=name, spec_id="respond", sample_index=i, seed=i,
                text=f"{side} of {name}", tokens=3 + i, finish="stop", logprob=None, run_id="r",
            )
            for i, side in enumerate("ab")
        ),
        pair_of(name, name),
    ]  # fmt: skip


@pytest.fixture
def judged(warehouse: Warehouse) -> Warehouse:
    """Four videos with two pairs each; both judges prefer `a` of the first pair and `b` of the second."""
    rows: list[Record] = []
    for prompt, spec_id in JUDGES.items():
        rows.append(
            Spec(
                spec_id=spec_id, stage="label", model="m", revision="", adapter="", prompt=prompt, prompt_hash="h",
                frames="{}", sampling="{}", upstream="{}", run_id="r",
            )
        )  # fmt: skip
    for video, split in SPLITS.items():
        rows.append(
            Video(
                video_id=video, uri=f"{video}.mp4", source="s", video_group=video, split=split, status="ok",
                run_id="r",
            )
        )  # fmt: skip
        for number, p_a in enumerate((0.9, 0.2)):
            rows += compared(video, number)
            for spec_id in JUDGES.values():
                rows += verdict(f"{video}{number}", spec_id, p_a)
    warehouse.append(rows)
    return warehouse


def rows_of(warehouse: Warehouse, name: str) -> list[tuple[Any, ...]]:
    return warehouse.query(
        "SELECT pair_id, judge, choice, p_a FROM dataset_rows JOIN datasets USING (rows_hash) WHERE name = ?"
        " ORDER BY ALL",
        [name],
    ).rows()


def test_a_version_holds_the_selected_preferences_and_counts_them(judged: Warehouse) -> None:
    made = create(judged, "v1", Selection(judge="judge_v1", split="train", min_strength=0.7))
    assert made.fresh and rows_of(judged, "v1") == [("cat0", "plain", "a", 0.9), ("dog0", "plain", "a", 0.9)]
    assert (made.version.preferences, made.version.ties, made.version.videos) == (2, 0, 2)
    by_id = create(judged, "v2", Selection(judge="plain", split="train", where="p_a > 0.5"))
    assert by_id.version.rows_hash == made.version.rows_hash


def test_half_judged_pairs_are_never_part_of_one(judged: Warehouse) -> None:
    judged.append([*compared("cat", 7), *verdict("cat7", "plain", 0.9, orders="ab")])
    create(judged, "v1", Selection(where="pair_id = 'cat7' OR pair_id = 'cat0'"))
    assert {row[0] for row in rows_of(judged, "v1")} == {"cat0"}


def test_what_a_version_says_stays_when_the_labels_go_on(judged: Warehouse) -> None:
    create(judged, "v1", Selection(judge="plain"))
    before = rows_of(judged, "v1")
    judged.append(verdict("cat0", "plain", 0.0, name="again"))
    assert judged.preferences(judge="plain").filter(pair_id="cat0")["p_a"].to_list() == [0.45]
    frozen = judged.preferences(dataset="v1")
    assert frozen.filter(pair_id="cat0")["p_a"].to_list() == [0.9]
    assert frozen.filter(pair_id="cat0")["choice"].to_list() == ["a"]
    assert frozen.filter(pair_id="cat0")["chosen"].to_list() == ["cat0/a"]
    assert frozen["strength"].to_list() == pytest.approx([abs(2 * p - 1) for p in frozen["p_a"]])
    assert rows_of(judged, "v1") == before


def test_a_version_is_read_with_the_same_columns_as_the_preferences(judged: Warehouse) -> None:
    create(judged, "all", Selection())
    assert judged.preferences(dataset="all").equals(judged.preferences())
    assert judged.preferences(dataset="all", judge="judge_v1", split="val")["pair_id"].to_list() == ["owl0", "owl1"]


def test_the_same_version_again_stands_and_nothing_is_written(judged: Warehouse) -> None:
    create(judged, "v1", Selection())
    before = judged.path.read_bytes()
    again = create(judged, "v1", Selection(where="true"))
    assert not again.fresh and judged.path.read_bytes() == before
    assert "stands already" in str(again)


def test_other_rows_under_a_taken_name_are_refused_with_what_differs(judged: Warehouse) -> None:
    create(judged, "v1", Selection(judge="plain"))
    create(judged, "v1-2", Selection(judge="reads"))
    judged.append([*verdict("cat0", "plain", 0.0, name="again"), *verdict("dog0", "plain", 0.8, name="again")])
    judged.append([*compared("eel", 7), *verdict("eel7", "plain", 0.1)])
    with pytest.raises(UserError, match="1 added, 1 removed, 1 flipped, 1 p changed, 5 the same") as error:
        create(judged, "v1", Selection(judge="plain", where="pair_id <> 'owl1'"))
    assert "dataset create" in str(error.value) and "v1-3" in str(error.value)


def test_an_empty_selection_and_a_strange_name_are_refused(judged: Warehouse) -> None:
    runs = judged.value("SELECT count(*) FROM runs")
    with pytest.raises(UserError, match="No preference fits") as error:
        create(judged, "v1", Selection(judge="nobody"))
    assert "vlm-rlaif sql" in str(error.value)
    for name in ("", "../x", "a b", ".hidden", "x" * 101, "a\n"):
        with pytest.raises(UserError, match="cannot be the name"):
            create(judged, name, Selection())
    assert judged.value("SELECT count(*) FROM runs") == runs


@pytest.mark.parametrize(
    "where",
    [
        "true; DROP TABLE labels",
        "true) OR (true",
        "true FROM videos",
        "no_such_column > 1",
        "1 = 1, 2 = 2",
        "(DELETE FROM labels RETURNING true)",
        "pair_id IN (SELECT content FROM read_text('/etc/hostname'))",
        "pair_id IN (SELECT column0 FROM read_csv('/etc/passwd'))",
        "",
        "/*",
    ],
)
def test_a_condition_can_only_look_at_the_warehouse(judged: Warehouse, where: str) -> None:
    before = judged.path.read_bytes()
    with pytest.raises(UserError, match="cannot be selected"):
        create(judged, "v1", Selection(where=where))
    assert judged.path.read_bytes() == before


@pytest.mark.parametrize("where", ["true -- and so on", "pair_id LIKE '%--%' OR true", "judge_prompt <> 'it''s'"])
def test_a_condition_may_hold_what_sql_may_hold(judged: Warehouse, where: str) -> None:
    assert create(judged, "v1", Selection(split="val", where=where)).version.preferences == 4


def test_a_judges_name_is_text_and_not_sql(judged: Warehouse) -> None:
    with pytest.raises(UserError, match="No preference fits"):
        create(judged, "v1", Selection(judge="x' OR 'a' = 'a"))


def test_rows_that_have_a_name_are_not_frozen_again(judged: Warehouse) -> None:
    create(judged, "mine", Selection(split="train"))
    again = freeze(judged, take(judged, Selection(split="train")), "preferences", "q")
    assert not again.fresh and again.version.name == "mine"
    other = freeze(judged, take(judged, Selection(split="val")), "preferences", "q")
    assert other.fresh and other.version.name == f"preferences-{other.version.rows_hash[:10]}"


def test_two_jobs_may_freeze_the_same_rows_at_once(judged: Warehouse) -> None:
    taken = take(judged, Selection(split="train"))
    with only_one(judged, "dataset"):  # another job makes a version of its own
        assert freeze(judged, taken, "reward", "q").fresh
    version = versions.version_of(judged, taken, "reward", "q")
    assert versions._write(judged, version.name, taken, "q").version.rows_hash == version.rows_hash
    assert judged.value("SELECT count(*) FROM datasets") == 1
    assert judged.value("SELECT count(*) FROM dataset_rows") == 8


def test_rows_from_python_and_from_sql_have_one_hash(judged: Warehouse) -> None:
    read = judged.preferences(split="train").to_dicts()
    assert taken_from(judged, reversed(read)).rows_hash == take(judged, Selection(split="train")).rows_hash


@given(st.lists(st.tuples(st.text(), st.text(), st.floats(0, 1)), max_size=20))
def test_the_hash_is_that_of_the_sorted_keys(rows: list[tuple[str, str, float]]) -> None:
    keys = sorted(row_key(*row) for row in rows)
    assert hash_of(keys) == row_id(*keys)


def test_the_order_of_sql_is_the_order_of_the_keys(judged: Warehouse) -> None:
    """Ids of any length and alphabet: bytes decide in both."""
    names = ["a", "a/b", "a-b", "ab", "é", "z", "A", "a b", "\U0001f408"]
    rows: list[Record] = []
    for name in names:
        rows += [pair_of(name, "cat0"), *verdict(name, "plain", 0.75)]
    judged.append(rows)
    taken = take(judged, Selection(judge="plain"))
    keys = [row_key(row["pair_id"], row["judge"], row["p_a"]) for row in taken.rows]
    assert keys == sorted(keys) and taken.rows_hash == row_id(*sorted(keys))


def test_a_checkpoint_of_an_older_warehouse_finds_its_rows(tmp_path: Path) -> None:
    """The hash of what was read has not changed: freeze the same rows today, and the lineage is whole."""
    path = tmp_path / "w.duckdb"
    path.write_bytes(gzip.decompress(FIXTURE.read_bytes()))
    old = Warehouse.create(path)
    assert old.value("SELECT count(*) FROM policy_lineage") == 0
    made = create(old, "taught", Selection(judge="judge_context_compact_v1", split="train"))
    assert {"data_hash": made.version.rows_hash} in old.rows(
        "SELECT data_hash FROM checkpoints WHERE kind = 'reward'"
    )
    lineage = old.query("SELECT * FROM policy_lineage")
    assert len(lineage) == made.version.preferences == lineage["pair_id"].n_unique()
    assert lineage["rows_hash"].unique().to_list() == [made.version.rows_hash]
    assert lineage["uri"].n_unique() == made.version.videos


def test_a_version_whose_words_are_gone_is_refused(judged: Warehouse) -> None:
    create(judged, "v1", Selection())
    judged.execute("DELETE FROM pairs WHERE pair_id = 'owl0'")
    for read in (lambda: judged.preferences(dataset="v1"), lambda: find(judged, "v1")):
        with pytest.raises(UserError, match="2 of the 16 preferences of v1 are gone") as error:
            read()
        assert "vlm-rlaif dataset create" in str(error.value)


def test_an_unknown_version_names_its_neighbour(judged: Warehouse) -> None:
    create(judged, "context-v1", Selection())
    with pytest.raises(UserError, match="Did you mean 'context-v1'"):
        judged.preferences(dataset="contxt-v1")


def test_two_versions_are_compared_row_by_row(judged: Warehouse) -> None:
    create(judged, "before", Selection(where="pair_id IN ('cat0', 'cat1', 'dog0')"))
    judged.append([*verdict("cat0", "plain", 0.0, name="again"), *verdict("dog0", "plain", 0.8, name="again")])
    create(judged, "after", Selection(where="pair_id IN ('cat0', 'dog0', 'eel0')"))
    found = versions.compare(judged, "before", "after", 100)
    assert found.counts == {"added": 2, "removed": 2, "flipped": 1, "p changed": 1, "the same": 2}
    assert found.changed == len(found.rows) == 6
    said = {(row["change"], row["pair_id"], row["judge"]) for row in found.rows}
    assert said == {
        ("added", "eel0", "plain"), ("added", "eel0", "reads"), ("removed", "cat1", "plain"),
        ("removed", "cat1", "reads"), ("flipped", "cat0", "plain"), ("p changed", "dog0", "plain"),
    }  # fmt: skip
    (flip,) = (row for row in found.rows if row["change"] == "flipped")
    assert [flip[name] for name in ("choice_before", "choice_after", "p_a_before", "p_a_after")] == [
        "a",
        "tie",
        0.9,
        0.45,
    ]
    assert flip["question"] == "what is cat0 ?"


def test_two_judges_are_compared_pair_by_pair(judged: Warehouse) -> None:
    judged.append(verdict("cat0", "reads", 0.0, name="again"))
    create(judged, "plain", Selection(judge="plain"))
    create(judged, "reads", Selection(judge="reads"))
    assert versions.compare(judged, "plain", "reads", 0).counts["flipped"] == 1
    assert versions.compare(judged, "plain", "plain", 5).changed == 0


def test_the_diff_is_what_its_slow_twin_finds(judged: Warehouse) -> None:
    create(judged, "before", Selection(where="hash(pair_id) % 3 > 0"))
    judged.append(verdict("cat0", "plain", 0.1, name="again"))
    create(judged, "after", Selection(where="hash(pair_id, 1) % 3 > 0"))
    before, after = ({row[:2]: row[2:] for row in rows_of(judged, name)} for name in ("before", "after"))
    found = versions.compare(judged, "before", "after", 0).counts
    both = before.keys() & after.keys()
    assert found["added"] == len(after.keys() - before.keys())
    assert found["removed"] == len(before.keys() - after.keys())
    assert found["flipped"] == sum(before[key][0] != after[key][0] for key in both)
    assert found["p changed"] == sum(before[key][0] == after[key][0] and before[key] != after[key] for key in both)


def test_the_commands_create_list_and_compare(judged: Warehouse, command: Any) -> None:
    made = command("dataset", "create", judged.path, "v1", "--judge", "judge_v1")
    assert made.code == 0 and made.out.startswith("dataset v1: frozen, 8 preferences (0 ties) of 4 videos")
    assert "stands already" in command("dataset", "create", judged.path, "v1", "--judge", "judge_v1").out
    told = json.loads(command("dataset", "create", judged.path, "v2", "--split", "train", "--json").out)
    assert (told["name"], told["preferences"], told["fresh"]) == ("v2", 8, True)
    listed = json.loads(command("dataset", "list", judged.path, "--json").out)
    assert {row["name"]: row["query"] for row in listed} == {
        "v1": "complete AND 'judge_v1' IN (judge, judge_prompt)", "v2": "complete AND split = 'train'"
    }  # fmt: skip
    assert "v1" in command("dataset", "list", judged.path).out
    plain = command("dataset", "diff", judged.path, "v1", "v2", "--limit", 3)
    assert plain.out.startswith("v1 -> v2: 4 added, 4 removed, 4 the same\n") and "5 more rows" in plain.err
    csv = command("dataset", "diff", judged.path, "v1", "v2", "--format", "csv")
    assert csv.out.splitlines()[0].startswith("change,pair_id,judge") and len(csv.out.splitlines()) == 9
    whole = json.loads(command("dataset", "diff", judged.path, "v1", "v2", "--json").out)
    assert whole["counts"]["added"] == 4 and len(whole["rows"]) == 8


def test_the_commands_say_what_is_wrong(judged: Warehouse, command: Any, tmp_path: Path) -> None:
    create(judged, "v1", Selection())
    for arguments, what in [
        (("create", judged.path, "v1", "--split", "val"), "other rows"),
        (("create", judged.path, "v2", "--where", "x; y"), "cannot be selected"),
        (("diff", judged.path, "v1", "v3"), "no version 'v3'"),
        (("list", tmp_path / "nothing.duckdb"), "no warehouse"),
    ]:
        ended = command("dataset", *arguments)
        assert ended.code == 2 and what in ended.err and "Traceback" not in ended.err
    broken = tmp_path / "broken.duckdb"
    broken.write_bytes(b"x" * 5000)
    assert command("dataset", "list", broken).code == 2
