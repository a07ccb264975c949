"""Parts of the work: shards that know nothing of each other make together what one machine would have made."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.datagen.engine import Request, ScriptedEngine
from vlm_rlaif.datagen.engines import make as engines
from vlm_rlaif.datagen.portion import Shard
from vlm_rlaif.eval.conductor import travel
from vlm_rlaif.warehouse import config
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Question, Record, Video, row_id
from vlm_rlaif.warehouse.schema import table_names
from vlm_rlaif.warehouse.store import Warehouse

Command = Any
VIDEOS = 12
MADE = ("clips", "captions", "contexts", "questions", "responses", "pairs", "labels", "failures")


def answer(request: Request) -> str | dict[str, float]:
    """The same reply to the same prompt, wherever it is asked; now and then none."""
    seen = request.video and (request.video.video_id, request.video.start_s)
    draw = random.Random(f"{request.user} {request.seed} {seen}")
    if draw.random() < 0.05:
        raise ValueError("I do not know.")
    if request.choices:
        return {"A": draw.random() / 2, "B": draw.random() / 2, "C": 0.0}
    return f"What is {draw.randrange(10**6)} ?"


@pytest.fixture(scope="module")
def many_file(asked_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a warehouse of more videos, half of them without questions, to be copied."""
    rows: list[Record] = []
    for number in range(VIDEOS):
        video_id = row_id("video", number)
        rows.append(
            Video(
                video_id=video_id, uri=f"{number}.mp4", source="test", video_group=video_id, split="train",
                status="ok", duration_s=4.0, run_id="test",
            )
        )  # fmt: skip
        if number % 2:
            question_id = row_id("question", video_id, "what ?")
            rows.append(
                Question(question_id=question_id, video_id=video_id, text="what ?", source="imported", run_id="test")
            )
    warehouse = Warehouse(Path(shutil.copy(asked_file, tmp_path_factory.mktemp("many") / "many.duckdb")))
    warehouse.append(rows)
    return warehouse.path


@pytest.fixture(scope="module")
def wanted(many_file: Path, recipe_file: Path) -> dict[str, list[str]]:
    """What one undivided run makes."""
    whole = copy(Warehouse(many_file), many_file.with_name("whole.duckdb"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "make", lambda settings, model: ScriptedEngine(answer))
        travel(whole, config.load(str(recipe_file)))
    return content(whole)


@pytest.fixture
def many(many_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Warehouse:
    """A warehouse of 15 videos; every model is scripted."""
    monkeypatch.setattr(engines, "make", lambda settings, model: ScriptedEngine(answer))
    return copy(Warehouse(many_file), tmp_path / "w.duckdb")


def copy(warehouse: Warehouse, path: Path) -> Warehouse:
    return Warehouse(Path(shutil.copy(warehouse.path, path)))


def content(warehouse: Warehouse) -> dict[str, list[str]]:
    """All rows that say something about videos, without their runs."""
    found = {}
    for table in table_names():
        if table in MADE:
            rows = warehouse.rows(f"SELECT * EXCLUDE (run_id) FROM {table}")
            found[table] = sorted(repr(sorted(row.items())) for row in rows)
    return found


def run(command: Command, warehouse: Warehouse, recipe_file: Path, *more: str) -> Any:
    done = command("run", warehouse.path, recipe_file, *more)
    assert done.code in (0, 3), done.err
    return done


def test_shards_united_are_the_rows_of_one_undivided_run(
    many: Warehouse, wanted: dict[str, list[str]], recipe_file: Path, command: Command, tmp_path: Path
) -> None:
    shards = [copy(many, tmp_path / f"shard-{part}.duckdb") for part in (1, 2, 3)]
    for part, shard in enumerate(shards, 1):
        run(command, shard, recipe_file, "--shard", f"{part}/3")
        mine = content(shard)
        assert 0 < len(mine["labels"]) < len(wanted["labels"]) and 0 < len(mine["failures"]) < len(wanted["failures"])
    done = command("merge", many.path, *(shard.path for shard in shards))
    assert done.code == 0, done.out + done.err
    assert content(many) == wanted
    assert "Different under one id" not in done.out


def test_what_is_left_after_a_merge_is_what_a_lost_shard_would_have_made(
    many: Warehouse, wanted: dict[str, list[str]], recipe_file: Path, command: Command, tmp_path: Path
) -> None:
    one = copy(many, tmp_path / "one.duckdb")
    run(command, one, recipe_file, "--shard", "1/2")
    assert command("merge", many.path, one.path).code == 0
    run(command, many, recipe_file)
    assert content(many) == wanted


def test_a_shard_that_is_run_again_writes_nothing(many: Warehouse, recipe_file: Path, command: Command) -> None:
    run(command, many, recipe_file, "--shard", "2/3")
    before = many.path.read_bytes()
    run(command, many, recipe_file, "--shard", "2/3")
    assert many.path.read_bytes() == before


def test_a_shard_says_how_to_go_on_and_trains_nothing(
    many: Warehouse, recipe_file: Path, command: Command, tmp_path: Path
) -> None:
    trains = tmp_path / "trains.yaml"
    start = "{model: 'embedded:policy-start', prompt: reward_compact_v1, frames: {count: 3, size: 32, repeat: 2}}"
    trains.write_text(f"{recipe_file.read_text()}\nreward: {start}\n")
    done = run(command, many, trains, "--shard", "1/3")
    assert f"vlm-rlaif merge {many.path} OTHER_SHARDS..." in done.out
    assert many.value("SELECT count(*) FROM checkpoints") == 0 and not (many.folder / "report.html").exists()
    assert many.value("SELECT count(*) FROM labels") > 0


def test_a_single_stage_takes_a_shard_too(many: Warehouse, recipe_file: Path, command: Command) -> None:
    for part in ("1/2", "2/2"):
        done = command("datagen", "respond", many.path, "--recipe", recipe_file, "--shard", part)
        assert done.code in (0, 3), done.err
    questions, failed = (many.value(f"SELECT count(*) FROM {table}") for table in ("questions", "failures"))
    assert many.value("SELECT count(*) FROM responses") + failed == 2 * questions
    assert "nothing to do" in command("datagen", "respond", many.path, "--recipe", recipe_file).out


@given(st.text(), st.integers(1, 40))
def test_every_video_is_in_exactly_one_shard(video_id: str, parts: int) -> None:
    assert sum(Shard(part, parts).holds(video_id) for part in range(1, parts + 1)) == 1


def test_shards_are_about_equally_large() -> None:
    videos = [row_id("video", number) for number in range(8000)]
    for part in range(1, 9):
        assert 850 < sum(map(Shard(part, 8).holds, videos)) < 1150


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "1/0", "-1/3", "1/3/5", "a/b", "1.5/3", "1 / 3", "²/3"])
def test_a_bad_shard_is_told_in_words(text: str) -> None:
    with pytest.raises(UserError, match=r"give a part and how many there are, 1/8 to 8/8"):
        Shard.parse(text)


def test_a_bad_shard_ends_a_command_before_anything_runs(
    many: Warehouse, recipe_file: Path, command: Command
) -> None:
    before = many.path.read_bytes()
    done = command("run", many.path, recipe_file, "--shard", "5/4")
    assert done.code == 2 and "--shard 5/4" in done.err and many.path.read_bytes() == before
