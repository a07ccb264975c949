"""Exports: every format says what the warehouse says, and a folder is there whole or not at all."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.exports import folder
from vlm_rlaif.warehouse.exports.export import Asked, Exported, export
from vlm_rlaif.warehouse.exports.formats import FORMATS, format_named
from vlm_rlaif.warehouse.exports.places import file_name
from vlm_rlaif.warehouse.exports.versions import Selection, create, find
from vlm_rlaif.warehouse.intake.add import add_videos
from vlm_rlaif.warehouse.records import Context, Label, Pair, Question, Record, Response, Spec
from vlm_rlaif.warehouse.store import Warehouse

HARD = 'Why „so“?\n"a" | <b>b</b> `c` \\ \u2028 \U0001f408'
"""Words that JSON, Markdown and HTML each have to be careful with."""
CHOICES = {"0": "a", "1": "b", "2": "tie", "3": "b"}
SPLITS = ("train", "val", "test")


def spec(stage: str, prompt: str, name: str) -> Spec:
    return Spec(
        spec_id=name, stage=stage, model="lab/model", revision="r1", adapter="", prompt=prompt, prompt_hash="h",
        frames="{}", sampling="{}", upstream="{}", run_id="r",
    )  # fmt: skip


def compared(video_id: str, number: int, question: str) -> list[Record]:
    name, choice = str(number), CHOICES[str(number)]
    p_a = {"a": 0.875, "b": 0.25, "tie": 0.5}[choice]
    return [
        Question(
            question_id=f"q{name}", video_id=video_id, text=question, reference="yes" if number else None,
            kind="why", source="imported", run_id="r",
        ),
        *(
            Response(
                response_id=f"r{name}{side}", question_id=f"q{name}", spec_id="respond", sample_index=i, seed=i,
                text=f"{side}{number}: {HARD}", tokens=5 + i, finish="stop", logprob=None, run_id="r",
            )
            for i, side in enumerate("ab")
        ),
        Pair(
            pair_id=f"p{name}", question_id=f"q{name}", response_a=f"r{name}a", response_b=f"r{name}b",
            strategy="all", run_id="r",
        ),
        *(
            Label(
                label_id=f"l{name}{order}", pair_id=f"p{name}", spec_id="judge",
                context_id="story" if number == 0 else None, shown_order=order, vote=0, choice=choice, p_a=p_a,
                p_tie=0.0, reply="A", cached_tokens=0, run_id="r",
            )
            for order in ("ab", "ba")
        ),
    ]  # fmt: skip


@pytest.fixture(scope="session")
def judged_folder(empty: Path, shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A warehouse beside its three real videos, one of each split, with four pairs: a, b, tie, b. To be copied."""
    folder = tmp_path_factory.mktemp("judged")
    shutil.copytree(shapes_folder, folder / "videos")
    warehouse = Warehouse(Path(shutil.copy(empty, folder)))
    add_videos(warehouse, folder / "videos")
    videos = [row["video_id"] for row in warehouse.rows("SELECT video_id FROM videos ORDER BY uri")]
    rows: list[Record] = [spec("respond", "respond_v1", "respond"), spec("label", "judge_v1", "judge")]
    rows.append(
        Context(context_id="story", video_id=videos[0], spec_id="ctx", caption_ids=["c"], text="story", run_id="r")
    )
    for number in range(4):
        rows += compared(videos[number % 3], number, f"{HARD} {number}")
    warehouse.append(rows)
    for video_id, split in zip(videos, SPLITS, strict=True):
        warehouse.execute("UPDATE videos SET split = ? WHERE video_id = ?", [split, video_id])
    return folder


@pytest.fixture
def judged(judged_folder: Path, tmp_path: Path) -> Warehouse:
    return Warehouse(Path(shutil.copytree(judged_folder, tmp_path, dirs_exist_ok=True)) / "w.duckdb")


@pytest.fixture(scope="session")
def version_folder(judged_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(judged_folder, tmp_path_factory.mktemp("version"), dirs_exist_ok=True)
    create(Warehouse(folder / "w.duckdb"), "v1", Selection())
    return folder


@pytest.fixture
def frozen(version_folder: Path, tmp_path: Path) -> Warehouse:
    """The same, all of it frozen as `v1`."""
    return Warehouse(Path(shutil.copytree(version_folder, tmp_path, dirs_exist_ok=True)) / "w.duckdb")


def write(warehouse: Warehouse, out: Path, form: str, **more: Any) -> Exported:
    force = more.pop("force", False)
    asked = Asked(version=find(warehouse, "v1"), kind=format_named(form), out=out, **more)
    return export(warehouse, asked, force=force)


def records(out: Path, form: str, split: str) -> list[dict[str, Any]]:
    path = out / FORMATS[form].file_name(split)
    if form in ("parquet", "hf"):
        import pyarrow as pa

        table = pq.read_table(path) if form == "parquet" else pa.ipc.open_stream(path.read_bytes()).read_all()
        found: list[dict[str, Any]] = table.to_pylist()
        return found
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.split("\n") if line]


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


SAYS: dict[str, Callable[[dict[str, Any]], tuple[str, str, str, str]]] = {
    "trl": lambda r: (
        r["prompt"][0]["content"][1]["text"], r["chosen"][0]["content"][0]["text"],
        r["rejected"][0]["content"][0]["text"], r["videos"][0],
    ),
    "llama-factory": lambda r: (
        r["conversations"][0]["value"].removeprefix("<video>"), r["chosen"]["value"], r["rejected"]["value"],
        r["videos"][0],
    ),
    "ms-swift": lambda r: (
        r["messages"][0]["content"].removeprefix("<video>"), r["messages"][1]["content"], r["rejected_response"],
        r["videos"][0],
    ),
    "llava": lambda r: (r["prompt"], r["chosen"], r["rejected"], r["video"]),
    "vlm-rlaif": lambda r: (
        r["conversations"][0]["value"].removeprefix("<image>\n"), r[f"output_{r['preference']}"]["value"],
        r[f"output_{3 - r['preference']}"]["value"], r["video"],
    ),
    "parquet": lambda r: (
        r["question"], *(r["text_a"], r["text_b"])[:: 1 if r["choice"] == "a" else -1], r["video"]
    ),
}  # fmt: skip
"""Format -> (question, better response, worse response, video) of a record."""
SAYS["hf"] = SAYS["parquet"]


@pytest.mark.parametrize("form", list(FORMATS))
def test_every_format_says_what_the_warehouse_says(frozen: Warehouse, tmp_path: Path, form: str) -> None:
    made = write(frozen, tmp_path / "out", form)
    ties = form in ("parquet", "hf")
    assert made.rows == {"train": 2, "val": 1, "test": int(ties)} if ties else {"train": 2, "val": 1}
    assert made.ties == (0 if ties else 1) and made.missing == [] and made.unfit == 0
    wanted = frozen.preferences().to_dicts()
    for split in made.rows:
        mine = [row for row in wanted if row["split"] == split and (ties or row["choice"] != "tie")]
        for row, record in zip(mine, records(tmp_path / "out", form, split), strict=True):
            sides = (row["text_a"], row["text_b"]) if row["choice"] == "a" else (row["text_b"], row["text_a"])
            assert SAYS[form](record) == (row["question"], *sides, str(frozen.folder / row["uri"]))


@pytest.mark.parametrize("form", ["trl", "llama-factory", "ms-swift", "llava"])
def test_the_soft_label_travels_along(frozen: Warehouse, tmp_path: Path, form: str) -> None:
    write(frozen, tmp_path / "out", form)
    found = {row["pair_id"]: row for split in ("train", "val") for row in records(tmp_path / "out", form, split)}
    assert {name: row["p_chosen"] for name, row in found.items()} == {"p0": 0.875, "p1": 0.75, "p3": 0.75}
    assert {name: row["strength"] for name, row in found.items()} == {"p0": 0.75, "p1": 0.5, "p3": 0.5}


def test_columns_keep_ties_and_both_sides(frozen: Warehouse, tmp_path: Path) -> None:
    write(frozen, tmp_path / "out", "parquet")
    (row,) = records(tmp_path / "out", "parquet", "test")
    assert (row["choice"], row["p_a"], row["strength"], row["context"]) == ("tie", 0.5, 0.0, None)
    by_id = {row["pair_id"]: row for row in records(tmp_path / "out", "parquet", "train")}
    assert (
        by_id["p0"]["context"] == "story" and by_id["p0"]["reference"] is None and by_id["p3"]["reference"] == "yes"
    )
    assert by_id["p0"]["judge_prompt"] == "judge_v1"


def test_llama_factory_finds_the_files(frozen: Warehouse, tmp_path: Path) -> None:
    write(frozen, tmp_path / "out", "llama-factory")
    entries = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert {name: entry["file_name"] for name, entry in entries.items()} == {
        "v1_train": "train.json", "v1_val": "val.json"
    }  # fmt: skip


def test_words_that_a_trainer_would_take_for_a_video_are_left_out_and_counted(
    frozen: Warehouse, tmp_path: Path
) -> None:
    frozen.execute("UPDATE responses SET text = 'see <video> there' WHERE response_id = 'r0b'")
    made = write(frozen, tmp_path / "out", "ms-swift")
    assert (made.rows["train"], made.unfit) == (1, 1)
    assert "1 preferences were left out" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("form", list(FORMATS))
def test_formats_with_marks_in_their_texts_cannot_say_such_words(form: str) -> None:
    fits = form in ("trl", "parquet", "hf")
    row = {"question": "why ?", "text_a": "a", "text_b": "b"}
    assert FORMATS[form].fits(row)
    assert [FORMATS[form].fits({**row, name: "an <image> of it"}) for name in row] == [fits] * 3


def test_videos_are_copied_under_their_ids(frozen: Warehouse, tmp_path: Path) -> None:
    write(frozen, tmp_path / "out", "trl", videos="copy")
    for row in records(tmp_path / "out", "trl", "train"):
        (name,) = row["videos"]
        video_id = name.removeprefix("videos/").removesuffix(".mp4")
        uri = frozen.value("SELECT uri FROM videos WHERE video_id = ?", [video_id])
        assert (tmp_path / "out" / name).read_bytes() == (frozen.folder / uri).read_bytes()


def test_videos_are_linked_under_their_ids(frozen: Warehouse, tmp_path: Path) -> None:
    write(frozen, tmp_path / "out", "trl", videos="link")
    (row,) = records(tmp_path / "out", "trl", "val")
    place = tmp_path / "out" / row["videos"][0]
    assert place.is_symlink() and place.resolve().parent == frozen.folder / "videos"


def test_a_folder_of_frames_is_copied_as_a_folder(frozen: Warehouse, tmp_path: Path) -> None:
    (frozen.folder / "frames").mkdir()
    (frozen.folder / "frames" / "1.jpg").write_bytes(b"jpeg")
    video_id = frozen.value("SELECT video_id FROM videos WHERE split = 'val'")
    frozen.execute("UPDATE videos SET uri = 'frames' WHERE video_id = ?", [video_id])
    write(frozen, tmp_path / "out", "trl", videos="copy")
    (row,) = records(tmp_path / "out", "trl", "val")
    assert [path.name for path in (tmp_path / "out" / row["videos"][0]).iterdir()] == ["1.jpg"]


@pytest.mark.parametrize("mode", ["path", "copy"])
def test_missing_videos_are_counted_and_named(judged: Warehouse, tmp_path: Path, command: Any, mode: str) -> None:
    (judged.folder / "videos" / "0.mp4").unlink()
    ended = command("export", judged.path, tmp_path / "out", "--format", "trl", "--videos", mode)
    assert ended.code == 3 and "missing video: videos/0.mp4: no such file" in ended.err
    assert "train 2, val 1" in ended.out
    assert json.loads((tmp_path / "out" / "export.json").read_text())["missing"] == ["videos/0.mp4: no such file"]
    assert command("export", judged.path, tmp_path / "out", "--format", "trl", "--videos", mode).code == 0


@pytest.mark.parametrize("video_id", ["../../up", "/abs", "", "a/b", "." * 3, "x" * 300])
def test_an_id_from_elsewhere_cannot_leave_the_folder(video_id: str) -> None:
    name = file_name(video_id, "../../../etc/passwd.mp4\n")
    assert "/" not in name and not name.startswith(".") and len(name) <= 120


def test_the_same_export_again_writes_nothing(frozen: Warehouse, tmp_path: Path) -> None:
    first = write(frozen, tmp_path / "out", "trl")
    before, there = frozen.path.read_bytes(), files(tmp_path / "out")
    again = write(frozen, tmp_path / "out", "trl")
    assert first.fresh and not again.fresh and again.rows == first.rows
    assert frozen.path.read_bytes() == before and files(tmp_path / "out") == there


def test_a_touched_export_does_not_stand(frozen: Warehouse, tmp_path: Path) -> None:
    write(frozen, tmp_path / "out", "trl")
    with (tmp_path / "out" / "train.jsonl").open("a") as file:
        file.write("more\n")
    with pytest.raises(UserError, match="--force"):
        write(frozen, tmp_path / "out", "trl")
    assert write(frozen, tmp_path / "out", "trl", force=True).fresh
    assert len(records(tmp_path / "out", "trl", "train")) == 2


def test_another_export_is_replaced_by_force_alone(frozen: Warehouse, tmp_path: Path) -> None:
    write(frozen, tmp_path / "out", "trl", videos="copy")
    with pytest.raises(UserError, match="holds another export"):
        write(frozen, tmp_path / "out", "parquet")
    write(frozen, tmp_path / "out", "parquet", force=True)
    assert set(files(tmp_path / "out")) == {
        "README.md",
        "export.json",
        "test.parquet",
        "train.parquet",
        "val.parquet",
    }
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_what_no_export_wrote_is_never_deleted(frozen: Warehouse, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("ten years of work")
    with pytest.raises(UserError, match="no export wrote"):
        write(frozen, out, "trl", force=True)
    (out / "thesis.tex").rename(tmp_path / "thesis.tex")
    write(frozen, out, "trl")
    (tmp_path / "thesis.tex").rename(out / "thesis.tex")
    with pytest.raises(UserError, match=r"did not write: thesis\.tex"):
        write(frozen, out, "parquet", force=True)
    assert (out / "thesis.tex").read_text() == "ten years of work"
    with pytest.raises(UserError, match="is a file"):
        write(frozen, out / "thesis.tex", "trl")


def test_an_empty_folder_may_be_written(frozen: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert write(frozen, tmp_path / "out", "trl").fresh


def test_the_same_rows_give_the_same_bytes(frozen: Warehouse, tmp_path: Path) -> None:
    for form in ("trl", "hf"):
        write(frozen, tmp_path / "one" / form, form)
        write(frozen, tmp_path / "two" / form, form)
        one, two = files(tmp_path / "one" / form), files(tmp_path / "two" / form)
        different = {name for name in one if one[name] != two[name]}
        assert one.keys() == two.keys() and all(name.endswith("state.json") for name in different)


def test_the_warehouse_remembers_every_export(frozen: Warehouse, tmp_path: Path) -> None:
    made = write(frozen, tmp_path / "out", "trl")
    write(frozen, frozen.folder / "inside", "parquet", limit=1)
    rows = frozen.rows("SELECT e.*, r.stage, r.status, r.rows_written AS n FROM exports e JOIN runs r USING (run_id)")
    assert {(row["format"], row["path"], row["rows"]) for row in rows} == {
        ("trl", "out", 3), ("parquet", "inside", 1)
    }  # fmt: skip
    assert {row["rows_hash"] for row in rows} == {made.rows_hash}
    assert {(row["stage"], row["status"], row["n"]) for row in rows} == {("export", "done", 1)}


def test_an_export_that_was_killed_before_it_was_recorded_is_recorded_later(
    frozen: Warehouse, tmp_path: Path
) -> None:
    write(frozen, tmp_path / "out", "trl")
    frozen.execute("DELETE FROM exports")
    assert not write(frozen, tmp_path / "out", "trl").fresh
    assert frozen.value("SELECT rows FROM exports") == 3


def test_a_dry_run_says_what_would_be_and_writes_nothing(judged: Warehouse, tmp_path: Path, command: Any) -> None:
    (judged.folder / "videos" / "1.mp4").unlink()
    before = judged.path.read_bytes()
    ended = command("export", judged.path, tmp_path / "out", "--format", "trl", "--where", "p_a <> 0.25", "--dry-run")
    assert ended.code == 0 and "export: 1 preferences would be written to" in ended.out
    assert "1 ties are left out" in ended.out and "missing" not in ended.err
    few = json.loads(command("export", judged.path, "out", "--format", "hf", "--dry-run", "--limit", 2, "--json").out)
    assert (few["rows"], few["written"]) == ({"train": 1, "val": 1}, False) and len(few["missing"]) == 1
    assert judged.path.read_bytes() == before and not (tmp_path / "out").exists()


def test_a_selection_without_a_name_becomes_a_version(judged: Warehouse, tmp_path: Path, command: Any) -> None:
    told = json.loads(
        command("export", judged.path, tmp_path / "out", "--format", "llava", "--split", "train", "--json").out
    )
    assert told["dataset"] == f"preferences-{told['rows_hash'][:10]}" and told["rows"] == {"train": 2}
    assert find(judged, told["dataset"]).query == "complete AND split = 'train'"
    assert command("export", judged.path, tmp_path / "b", "--format", "llava", "--dataset", told["dataset"]).code == 0
    assert files(tmp_path / "out")["train.json"] == files(tmp_path / "b")["train.json"]


def test_a_limit_is_part_of_what_an_export_is(frozen: Warehouse, tmp_path: Path) -> None:
    assert write(frozen, tmp_path / "out", "trl", limit=1).rows == {"train": 1}
    with pytest.raises(UserError, match="holds another export"):
        write(frozen, tmp_path / "out", "trl", limit=2)
    assert "The first 1 preferences alone" in (tmp_path / "out" / "README.md").read_text()


def test_the_command_says_what_is_wrong(judged: Warehouse, tmp_path: Path, command: Any) -> None:
    create(judged, "v1", Selection())
    out = tmp_path / "out"
    for options, what in [
        (("--format", "tlr"), "Did you mean 'trl'"),
        (("--format", "trl", "--dataset", "v2"), "no version 'v2'"),
        (("--format", "trl", "--dataset", "v1", "--split", "train"), "goes without options"),
        (("--format", "trl", "--judge", "nobody"), "No preference fits"),
        (("--format", "trl", "--where", "choice = 'tie'"), "are ties, which trl cannot say"),
    ]:
        ended = command("export", judged.path, out, *options)
        assert ended.code == 2 and what in ended.err and "Traceback" not in ended.err, options
    assert not out.exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    assert "no export wrote" in command("export", judged.path, tmp_path / "full", "--format", "trl").err
    assert judged.value("SELECT count(*) FROM datasets") == 1
    assert command("export", tmp_path / "none.duckdb", out, "--format", "trl").code == 2


def test_a_place_that_cannot_be_written_is_said(frozen: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write(frozen, tmp_path / "file" / "out", "trl")


def test_a_full_disk_leaves_nothing(frozen: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "write_json", full)
    with pytest.raises(UserError, match="No space left on device"):
        write(frozen, tmp_path / "out", "trl")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    assert frozen.value("SELECT status FROM runs WHERE stage = 'export'") == "failed"


def test_two_exports_to_one_folder_do_not_mix(frozen: Warehouse, tmp_path: Path) -> None:
    with folder.whole(tmp_path / "out", {}), pytest.raises(UserError, match="Another export is writing"):
        write(frozen, tmp_path / "out", "trl")


def test_a_killed_export_leaves_no_half_folder(frozen: Warehouse, tmp_path: Path) -> None:
    """Killed at several moments, the folder is whole or not there, and the same command finishes the work."""
    code = "from vlm_rlaif.warehouse.cli import main; main()"
    words = ("export", frozen.path, tmp_path / "out", "--format", "hf", "--videos", "copy")
    line = [sys.executable, "-c", code, *map(str, words)]
    partial = tmp_path / ".out.vlm-rlaif-partial"
    for wait_s in (0.0, 0.05):
        with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not partial.exists():
                time.sleep(0.001)
            time.sleep(wait_s)
            process.kill()
        assert not (tmp_path / "out").exists() or (tmp_path / "out" / "export.json").exists()
        shutil.rmtree(partial, ignore_errors=True)
    (partial / "train").mkdir(parents=True)
    (partial / "train" / "half.arrow").write_bytes(b"what a kill left")
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    assert len(records(tmp_path / "out", "hf", "train")) == 2
    assert frozen.value("SELECT count(*) FROM exports") == 1
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")]


@pytest.mark.parametrize("form", list(FORMATS))
def test_what_is_exported_can_be_imported(frozen: Warehouse, tmp_path: Path, command: Any, form: str) -> None:
    """Another warehouse that reads the files holds the same videos, questions, words and verdicts."""
    write(frozen, tmp_path / "out", form, videos="copy")
    other = Warehouse.create(tmp_path / "other.duckdb")
    ended = command("import", other.path, tmp_path / "out", "--videos", tmp_path / "out")
    assert ended.code == 0, ended.err
    said = (
        "SELECT v.video_id, q.text, a.text, b.text, choice FROM preferences p JOIN questions q USING (question_id)"
        " JOIN videos v ON v.video_id = q.video_id JOIN responses a ON a.response_id = p.response_a"
        " JOIN responses b ON b.response_id = p.response_b"
    )

    def verdicts(warehouse: Warehouse) -> set[tuple[Any, ...]]:
        found: set[tuple[Any, ...]] = set()
        for video, question, a, b, choice in warehouse.query(said).rows():
            if choice == "tie":
                found.add((video, question, frozenset((a, b))))
            else:
                found.add((video, question, *((a, b) if choice == "a" else (b, a))))
        return found

    wanted = verdicts(frozen)
    if form not in ("parquet", "hf"):
        wanted = {row for row in wanted if len(row) == 4}
    assert verdicts(other) == wanted
