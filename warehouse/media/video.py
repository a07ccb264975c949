"""Videos, files or folders of frames: what they are, and the frames on display at chosen times.

Frames are taken by display time, never by index, because headers lie: they promise frames and seconds
that are not there and clocks that do not start at zero. Times are seconds since the video's first frame.
PyAV decodes.

It is not a video editor: no writing, no sound, no shapes other than squares.

    sample(Path("cat.mp4"), 8, start_s=2.0, end_s=6.0, size=224).frames   # (8, 224, 224, 3)
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from vlm_rlaif.warehouse.media import frame_folder
from vlm_rlaif.warehouse.media.container import require_regular
from vlm_rlaif.warehouse.media.frames import (
    Pixels,
    Probe,
    Sample,
    VideoError,
    centres,
    quarter_turns,
    scale_by_area,
    span_of,
    stack,
    start_of,
)
from vlm_rlaif.warehouse.media.reader import Mode, Reader, open_reader, read_through_if_lost

__all__ = [
    "SAMPLER_VERSION", "Mode", "Probe", "Sample", "VideoError", "content_id", "hash_file", "probe", "sample",
]  # fmt: skip

SAMPLER_VERSION = 1
"""Goes up when the same request gives other pixels, so that kept frames of before are not taken for them."""
THREADS = 2
"""Of one decoder. Whoever has many videos reads several at once; more threads for one file mostly wait."""


def hash_file(path: Path) -> str:
    """20 hex digits that identify the file's bytes. An OSError when it is no file, or is being written to."""
    before = require_regular(path)
    digest, left = hashlib.blake2b(digest_size=10), before.st_size
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 2**20))):
            digest.update(block)
            left -= len(block)
        after = os.fstat(file.fileno())
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise OSError(None, "it is being written to")
    return digest.hexdigest()


def content_id(path: Path) -> str:
    """`hash_file` of a file, `frame_folder.hash_folder` of a folder of frames."""
    return frame_folder.hash_folder(path) if path.is_dir() else hash_file(path)


def probe(path: Path, *, deadline_s: float = 60.0) -> Probe:
    """What the header says, checked against the first and the last frame. Raises `VideoError`."""
    if path.is_dir():
        return frame_folder.probe(path)
    deadline = time.monotonic() + deadline_s

    def visit(mode: Mode) -> Probe:
        with open_reader(path, deadline, mode, THREADS) as reader:
            stream, first = reader.stream, reader.shown
            turns = quarter_turns(first.rotation)
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

    return read_through_if_lost(visit, "auto")


def sample(
    path: Path, count: int, *, start_s: float | None = None, end_s: float | None = None,
    size: int | None = None, mode: Mode = "auto", deadline_s: float = 60.0,
    threads: int = THREADS,
) -> Sample:  # fmt: skip
    """The frames on display at the centres of `count` equal parts of [start_s, end_s]; default: all of it.

    `size` scales every frame to size x size. `mode` says how to get there and changes no frame: `seek` jumps to
    the keyframe before each target, `read` decodes everything, `auto` jumps where a keyframe lies on the way. A
    damaged file, or one that cannot be trusted to jump, is read. Raises `VideoError`, also when `deadline_s` has
    passed. `threads` are those of the decoder.
    """
    begin_s, deadline = start_of(count, start_s, end_s), time.monotonic() + deadline_s
    if path.is_dir():
        return frame_folder.sample(path, count, begin_s, end_s, size)

    def visit(mode: Mode) -> Sample:
        with open_reader(path, deadline, mode, threads) as reader:
            asked_s = reader.promised_s if end_s is None else end_s
            taken = _take(reader, centres(begin_s, max(asked_s - begin_s, 0.0), count), size)
            until_s = reader.end_of(end_s)
            damaged = reader.damaged
        span_s = span_of(path, begin_s, until_s)
        if until_s != asked_s:  # the promised time is not there: divide the time that is
            damaged |= span_s < 0.9 * (asked_s - begin_s)
            with open_reader(path, deadline, mode, threads) as reader:
                taken = _take(reader, centres(begin_s, span_s, count), size)
        times_s, pictures = zip(*taken, strict=True)
        return Sample(stack(path, pictures), times_s, span_s, damaged)

    return read_through_if_lost(visit, mode)


def _take(reader: Reader, targets_s: list[float], size: int | None) -> list[tuple[float, Pixels]]:
    """(time, picture) on display at each target, scaled one by one: fifty big frames are a lot of memory."""
    taken: list[tuple[float, Pixels]] = []
    last = None
    for time_s in reader.show_each(targets_s):
        if reader.shown is not last:
            last, picture = reader.shown, reader.picture()
            if size is not None:
                picture = scale_by_area(picture[None], size)[0]
        taken.append((time_s, picture))
    return taken
