"""A video as a file that browsers play: the file itself, or an H.264 copy of it that is made once.

What is given is the content that the video is known by, and nothing else: a file whose bytes have changed is refused.
A copy keeps the pictures, upright, and when they are shown, in seconds since the first one, as clips count them. It
has no sound, because no model heard any. Copies lie in `w.duckdb.proxies/`, which may be deleted at any time.

    playable(warehouse, {"video_id": "...", "uri": "cat.avi"}, proxies_of(warehouse.path))
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.media.frame_cache import look
from vlm_rlaif.warehouse.media.frames import Pixels, VideoError, upright
from vlm_rlaif.warehouse.store import Warehouse

if TYPE_CHECKING:
    from av import Packet
    from av.container import OutputContainer

DIRECT = {("mp4", "h264"), ("webm", "vp8"), ("webm", "vp9")}
"""(container, codec) that every browser plays."""
PIXELS = {"yuv420p", "yuvj420p"}
"""8 bits, 4:2:0."""
LATE_S = 0.1
"""A picture that begins later than this on the file's own clock would be shown at other seconds than clips say."""
TICKS = 90_000
"""Of a copy, per second."""
KEYFRAME_S = 1.0
"""Between places to which a browser jumps at once."""
LONGEST_SIDE = 1280
"""Pixels of a copy."""
DEADLINE_S = 3600.0
THREADS = 2
"""Of the decoder."""
_one_copy_at_a_time = threading.Lock()


def playable(warehouse: Warehouse, video: Mapping[str, Any], folder: Path) -> Path:
    """A file of the video that browsers play; `video` is its row, `folder` is where copies lie.

    Raises `VideoError` when the file is gone, is another one by now, or cannot be decoded, and `UserError` when the
    copy cannot be written.
    """
    copy = folder / f"{video['video_id']}.mp4"
    if copy.is_file():
        return copy
    path = warehouse.video_path(video["uri"])
    require_content(path, video["video_id"])
    if _plays(path, look(path)):
        return path
    with _one_copy_at_a_time:
        if not copy.is_file():  # somebody else was making it
            _make(path, copy)
    return copy


def require_content(path: Path, video_id: str) -> None:
    """Raises `VideoError` unless the file, or the folder of frames, has the content that the video is known by."""
    found = _content(path, look(path))
    if found != video_id:
        raise VideoError(f"{path}: it is not the video {video_id} any more, its bytes are those of {found}.")


@functools.lru_cache(4096)
def _content(path: Path, looks: str) -> str:
    from vlm_rlaif.warehouse.media.video import content_id

    try:
        return content_id(path)
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror}.") from None


@functools.lru_cache(4096)
def _plays(path: Path, looks: str) -> bool:
    """Whether browsers play the file as it is, at the seconds that clips mean."""
    from vlm_rlaif.warehouse.media.container import open_box

    if path.is_dir():
        return False
    with open_box(path, time.monotonic() + DEADLINE_S) as (box, stream):
        container = "webm" if path.suffix == ".webm" else "mp4" if "mp4" in box.format.name else box.format.name
        codec = stream.codec_context
        late_s = float((stream.start_time or 0) * (stream.time_base or 0))
        return (container, codec.codec.canonical_name) in DIRECT and codec.pix_fmt in PIXELS and late_s <= LATE_S


def _make(path: Path, copy: Path) -> None:
    """Write the copy of a video under another name, and rename it when it is whole."""
    draft = copy.with_name(f"{copy.stem}-{os.getpid()}.tmp")
    try:
        copy.parent.mkdir(exist_ok=True)
        _encode(path, draft)
        draft.replace(copy)
    except OSError as error:  # PyAV's errors of writing are such, too
        why = error.strerror or error
        raise UserError(f"A copy of {path} for browsers cannot be written to {copy.parent}: {why}.") from None
    finally:
        with suppress(OSError):
            draft.unlink()


def _encode(path: Path, draft: Path) -> None:
    import av

    frames = _timed(_folder(path) if path.is_dir() else _file(path))
    first = next(frames)
    width, height = _size(first[1])
    clock = Fraction(1, TICKS)
    with av.open(str(draft), "w", format="mp4", options={"movflags": "+faststart"}) as box:
        stream = box.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = stream.time_base = clock
        keyframe_s, lasts = -KEYFRAME_S, {}
        for shown_s, picture, lasts_s in itertools.chain([first], frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(width, height, "yuv420p")
            frame.pts, frame.time_base = round(shown_s * TICKS), clock
            lasts[frame.pts] = round(lasts_s * TICKS)
            if shown_s - keyframe_s >= KEYFRAME_S:
                frame.pict_type, keyframe_s = av.video.frame.PictureType.I, shown_s
            _write(box, stream.encode(frame), lasts)
        _write(box, stream.encode(), lasts)


def _write(box: OutputContainer, packets: Iterable[Packet[Any]], lasts: dict[int, int]) -> None:
    """`lasts`: how long a frame is shown, by when; the encoder forgets it, and the last one would end at once."""
    for packet in packets:
        packet.duration = lasts.pop(packet.pts or 0, 1)
        box.mux(packet)


def _size(picture: Pixels) -> tuple[int, int]:
    """Width and height of a copy: even numbers, because 4:2:0 halves them."""
    height, width = picture.shape[:2]
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def _timed(pictures: Iterator[tuple[float, Pixels]]) -> Iterator[tuple[float, Pixels, float]]:
    """(seconds since the first one, picture, seconds on display); the last one is shown as long as the one before."""
    begun_s, picture = next(pictures)
    lasts_s = 1.0
    for next_s, following in pictures:
        if next_s > begun_s:  # else a damaged file turns its clock back
            lasts_s = next_s - begun_s
            yield begun_s, picture, lasts_s
            begun_s, picture = next_s, following
    yield begun_s, picture, lasts_s


def _folder(path: Path) -> Iterator[tuple[float, Pixels]]:
    from vlm_rlaif.warehouse.media.frame_folder import FPS, decode, frame_files

    for place, file in enumerate(frame_files(path)):
        yield place / FPS, decode(file)


def _file(path: Path) -> Iterator[tuple[float, Pixels]]:
    from vlm_rlaif.warehouse.media.reader import open_reader

    with open_reader(path, time.monotonic() + DEADLINE_S, "read", THREADS) as reader:
        for shown_s, frame in reader.every_frame():
            yield shown_s, upright(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8), frame.rotation)
