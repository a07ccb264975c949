"""A folder of pictures is a video of one frame a second, whatever the folder is called and wherever it lies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from vlm_rlaif.warehouse.media.frame_folder import frame_files, hash_folder, is_frame_folder
from vlm_rlaif.warehouse.media.frames import Pixels
from vlm_rlaif.warehouse.media.video import VideoError, content_id, probe, sample

ENCODERS = {
    ".png": ("png", "rgb24"),
    ".jpg": ("mjpeg", "yuvj444p"),
    ".webp": ("libwebp", "bgra"),
    ".bmp": ("bmp", "bgr24"),
}


def picture(grey: int, size: int = 32) -> Pixels:
    return np.full((size, size, 3), grey, np.uint8)


def write_picture(path: Path, pixels: Pixels) -> None:
    encoder, pixel_format = ENCODERS[path.suffix.lower()]
    context = av.CodecContext.create(encoder, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.height, context.width = pixels.shape[:2]
    context.pix_fmt = pixel_format
    context.time_base = 1  # type: ignore[assignment]
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel_format)
    path.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode()]))


def write_folder(path: Path, greys: Sequence[int], name: str = "frame_{}.png") -> Path:
    path.mkdir()
    for place, grey in enumerate(greys):
        write_picture(path / name.format(place), picture(grey))
    return path


def greys(frames: Pixels) -> list[int]:
    return [round(float(frame.mean())) for frame in frames]


@pytest.fixture
def twelve(tmp_path: Path) -> Path:
    """Frames 0 to 11; frame n is 20 n grey."""
    return write_folder(tmp_path / "twelve", [20 * n for n in range(12)])


def test_frame_ten_comes_after_frame_nine(twelve: Path) -> None:
    assert [file.name for file in frame_files(twelve)] == [f"frame_{n}.png" for n in range(12)]
    assert greys(sample(twelve, 12).frames) == [20 * n for n in range(12)]


def test_a_frame_is_on_display_for_a_second(twelve: Path) -> None:
    taken = sample(twelve, 3)
    assert greys(taken.frames) == [40, 120, 200] and taken.times_s == (2, 6, 10) and taken.span_s == 12
    taken = sample(twelve, 4, start_s=2, end_s=4)
    assert greys(taken.frames) == [40, 40, 60, 60] and taken.times_s == (2, 2, 3, 3)
    assert not taken.damaged


def test_a_part_beyond_the_last_frame_is_what_is_there(twelve: Path) -> None:
    taken = sample(twelve, 2, start_s=10, end_s=20)
    assert greys(taken.frames) == [200, 220] and taken.span_s == 2 and taken.damaged
    with pytest.raises(VideoError, match=r"twelve: no frame is on display at 12\.00 s, the video ends at 12\.00 s"):
        sample(twelve, 1, start_s=12)


def test_probe_says_what_the_folder_is(twelve: Path) -> None:
    found = probe(twelve)
    assert (found.duration_s, found.fps, found.frames, found.codec) == (12, 1, 12, "frames")
    assert (found.width, found.height, found.rotation) == (32, 32, 0)


@pytest.mark.parametrize("suffix", ENCODERS)
def test_every_kind_of_picture_is_read(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    pixels = np.repeat(pixels, 8, 1).repeat(8, 0)
    (tmp_path / "frames").mkdir()
    write_picture(tmp_path / "frames" / f"0{suffix}", pixels)
    found = sample(tmp_path / "frames", 1).frames[0]
    assert found.shape == pixels.shape
    assert np.abs(found.astype(int) - pixels).mean() < (0.5 if suffix in (".png", ".bmp") else 8)


def test_names_are_only_names(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "odd names", [0, 100, 200], "%03d {} ä.PNG")
    assert greys(sample(folder, 3).frames) == [0, 100, 200]


def test_what_is_no_picture_by_its_name_is_no_frame(twelve: Path) -> None:
    for name in ("labels.json", ".frame_0.png", "._frame_1.png"):
        (twelve / name).write_bytes(b"{}")
    write_folder(twelve / "thumbnails", [7])
    assert len(frame_files(twelve)) == 12


def test_a_folder_of_frames_holds_pictures_directly(twelve: Path, tmp_path: Path) -> None:
    assert is_frame_folder(twelve)
    assert not is_frame_folder(tmp_path)
    assert not is_frame_folder(tmp_path / "missing")
    assert not is_frame_folder(twelve / "frame_0.png")


def test_equal_frames_in_equal_order_are_one_video(twelve: Path, tmp_path: Path) -> None:
    same = write_folder(tmp_path / "same", [20 * n for n in range(12)], "{}.png")
    assert hash_folder(same) == hash_folder(twelve) == content_id(twelve)
    assert len(hash_folder(same)) == 20


CHANGES: dict[str, Callable[[Path], object]] = {
    "another order": lambda folder: (folder / "frame_3.png").rename(folder / "frame_20.png"),
    "a frame less": lambda folder: (folder / "frame_11.png").unlink(),
    "a frame more": lambda folder: shutil.copy(folder / "frame_11.png", folder / "frame_12.png"),
    "another byte": lambda folder: (folder / "frame_5.png").write_bytes((folder / "frame_5.png").read_bytes() + b"x"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_change_of_the_frames_makes_another_video(twelve: Path, change: Callable[[Path], object]) -> None:
    before = hash_folder(twelve)
    change(twelve)
    assert hash_folder(twelve) != before


def test_frames_of_several_sizes_need_a_size(twelve: Path) -> None:
    write_picture(twelve / "frame_6.png", picture(0, size=16))
    with pytest.raises(VideoError, match="frames change size within the video; sample it with a size"):
        sample(twelve, 12)
    assert sample(twelve, 12, size=8).frames.shape == (12, 8, 8, 3)


def test_a_link_must_stay_in_its_folder(twelve: Path, tmp_path: Path) -> None:
    (twelve / "frame_12.png").symlink_to("frame_0.png")
    assert len(frame_files(twelve)) == 13
    write_picture(tmp_path / "secret.png", picture(1))
    (twelve / "frame_13.png").symlink_to(tmp_path / "secret.png")
    for read in (probe, hash_folder, frame_files):
        with pytest.raises(VideoError, match=r"frame_13\.png: it leads out of its folder"):
            read(twelve)


def test_a_folder_may_itself_be_reached_by_a_link(twelve: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(twelve)
    assert hash_folder(tmp_path / "link") == hash_folder(twelve)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda file: file.write_text("no picture"), "it is not a picture"),
    "empty": (lambda file: file.write_bytes(b""), "it is not a picture"),
    "a playlist": (lambda file: file.write_text("ffconcat version 1.0\nfile frame_1.png\n"), "it is not a picture"),
    "a pipe": (lambda file: os.mkfifo(file), "it is a named pipe, not a file"),
    "a folder": (lambda file: file.mkdir(), "it is a folder, not a file"),
    "a link to itself": (lambda file: file.symlink_to(file.name), "Too many levels of symbolic links"),
    "a link to nothing": (lambda file: file.symlink_to("frame_99.png"), "No such file"),
}


@pytest.mark.parametrize(("make", "what"), BAD.values(), ids=BAD)
def test_a_frame_that_cannot_be_read_is_named(twelve: Path, make: Callable[[Path], object], what: str) -> None:
    (twelve / "frame_0.png").unlink()
    make(twelve / "frame_0.png")
    for read in (probe, lambda path: sample(path, 12)):
        with pytest.raises(VideoError, match=rf"frame_0\.png: {what}"):
            read(twelve)


def test_a_folder_without_pictures_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"it is a folder without pictures \(\.bmp, \.jpeg, \.jpg, \.png, \.webp\)"):
        probe(tmp_path)
