"""Frames are the ones on display at the times asked for, whatever the file's header says.

Every clip is made here; each of its frames carries its number as black and white blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from vlm_rlaif.datagen.shapes.render import draw, poses, write_mp4
from vlm_rlaif.datagen.shapes.world import World
from vlm_rlaif.warehouse.media.decord_backend import sample_decord
from vlm_rlaif.warehouse.media.frames import centres, scale_by_area, upright
from vlm_rlaif.warehouse.media.video import Mode, Sample, VideoError, hash_file, probe, sample

BLOCK = 24
GRID = 4
FPS = 10
MODES: tuple[Mode, ...] = ("auto", "seek", "read")

Pixels = NDArray[np.uint8]


def picture(number: int) -> Pixels:
    """96 x 96: a white block, eight bits (lowest first), the rest black."""
    cells = [True, *(bool(number >> bit & 1) for bit in range(8)), *[False] * 7]
    grid = np.array(cells, np.uint8).reshape(GRID, GRID) * 255
    return np.repeat(grid.repeat(BLOCK, 0).repeat(BLOCK, 1)[..., None], 3, axis=2)


def number(frame: Pixels) -> int:
    """The number that a frame carries, at any size; fails where there is none."""
    block = len(frame) // GRID
    cells = frame.reshape(GRID, block, GRID, block, 3).mean((1, 3, 4)).ravel() > 128
    assert cells[0] and not cells[9:].any(), "this frame carries no number"
    return sum(int(bit) << place for place, bit in enumerate(cells[1:9]))


def numbers(taken: Sample) -> list[int]:
    return [number(frame) for frame in taken.frames]


def write_clip(
    path: Path, count: int, *, at_ms: Sequence[int] | None = None, keyframe_every: int = 250, turn: int = 0
) -> Path:
    """`count` numbered frames at 10 per second, or at the given times; stored turned by `turn` quarters."""
    options = {"movflags": "+faststart"} if path.suffix == ".mp4" else {}
    tick = Fraction(1, 1000) if at_ms else Fraction(1, FPS)
    with av.open(str(path), "w", options=options) as box:
        stream = box.add_stream("libx264", rate=FPS)
        stream.width = stream.height = GRID * BLOCK
        stream.pix_fmt = "yuv420p"
        stream.gop_size = keyframe_every
        stream.codec_context.time_base = tick
        stream.options = {"crf": "20", "preset": "veryfast", "threads": "1", "sc_threshold": "0"}
        if turn:
            stream.set_display_rotation(90 * turn)
        for step in range(count):
            stored = np.ascontiguousarray(np.rot90(picture(step), -turn))
            frame = av.VideoFrame.from_ndarray(stored, format="rgb24")
            frame.pts, frame.time_base = (at_ms[step] if at_ms else step), tick
            box.mux(stream.encode(frame))
        box.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames, 6 s, a keyframe every second."""
    return write_clip(tmp_path_factory.mktemp("steady") / "steady.mp4", 60, keyframe_every=10)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A faststart file whose header promises 20 s; the second half of its bytes is missing."""
    folder = tmp_path_factory.mktemp("cut")
    whole = write_clip(folder / "whole.mp4", 200, keyframe_every=10).read_bytes()
    path = folder / "cut.mp4"
    path.write_bytes(whole[: len(whole) * 55 // 100])
    return path


def test_a_clip_is_sampled_at_the_centres_of_equal_parts(steady: Path) -> None:
    taken = sample(steady, 4)
    assert numbers(taken) == [7, 22, 37, 52]
    assert taken.times_s == pytest.approx((0.7, 2.2, 3.7, 5.2))
    assert taken.span_s == pytest.approx(6.0) and not taken.damaged
    assert taken.frames.shape == (4, 96, 96, 3) and taken.frames.dtype == np.uint8


def test_a_part_of_a_video_is_divided_alone(steady: Path) -> None:
    taken = sample(steady, 3, start_s=2.0, end_s=5.0)
    assert numbers(taken) == [25, 35, 45] and taken.span_s == 3.0
    assert numbers(sample(steady, 2, start_s=4.0)) == [45, 55]
    assert numbers(sample(steady, 2, end_s=2.0)) == [5, 15]


def test_more_frames_than_the_video_has_repeats_them(tmp_path: Path) -> None:
    taken = sample(write_clip(tmp_path / "two.mp4", 2), 4)
    assert numbers(taken) == [0, 0, 1, 1] and taken.times_s == pytest.approx((0, 0, 0.1, 0.1))


def test_a_frame_that_starts_at_the_target_is_on_display(steady: Path) -> None:
    for step in range(1, 55):
        middle_s = step / FPS  # the centre of one part around it; floating point makes it miss by a hair
        assert numbers(sample(steady, 1, start_s=middle_s - 0.1, end_s=middle_s + 0.1, size=4)) == [step]


def test_frames_at_a_variable_rate_stay_on_display_until_the_next(tmp_path: Path) -> None:
    times_ms = [0, 100, 200, 1500, 1600, 3000, 3100, 3900]
    path = write_clip(tmp_path / "vfr.mp4", 8, at_ms=times_ms)
    for mode in ("seek", "read"):
        taken = sample(path, 8, start_s=0, end_s=4, mode=mode)
        assert numbers(taken) == [2, 2, 2, 4, 4, 4, 6, 6]
        assert taken.times_s == pytest.approx((0.2, 0.2, 0.2, 1.6, 1.6, 1.6, 3.1, 3.1))
    assert sample(path, 1).span_s == pytest.approx(probe(path).duration_s)
    assert 3.9 <= probe(path).duration_s < 5


@pytest.mark.parametrize("keyframe_every", [1, 7, 250])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_seeking_and_reading_give_the_same_frames(tmp_path: Path, suffix: str, keyframe_every: int) -> None:
    path = write_clip(tmp_path / f"clip{suffix}", 50, keyframe_every=keyframe_every)
    parts: list[dict[str, Any]] = [{}, {"start_s": 1.25}, {"start_s": 0.5, "end_s": 3.25}]
    for part in parts:
        read = sample(path, 6, mode="read", **part)
        for mode in ("seek", "auto"):
            other = sample(path, 6, mode=mode, **part)
            assert numbers(other) == numbers(read) and other.times_s == read.times_s
            assert other.span_s == read.span_s and not other.damaged
            assert (other.frames == read.frames).all()


def test_long_gaps_are_jumped_over_and_short_ones_read(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "long.mp4", 250, keyframe_every=20)
    assert numbers(sample(path, 3)) == numbers(sample(path, 3, mode="read")) == [41, 125, 208]
    assert numbers(sample(path, 20)) == numbers(sample(path, 20, mode="read"))


def test_a_transport_stream_starts_at_zero(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.ts", 50, keyframe_every=10)
    with av.open(str(path)) as box:
        assert (box.streams.video[0].start_time or 0) > 0  # its own clock does not
    taken = sample(path, 5)
    assert numbers(taken) == [5, 15, 25, 35, 45]
    assert taken.times_s == pytest.approx((0.5, 1.5, 2.5, 3.5, 4.5)) and not taken.damaged
    assert probe(path).duration_s == pytest.approx(5.0)


def cut_by_edit_list(source: Path, path: Path, first: int) -> Path:
    """The video from frame `first` on without encoding it anew: frames since its keyframe stay, but hidden."""
    with av.open(str(source)) as old, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as box:
        stream = box.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.pts is None or packet.dts is None or packet.time_base is None:
                continue
            ticks = round(1 / FPS / packet.time_base)
            shift, keyframe = first * ticks, first // 10 * 10 * ticks
            if packet.pts >= keyframe:
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = stream
                box.mux(packet)
    return path


def test_frames_hidden_by_an_edit_list_are_not_on_display(steady: Path, tmp_path: Path) -> None:
    path = cut_by_edit_list(steady, tmp_path / "edited.mp4", 33)
    for mode in MODES:
        taken = sample(path, 3, mode=mode)
        assert numbers(taken) == [37, 46, 55] and not taken.damaged
        assert taken.times_s == pytest.approx((0.4, 1.3, 2.2)) and taken.span_s == pytest.approx(2.7)
    assert probe(path).frames == 30  # the header counts the hidden ones


@pytest.mark.skipif(not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV writes no display matrix")
@pytest.mark.parametrize("turn", [1, 2, 3])
def test_a_rotated_video_comes_upright(tmp_path: Path, turn: int) -> None:
    path = write_clip(tmp_path / "rotated.mp4", 20, turn=turn)
    assert numbers(sample(path, 2)) == [5, 15]
    assert probe(path).rotation == 90 * turn


def test_turning_is_counter_clockwise_and_swaps_the_sides() -> None:
    wide = np.zeros((2, 4, 3), np.uint8)
    wide[0, -1] = 255  # upper right
    assert upright(wide, 90).shape == (4, 2, 3) and upright(wide, 90)[0, 0, 0] == 255  # upper left
    assert upright(wide, -90)[-1, -1, 0] == 255 and upright(wide, 270)[-1, -1, 0] == 255
    assert (upright(wide, 0) == wide).all()


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "one.mp4", 1)
    for mode in MODES:
        taken = sample(path, 3, mode=mode)
        assert numbers(taken) == [0, 0, 0] and taken.times_s == (0, 0, 0) and not taken.damaged
    assert probe(path).duration_s > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_truncated_file_is_divided_by_the_time_that_is_there(cut: Path, mode: Mode) -> None:
    taken = sample(cut, 4, mode=mode)
    real_s = probe(cut).duration_s
    assert 5 < real_s < 15 and taken.span_s == pytest.approx(real_s) and taken.damaged
    assert numbers(taken) == [int(FPS * second + 1e-6) for second in centres(0, taken.span_s, 4)]


@pytest.mark.parametrize("mode", MODES)
def test_a_part_that_the_file_does_not_reach(cut: Path, mode: Mode) -> None:
    taken = sample(cut, 2, start_s=2.0, end_s=18.0, mode=mode)
    assert taken.damaged and taken.span_s == pytest.approx(probe(cut).duration_s - 2)
    with pytest.raises(VideoError, match=r"cut\.mp4: no frame is on display at 18\.00 s, the video ends at"):
        sample(cut, 2, start_s=18.0, end_s=19.0, mode=mode)


def test_a_damaged_file_is_read_the_same_way_in_every_mode(steady: Path, tmp_path: Path) -> None:
    rotten = bytearray(steady.read_bytes())
    rotten[len(rotten) // 2 : len(rotten) // 2 + 400] = b"\xff" * 400
    path = tmp_path / "rotten.mp4"
    path.write_bytes(rotten)
    found = [sample(path, 8, mode=mode) for mode in ("seek", "read")]
    assert found[0].times_s == found[1].times_s and found[1].damaged


def test_probe_says_what_the_file_is(steady: Path) -> None:
    found = probe(steady)
    assert (found.width, found.height, found.codec, found.rotation) == (96, 96, "h264", 0)
    assert found.duration_s == pytest.approx(6.0) and found.fps == pytest.approx(FPS) and found.frames == 60


def test_probe_finds_the_duration_that_a_header_leaves_out(steady: Path, tmp_path: Path) -> None:
    path = tmp_path / "bare.h264"
    with av.open(str(steady)) as source, av.open(str(path), "w", format="h264") as box:
        stream = box.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                box.mux(packet)
    with av.open(str(path)) as box:
        assert not box.streams.video[0].duration and not box.duration
    assert probe(path).duration_s == pytest.approx(6.0)
    taken = sample(path, 4)
    assert numbers(taken) == [7, 22, 37, 52] and not taken.damaged


def without_video(path: Path) -> None:
    with av.open(str(path), "w") as box:
        stream = box.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        box.mux(stream.encode(frame))
        box.mux(stream.encode())


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing.mp4": (lambda path: None, "No such file"),
    "zero_bytes.mp4": (lambda path: path.write_bytes(b""), "Invalid data"),
    "garbage.mp4": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(20_000)), "Invalid data"),
    "folder.mp4": (lambda path: path.mkdir(), "folder without pictures"),
    "audio_only.mp4": (without_video, "no video stream"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("read", [probe, lambda path: sample(path, 2)], ids=["probe", "sample"])
def test_an_unreadable_file_is_named_with_what_is_wrong(
    tmp_path: Path, name: str, read: Callable[[Path], Any]
) -> None:
    make, what = BAD[name]
    make(tmp_path / name)
    with pytest.raises(VideoError, match=what) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)


def test_decoding_stops_at_the_deadline(steady: Path) -> None:
    with pytest.raises(VideoError, match=r"steady\.mp4: reading it took longer"):
        sample(steady, 2, deadline_s=0)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"start_s": -1.0}, {"start_s": 2.0, "end_s": 2.0}])
def test_a_request_for_no_frames_is_a_mistake_of_the_caller(steady: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no frames to take"):
        sample(steady, **{"count": 2} | wrong)


def test_the_hash_is_of_the_bytes_and_stays(tmp_path: Path) -> None:
    one, two = tmp_path / "one.mp4", tmp_path / "two.mp4"
    one.write_bytes(b"the same bytes")
    two.write_bytes(b"the same bytes")
    assert hash_file(one) == hash_file(two) == "2d189d8459b6715c3f60"  # b2sum -l 80
    two.write_bytes(b"other bytes")
    assert hash_file(one) != hash_file(two)


@pytest.mark.parametrize("block", [1, 2, 3, 6])
def test_scaling_by_area_is_the_mean_of_blocks(block: int) -> None:
    frames = np.random.default_rng(block).integers(0, 256, (3, 8 * block, 8 * block, 3), np.uint8)
    blocks = frames.reshape(3, 8, block, 8, block, 3).sum((2, 4), dtype=np.int64)
    nearest = (2 * blocks + block * block) // (2 * block * block)  # in whole numbers, halves up
    assert (scale_by_area(frames, 8) == nearest).all()


def test_scaling_gives_every_old_pixel_the_area_it_has() -> None:
    frame = np.array([0, 100, 200], np.uint8)[None, :, None].repeat(3, 0).repeat(3, 2)[None]
    assert scale_by_area(frame, 2)[0, 0, :, 0].tolist() == [33, 167]  # (0 + 100/2) / 1.5, (100/2 + 200) / 1.5


def scale_slowly(frames: Pixels, size: int) -> Pixels:
    """Every pixel divided into size x size equal ones, so that whole ones make up each new pixel; halves go up."""
    height, width = frames.shape[1:3]
    fine = frames.repeat(size, 1).repeat(size, 2).astype(np.int64)
    sums = fine.reshape(len(frames), size, height, size, width, 3).sum((2, 4))
    return np.asarray((2 * sums + height * width) // (2 * height * width), np.uint8)


@given(arrays(np.uint8, st.tuples(st.just(2), st.integers(1, 9), st.integers(1, 9), st.just(3))), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_scaling_is_exact(frames: Pixels, size: int) -> None:
    assert (scale_by_area(frames, size) == scale_slowly(frames, size)).all()


def test_scaling_the_largest_frames_does_not_overflow() -> None:
    for height, width in ((2160, 3840), (1, 2**24)):
        white = np.full((1, height, width, 3), 255, np.uint8)
        assert (scale_by_area(white, 7) == 255).all()


@given(st.integers(0, 255), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_scaling_a_flat_frame_keeps_its_grey(grey: int, height: int, width: int, size: int) -> None:
    assert (scale_by_area(np.full((1, height, width, 3), grey, np.uint8), size) == grey).all()


@given(
    arrays(np.uint8, st.tuples(st.just(1), st.integers(1, 12), st.integers(1, 12), st.just(3))), st.integers(1, 12)
)
@settings(max_examples=50, deadline=None)
def test_scaling_invents_no_brighter_or_darker_pixel(frames: Pixels, size: int) -> None:
    scaled = scale_by_area(frames, size)
    assert scaled.shape == (1, size, size, 3)
    assert frames.min() <= scaled.min() and scaled.max() <= frames.max()


def test_a_sample_with_a_size_is_the_full_frames_scaled(steady: Path) -> None:
    assert (sample(steady, 3, size=32).frames == scale_by_area(sample(steady, 3).frames, 32)).all()


def test_files_of_the_shapes_world_show_what_draw_draws(tmp_path: Path) -> None:
    video = World(seed=0).video(3)
    path = tmp_path / "shapes.mp4"
    write_mp4(video, path)
    taken = sample(path, 8, size=32)
    assert taken.span_s == pytest.approx(video.duration_s)
    step = [round(time_s * 12) for time_s in taken.times_s]
    drawn = scale_by_area(draw(poses(video, step), 96), 32)
    assert np.abs(taken.frames.astype(float) - drawn).mean() < 1.5


def test_decord_gives_the_same_frames_or_an_error(steady: Path, cut: Path, tmp_path: Path) -> None:
    pytest.importorskip("decord")
    parts: list[dict[str, Any]] = [{}, {"start_s": 2.0, "end_s": 5.0}, {"size": 32}]
    for part in parts:
        ours, theirs = sample(steady, 5, **part), sample_decord(steady, 5, **part)
        assert (ours.frames == theirs.frames).all() and theirs.times_s == pytest.approx(ours.times_s, abs=1e-4)
        assert theirs.span_s == ours.span_s
    with pytest.raises(VideoError, match=r"clip\.ts: decord's jumps in mpegts land on other frames"):
        sample_decord(write_clip(tmp_path / "clip.ts", 50, keyframe_every=10), 4)
    with pytest.raises(VideoError, match=r"edited\.mp4: decord counts 30 frames where 27 are shown"):
        sample_decord(cut_by_edit_list(steady, tmp_path / "edited.mp4", 33), 4)
    with pytest.raises(VideoError, match=r"cut\.mp4: decord"):
        sample_decord(cut, 4)
