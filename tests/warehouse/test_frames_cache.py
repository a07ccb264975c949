"""Frames are decoded once for everybody, and a kept frame is never a wrong one."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.warehouse.media.frame_cache import ABANDONED_S, SETTLED_S, FrameCache, folder_of
from vlm_rlaif.warehouse.media.frames import Sample
from vlm_rlaif.warehouse.media.video import VideoError, content_id, sample
from vlm_rlaif.warehouse.store import Warehouse

# A process that takes frames of a video until it is killed.
READ_ON = """
import random, sys
from pathlib import Path
from vlm_rlaif.warehouse.media.frame_cache import FrameCache

folder, video, video_id = sys.argv[1:]
print("ready", flush=True)
while True:
    FrameCache(Path(folder)).sample(Path(video), video_id, random.randint(1, 40), size=96)
"""


@pytest.fixture
def video(shapes_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(shapes_folder / "0.mp4", tmp_path / "cat.mp4"))


@pytest.fixture
def cache(tmp_path: Path) -> FrameCache:
    return FrameCache(folder_of(tmp_path / "w.duckdb"))


def entries(cache: FrameCache, suffix: str = "frames") -> dict[str, int]:
    """Name -> inode: an entry that is written anew has another one."""
    return {path.name: path.stat().st_ino for path in sorted(cache.folder.glob(f"*.{suffix}"))}


def equal(one: Sample, two: Sample) -> bool:
    return (one.frames == two.frames).all() and one.times_s == two.times_s and one.span_s == two.span_s


def test_kept_frames_are_those_of_the_video(cache: FrameCache, video: Path) -> None:
    video_id = content_id(video)
    asked: dict[str, Any] = {"start_s": 1.0, "end_s": 3.0, "size": 24}
    first = cache.sample(video, video_id, 5, **asked)
    kept = entries(cache)
    second = cache.sample(video, video_id, 5, **asked)
    assert equal(first, sample(video, 5, **asked)) and equal(second, first)
    assert second.frames.shape == (5, 24, 24, 3) and second.frames.flags.writeable
    assert len(kept) == 1 and entries(cache) == kept
    assert cache.folder.name == "w.duckdb.frames" and next(iter(kept)).startswith(video_id)


def test_every_other_request_is_an_entry_of_its_own(cache: FrameCache, video: Path) -> None:
    video_id = content_id(video)
    requests: list[dict[str, Any]] = [
        {"count": 4}, {"count": 3}, {"count": 4, "size": 8}, {"count": 4, "start_s": 1.0}, {"count": 4, "end_s": 1.0},
    ]  # fmt: skip
    for request in requests * 2:
        assert equal(cache.sample(video, video_id, **request), sample(video, **request))
    assert len(entries(cache)) == len(requests)


def test_one_content_at_two_places_is_decoded_once(cache: FrameCache, video: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(video, tmp_path / "same.mp4"))
    video_id = content_id(video)
    assert equal(cache.sample(video, video_id, 4), cache.sample(other, video_id, 4))
    assert len(entries(cache)) == 1


def test_changed_bytes_are_refused_however_they_hide(cache: FrameCache, video: Path, shapes_folder: Path) -> None:
    video_id, before = content_id(video), video.stat()
    cache.sample(video, video_id, 4)
    time.sleep(SETTLED_S + 0.1)
    cache.sample(video, video_id, 4)  # from now on it is known by its looks
    assert len(entries(cache, "seen")) == 1
    changed = bytearray(video.read_bytes())
    changed[-1] ^= 1
    with video.open("r+b") as file:  # the same file, as long as before, with the old time
        file.write(changed)
    os.utime(video, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(VideoError) as caught:
        cache.sample(video, video_id, 4)
    said = str(caught.value)
    assert video_id in said and content_id(video) in said and "Run vlm-rlaif add again." in said


def test_a_file_that_looks_as_before_is_not_read_again(cache: FrameCache, video: Path) -> None:
    video_id = content_id(video)
    time.sleep(SETTLED_S + 0.1)
    cache.sample(video, video_id, 4)
    noted = entries(cache, "seen")
    cache.sample(video, video_id, 4)
    assert len(noted) == 1 and entries(cache, "seen") == noted


def test_a_file_that_was_written_just_now_is_not_trusted_by_its_looks(cache: FrameCache, video: Path) -> None:
    cache.sample(video, content_id(video), 4)
    assert entries(cache, "seen") == {}


def test_a_missing_file_gives_no_frames_even_if_they_are_kept(cache: FrameCache, video: Path) -> None:
    video_id = content_id(video)
    cache.sample(video, video_id, 4)
    video.unlink()
    with pytest.raises(VideoError, match=r"cat\.mp4: No such file"):
        cache.sample(video, video_id, 4)


@pytest.mark.parametrize("video_id", ["../../../etc/passwd", "", "0" * 19, "G" * 20])
def test_what_is_not_a_hash_becomes_no_file_name(cache: FrameCache, video: Path, video_id: str) -> None:
    with pytest.raises(VideoError, match="is not the hash of a video"):
        cache.sample(video, video_id, 4)
    assert not cache.folder.exists()


def test_an_entry_with_any_byte_changed_is_decoded_anew(cache: FrameCache, video: Path) -> None:
    video_id, true = content_id(video), sample(video, 3, size=8)
    cache.sample(video, video_id, 3, size=8)
    (entry,) = cache.folder.glob("*.frames")
    whole = entry.read_bytes()
    for place in [*range(120), *random.Random(0).sample(range(len(whole)), 30)]:
        broken = bytearray(whole)
        broken[place] ^= 1
        entry.write_bytes(broken)
        assert equal(cache.sample(video, video_id, 3, size=8), true)
        assert entry.read_bytes() == whole


@pytest.mark.parametrize("length", [0, 5, 9, 100, -1])
def test_an_entry_that_was_cut_off_is_decoded_anew(cache: FrameCache, video: Path, length: int) -> None:
    video_id = content_id(video)
    cache.sample(video, video_id, 3, size=8)
    (entry,) = cache.folder.glob("*.frames")
    whole = entry.read_bytes()
    entry.write_bytes(whole[:length])
    assert equal(cache.sample(video, video_id, 3, size=8), sample(video, 3, size=8))
    assert entry.read_bytes() == whole


def test_an_entry_under_the_name_of_another_is_not_taken(cache: FrameCache, video: Path) -> None:
    video_id = content_id(video)
    cache.sample(video, video_id, 3, size=8)
    (three,) = cache.folder.glob("*.frames")
    cache.sample(video, video_id, 4, size=8)
    (four,) = set(cache.folder.glob("*.frames")) - {three}
    shutil.copy(three, four)
    assert cache.sample(video, video_id, 4, size=8).frames.shape[0] == 4


def test_a_damaged_video_is_not_kept(cache: FrameCache, video: Path) -> None:
    whole = video.read_bytes()
    video.write_bytes(whole[: len(whole) * 3 // 4])  # its index is at the front
    assert cache.sample(video, content_id(video), 4).damaged
    assert entries(cache) == {}


def test_a_folder_of_frames_is_kept_and_watched(cache: FrameCache, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for place in range(3):  # a picture of one pixel: BMP, 24 bits
        header = "424d3a0000000000000036000000280000000100000001000000010018000000000004000000" + 32 * "0"
        (folder / f"{place}.bmp").write_bytes(bytes.fromhex(header) + bytes([60 * place] * 3 + [0]))
    video_id = content_id(folder)
    first = cache.sample(folder, video_id, 3)
    assert first.frames.ravel().tolist() == [0, 0, 0, 60, 60, 60, 120, 120, 120]
    assert equal(cache.sample(folder, video_id, 3), first) and len(entries(cache)) == 1
    (folder / "1.bmp").rename(folder / "9.bmp")
    with pytest.raises(VideoError, match="it is not the video"):
        cache.sample(folder, video_id, 3)


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path, video: Path) -> None:
    cache = FrameCache(tmp_path / "small", most_bytes=400_000)
    video_id = content_id(video)
    cache.sample(video, video_id, 10, size=32)
    (favourite,) = cache.folder.glob("*.frames")
    for number in range(30):
        cache.sample(video, video_id, 10, start_s=0.01 * (number + 1), size=32)
        cache.sample(video, video_id, 10, size=32)
    cache.sweep()
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= 400_000
    assert favourite.exists() and 3 < len(entries(cache)) < 30


def test_one_entry_does_not_push_out_all_others(tmp_path: Path, video: Path) -> None:
    cache = FrameCache(tmp_path / "small", most_bytes=100_000)
    cache.sample(video, content_id(video), 10, size=96)
    assert entries(cache) == {}


def test_leftovers_of_killed_processes_are_swept(cache: FrameCache, video: Path) -> None:
    cache.sample(video, content_id(video), 4)
    old, new = cache.folder / "a.frames.1.tmp", cache.folder / "a.frames.2.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - ABANDONED_S - 1,) * 2)
    cache.sweep()
    assert not old.exists() and new.exists() and len(entries(cache)) == 1


def test_without_a_place_for_it_frames_are_decoded(tmp_path: Path, video: Path) -> None:
    cache = FrameCache(tmp_path / "a file" / "frames")
    (tmp_path / "a file").write_text("")
    assert equal(cache.sample(video, content_id(video), 4), sample(video, 4))


def test_a_disk_without_room_means_that_nothing_is_kept(cache: FrameCache, video: Path) -> None:
    cache.folder.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # every write beyond fails, as on a full disk
    try:
        taken = cache.sample(video, content_id(video), 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert equal(taken, sample(video, 4))
    assert entries(cache) == {} and not list(cache.folder.glob("*.tmp"))


def test_many_at_once_get_the_same_frames(cache: FrameCache, video: Path) -> None:
    video_id, counts = content_id(video), [2, 3, 5] * 8
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda count: cache.sample(video, video_id, count), counts))
    for count, taken in zip(counts, found, strict=True):
        assert equal(taken, sample(video, count))
    assert len(entries(cache)) == 3 and not list(cache.folder.glob("*.tmp"))


def test_a_process_that_is_killed_leaves_no_wrong_frames(cache: FrameCache, video: Path) -> None:
    video_id = content_id(video)
    command = [sys.executable, "-c", READ_ON, str(cache.folder), str(video), video_id]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for reader in readers:
        assert reader.stdout and reader.stdout.readline() == "ready\n"
    time.sleep(0.3)
    for reader in readers:
        reader.send_signal(signal.SIGKILL)
        reader.communicate()
    for count in range(1, 41):
        assert equal(cache.sample(video, video_id, count, size=96), sample(video, count, size=96))


def test_a_stage_reads_through_the_cache(shapes_folder: Path, warehouse: Warehouse) -> None:
    pytest.importorskip("torch")
    from vlm_rlaif.datagen.engine import VideoPart
    from vlm_rlaif.datagen.engines.clips import read_clip
    from vlm_rlaif.warehouse.config import Frames

    path = shapes_folder / "1.mp4"
    row = {"uri": str(path), "video_id": content_id(path)}
    frames = Frames(count=3, size=16, repeat=2)
    part = VideoPart.of(warehouse, row, frames, 1.0, 3.0)
    clip = read_clip(part)
    assert (clip.frames[::2] == sample(path, 3, start_s=1.0, end_s=3.0, size=16).frames).all()
    assert [name[:20] for name in entries(FrameCache(folder_of(warehouse.path)))] == [row["video_id"]]
    assert (read_clip(part).frames == clip.frames).all()
    without = VideoPart.of(warehouse, {"uri": str(path)}, frames, 1.0, 3.0)
    assert (read_clip(without).frames == clip.frames).all()
