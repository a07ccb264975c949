"""Requests on their way to an engine: their frames are decoded ahead of it, in threads, within a bound of memory.

A video that decodes slowly holds nobody up: whatever is ready goes first. Waiting requests about the same part of a
video share its frames.

    with Feed(requests, meter) as feed:
        while ready := feed.take(room, at_least=1):
            ...
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType

from vlm_rlaif.datagen.engine import Completion, Halted, Request, VideoPart
from vlm_rlaif.datagen.engines.clips import Clip, read_clip
from vlm_rlaif.datagen.meter import Meter
from vlm_rlaif.warehouse.media.video import VideoError

AHEAD_BYTES = 2**30
"""Memory of frames that are decoded and wait for the engine."""
DECODE_THREADS = max(2, min(16, os.cpu_count() or 2))


@dataclass(frozen=True, slots=True)
class Ready:
    """A request that an engine can begin with, or what became of it when its video could not be read."""

    request: Request
    clip: Clip | None = None
    refused: Completion | None = None


Choose = Callable[[list[Ready]], list[Ready]]


@dataclass(slots=True)
class _Frames:
    """The frames of one part of a video, for the requests that wait for them."""

    waiting: int = 0
    clip: Clip | None = None
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.clip is not None or self.error is not None


class Feed:
    """A queue of requests that decodes ahead. One reader."""

    def __init__(
        self, requests: Iterable[Request], meter: Meter, *, ahead: int = 128, threads: int = DECODE_THREADS,
        most_bytes: int = AHEAD_BYTES, decode: Callable[[VideoPart], Clip] = read_clip,
    ) -> None:  # fmt: skip
        """`ahead` is how many requests wait at most, and `most_bytes` how much their frames may take.

        One clip is decoded even if it alone is larger. Nobody knows how large a clip is before it is there: the
        bound can be missed by what the threads decode when clips become larger than those before them.
        """
        self.ended = False
        """No further request will come; some may still wait."""
        self._source = iter(requests)
        self._meter, self._ahead, self._most_bytes, self._decode = meter, ahead, most_bytes, decode
        self._waiting: list[Request] = []
        self._changed = threading.Condition()
        """Guards what follows, which the threads share."""
        self._frames: dict[VideoPart, _Frames] = {}
        self._undecoded: deque[VideoPart] = deque()
        self._active = 0
        self._bytes = self._largest_bytes = 0
        self._closed = False
        self._threads_to_start = threads

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def decoding(self) -> int:
        """Clips that are waited for."""
        with self._changed:
            return self._active + len(self._undecoded)

    def take(self, most: int, *, at_least: int = 0, choose: Choose | None = None) -> list[Ready]:
        """Up to `most` requests that are ready, in their order, or those among all ready ones that `choose` picks.

        Waits for `at_least` of them, as long as more can become ready. Nothing comes when nothing is left, and
        with `at_least=0` also when nothing is ready yet. Raises what the requests' source, or a decoder, raises.
        """
        self._fill()
        with self._changed:
            while len(ready := self._ready()) < min(at_least, most) and self._decodes():
                with self._meter.waiting_for("decode"):
                    self._changed.wait()
        if self.ended and not self.decoding:  # slots that are idle from here on have done their work
            self._meter.mark(cause="engine")
        taken = choose(ready) if choose and ready else ready[:most]
        self._let_go(taken)
        return taken

    def _fill(self) -> None:
        while not self.ended and len(self) < self._ahead:
            try:
                request = next(self._source, None)
            except Halted:
                self._give_up()
                request = None
            if request is None:
                self.ended = True
                return
            self._waiting.append(request)
            if request.video is not None:
                self._want(request.video)

    def _give_up(self) -> None:
        with self._changed:
            self._undecoded.clear()
        self._let_go([Ready(request) for request in self._waiting])

    def _want(self, part: VideoPart) -> None:
        with self._changed:
            if part not in self._frames:
                self._frames[part] = _Frames()
                self._undecoded.append(part)
                self._changed.notify()
            self._frames[part].waiting += 1
        if self._threads_to_start:
            self._threads_to_start -= 1
            threading.Thread(target=self._decode_all, name="decode", daemon=True).start()

    def _ready(self) -> list[Ready]:
        found = []
        for request in self._waiting:
            frames = self._frames[request.video] if request.video else None
            if frames is None or frames.clip is not None:
                found.append(Ready(request, frames.clip if frames else None))
            elif isinstance(frames.error, VideoError):
                refused = Completion(request.request_id, error=str(frames.error), error_kind="video")
                found.append(Ready(request, refused=refused))
            elif frames.error is not None:
                raise frames.error
        return found

    def _let_go(self, taken: list[Ready]) -> None:
        gone = {id(ready.request) for ready in taken}
        self._waiting = [request for request in self._waiting if id(request) not in gone]
        with self._changed:
            for part in (ready.request.video for ready in taken):
                if part is None:
                    continue
                self._frames[part].waiting -= 1
                if not self._frames[part].waiting:
                    clip = self._frames.pop(part).clip
                    self._bytes -= clip.frames.nbytes if clip else 0
            self._changed.notify_all()

    def _fits(self) -> bool:
        """Whether one more clip may be decoded. Before the first one nobody knows how large they are."""
        coming = (self._active + 1) * self._largest_bytes
        return self._bytes + coming <= self._most_bytes or not (self._bytes or self._active)

    def _decodes(self) -> bool:
        return self._active > 0 or (bool(self._undecoded) and self._fits())

    def _decode_all(self) -> None:
        """What a thread does: the next clip, as soon as there is memory for it."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or (self._undecoded and self._fits()))
                if self._closed:
                    return
                part = self._undecoded.popleft()
                frames = self._frames[part]
                self._active += 1
            clip: Clip | None = None
            error: BaseException | None = None
            try:
                clip = self._decode(part)
            except BaseException as raised:  # the reader raises it, or tells which request it is about
                error = raised
            with self._changed:
                self._active -= 1
                frames.clip, frames.error = clip, error
                if clip is not None:
                    self._bytes += clip.frames.nbytes
                    self._largest_bytes = max(self._largest_bytes, clip.frames.nbytes)
                self._changed.notify_all()

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is being decoded ends in its thread, and nobody waits for it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
