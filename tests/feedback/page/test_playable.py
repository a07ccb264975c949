"""Videos that browsers play: the file itself, or a copy with the same pictures at the same seconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vlm_rlaif.feedback.page.playable import playable
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.media.frame_cache import proxies_of
from vlm_rlaif.warehouse.media.frames import VideoError
from vlm_rlaif.warehouse.media.video import content_id, probe
from vlm_rlaif.warehouse.store import Warehouse


def write(path: Path, codec: str, pixels: str, size: tuple[int, int] = (64, 48), times: tuple[int, ...] = ()) -> Path:
    """Grey pictures, picture n of brightness 20 n, at these twenty-fifths of a second."""
    with av.open(str(path), "w") as box:
        stream = box.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        for n, at in enumerate(times or range(10)):
            grey = np.full((size[1], size[0], 3), 20 * n, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(*size, pixels)
            frame.pts, frame.time_base = at, 1 / stream.average_rate
            box.mux(stream.encode(frame))
        box.mux(stream.encode())
    return path


def grey_by_time(path: Path) -> list[tuple[float, int]]:
    """(seconds, twentieths of brightness) of every picture."""
    with av.open(str(path)) as box:
        return [
            (round(f.time or 0.0, 3), round(f.to_ndarray(format="rgb24").mean() / 20)) for f in box.decode(video=0)
        ]


def row(path: Path) -> dict[str, str]:
    return {"video_id": content_id(path), "uri": str(path)}


@pytest.fixture
def proxies(warehouse: Warehouse) -> Path:
    return proxies_of(warehouse.path)


def test_what_browsers_play_is_the_file_itself(warehouse: Warehouse, proxies: Path, shapes_folder: Path) -> None:
    for path in (shapes_folder / "0.mp4", write(warehouse.folder / "9.webm", "libvpx-vp9", "yuv420p")):
        assert playable(warehouse, row(path), proxies) == path
    assert not proxies.exists()


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("x.avi", "mpeg4", "yuv420p"), ("x.mkv", "libx264", "yuv420p"), ("x.mp4", "libx264", "yuv444p"),
     ("ten_bits.mp4", "libx264", "yuv420p10le"), ("x.mp4", "mpeg4", "yuv420p"), ("x.ts", "mpeg2video", "yuv420p")],
)  # fmt: skip
def test_anything_else_gets_an_h264_copy_with_the_same_pictures(
    warehouse: Warehouse, proxies: Path, name: str, codec: str, pixels: str
) -> None:
    path = write(warehouse.folder / name, codec, pixels)
    copy = playable(warehouse, row(path), proxies)
    assert copy.parent == proxies
    assert grey_by_time(copy) == [(round(n / 25, 3), n) for n in range(10)]
    found = probe(copy)
    assert (found.codec, found.duration_s, found.width, found.height) == ("h264", pytest.approx(0.4), 64, 48)
    assert [file.name for file in proxies.iterdir()] == [copy.name]


def test_unequal_times_stay_as_they_are(warehouse: Warehouse, proxies: Path) -> None:
    path = write(warehouse.folder / "x.mkv", "libx264", "yuv420p", times=(0, 1, 2, 30, 31, 90))
    copy = playable(warehouse, row(path), proxies)
    assert [time for time, _ in grey_by_time(copy)] == [0.0, 0.04, 0.08, 1.2, 1.24, 3.6]


def test_big_pictures_become_smaller_and_odd_sides_even(warehouse: Warehouse, proxies: Path) -> None:
    path = write(warehouse.folder / "x.mkv", "libx264", "yuv444p", size=(2001, 33), times=(0, 1))
    found = probe(playable(warehouse, row(path), proxies))
    assert (found.width, found.height) == (1280, 22)


def test_a_copy_is_made_once(warehouse: Warehouse, proxies: Path) -> None:
    path = write(warehouse.folder / "x.avi", "mpeg4", "yuv420p")
    first = playable(warehouse, row(path), proxies)
    made = first.stat().st_mtime_ns
    path_of = row(path)
    path.unlink()  # the copy stands for it
    assert playable(warehouse, path_of, proxies).stat().st_mtime_ns == made


def test_a_folder_of_frames_becomes_a_video_of_one_picture_a_second(warehouse: Warehouse, proxies: Path) -> None:
    folder = warehouse.folder / "frames"
    folder.mkdir()
    for n in range(3):
        Image.new("RGB", (40, 30), (20 * n,) * 3).save(folder / f"{n}.png")
    copy = playable(warehouse, row(folder), proxies)
    assert grey_by_time(copy) == [(0.0, 0), (1.0, 1), (2.0, 2)]
    assert probe(copy).duration_s == pytest.approx(3.0)
    Image.new("RGB", (40, 30)).save(folder / "1.png")
    copy.unlink()
    with pytest.raises(VideoError, match="not the video"):
        playable(warehouse, {"video_id": copy.stem, "uri": str(folder)}, proxies)


def test_a_file_that_is_gone_or_another_one_is_refused(
    warehouse: Warehouse, proxies: Path, shapes_folder: Path
) -> None:
    path = Path(shutil.copy(shapes_folder / "0.mp4", warehouse.folder / "x.mp4"))
    known = {"video_id": content_id(path), "uri": "x.mp4"}
    assert playable(warehouse, known, proxies) == path
    shutil.copy(shapes_folder / "1.mp4", path)
    with pytest.raises(VideoError, match="it is not the video"):
        playable(warehouse, known, proxies)
    path.unlink()
    with pytest.raises(VideoError, match="No such file"):
        playable(warehouse, known, proxies)


def test_a_link_to_something_else_is_refused(warehouse: Warehouse, proxies: Path, shapes_folder: Path) -> None:
    secret = warehouse.folder / "secret.txt"
    secret.write_text("not for browsers")
    (warehouse.folder / "x.mp4").symlink_to(secret)
    for uri in ("x.mp4", "../" * 20 + str(secret), str(secret)):
        with pytest.raises(VideoError, match="it is not the video"):
            playable(warehouse, {"video_id": content_id(shapes_folder / "0.mp4"), "uri": uri}, proxies)


def test_what_is_no_video_is_said(warehouse: Warehouse, proxies: Path) -> None:
    (warehouse.folder / "x.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"x\.mp4: Invalid data"):
        playable(warehouse, row(warehouse.folder / "x.mp4"), proxies)


def test_a_folder_that_cannot_be_written_is_said(warehouse: Warehouse, proxies: Path) -> None:
    path = write(warehouse.folder / "x.avi", "mpeg4", "yuv420p")
    proxies.write_text("in the way")
    with pytest.raises(UserError, match=r"copy of .* for browsers cannot be written"):
        playable(warehouse, row(path), proxies)
