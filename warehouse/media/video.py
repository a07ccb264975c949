"""Video files: what they are, and the frames on display at chosen times.

Frames are taken by display time, never by index, because headers lie: they promise frames and seconds
that are not there and clocks that do not start at zero. Times are seconds since the video's first frame.
PyAV decodes; `sample_decord` is a second way to the same frames, checked against PyAV's clock.

It is not a video editor: no writing, no sound, no shapes other than squares.

>>> centres(0.0, 6.0, 3)
[1.0, 3.0, 5.0]
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vlm_rlaif.warehouse.errors import MissingExtra

Mode = Literal["auto", "seek", "read"]
JUMP_FRAMES: dict[Mode, float] = {"auto": 40, "seek": 0, "read": math.inf}
"""Jump to the keyframe before a target that is more than this many frames ahead; otherwise decode on."""
TOLERANCE_S = 1e-6
"""A frame that starts this little after a target counts as on display at it."""
OPEN_AND_READ_TIMEOUT_S: Any = (10.0, 10.0)
T = TypeVar("T")


class VideoError(Exception):
    """A file that does not give the frames asked for. The message names the file and what is wrong."""


class _Lost(Exception):
    """A jump did not land where it should: this file must be read through."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a video file is."""

    duration_s: float
    """The header's where the last frame agrees with it, otherwise the time that is really there."""
    fps: float
    """Average; 0 where the file does not say."""
    frames: int | None
    """As the header promises; headers lie."""
    width: int
    """Upright, after rotation; so is the height."""
    height: int
    codec: str
    rotation: int
    """Degrees counter-clockwise by which frames are turned to be upright."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Frames taken from a video."""

    frames: NDArray[np.uint8]
    """(count, H, W, 3) RGB, upright."""
    times_s: tuple[float, ...]
    """When each frame goes on display."""
    span_s: float
    """The display time that was divided."""
    damaged: bool
    """A decode error, a frame marked corrupt, or over a tenth of the promised time missing. Not every
    damaged frame is noticed, and a second reading may differ: key nothing on such pixels."""


def hash_file(path: Path) -> str:
    """20 hex digits that identify the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=10)).hexdigest()


def probe(path: Path, *, deadline_s: float = 60.0) -> Probe:
    """What the header says, checked against the first and the last frame. Raises `VideoError`."""
    deadline = time.monotonic() + deadline_s

    def visit(jump_frames: float) -> Probe:
        with _open(path, deadline, jump_frames) as reader:
            stream, first = reader.stream, reader.shown
            turns = _quarter_turns(first.rotation)
            width, height = (first.height, first.width) if turns % 2 else (first.width, first.height)
            return Probe(
                duration_s=reader.end_of(None),
                fps=float(stream.average_rate or stream.guessed_rate or 0),
                frames=stream.frames or None,
                width=width,
                height=height,
                codec=stream.codec_context.codec.canonical_name,  # `av1`, whichever library decodes it
                rotation=90 * turns,
            )

    return _or_read_through(visit, "auto")


def sample(
    path: Path, count: int, *, start_s: float | None = None, end_s: float | None = None,
    size: int | None = None, mode: Mode = "auto", deadline_s: float = 60.0,
) -> Sample:  # fmt: skip
    """The frames on display at the centres of `count` equal parts of [start_s, end_s]; default: all of it.

    `size` scales every frame to size x size. `mode` says how to get there and changes no frame: `seek` jumps to
    the keyframe before each target, `read` decodes everything, `auto` jumps over long gaps only. A damaged file,
    or one that cannot be trusted to jump, is read. Raises `VideoError`, also when `deadline_s` has passed.
    """
    begin_s, deadline = _check(count, start_s, end_s), time.monotonic() + deadline_s

    def visit(jump_frames: float) -> Sample:
        with _open(path, deadline, jump_frames) as reader:
            asked_s = reader.promised_s if end_s is None else end_s
            found = _take(reader, centres(begin_s, max(asked_s - begin_s, 0.0), count), size)
            until_s = reader.end_of(end_s)
            damaged = reader.damaged
        span_s = _span(path, begin_s, until_s)
        if until_s != asked_s:  # the promised time is not there: divide the time that is
            damaged |= span_s < 0.9 * (asked_s - begin_s)
            with _open(path, deadline, jump_frames) as reader:
                found = _take(reader, centres(begin_s, span_s, count), size)
        frames = [pixels for _, pixels in found]
        if len({pixels.shape for pixels in frames}) > 1:
            raise VideoError(f"{path}: frames change size within the video; sample it with a size.")
        return Sample(np.stack(frames), tuple(time_s for time_s, _ in found), span_s, damaged)

    return _or_read_through(visit, mode)


def sample_decord(
    path: Path, count: int, *, start_s: float | None = None, end_s: float | None = None,
    size: int | None = None, deadline_s: float = 60.0,
) -> Sample:  # fmt: skip
    """The frames of `sample` through decord; raises `VideoError` where decord's clock is not PyAV's.

    decord 0.6 and decord2 count frames that are never shown (edit lists) or lose the first ones (MPEG-TS)
    without an error. Their first and last timestamps give that away.
    """
    try:
        import decord
    except ImportError:
        raise MissingExtra("decord", "decord") from None
    begin_s, deadline = _check(count, start_s, end_s), time.monotonic() + deadline_s

    def clock(jump_frames: float) -> tuple[float, float, float, bool]:
        with _open(path, deadline, jump_frames) as reader:
            return reader.origin_s, reader.end_of(end_s), reader.origin_s + reader.shown_s, reader.damaged

    first_s, until_s, last_s, damaged = _or_read_through(clock, "auto")
    span_s = _span(path, begin_s, until_s)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        starts_s = np.asarray(reader.get_frame_timestamp(range(len(reader))), np.float64)[:, 0]
        for which, here_s, true_s in (("first", starts_s[0], first_s), ("last", starts_s[-1], last_s)):
            if abs(here_s - true_s) > 1e-3:
                raise VideoError(f"{path}: decord has the {which} frame at {here_s:.3f} s, PyAV at {true_s:.3f} s.")
        # decord keeps times in 32 bits, hence the wider tolerance
        targets_s = first_s + np.asarray(centres(begin_s, span_s, count)) + 1e-4
        index = np.searchsorted(starts_s, targets_s, side="right") - 1
        frames: NDArray[np.uint8] = reader.get_batch(index).asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        raise VideoError(f"{path}: decord cannot read it: {str(error).splitlines()[0]}") from error
    if size is not None:
        frames = np.concatenate([scale_by_area(frame[None], size) for frame in frames])
    return Sample(frames, tuple((starts_s[index] - first_s).tolist()), span_s, damaged)


def centres(start_s: float, span_s: float, count: int) -> list[float]:
    """The middles of `count` equal parts."""
    return [start_s + span_s * (part + 0.5) / count for part in range(count)]


def scale_by_area(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(N, H, W, 3) to (N, size, size, 3): every new pixel is the mean of the area that it covers.

    >>> scale_by_area(np.array([[[[0] * 3, [100] * 3]] * 2], np.uint8), 1).tolist()
    [[[[50, 50, 50]]]]
    """
    rows, columns = _overlaps(frames.shape[1], size), _overlaps(frames.shape[2], size)
    sums = np.einsum("ih,nhwc,jw->nijc", rows, frames.astype(np.float32), columns, optimize=True)
    return np.asarray(sums / (rows[0].sum() * columns[0].sum()) + 0.5, np.uint8)


def _overlaps(length: int, size: int) -> NDArray[np.float32]:
    """(size, length): how much of each old pixel each new one covers.

    The unit divides both kinds of pixel, so that weights are whole numbers and sums of plain blocks exact.
    """
    common = math.gcd(length, size)
    old, new = size // common, length // common
    left, edge = np.arange(length) * old, np.arange(size)[:, None] * new
    return (np.minimum(left + old, edge + new) - np.maximum(left, edge)).clip(0).astype(np.float32)


def upright(pixels: NDArray[np.uint8], rotation: int) -> NDArray[np.uint8]:
    """(H, W, 3) turned counter-clockwise; PyAV, unlike other readers, leaves that to its caller."""
    return np.ascontiguousarray(np.rot90(pixels, _quarter_turns(rotation)))


def _quarter_turns(rotation: int) -> int:
    return round(rotation / 90) % 4


def _check(count: int, start_s: float | None, end_s: float | None) -> float:
    begin_s = start_s or 0.0
    if count < 1 or begin_s < 0 or (end_s is not None and end_s <= begin_s):
        raise ValueError(f"no frames to take: count={count}, start_s={start_s}, end_s={end_s}")
    return begin_s


def _span(path: Path, begin_s: float, until_s: float) -> float:
    if until_s <= begin_s:
        raise VideoError(f"{path}: no frame is on display at {begin_s:.2f} s, the video ends at {until_s:.2f} s.")
    return until_s - begin_s


def _take(reader: _Reader, targets_s: Sequence[float], size: int | None) -> list[tuple[float, NDArray[np.uint8]]]:
    """(time, pixels) on display at each target, scaled one by one: fifty big frames are a lot of memory."""
    taken: list[tuple[float, NDArray[np.uint8]]] = []
    last: av.VideoFrame | None = None
    for target_s in targets_s:
        reader.show(target_s)
        if reader.shown is not last:
            last = reader.shown
            pixels = upright(np.asarray(last.to_ndarray(format="rgb24"), np.uint8), last.rotation)
            if size is not None:
                pixels = scale_by_area(pixels[None], size)[0]
        taken.append((reader.shown_s, pixels))
    return taken


def _or_read_through(visit: Callable[[float], T], mode: Mode) -> T:
    """Visit a file with jumps, and once more without where a jump got lost."""
    try:
        return visit(JUMP_FRAMES[mode])
    except _Lost:
        return visit(JUMP_FRAMES["read"])


@contextmanager
def _open(path: Path, deadline: float, jump_frames: float) -> Iterator[_Reader]:
    try:
        # The default is to raise on a title that is not UTF-8.
        with av.open(str(path), timeout=OPEN_AND_READ_TIMEOUT_S, metadata_errors="replace") as box:
            yield _Reader(box, path, deadline, jump_frames)
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: {error.strerror or error}") from error


class _Reader:
    """Decodes one file forwards and holds the frame on display; jumps only to save time."""

    def __init__(self, box: InputContainer, path: Path, deadline: float, jump_frames: float) -> None:
        if not box.streams.video:
            raise VideoError(f"{path}: there is no video stream in it.")
        self.stream: VideoStream = box.streams.video[0]
        self.stream.thread_type = "AUTO"
        self._box, self._path, self._deadline = box, path, deadline
        self._step_s = 1 / float(self.stream.average_rate or self.stream.guessed_rate or 30)
        self._jump_s, self._jumped = jump_frames * self._step_s, False
        self.damaged = False
        self.origin_s = 0.0
        """The file's own clock at its first frame."""
        self.shown_s = 0.0
        self._frames = self._decode()
        first = next(self._frames, None)
        if first is None:
            raise VideoError(f"{path}: no frame of it can be decoded.")
        self.origin_s, self.shown = first
        self._ahead = next(self._frames, None)

    @property
    def promised_s(self) -> float:
        """Seconds that the header promises, 0 when it promises none."""
        if self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        return (self._box.duration or 0) / 1e6

    def show(self, target_s: float) -> None:
        """Move to the frame on display at a target, which is never before the present one."""
        wanted_s = target_s + TOLERANCE_S
        if self._ahead is not None and self._ahead[0] <= wanted_s and target_s - self.shown_s > self._jump_s:
            self._jump(target_s)
        self._read_until(wanted_s)

    def end_of(self, end_s: float | None) -> float:
        """Where the part that ends at `end_s` (None: the video) really ends; reads to the last frame.

        Promises that are kept to within a frame are taken at their word.
        """
        if self._ahead is not None and self.promised_s - self.shown_s > self._jump_s:
            self._jump(self.promised_s)
        self._read_until(math.inf)
        real_s = self.shown_s + self._seconds_on_display(self.shown)
        if end_s is not None and end_s <= real_s:
            return end_s
        asked_s = self.promised_s if end_s is None else end_s
        return asked_s if asked_s > 0 and abs(real_s - asked_s) <= self._step_s + TOLERANCE_S else real_s

    def _read_until(self, wanted_s: float) -> None:
        while self._ahead is not None and self._ahead[0] <= wanted_s:
            self.shown_s, self.shown = self._ahead
            self._ahead = next(self._frames, None)

    def _jump(self, target_s: float) -> None:
        if self.damaged or self.stream.time_base is None:
            raise _Lost
        self._jumped = True
        ticks = int((self.origin_s + target_s + TOLERANCE_S) / float(self.stream.time_base))
        try:
            self._box.seek(ticks, stream=self.stream, backward=True)
        except av.error.FFmpegError:
            raise _Lost from None
        self._frames = self._decode()
        landed = next(self._frames, None)
        if landed is None or landed[0] > target_s + TOLERANCE_S:
            raise _Lost
        self.shown_s, self.shown = landed
        self._ahead = next(self._frames, None)

    def _decode(self) -> Iterator[tuple[float, av.VideoFrame]]:
        next_s = 0.0
        try:
            for packet in self._box.demux(self.stream):
                if time.monotonic() > self._deadline:
                    raise VideoError(f"{self._path}: decoding took longer than it may.")
                try:
                    frames = self.stream.decode(packet)
                except av.error.InvalidDataError:  # what comes after it may be fine
                    self._damage()
                    continue
                for frame in frames:
                    if frame.is_corrupt:
                        self._damage()
                    if frame.time is None and self._jumped:
                        raise _Lost
                    now_s = next_s if frame.time is None else frame.time - self.origin_s
                    next_s = now_s + self._seconds_on_display(frame)
                    yield now_s, frame
        except av.error.FFmpegError:
            self._damage()

    def _damage(self) -> None:
        """Damage seen after a jump says nothing about what was jumped over: read it all."""
        if self._jumped:
            raise _Lost
        self.damaged = True

    def _seconds_on_display(self, frame: av.VideoFrame) -> float:
        if frame.duration and frame.duration > 0 and frame.time_base:  # PyAV 15 says None, later ones 0
            return float(frame.duration * frame.time_base)
        return self._step_s
