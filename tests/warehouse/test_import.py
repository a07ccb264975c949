"""Other people's files become rows: idempotent, complete, and honest about what does not fit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm_rlaif.warehouse.intake import importing
from vlm_rlaif.warehouse.intake.add import add_videos
from vlm_rlaif.warehouse.intake.arrivals import split_of
from vlm_rlaif.warehouse.intake.finding import Finder
from vlm_rlaif.warehouse.intake.importing import import_files
from vlm_rlaif.warehouse.intake.sources import Wishes
from vlm_rlaif.warehouse.media.video import hash_file
from vlm_rlaif.warehouse.records import Removal
from vlm_rlaif.warehouse.store import Warehouse

Command = Any
TABLES = ("videos", "video_files", "questions", "responses", "pairs", "labels", "specs")

# The console command, which gets a signal when it probes its third video.
STOPPED_COMMAND = """
import os, signal, sys
from vlm_rlaif.warehouse.intake import arrivals, importing
from vlm_rlaif.warehouse.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)
importing.BATCH = 2
number, probe, probed = int(sys.argv.pop(1)), arrivals.probe, []

def mortal_probe(path):
    probed.append(path)
    if len(probed) == 3:
        os.kill(os.getpid(), number)
    return probe(path)

arrivals.probe = mortal_probe
main()
"""


@pytest.fixture
def root(shapes_folder: Path, tmp_path: Path) -> Path:
    """The user's videos, beside the warehouse: `clips/0.mp4` to `clips/2.mp4`."""
    return Path(shutil.copytree(shapes_folder, tmp_path / "root" / "clips")).parent


def write(file: Path, records: list[Any]) -> Path:
    file.write_text(json.dumps(records))
    return file


def said(video: str, question: str, *answer: str) -> dict[str, Any]:
    """A conversation of one question."""
    turns = [{"from": "human", "value": question}, *({"from": "gpt", "value": text} for text in answer)]
    return {"video": video, "conversations": turns}


def preferred(video: str, first: str, second: str, better: Any, **more: Any) -> dict[str, Any]:
    return {
        **said(video, "Who?", "\n"), "output_1": {"value": first}, "output_2": {"value": second},
        "preference": better, **more,
    }  # fmt: skip


def count(warehouse: Warehouse) -> dict[str, int]:
    return {table: int(warehouse.value(f"SELECT count(*) FROM {table}")) for table in (*TABLES, "runs")}


def content(warehouse: Warehouse) -> dict[str, Any]:
    """Every row, without the runs that wrote them."""
    return {table: warehouse.rows(f"SELECT * EXCLUDE (run_id) FROM {table} ORDER BY ALL") for table in TABLES}


# Rows


def test_questions_come_with_their_video_reference_kind_and_source(
    warehouse: Warehouse, command: Command, root: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "SFT_short.json", [said("clips/1.mp4", "<image>\nWho?", "A cat."), said("1", "Why?")])
    result = command("import", warehouse.path, file, "--videos", root, "--split", "test")
    assert (result.code, result.err) == (0, "")
    assert result.out == (
        f"{file}: 2 records, read as llava\nimport: 3 rows written (videos: 1, questions: 2)\n"
    )  # fmt: skip
    (video,) = warehouse.rows("SELECT * FROM videos")
    assert video["video_id"] == hash_file(root / "clips" / "1.mp4")
    assert (video["uri"], video["status"], video["split"], video["width"]) == ("root/clips/1.mp4", "ok", "test", 32)
    questions = warehouse.rows("SELECT text, reference, source, spec_id FROM questions ORDER BY text")
    assert [tuple(row.values()) for row in questions] == [
        ("Who?", "A cat.", "SFT_short", None), ("Why?", None, "SFT_short", None),
    ]  # fmt: skip
    assert warehouse.value("SELECT DISTINCT video_id FROM questions") == video["video_id"]
    assert warehouse.rows("SELECT stage, status, rows_written, rows_failed FROM runs") == [
        {"stage": "import", "status": "done", "rows_written": 4, "rows_failed": 0}
    ]


@pytest.mark.parametrize(
    ("better", "choice", "p_a"), [(1, "A cat.", 1.0), (2, "Two grey dogs.", 0.0), ("tie", None, 0.5)]
)
def test_a_preference_is_a_pair_with_one_label(
    warehouse: Warehouse, root: Path, tmp_path: Path, better: Any, choice: str | None, p_a: float
) -> None:
    file = write(tmp_path / "RM.json", [preferred("0", "A cat.", "Two grey dogs.", better, rationale="I see it.")])
    import_files(warehouse, [file], Wishes(videos=root))
    (row,) = warehouse.rows(
        "SELECT p.*, c.text AS chosen_text, a.text AS text_a FROM preferences p JOIN responses a"
        " ON a.response_id = p.response_a LEFT JOIN responses c ON c.response_id = p.chosen"
    )
    assert (row["chosen_text"], row["judge_prompt"], row["complete"]) == (choice, "RM", True)
    assert row["p_a"] == (p_a if row["text_a"] == "A cat." else 1 - p_a)
    (label,) = warehouse.rows("SELECT * FROM labels")
    assert (label["shown_order"], label["reply"], label["context_id"]) == ("unknown", "I see it.", None)
    tokens = {row["text"]: row["tokens"] for row in warehouse.rows("SELECT text, tokens FROM responses")}
    assert tokens == {"A cat.": 2, "Two grey dogs.": 3}, "words between spaces"
    specs = warehouse.rows("SELECT DISTINCT stage, prompt, model FROM specs")
    assert specs == [{"stage": "import", "prompt": "RM", "model": ""}]


def test_importing_again_writes_nothing_not_even_a_run(warehouse: Warehouse, command: Command, root: Path) -> None:
    records = [said("0", "Why?", "So."), preferred("1", "A cat.", "A dog.", 1), said("none", "?")]
    arguments = ("import", warehouse.path, write(root / "a.json", records), "--videos", root)
    assert command(*arguments).code == 3
    before = (content(warehouse), count(warehouse))
    again = command(*arguments)
    assert (again.code, again.out.splitlines()[-1]) == (3, "import: nothing to do. Bad records: 1")
    assert (content(warehouse), count(warehouse)) == before


def test_one_pair_of_two_files_is_one_pair_with_a_label_of_each(warehouse: Warehouse, root: Path) -> None:
    write(root / "a.json", [preferred("0", "A cat.", "A dog.", 1)])
    write(root / "b.json", [preferred("clips/0.mp4", "A dog.", "A cat.", 2)])
    import_files(warehouse, [root / "a.json", root / "b.json"], Wishes(videos=root))
    assert count(warehouse) == {
        "videos": 1, "video_files": 1, "questions": 1, "responses": 2, "pairs": 1, "labels": 2, "specs": 4, "runs": 1,
    }  # fmt: skip
    assert {row["choice"] for row in warehouse.rows("SELECT choice FROM labels")} <= {"a", "b"}
    assert warehouse.rows("SELECT agreement FROM label_agreement") == [{"agreement": 1.0}]


def test_two_verdicts_of_one_source_on_a_pair_are_a_tie_in_whatever_order_they_stand(
    warehouse: Warehouse, root: Path
) -> None:
    records = [preferred("0", "A cat.", "A dog.", better) for better in (1, 2, 2)]
    import_files(warehouse, [write(root / "a.json", records)], Wishes(videos=root))
    (row,) = warehouse.rows("SELECT choice, p_a, strength FROM preferences")
    assert row == {"choice": "tie", "p_a": 0.5, "strength": 0.0}


def test_models_and_judges_that_a_file_names_are_kept_apart(warehouse: Warehouse, root: Path) -> None:
    file = root / "a.csv"
    file.write_text(
        "video,question,response_a,response_b,preference,model_a,model_b,judge\n"
        "0,Who?,A cat.,A dog.,a,small,large,gpt\n0,Who?,A cat.,An owl.,b,small,other,gpt\n"
    )
    import_files(warehouse, [file], Wishes(videos=root, source="arena"))
    rows = warehouse.rows("SELECT r.text, s.model FROM responses r JOIN specs s USING (spec_id) ORDER BY r.text")
    assert [tuple(row.values()) for row in rows] == [("A cat.", "small"), ("A dog.", "large"), ("An owl.", "other")]
    judges = warehouse.rows("SELECT DISTINCT s.model, s.prompt FROM labels JOIN specs s USING (spec_id)")
    assert judges == [{"model": "gpt", "prompt": "arena"}]


def test_the_first_reference_of_a_question_stays_and_others_are_counted(
    warehouse: Warehouse, command: Command, root: Path
) -> None:
    file = write(root / "a.json", [said("0", "Who?", "A cat."), said("0", "Who?", "A dog."), said("0", "Who?")])
    last = command("import", warehouse.path, file, "--videos", root).out.splitlines()[-1]
    assert last.endswith("Questions that stand with another reference: 1")
    write(file, [said("0", "Who?", "An owl.")])
    last = command("import", warehouse.path, file, "--videos", root).out.splitlines()[-1]
    assert last == "import: nothing to do. Questions that stand with another reference: 1"
    assert warehouse.value("SELECT reference FROM questions") == "A cat."


def test_a_known_video_keeps_its_split(warehouse: Warehouse, command: Command, root: Path) -> None:
    add_videos(warehouse, root)
    video_id = hash_file(root / "clips" / "0.mp4")
    other = "train" if split_of(video_id) == "test" else "test"
    file = write(root / "a.json", [said("0", "Who?")])
    result = command("import", warehouse.path, file, "--videos", root, "--split", other)
    assert result.out.endswith("import: 1 rows written (questions: 1). Videos that keep another split: 1\n")
    assert warehouse.value("SELECT split FROM videos WHERE video_id = ?", [video_id]) == split_of(video_id)


def test_questions_and_answers_in_two_files_are_imported_as_one(
    warehouse: Warehouse, command: Command, root: Path
) -> None:
    write(root / "test_q.json", [{"video_name": "0", "question": "is it a cat", "question_id": "v_1QIUV7WYKXg_1"}])
    write(root / "test_a.json", [{"answer": "no", "type": 3, "question_id": "v_1QIUV7WYKXg_1"}])
    result = command("import", warehouse.path, root, "--videos", root)
    assert result.out.startswith(f"{root}/test_q.json: 1 records, read as video-qa\n")
    assert warehouse.rows("SELECT text, reference, kind, source FROM questions") == [
        {"text": "is it a cat", "reference": "no", "kind": "yes/no", "source": "test_q"}
    ]


def test_a_saved_dataset_is_read_without_its_library(warehouse: Warehouse, root: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": "Who?", "chosen": f"A cat {n}.", "rejected": "A dog.", "videos": ["0"]} for n in range(5)]
    saved = datasets.DatasetDict(
        train=datasets.Dataset.from_list(rows[:3]), test=datasets.Dataset.from_list(rows[3:])
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    outcome = import_files(warehouse, [tmp_path / "saved"], Wishes(videos=root))
    assert warehouse.rows("SELECT DISTINCT source FROM questions") == [{"source": "saved"}]
    assert sorted((taken, records) for _, taken, records in outcome.files) == [("trl", 2), ("trl", 3)]
    assert (outcome.rows["pairs"], outcome.failed) == (5, 0)
    again = import_files(warehouse, [tmp_path / "rows.parquet"], Wishes(videos=root, source="saved"))
    assert again.run_id is None


def test_named_columns_of_a_table_are_taken(warehouse: Warehouse, command: Command, root: Path) -> None:
    (root / "a.tsv").write_text("clip\tFrage\tAntwort\n0\tWer?\tEine Katze.\n1\t\tNichts.\n")
    result = command("import", warehouse.path, root / "a.tsv", "--videos", root, "--video-column", "clip",
                     "--question-column", "Frage", "--reference-column", "Antwort")  # fmt: skip
    assert (result.code, result.err) == (3, f"bad: {root}/a.tsv:3: its question is empty\n")
    assert warehouse.rows("SELECT text, reference FROM questions") == [{"text": "Wer?", "reference": "Eine Katze."}]


# Videos


@pytest.mark.parametrize(
    ("there", "name"),
    [
        ("a.mp4", "a.mp4"), ("deep/a.mp4", "deep/a.mp4"), ("deep/a.mp4", "./deep//a.mp4"), ("deep/a.mp4", "a.mp4"),
        ("deep/a.mp4", "a"), ("deep/a.mkv", "deep/a"), ("v_a.mp4", "a"), ("x/v_a.mp4", "v_a.pkl"),
        ("clips/video6513.mp4", "6513"), ("vid12.avi", "12"), ("a.b.mp4", "a.b"), ("deep/a.webm", "a.mp4"),
        ("deep/a.mp4", "file://{root}/deep/a.mp4"), ("deep/a.mp4", "{root}/deep/a.mp4"), ("a.mp4", "deep/../a.mp4"),
    ],
)  # fmt: skip
def test_a_video_is_found_by_its_path_or_its_id(tmp_path: Path, there: str, name: str) -> None:
    root = tmp_path / "root"
    (root / there).parent.mkdir(parents=True)
    (root / "deep").mkdir(exist_ok=True)
    (root / there).write_bytes(b"mp4")
    (root / "notes.txt").write_text("none")
    assert Finder(root).find(name.format(root=root)) == root / there


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../secret.mp4", "leads out of"), ("/etc/passwd", "leads out of"), ("link.mp4", "leads out of"),
        ("folder/secret.mp4", "leads out of"), ("secret", "there is no video 'secret' below"),
        ("https://example.org/a.mp4", "is an address, not a file"), ("b", "2 videos below"), ("none", "there is no"),
        ("empty", "there is no"), ("a" * 5_000, "there is no"), ("pipe.mp4", "there is no"),
    ],
)  # fmt: skip
def test_nothing_outside_the_folder_is_ever_found(tmp_path: Path, name: str, reason: str) -> None:
    root = tmp_path / "root"
    for file in ("root/a.mp4", "root/x/b.mp4", "root/y/b.mp4", "outside/secret.mp4", "secret.mp4"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"mp4")
    (root / "empty").mkdir()
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "folder").symlink_to(tmp_path / "outside")
    os.mkfifo(root / "pipe.mp4")
    with pytest.raises(ValueError, match=r".") as raised:
        Finder(root).find(name)
    assert reason in str(raised.value) and len(str(raised.value)) < 400


def test_a_list_of_images_is_the_folder_that_holds_exactly_them(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "frames"
    folder.mkdir(parents=True)
    for number in (1, 2, 10):
        (folder / f"{number}.jpg").write_bytes(bytes(number))
    finder = Finder(tmp_path / "root")
    images = [f"frames/{number}.jpg" for number in (1, 10, 2)]
    assert finder.find(tuple(images)) == folder
    for wrong, reason in (
        (images[:2], "its images are not exactly those of the folder 'frames'"),
        ([*images, images[0]], "its images are not exactly"),
        ([*images, "frames/3.jpg"], "its images are not exactly"),
        ([*images, "other/1.jpg"], "its images lie in several folders"),
        (["none/1.jpg"], "there is no folder 'none' below"),
        (["../x/1.jpg"], "leads out of"),
    ):
        with pytest.raises(ValueError, match=reason):
            finder.find(tuple(wrong))
    assert finder.find("frames") == folder
    (tmp_path / "secret.jpg").write_bytes(b"jpg")
    (folder / "11.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(ValueError, match="its images cannot be read"):
        Finder(tmp_path / "root").find((*images, "frames/11.jpg"))


def test_a_video_that_cannot_be_read_is_a_row_and_its_records_are_bad(
    warehouse: Warehouse, command: Command, root: Path
) -> None:
    (root / "broken.mp4").write_bytes(b"this is no video")
    file = write(root / "a.json", [said("broken", "Who?"), said("0", "Who?"), said("broken", "Why?")])
    result = command("import", warehouse.path, file, "--videos", root)
    assert result.code == 3 and result.err.count("its video cannot be read") == 2
    assert f"bad: {file}[2]: its video cannot be read" in result.err
    assert count(warehouse)["videos"] == 2 and count(warehouse)["questions"] == 1
    strict = command("import", warehouse.path, write(root / "b.json", [said("broken", "Who?")]), "--videos", root,
                     "--strict")  # fmt: skip
    assert strict.code == 2


def test_records_about_a_video_that_was_taken_out_are_left_out_and_counted(
    warehouse: Warehouse, command: Command, root: Path
) -> None:
    video_id = hash_file(root / "clips" / "0.mp4")
    warehouse.append([Removal(video_id=video_id, uri="x", reason="faces", rows_removed=1, run_id="test")])
    file = write(root / "a.json", [said("0", "Who?"), said("1", "Who?")])
    result = command("import", warehouse.path, file, "--videos", root)
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith("(videos: 1, questions: 1). About videos that were taken out: 1\n")
    assert warehouse.value("SELECT count(*) FROM videos WHERE video_id = ?", [video_id]) == 0


# Bad records


def test_bad_records_are_listed_with_their_place_and_the_others_are_kept(
    warehouse: Warehouse, command: Command, root: Path
) -> None:
    bad = [
        said("../x.mp4", "?"),
        {"video": "0", "conversations": 7},
        "a text",
        said("0", " <video> "),
        said("9", "?"),
    ]
    file = write(root / "a.json", [said("0", "Who?"), *bad * 5])
    result = command("import", warehouse.path, file, "--videos", root)
    assert result.code == 3
    lines = result.err.splitlines()
    assert len(lines) == 21 and lines[-1] == "... and 5 more; --json lists all"
    assert lines[:5] == [
        f"bad: {file}[1]: '../x.mp4' leads out of {root}",
        f"bad: {file}[2]: its conversation is not a list of turns: 7",
        f"bad: {file}[3]: it is not an object: 'a text'",
        f"bad: {file}[4]: a question is empty",
        f"bad: {file}[5]: there is no video '9' below {root}",
    ]
    assert result.out.splitlines()[-1] == "import: 2 rows written (videos: 1, questions: 1). Bad records: 25"
    as_json = command("import", warehouse.path, file, "--videos", root, "--json")
    assert len(json.loads(as_json.out)[0]["bad"]) == 25


def test_strict_writes_nothing_where_a_record_is_bad(warehouse: Warehouse, command: Command, root: Path) -> None:
    file = write(root / "a.json", [said("0", "Who?"), said("none", "Who?")])
    before = count(warehouse)
    result = command("import", warehouse.path, file, "--videos", root, "--strict")
    assert result.code == 2
    assert result.err.splitlines() == [
        f"Error: {file}[1]: there is no video 'none' below {root}", "Nothing was written. Bad records: 1.",
    ]  # fmt: skip
    assert count(warehouse) == before
    write(file, [said("0", "Who?"), said("1", "Who?")])
    assert command("import", warehouse.path, file, "--videos", root, "--strict").code == 0
    assert count(warehouse)["questions"] == count(warehouse)["videos"] == 2


def test_a_dry_run_counts_and_writes_nothing(
    warehouse: Warehouse, command: Command, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "BATCH", 2)
    records = [preferred("0", "A cat.", "A dog.", 1), preferred("1", "A cat.", "A dog.", 2), said("0", "Why?")] * 3
    arguments = ("import", warehouse.path, write(root / "a.json", records), "--videos", root)
    before = count(warehouse)
    dry = command(*arguments, "--dry-run").out.splitlines()[-1]
    assert count(warehouse) == before
    assert dry == command(*arguments).out.splitlines()[-1].replace("written", "would be written")
    assert command(*arguments, "--dry-run").out.splitlines()[-1] == "import: nothing to do"


def test_a_limit_counts_records_of_all_files(warehouse: Warehouse, root: Path) -> None:
    files = [write(root / f"{name}.json", [said("0", f"{name} {n}?") for n in range(3)]) for name in "ab"]
    outcome = import_files(warehouse, files, Wishes(videos=root, limit=4))
    assert [records for *_, records in outcome.files] == [3, 1]
    assert outcome.rows["questions"] == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_import_that_was_interrupted_is_repeated(
    warehouse: Warehouse, tmp_path: Path, root: Path, number: signal.Signals, code: int
) -> None:
    records = [said(str(n), f"{m}?", "So.") for n in range(3) for m in range(3)]
    file = write(tmp_path / "a.json", records)
    undisturbed = Warehouse(Path(shutil.copy(warehouse.path, tmp_path / "other.duckdb")))
    arguments = ["import", str(warehouse.path), str(file), "--videos", str(root)]
    command = [sys.executable, "-c", STOPPED_COMMAND, str(int(number)), *arguments]
    assert subprocess.run(command, capture_output=True).returncode == code
    assert 0 < count(warehouse)["questions"] < 9
    import_files(warehouse, [file], Wishes(videos=root))
    import_files(undisturbed, [file], Wishes(videos=root))
    assert content(warehouse) == content(undisturbed)
    ended = warehouse.rows("SELECT status FROM runs ORDER BY started_at")
    assert [row["status"] for row in ended] == ["interrupted", "done"]


# Mistakes


def test_a_file_in_no_known_format_is_told_with_the_known_ones(
    warehouse: Warehouse, command: Command, root: Path
) -> None:
    file = write(root / "a.json", [{"q": "Who?", "v": "0"}])
    result = command("import", warehouse.path, file, "--videos", root)
    assert result.code == 2
    assert result.err.splitlines() == [
        f"Error: {file} is in no known format. Its records have the keys ['q', 'v']. The nearest format is"
        " video-chatgpt, whose records have q, a, video_id.",
        "Formats: vlm-rlaif, ms-swift, llama-factory, trl, llava, video-chatgpt, columns, video-qa. --format names"
        " one; columns with other names are named with --question-column and its like.",
    ]
    assert count(warehouse)["runs"] == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("none.json", "--videos", "{root}"), "There is no file or folder none.json"),
        (("{file}", "--videos", "none"), "There is no folder none"),
        (("{file}", "--videos", "{root}", "--format", "trll"), "no format 'trll'. Did you mean 'trl'?"),
        (("{file}", "--videos", "{root}", "--format", "trl", "--kind-column", "x"), "belong to the format columns"),
        (("{file}", "--videos", "{root}", "--kind-column", "vidoe"), "no column 'vidoe'. Did you mean 'video'?"),
        (("{root}/clips", "--videos", "{root}"), "There is nothing to import below"),
        (("{file}",), "Missing option '--videos'"),
        (("--videos", "{root}"), "Missing argument"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_is_written(
    warehouse: Warehouse, command: Command, root: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    file = write(root / "a.json", [said("0", "Who?")])
    result = command("import", warehouse.path, *(part.format(file=file, root=root) for part in arguments))
    assert result.code == 2 and complaint in result.err
    assert count(warehouse)["runs"] == 0


def test_a_format_that_is_named_is_taken_even_where_records_look_like_another(
    warehouse: Warehouse, command: Command, root: Path
) -> None:
    file = write(root / "a.json", [{"video": "0", "question": "Who?", "answer": "A cat.", "messages": "none"}])
    assert command("import", warehouse.path, file, "--videos", root, "--format", "video-qa").code == 0


def test_a_file_with_a_name_that_is_not_utf_8_needs_another_name_for_its_rows(
    warehouse: Warehouse, command: Command, root: Path
) -> None:
    file = os.fsdecode(os.fsencode(root) + b"/\xff.json")
    write(Path(file), [said("0", "Who?"), 7])
    result = command("import", warehouse.path, file, "--videos", root)
    assert result.code == 2 and result.err.endswith("Its rows need another one: --source NAME.\n")
    result = command("import", warehouse.path, file, "--videos", root, "--source", "mine")
    assert result.code == 3 and f"bad: {root}/\\udcff.json[1]: it is not an object: 7" in result.err
