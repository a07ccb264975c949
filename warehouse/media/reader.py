"""The decoder: one file read forwards, holding the frame that is on display.

It saves time in two ways, neither of which changes what is shown. It jumps to a later keyframe, and it lets the
decoder skip frames that no other frame needs and that are not on display at a target. Both rest on what packets
say about time; where frames come out otherwise, or something is damaged, `Lost` is raised and the file is read
through without either.
"""

from __future__ import annotations

import bisect
import errno
import math
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from vlm_rlaif.warehouse.media.frames import Pixels, VideoError, upright

Mode = Literal["auto", "seek", "read"]
BLIND_JUMP_FRAMES = 40
"""Where no index says what comes: jump when the target is more than this many frames ahead."""
SKIPPABLE = {"h264"}
"""Codecs in which a frame marked as no reference is one: in HEVC it may serve a higher layer of time."""
TOLERANCE_S = 1e-6
"""A frame that starts this little after a target counts as on display at it."""
STALLED_S = 10.0
"""Longest wait for the file to be opened, or for one packet."""
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,ogg,gif,asf,h264,hevc,m4v,ivf,obu,mxf,nut,rm,wtv,dv,vc1,vvc"
"""Playlists are not read: they name other files, and addresses in the network."""
OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
LARGEST_FRAME = 2**26
"""Pixels; 8K fits. A header of a few bytes can promise a frame that no memory holds."""
KINDS = {
    stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device", stat.S_ISBLK: "a device",
}  # fmt: skip
T = TypeVar("T")


class Lost(Exception):
    """A shortcut did not lead where it should: this file must be read through."""


def require_regular(path: Path) -> os.stat_result:
    """The file's status; an OSError when it is none: a pipe or a device may never end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        what = next((name for is_kind, name in KINDS.items() if is_kind(found.st_mode)), "something else")
        raise OSError(None, f"it is {what}, not a file")
    return found


def read_through_if_lost(visit: Callable[[Mode], T], mode: Mode) -> T:
    """Visit a file with shortcuts, and once more without where one failed."""
    try:
        return visit(mode)
    except Lost:
        return visit("read")


@contextmanager
def open_box(path: Path, deadline: float) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A file and its video. Raises `VideoError` about anything that is wrong with it, later too."""
    wait_s: Any = (max(0.1, min(STALLED_S, deadline - time.monotonic())),) * 2
    try:
        require_regular(path)
        # An absolute path, because a name may look like a protocol; and a title need not be UTF-8.
        with av.open(
            os.path.abspath(path), container_options=OPTIONS, timeout=wait_s, metadata_errors="replace"
        ) as box:  # fmt: skip
            streams = [stream for stream in box.streams.video if not stream.disposition & Disposition.attached_pic]
            if not streams:
                raise VideoError(f"{path}: there is no video stream in it.")
            yield box, streams[0]
    except av.error.ExitError:
        raise late(path) from None
    except (av.error.FFmpegError, OSError) as error:
        unknown = "it is a kind of file that is not read." if error.errno == errno.EINVAL else ""
        raise VideoError(f"{path}: {unknown or error.strerror or error}") from error


@contextmanager
def open_reader(path: Path, deadline: float, mode: Mode, threads: int) -> Iterator[Reader]:
    """A reader at the first frame; raises as `open_box` does."""
    with open_box(path, deadline) as (box, stream):
        yield Reader(box, stream, path, deadline=deadline, mode=mode, threads=threads)


def packets_of(box: InputContainer, stream: VideoStream, path: Path, deadline: float) -> Iterator[av.Packet[Any]]:
    """What the file holds of a stream, in its order. PyAV stumbles over streams that begin later in the file."""
    packets = box.demux()
    while True:
        if time.monotonic() > deadline:
            raise late(path)
        try:
            packet = next(packets)
        except StopIteration:
            return
        except IndexError:
            packets = box.demux()
            continue
        if packet.stream.index == stream.index:
            yield packet


def late(path: Path) -> VideoError:
    """What is said about a file that is not done in time."""
    return VideoError(f"{path}: reading it took longer than it may.")


def decoder_of(stream: VideoStream, path: Path) -> VideoCodecContext:
    """The stream's decoder, which refuses frames that are too big."""
    decoder: VideoCodecContext | None = stream.codec_context
    if decoder is None:
        raise VideoError(f"{path}: nothing here decodes its video.")
    if decoder.width * decoder.height > LARGEST_FRAME:
        raise VideoError(f"{path}: frames of {decoder.width} x {decoder.height} pixels are not read.")
    decoder.options = {"max_pixels": str(LARGEST_FRAME)}  # also when they grow on the way
    return decoder


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
