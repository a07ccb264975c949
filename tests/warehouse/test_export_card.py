"""The data set card: its figures are the warehouse's, its prompts are the real ones, and data stays text in it."""

from __future__ import annotations

import dataclasses
import re
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.datagen import prompt
from vlm_rlaif.warehouse.exports import card
from vlm_rlaif.warehouse.exports.export import Asked, Exported
from vlm_rlaif.warehouse.exports.facts import Facts, look, prompt_text
from vlm_rlaif.warehouse.exports.formats import FORMATS
from vlm_rlaif.warehouse.exports.rows import count_by_split
from vlm_rlaif.warehouse.exports.versions import Selection, create
from vlm_rlaif.warehouse.records import Dataset
from vlm_rlaif.warehouse.store import Warehouse

SHIPPED = sorted(
    entry.name.removesuffix(".md") for entry in (resources.files("vlm_rlaif.datagen") / "prompts").iterdir()
)
VERSION = Dataset(
    name="v1",
    rows_hash="0a",
    query="complete AND judge_prompt = 'it''s'",
    preferences=3,
    ties=1,
    videos=1,
    run_id="r",
)
MADE = Exported(path="/a/b/out", format="trl", dataset="v1", rows_hash="0a", rows={"train": 2}, ties=1)
FACTS = Facts(
    warehouse="w.duckdb", judges=[{"judge": "j", "prompt": "p", "preferences": 3, "ties": 1 / 3, "conflicts": 0.0}],
    agreement=[], models=[], licences={"CC-BY-4.0": 1}, mean_token_gap=1.0, longer_wins=0.5,
)  # fmt: skip


def written(facts: Facts = FACTS, version: Dataset = VERSION, made: Exported = MADE, limit: int | None = None) -> str:
    asked = Asked(version=version, kind=FORMATS["trl"], out=Path(made.path), videos="link", limit=limit)
    splits = {"train": {"preferences": 3, "ties": 1, "videos": 1}}
    return card.write(facts, asked, made, splits, {"train": "train.jsonl"})


def header(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_the_figures_are_those_of_the_warehouse(full: Warehouse) -> None:
    version = create(full, "mine", Selection(judge="judge_context_compact_v1")).version
    facts = look(full, version)
    (gap,) = full.rows("SELECT * FROM length_gap WHERE judge_prompt = 'judge_context_compact_v1'")
    assert facts.mean_token_gap == pytest.approx(gap["mean_token_gap"])
    assert facts.longer_wins == pytest.approx(gap["longer_wins_rate"])
    (judge,) = facts.judges
    (bias,) = full.rows("SELECT * FROM judge_bias WHERE judge_prompt = 'judge_context_compact_v1'")
    assert judge["conflicts"] == pytest.approx(bias["conflict_rate"]) and judge["preferences"] == version.preferences
    assert judge["ties"] == version.ties / version.preferences
    assert [model["stage"] for model in facts.models] == ["caption", "context", "respond", "label"]
    assert count_by_split(full, version)["val"] == {"preferences": 13, "ties": 3, "videos": 5}


def test_two_judges_are_held_against_each_other(full: Warehouse) -> None:
    version = create(full, "both", Selection()).version
    (mine,) = look(full, version).agreement
    (view,) = full.rows("SELECT * FROM label_agreement")
    assert (mine["pairs"], mine["agreement"]) == (view["pairs"], pytest.approx(view["agreement"]))
    text = written(look(full, version), version)
    assert "judges on the same pairs" in text and f"{100 * view['agreement']:.1f} %" in text


def test_a_card_has_all_its_parts_and_no_place_of_this_machine(full: Warehouse) -> None:
    version = create(full, "mine", Selection(judge="judge_context_compact_v1")).version
    text = written(look(full, version), version)
    for part in (
        "What is in it",
        "Who judged",
        "Who wrote the words",
        "Licences",
        "How to make it again",
        "Known limits",
    ):
        assert f"## {part}" in text
    for name in ("judge_context_compact_v1", "respond_compact_v1", "caption_compact_v1"):
        assert prompt.load(name).user in text
    assert str(full.folder) not in text and "/a/b" not in text
    commands = re.findall(r"^vlm-rlaif .*$", text, re.M)
    assert shlex.split(commands[0])[-1] == version.query
    assert commands[1] == "vlm-rlaif export w.duckdb out --format trl --dataset mine --videos link"


def test_the_header_is_yaml_that_the_hub_knows() -> None:
    assert header(written()) == {
        "pretty_name": "v1", "license": "cc-by-4.0", "task_categories": ["video-text-to-text"],
        "tags": ["preference", "rlaif", "video", "trl"], "size_categories": ["n<1K"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train.jsonl"}]}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("licences", "said"),
    [({"": 3}, "unknown"), ({"CC-BY-4.0": 1}, "cc-by-4.0"), ({"CC-BY-4.0": 1, "": 1}, "other"),
     ({"MIT": 1, "CC0-1.0": 1}, "other"), ({"ask my lawyer": 1}, "other"), ({}, "unknown")],
)  # fmt: skip
def test_one_known_licence_is_named(licences: dict[str, int], said: str) -> None:
    assert header(written(dataclasses.replace(FACTS, licences=licences)))["license"] == said


@pytest.mark.parametrize("name", SHIPPED)
def test_the_words_of_a_shipped_prompt_are_found_by_their_hash(name: str) -> None:
    """The slow twin is the first floor's own reader."""
    loaded = prompt.load(name)
    text = prompt_text(name, loaded.text_hash)
    assert text is not None and prompt.parse(name, text).text_hash == loaded.text_hash
    assert prompt_text(name, "0" * 16) is None


def test_a_prompt_of_ones_own_is_quoted_and_a_secret_is_not(tmp_path: Path) -> None:
    """A name is only a claim: without the right hash no file is shown, whatever its path."""
    mine = tmp_path / "mine_v1.md"
    mine.write_text("for people\n[user]\nwhich is better ?\n")
    assert prompt_text(str(mine), prompt.load(str(mine)).text_hash) == mine.read_text()
    assert prompt_text(str(mine), "1234") is None
    for name in ("/etc/passwd", "../../../../etc/passwd", "no_such", "a\0b", "x" * 5000, ""):
        assert prompt_text(name, "1234") is None


def test_hostile_words_stay_words() -> None:
    evil = "x | y <script>alert(1)</script> [a](javascript:b) `c`\n# Title\n---\nlicense: mit"
    model = {"stage": "label", "model": evil, "revision": evil, "prompt": evil, "prompt_hash": evil}
    facts = dataclasses.replace(
        FACTS, warehouse=evil, models=[model], licences={evil: 1}, judges=[{**FACTS.judges[0], "judge": evil}]
    )
    text = written(facts, dataclasses.replace(VERSION, name=evil, query="complete AND ```\n# T"),
                   dataclasses.replace(MADE, dataset=evil, path=f"/{evil}"))  # fmt: skip
    outside = re.sub(r"^(`{3,})bash\n.*?\n\1$", "", text.split("---\n", 2)[2], flags=re.M | re.S)
    outside = re.sub(
        r"(?<!`)(`+) .*? \1(?!`)", "", outside
    )  # code spans: one line each, and they end where they should
    assert "<script" not in outside and "\n# Title" not in outside and "](javascript" not in outside
    assert header(text)["pretty_name"] == " ".join(evil.split()) and header(text)["license"] == "other"
    for line in outside.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (6, 5, 3)


@given(st.text())
def test_escaped_text_is_one_line_without_markup(text: str) -> None:
    escaped = card.escape(text)
    assert len(escaped.splitlines()) <= 1 and "<" not in escaped
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]|#]", escaped)


@given(st.text(alphabet="`a\n ", max_size=30))
def test_a_code_block_is_not_ended_by_what_is_in_it(text: str) -> None:
    first, *inside, last = card._fence(text).splitlines()
    ticks = first.removesuffix("text")
    assert last == ticks and all(ticks not in line for line in inside)


def test_a_version_that_a_trainer_froze_says_so() -> None:
    text = written(version=dataclasses.replace(VERSION, query="read by train reward: labels context"))
    assert "# v1 was read by train reward: labels context\n" in text and "--where" not in text


def test_what_was_left_out_is_said() -> None:
    text = written(made=dataclasses.replace(MADE, unfit=2, missing=["a: no such file"]), limit=2)
    for said in (
        "first 2 preferences",
        "1 ties were left out",
        "2 preferences were left out",
        "1 videos were not there",
    ):
        assert said in text
    assert "--limit 2" in text
