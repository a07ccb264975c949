"""Video files: what they are, and the frames on display at chosen times.

Frames are sampled by display time, never by index: headers promise frames and seconds that are not there, and
start times that are not zero. PyAV decodes; decord is a second backend whose frames are checked (`sample_decord`).
Times are seconds since the video's first frame.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from numpy.typing import NDArray

from vlm_rlaif.warehouse.errors import MissingExtra

Mode = Literal["auto", "seek", "read"]
SEEK_FROM_FRAMES = 40
"""Jump to keyframes when the part to divide has more frames than this per frame taken."""
_TOLERANCE_S = 1e-6


class VideoError(Exception):
    """A file that gives no frames. The message names the file and says what is wrong."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a video file is."""

    duration_s: float
    fps: float
    frames: int | None
    """As the header promises."""
    width: int
    height: int
    """Upright, after rotation."""
    codec: str
    rotation: int
    """Degrees counter-clockwise by which frames are turned to be upright."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Frames taken from a video."""

    frames: NDArray[np.uint8]
    """(count, H, W, 3) RGB, upright."""
    times_s: tuple[float, ...]
    """Display time of each frame."""
    span_s: float
    """The time that was divided."""
    damaged: bool
    """A decode error, a frame marked corrupt, or time that the header promised and the file does not have."""


def hash_file(path: Path) -> str:
    """20 hex digits of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=10)).hexdigest()


def probe(path: Path) -> Probe:
    """Read the header and decode the first frame."""
    try:
        with av.open(str(path)) as box:
            stream = _stream(box, path)
            first = next(box.decode(stream), None)
            if first is None:
                raise VideoError(f"{path}: no frame can be decoded.")
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            turn = first.rotation % 360
            width, height = first.width, first.height
            if turn % 180:
                width, height = height, width
            duration_s = _span(box, stream) or _read_span(path)
            return Probe(duration_s, rate, stream.frames or None, width, height,
                         stream.codec_context.name, turn)  # fmt: skip
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: {_plain(error)}") from None


def sample(
    path: Path, count: int, *, start_s: float | None = None, end_s: float | None = None,
    size: int | None = None, mode: Mode = "auto", deadline_s: float = 60.0,
) -> Sample:  # fmt: skip
    """The frames on display at the centres of `count` equal parts of [start_s, end_s] (default: all of it).

    `size` scales to size x size by area. Raises `VideoError`.
    """
    deadline = time.monotonic() + deadline_s
    try:
        with av.open(str(path), timeout=(10.0, 10.0)) as box:
            return _sample(box, path, count, start_s, end_s, size, mode, deadline)
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: {_plain(error)}") from None


def _sample(
    box: Any, path: Path, count: int, start_s: float | None, end_s: float | None,
    size: int | None, mode: Mode, deadline: float,
) -> Sample:  # fmt: skip
    stream = _stream(box, path)
    stream.thread_type = "AUTO"
    first = next(box.decode(stream), None)
    if first is None:
        raise VideoError(f"{path}: no frame can be decoded.")
    origin_s = first.time or 0.0
    promised_s = _span(box, stream)
    begin = start_s or 0.0
    span_s = (promised_s if end_s is None else end_s) - begin
    targets = centres(begin, span_s, count)
    rate = float(stream.average_rate or 30)
    if mode == "seek" or (mode == "auto" and span_s * rate > SEEK_FROM_FRAMES * count):
        found = _seek(box, stream, origin_s, targets, deadline)
        if found is not None:
            return _finish(found, size, span_s, damaged=False)
    box.seek(stream.start_time or 0, stream=stream, backward=True)
    walk = _Walk(box, stream, origin_s, deadline)
    found = walk.take(targets, to_end=end_s is None)
    real_s = walk.end_s
    if end_s is None and (span_s <= 0 or real_s < 0.9 * promised_s):
        # The promised time is not there: divide the time that is.
        box.seek(stream.start_time or 0, stream=stream, backward=True)
        span_s = real_s - begin
        short = _Walk(box, stream, origin_s, deadline)
        found = short.take(centres(begin, span_s, count), to_end=False)
        return _finish(found, size, span_s, damaged=promised_s > 0)
    if not found:
        raise VideoError(f"{path}: no frame is on display between {begin:.2f} s and {end_s} s.")
    return _finish(found, size, span_s, damaged=walk.damaged)


def centres(start_s: float, span_s: float, count: int) -> list[float]:
    """The middles of `count` equal parts.

    >>> centres(0.0, 6.0, 3)
    [1.0, 3.0, 5.0]
    """
    return [start_s + span_s * (part + 0.5) / count for part in range(count)]


class _Walk:
    """Decodes forward and keeps the frame on display at each target."""

    def __init__(self, box: Any, stream: Any, origin_s: float, deadline: float) -> None:
        self._box, self._stream = box, stream
        self._origin_s, self._deadline = origin_s, deadline
        self._step_s = 1 / float(stream.average_rate or 30)
        self.damaged = False
        self.end_s = 0.0
        """Display time at which the last frame ends."""

    def _frames(self) -> Iterator[tuple[float, Any]]:
        now = -self._step_s
        try:
            for frame in self._box.decode(self._stream):
                if time.monotonic() > self._deadline:
                    raise VideoError("decoding took too long")
                now = frame.time - self._origin_s if frame.pts is not None else now + self._step_s
                self.damaged |= frame.is_corrupt
                self.end_s = now + self._step_s
                yield now, frame
        except av.error.FFmpegError:
            self.damaged = True

    def take(self, targets: Sequence[float], *, to_end: bool) -> list[tuple[float, Any]]:
        """(time, frame) per target; with `to_end` the whole file is read, to learn how long it really is."""
        taken: list[tuple[float, Any]] = []
        shown: tuple[float, Any] | None = None
        for now, frame in self._frames():
            while len(taken) < len(targets) and targets[len(taken)] + _TOLERANCE_S < now:
                taken.append(shown or (now, frame))
            if len(taken) == len(targets) and not to_end:
                return taken
            shown = (now, frame)
        if shown is None:
            return []
        return taken + [shown] * (len(targets) - len(taken))


def _seek(
    box: Any, stream: Any, origin_s: float, targets: Sequence[float], deadline: float
) -> list[tuple[float, Any]] | None:
    """Jump to the keyframe before each target; None where the file cannot be trusted to seek."""
    taken: list[tuple[float, Any]] = []
    try:
        for target in targets:
            box.seek(int((origin_s + target) / stream.time_base), stream=stream, backward=True)
            walk = _Walk(box, stream, origin_s, deadline)
            found = walk.take([target], to_end=False)
            if not found or walk.damaged or found[0][0] > target + _TOLERANCE_S:
                return None
            taken += found
    except av.error.FFmpegError:
        return None
    return taken


def _finish(found: list[tuple[float, Any]], size: int | None, span_s: float, *, damaged: bool) -> Sample:
    frames = np.stack([_upright(frame) for _, frame in found])
    if size is not None:
        frames = scale_by_area(frames, size)
    return Sample(frames, tuple(t for t, _ in found), span_s, damaged)


def _upright(frame: Any) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, frame.rotation % 360 // 90))


def scale_by_area(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(N, H, W, 3) to (N, size, size, 3): every new pixel is the mean of the area it covers."""
    rows, columns = (_area_weights(length, size) for length in frames.shape[1:3])
    scaled = np.einsum("ih,nhwc,jw->nijc", rows, frames.astype(np.float32), columns, optimize=True)
    return np.asarray((scaled + 0.5).clip(0, 255), np.uint8)


def _area_weights(length: int, size: int) -> NDArray[np.float32]:
    """(size, length): how much each old pixel counts for each new one; rows sum to 1."""
    edges = np.arange(size + 1) * length / size
    pixels = np.arange(length)
    low = np.maximum(edges[:-1, None], pixels[None])
    high = np.minimum(edges[1:, None], pixels[None] + 1)
    cover = np.clip(high - low, 0, None)
    return np.asarray(cover / cover.sum(1, keepdims=True), np.float32)


def sample_decord(path: Path, count: int, size: int | None = None) -> Sample:
    """The same frames through decord; refuses files whose clock decord reads wrongly."""
    try:
        import decord
    except ImportError:
        raise MissingExtra("decord", "decord") from None
    with av.open(str(path)) as box:
        stream = _stream(box, path)
        origin_s = next(box.decode(stream)).time or 0.0
        span_s = _span(box, stream)
    reader = decord.VideoReader(str(path), num_threads=1)
    starts = np.asarray(reader.get_frame_timestamp(range(len(reader))))[:, 0]
    if abs(starts[0] - origin_s) > 1e-3:
        raise VideoError(
            f"{path}: decord starts at {starts[0]:.3f} s, the video at {origin_s:.3f} s; read it with PyAV."
        )
    targets = origin_s + np.asarray(centres(0.0, span_s, count))
    index = np.searchsorted(starts, targets + 1e-4, side="right") - 1
    frames = reader.get_batch(index).asnumpy()
    if size is not None:
        frames = scale_by_area(frames, size)
    return Sample(frames, tuple((starts[index] - origin_s).tolist()), span_s, False)


def _stream(box: Any, path: Path) -> Any:
    if not box.streams.video:
        raise VideoError(f"{path}: there is no video stream in it.")
    return box.streams.video[0]


def _span(box: Any, stream: Any) -> float:
    """Seconds that the header promises, 0 when it promises none."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return (box.duration or 0) / 1e6


def _read_span(path: Path) -> float:
    """Seconds that are really there, for a file whose header does not say."""
    with av.open(str(path)) as box:
        walk = _Walk(box, box.streams.video[0], 0.0, time.monotonic() + 60.0)
        walk.take([], to_end=True)
        return walk.end_s


def _plain(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
