"""Subtitles become rows of the videos that they are named like; hostile files are left out, and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.warehouse.intake.subtitles import LARGEST_FILE, Cue, parse, read_subtitles
from vlm_rlaif.warehouse.store import Warehouse

Command = Any
SRT = (
    "1\r\n00:00:00,500 --> 00:00:01,500\r\n<i>Look</i> at\r\nthat!\r\n\r\n"
    "2\r\n00:00:02,000 --> 00:00:03,000\r\nYes.\r\n"
)
LINES = [Cue(0.5, 1.5, "Look at that!"), Cue(2.0, 3.0, "Yes.")]


# Files


def test_subrip_is_read_with_either_kind_of_line_end() -> None:
    assert parse(SRT) == parse(SRT.replace("\r\n", "\n")) == LINES


def test_webvtt_is_read_without_its_styles_notes_and_voices() -> None:
    text = (
        "WEBVTT - a title\nKind: captions\n\nSTYLE\n::cue { color: red }\n\nNOTE not said\n\nfirst\n"
        "00:00.500 --> 00:01.500 align:start position:0%\n<v Anna>Look</v> at<00:01.000><c> that!</c>\n\n"
        "01:00:02.000 --> 01:00:03.000\nTom &amp; {\\an8}Anna\n"
    )
    assert parse(text) == [Cue(0.5, 1.5, "Look at that!"), Cue(3602.0, 3603.0, "Tom & Anna")]


def test_lines_that_roll_up_are_taken_once() -> None:
    text = "00:00.0 --> 00:01.0\nhello\n\n00:01.0 --> 00:02.0\nhello\nthere\n\n00:02.0 --> 00:03.0\nthere\n"
    assert [cue.text for cue in parse(text)] == ["hello", "there"]


def test_cues_without_an_empty_line_between_them_are_told_apart() -> None:
    assert parse("1\n00:00:01,000 --> 00:00:02,000\na\n2\n00:00:03,000 --> 00:00:04,000\nb") == [
        Cue(1.0, 2.0, "a"), Cue(3.0, 4.0, "b"),
    ]  # fmt: skip


def test_cues_may_overlap_and_stand_in_any_order() -> None:
    text = "00:05.0 --> 00:09.0\nb\n\n00:00.0 --> 00:07.0\na\n\n00:05.0 --> 00:06.0\nc\n"
    assert [cue.text for cue in parse(text)] == ["a", "c", "b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("just words\nwithout any time", "no words with their times"),
        ("", "no words with their times"),
        ("00:01.0 --> 00:02.0\n\n", "no words with their times"),
        ("00:01.0 --> 00:02.0\n<b></b>\n", "no words with their times"),
        ("00:03.0 --> 00:02.0\nbackwards", "line 1: it ends before it begins"),
        ("1\n00:01.0 --> soon\nwhat ?", "line 2: these are no times: '00:01.0 --> soon'"),
        ("--> " + "9" * 10_000, "line 1: these are no times"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(text)


@given(st.text(max_size=200) | st.text("0123456789:.,-> \n<>&{}\\", max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        cues = parse(text)
    except ValueError:
        return
    assert cues and all(cue.start_s <= cue.end_s and cue.text.strip() == cue.text != "" for cue in cues)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_say_what_they_are_are_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.srt").write_bytes(SRT.replace("Yes", "Öl").encode(encoding))
    assert read_subtitles(tmp_path / "a.srt")[1].text == "Öl."


def test_other_encodings_are_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_bytes(SRT.replace("Yes", "Öl").encode("latin-1"))
    with pytest.raises(ValueError, match="it is not UTF-8"):
        read_subtitles(tmp_path / "a.srt")


def test_a_file_of_many_megabytes_is_not_even_read(tmp_path: Path) -> None:
    with (tmp_path / "a.srt").open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(ValueError, match="it has 100 MiB"):
        read_subtitles(tmp_path / "a.srt")
    assert LARGEST_FILE < 100 * 2**20


def test_a_long_line_of_open_tags_takes_no_time() -> None:
    assert parse("00:01.0 --> 00:02.0\n" + "<" * 200_000)[0].text == "<" * 200_000


# Rows


def test_what_is_said_becomes_rows_once(asked: Warehouse, command: Command) -> None:
    folder = asked.path.parent / "said"
    folder.mkdir()
    (folder / "cat.srt").write_text(SRT)
    result = command("transcripts", asked.path, folder)
    assert (result.code, result.out) == (0, "transcripts: 2 lines of 1 videos written\n")
    rows = asked.rows("SELECT uri, start_s, end_s, text, t.source FROM transcripts t JOIN videos USING (video_id)")
    assert sorted(row["text"] for row in rows) == ["Look at that!", "Yes."]
    assert {(row["uri"], row["source"]) for row in rows} == {("cat.mp4", "cat.srt")}
    again = command("transcripts", asked.path, folder)
    assert (again.code, again.out) == (0, "transcripts: nothing to do\n")
    assert asked.value("SELECT count(*) FROM runs") == 1


def test_files_that_are_left_out_are_told_and_the_others_are_read(asked: Warehouse, command: Command) -> None:
    folder = asked.path.parent / "said"
    folder.mkdir()
    (folder / "cat.vtt").write_text(SRT)
    (folder / "dog.srt").write_text("no times")
    (folder / "owl.srt").write_text("00:01.0 --> 00:02.0\nhoo\n\n09:00.0 --> 09:01.0\nhoo ?\n")
    (folder / "cow.srt").write_text(SRT)
    result = command("transcripts", asked.path, folder)
    assert result.code == 3 and result.out == "transcripts: 2 lines of 1 videos written, 3 files left out\n"
    assert f"left out: {folder}/cow.srt: no readable video is called cow." in result.err
    assert f"left out: {folder}/dog.srt: there are no words with their times in it" in result.err
    assert f"left out: {folder}/owl.srt: it speaks at 540 s, and the video ends at 4 s." in result.err
    assert len(json.loads(command("transcripts", asked.path, folder, "--json").out)[0]["problems"]) == 3


def test_of_several_languages_one_is_chosen(asked: Warehouse, command: Command) -> None:
    folder = asked.path.parent
    (folder / "cat.de.srt").write_text(SRT.replace("Yes", "Ja"))
    (folder / "cat.en-GB.srt").write_text(SRT)
    undecided = command("transcripts", asked.path, folder)
    assert undecided.code == 3 and "several files for one video; --language en takes" in undecided.err
    assert "nothing in the language fr" in command("transcripts", asked.path, folder, "--language", "fr").err
    assert command("transcripts", asked.path, folder, "--language", "EN").code == 0
    assert asked.value("SELECT max(text) FROM transcripts") == "Yes."
    assert "give a code" in command("transcripts", asked.path, folder, "--language", "(.*)*").err


def test_a_video_keeps_its_first_transcript(asked: Warehouse, command: Command) -> None:
    file = asked.path.parent / "cat.srt"
    file.write_text(SRT)
    command("transcripts", asked.path, file)
    file.write_text(SRT.replace("Yes", "No"))
    result = command("transcripts", asked.path, file)
    assert result.code == 3 and "has another transcript already, and keeps it." in result.err
    assert asked.value("SELECT count(*) FROM transcripts") == 2


def test_the_video_in_the_same_folder_is_meant(asked: Warehouse, command: Command) -> None:
    asked.execute("UPDATE videos SET uri = 'b/cat.mp4' WHERE uri = 'dog.mp4'")
    asked.execute("UPDATE videos SET uri = 'a/cat.mp4' WHERE uri = 'cat.mp4'")
    for name in ("a", "b", "c"):
        (asked.path.parent / name).mkdir()
        (asked.path.parent / name / "cat.srt").write_text(SRT)
    result = command("transcripts", asked.path, asked.path.parent)
    assert "c/cat.srt: 2 videos are called cat." in result.err
    assert asked.value("SELECT count(DISTINCT video_id) FROM transcripts") == 2


def test_a_folder_without_subtitles_is_a_mistake(asked: Warehouse, command: Command, tmp_path: Path) -> None:
    for folder in (tmp_path / "none", asked.path.parent):
        result = command("transcripts", asked.path, folder)
        assert result.code == 2 and f"vlm-rlaif transcripts {asked.path} FOLDER" in result.err
