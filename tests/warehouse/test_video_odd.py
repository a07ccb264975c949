"""On files that decoders get wrong, frames equal a plain decode of everything, or the status says why not.

The files come from `tests/odd_videos.py`, which needs ffmpeg; every frame of them carries its number.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlm_rlaif.warehouse.media.decord_backend import sample_decord
from vlm_rlaif.warehouse.media.frames import Pixels, centres
from vlm_rlaif.warehouse.media.reader import open_reader
from vlm_rlaif.warehouse.media.video import Mode, VideoError, probe, sample

spec = importlib.util.spec_from_file_location("odd_videos", Path(__file__).parents[1] / "odd_videos.py")
assert spec and spec.loader
odd: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(odd)

MODES: tuple[Mode, ...] = ("auto", "seek", "read")
COUNTS = (8, 50)
DECORD_IS_WRONG = {"edit_list.mp4", "open_gop.mp4", "mpegts.ts", "mpeg4.avi", "mpeg2.mpg"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("ffmpeg"):
        pytest.skip("ffmpeg is not installed: the odd files cannot be made (apt-get install ffmpeg)")
    made = tmp_path_factory.mktemp("odd")
    odd.make(made)
    return made


def file(folder: Path, name: str) -> Path:
    if name in odd.CODECS and not (folder / name).exists():
        pytest.skip(f"this ffmpeg does not write {name}: it has no {odd.CODECS[name][0]}")
    return folder / name


@functools.lru_cache(maxsize=1)
def decode_all(path: Path) -> tuple[list[float], list[Pixels]]:
    found: tuple[list[float], list[Pixels]] = odd.decode_all(path)
    return found


@pytest.mark.parametrize("name", odd.INTACT)
def test_every_frame_is_on_display_when_its_number_says(folder: Path, name: str) -> None:
    times_s, pictures = decode_all(file(folder, name))
    found = odd.numbers(name, pictures)
    assert -1 not in found and found == sorted(set(found)), "a frame is unreadable, doubled or out of order"
    if name == "slow_then_fast.mp4":
        assert times_s == pytest.approx([n / 5 if n < 30 else (120 + n) / odd.FPS for n in found])
    else:
        assert times_s == pytest.approx([(n - found[0]) / odd.FPS for n in found], abs=1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", odd.INTACT)
def test_frames_of_an_intact_file_are_those_of_a_decode_of_everything(folder: Path, name: str, mode: Mode) -> None:
    path = file(folder, name)
    times_s, pictures = decode_all(path)
    wanted: list[dict[str, Any]] = [{"count": count} for count in (1, 8, 20)]
    if probe(path).duration_s > 1:
        wanted.append({"count": 5, "start_s": 0.33, "end_s": 1.61})
    for part in wanted:
        taken = sample(path, mode=mode, **part)
        moments = np.asarray(centres(part.get("start_s", 0.0), taken.span_s, part["count"]))
        places = np.searchsorted(times_s, moments + 1e-6, side="right") - 1
        assert taken.times_s == tuple(times_s[place] for place in places)
        assert all((frame == pictures[place]).all() for frame, place in zip(taken.frames, places, strict=True))
        assert not taken.damaged


@pytest.mark.parametrize("name", ["source.mp4", "long_gop.mp4", "unequal_times.mp4", "edit_list.mp4", "live.mkv"])
def test_shortcuts_hold_on_files_of_every_day(folder: Path, name: str) -> None:
    with open_reader(folder / name, time.monotonic() + 60, "auto", threads=1) as reader:  # `Lost` would be raised
        assert len(list(reader.show_each(centres(0, 2.0, 8)))) == 8
        assert reader.end_of(None) > 2


@pytest.mark.parametrize("name", odd.INTACT)
def test_probe_knows_an_odd_file(folder: Path, name: str) -> None:
    times_s, pictures = decode_all(file(folder, name))
    found = probe(folder / name)
    assert (found.height, found.width) == pictures[0].shape[:2]
    assert times_s[-1] < found.duration_s < times_s[-1] + 0.3
    assert found.rotation == (90 if name == "rotated.mp4" else 0)


@pytest.mark.parametrize("name", odd.DAMAGED)
def test_a_damaged_file_gives_frames_and_says_so(folder: Path, name: str) -> None:
    for mode in MODES:
        assert sample(folder / name, 8, mode=mode).damaged
    assert probe(folder / name).duration_s > 1


@pytest.mark.parametrize(("name", "what"), odd.UNREADABLE.items())
def test_an_unreadable_file_says_what_is_wrong(folder: Path, name: str, what: str) -> None:
    for read in (probe, lambda path: sample(path, 2)):
        with pytest.raises(VideoError, match=what) as caught:
            read(folder / name)
        assert name in str(caught.value)


def test_a_stream_that_begins_late_is_passed_over(folder: Path, tmp_path: Path) -> None:
    sound = ("-f", "lavfi", "-i", "sine=duration=5", "-c:a", "mp2", "-output_ts_offset", "5")
    odd.ffmpeg("-i", str(folder / "source.mp4"), *sound, "-c:v", "copy", str(tmp_path / "second.ts"))
    path = tmp_path / "joined.ts"
    path.write_bytes((folder / "mpegts.ts").read_bytes() + (tmp_path / "second.ts").read_bytes())
    found = odd.numbers(path.name, sample(path, 4, start_s=0, end_s=10).frames)
    assert found == pytest.approx([31, 93, 31, 93], abs=1)


def decord_alone(decord: Any, path: Path, count: int) -> tuple[list[int], Pixels]:
    """(places among its frames, pictures) that decord returns when nobody checks it."""
    reader = decord.VideoReader(str(path), num_threads=1)
    places = [int(place) for place in centres(0, len(reader), count)]
    return places, reader.get_batch(places).asnumpy()


@pytest.mark.parametrize("name", odd.INTACT)
def test_decord_is_refused_exactly_where_it_returns_wrong_frames(folder: Path, name: str) -> None:
    decord = pytest.importorskip("decord", reason="decord is not installed (pip install decord)")
    path = file(folder, name)
    truth = dict(enumerate(odd.numbers(name, decode_all(path)[1])))
    wrong = 0
    for count in COUNTS:
        try:
            places, pictures = decord_alone(decord, path, count)
        except (decord.DECORDError, RuntimeError):
            with pytest.raises(VideoError, match="decord cannot read it"):
                sample_decord(path, count)
            continue
        wrong += sum(n != truth.get(place) for n, place in zip(odd.numbers(name, pictures), places, strict=True))
        if name in DECORD_IS_WRONG:
            with pytest.raises(VideoError, match="decord"):
                sample_decord(path, count)
        else:
            ours, theirs = sample(path, count), sample_decord(path, count)
            assert ours.times_s == theirs.times_s
            assert np.abs(ours.frames.astype(int) - theirs.frames).mean() < (2 if "10_bit" in name else 1e-9)
    assert (wrong > 0) == (name in DECORD_IS_WRONG)
