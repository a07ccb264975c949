"""The decoder: one file read forwards, holding the frame that is on display.

It saves time in two ways, neither of which changes what is shown. It jumps to a later keyframe, and it lets the
decoder skip frames that no other frame needs and that are not on display at a target. Both rest on what packets
say about time; where frames come out otherwise, or something is damaged, `Lost` is raised and the file is read
through without either.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from vlm_rlaif.warehouse.media.container import decoder_of, open_box, packets_of
from vlm_rlaif.warehouse.media.frames import Pixels, VideoError, upright

Mode = Literal["auto", "seek", "read"]
BLIND_JUMP_FRAMES = 40
"""Where no index says what comes: jump when the target is more than this many frames ahead."""
SKIPPABLE = {"h264"}
"""Codecs in which a frame marked as no reference is one: in HEVC it may serve a higher layer of time."""
TOLERANCE_S = 1e-6
"""A frame that starts this little after a target counts as on display at it."""
T = TypeVar("T")


class Lost(Exception):
    """A shortcut did not lead where it should: this file must be read through."""


def read_through_if_lost(visit: Callable[[Mode], T], mode: Mode) -> T:
    """Visit a file with shortcuts, and once more without where one failed."""
    try:
        return visit(mode)
    except Lost:
        return visit("read")


@contextmanager
def open_reader(path: Path, deadline: float, mode: Mode, threads: int) -> Iterator[Reader]:
    """A reader at the first frame; raises as `open_box` does."""
    with open_box(path, deadline) as (box, stream):
        yield Reader(box, stream, path, deadline=deadline, mode=mode, threads=threads)


class _Timetable:
    """When the frames of the packets that were read go on display, and at which moments anybody looks."""

    def __init__(self, moments_s: Sequence[float] = ()) -> None:
        self._moments_s = [*moments_s, math.inf]
        self._last_s: dict[int, float] = {}
        """Number of a moment -> the last frame up to it, after the moment before."""
        self._due_s = -math.inf

    def read(self, time_s: float) -> bool:
        """Note a frame; returns whether a known one hides it at every moment."""
        place = bisect.bisect_left(self._moments_s, time_s)
        last_s = self._last_s.get(place, -math.inf)
        self._last_s[place] = max(last_s, time_s)
        return time_s < last_s

    def due_s(self, place: int) -> float:
        """When the frame on display at a moment began, by the packets; moments are asked for in turn."""
        passed = [number for number in self._last_s if number <= place]
        self._due_s = max([self._due_s, *(self._last_s.pop(number) for number in passed)])
        return self._due_s


class Reader:
    """Decodes forwards; `shown` is on display from `shown_s`, in seconds since the first frame."""

    def __init__(
        self, box: InputContainer, stream: VideoStream, path: Path, *, deadline: float, mode: Mode, threads: int
    ) -> None:
        self.stream = stream
        self._decoder = decoder_of(stream, path)
        self._decoder.thread_type, self._decoder.thread_count = "AUTO", threads
        self._box, self._path, self._deadline, self._mode = box, path, deadline, mode
        self._step_s = 1 / float(stream.average_rate or stream.guessed_rate or 30)
        self._skips = mode != "read" and self._decoder.codec.canonical_name in SKIPPABLE
        self._jumped = self._skipped = False
        self._read_to: int | None = None
        """The clock of the last packet, in the stream's ticks."""
        self._delay = 0
        """Ticks from when a keyframe is decoded, which is what an index knows, to when it is shown."""
        self._targets_s: list[float] = []
        self._timetable: _Timetable | None = None
        self._begun_s: list[float] = []
        """Frames of the packets that were read before there was a timetable."""
        self._colours = VideoReformatter()
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

    def show_each(self, targets_s: Sequence[float]) -> Iterator[float]:
        """Move to the frame on display at each target, in order; yields when it went on display."""
        self._plan(targets_s)
        for place, target_s in enumerate(targets_s):
            wanted_s = target_s + TOLERANCE_S
            if self._ahead is not None and self._ahead[0] <= wanted_s and self._jump_pays(target_s):
                self._jump(target_s)
            self._read_until(wanted_s, place)
            yield self.shown_s

    def every_frame(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """The frame on display and all that follow, with their times; of a reader in the mode `read`."""
        yield self.shown_s, self.shown
        if self._ahead is not None:
            yield self._ahead
            yield from self._frames

    def end_of(self, end_s: float | None) -> float:
        """Where the part that ends at `end_s` (None: the video) really ends; reads to the last frame.

        Promises that are kept to within a frame are taken at their word.
        """
        if self._timetable is None:
            self._plan(())
        if self._ahead is not None and self._jump_pays(self.promised_s):
            self._jump(self.promised_s)
        self._read_until(math.inf, len(self._targets_s))
        real_s = self.shown_s + self._seconds_on_display(self.shown)
        if end_s is not None and end_s <= real_s:
            return end_s
        asked_s = self.promised_s if end_s is None else end_s
        return asked_s if asked_s > 0 and abs(real_s - asked_s) <= self._step_s + TOLERANCE_S else real_s

    def picture(self) -> Pixels:
        """(H, W, 3) of the frame on display, upright."""
        frame = self.shown
        plain = self._colours.reformat(frame, frame.width, frame.height, "rgb24")
        plane: Any = plain.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(plain.height, plane.line_size)
        return upright(rows[:, : 3 * plain.width].reshape(plain.height, plain.width, 3), frame.rotation)

    def _plan(self, targets_s: Sequence[float]) -> None:
        """From now on only frames on display at these targets, and the last one, are needed."""
        self._targets_s = [self.origin_s + target_s + TOLERANCE_S for target_s in targets_s]
        self._timetable = _Timetable(self._targets_s)
        for time_s in self._begun_s:
            self._timetable.read(time_s)

    def _jump_pays(self, target_s: float) -> bool:
        """Whether a keyframe lies between here and the target."""
        if self._mode != "auto":
            return self._mode == "seek"
        index = getattr(self.stream, "index_entries", None)
        if not index or self._read_to is None or index[-1].timestamp <= self._read_to:
            return target_s - self.shown_s > BLIND_JUMP_FRAMES * self._step_s
        keyframe: int = index.search_timestamp(self._ticks(target_s) - self._delay, backward=True)
        return keyframe >= 0 and bool(index[keyframe].timestamp > self._read_to)

    def _ticks(self, target_s: float) -> int:
        if self.stream.time_base is None:
            raise Lost
        return int((self.origin_s + target_s + TOLERANCE_S) / float(self.stream.time_base))

    def _jump(self, target_s: float) -> None:
        if self.damaged:
            raise Lost
        self._jumped = True
        self._timetable = _Timetable(self._targets_s)
        try:
            self._box.seek(self._ticks(target_s), stream=self.stream, backward=True)
        except av.error.FFmpegError:
            raise Lost from None
        self._frames = self._decode()
        landed = next(self._frames, None)
        if landed is None or landed[0] > target_s + TOLERANCE_S:
            raise Lost
        self.shown_s, self.shown = landed
        self._ahead = next(self._frames, None)

    def _read_until(self, wanted_s: float, place: int) -> None:
        while self._ahead is not None and self._ahead[0] <= wanted_s:
            self.shown_s, self.shown = self._ahead
            self._ahead = next(self._frames, None)
        due_s = self._timetable.due_s(place) if self._timetable else -math.inf
        if self._skipped and abs(self.origin_s + self.shown_s - due_s) > TOLERANCE_S:
            raise Lost

    def _decode(self) -> Iterator[tuple[float, av.VideoFrame]]:
        next_s = 0.0
        try:
            for packet in packets_of(self._box, self.stream, self._path, self._deadline):
                self._prepare(packet)
                try:
                    frames = self.stream.decode(packet)
                except av.error.InvalidDataError:  # what comes after it may be fine
                    self._damage()
                    continue
                for frame in frames:
                    if frame.is_corrupt:
                        self._damage()
                    if frame.time is None and self._hurried:
                        raise Lost
                    now_s = next_s if frame.time is None else frame.time - self.origin_s
                    next_s = now_s + self._seconds_on_display(frame)
                    yield now_s, frame
        except av.error.ExitError:
            raise
        except av.error.FFmpegError:
            self._damage()

    def _prepare(self, packet: av.Packet[Any]) -> None:
        """Let the decoder skip a frame that nothing needs."""
        if packet.dts is not None:
            self._read_to = packet.dts
            if packet.is_keyframe and packet.pts is not None:
                self._delay = packet.pts - packet.dts
        if not self._skips:
            return
        hidden = False
        if packet.pts is not None and not packet.is_discard:
            time_s = float(packet.pts * packet.time_base)
            if self._timetable is None:
                self._begun_s.append(time_s)
            else:
                hidden = self._timetable.read(time_s)
        self._skipped |= hidden
        self._decoder.skip_frame = "NONREF" if hidden else "DEFAULT"

    @property
    def _hurried(self) -> bool:
        return self._jumped or self._skipped

    def _damage(self) -> None:
        """Damage seen after a shortcut says nothing about what was left out: read it all."""
        if self._hurried:
            raise Lost
        self.damaged, self._skips = True, False

    def _seconds_on_display(self, frame: av.VideoFrame) -> float:
        if frame.duration and frame.duration > 0 and frame.time_base:  # PyAV 15 says None, later ones 0
            return float(frame.duration * frame.time_base)
        return self._step_s
