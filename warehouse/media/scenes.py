"""Where the picture of a video changes at once, as at a cut of the camera.

Every frame is decoded, and FFmpeg's own filter compares it with the one before. Slow fades are not found, and a
flash is a cut: `datagen/stages/scenes.py` joins scenes that are too short.

    cuts(Path("cat.mp4"), threshold=0.3)    # [2.0, 4.04]
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.video.reformatter import VideoReformatter

from vlm_rlaif.warehouse.media import frame_folder
from vlm_rlaif.warehouse.media.reader import open_reader

WIDTH, HEIGHT = 160, 96
"""Pixels that are compared: enough to see a cut, and the same work for 4K."""
TICK = Fraction(1, 1000)
"""The filter counts frames; their times are kept here."""
DEADLINE_S = 120.0
"""For a file, and as much again as it lasts."""


def cuts(path: Path, *, threshold: float, duration_s: float = 0.0) -> list[float]:
    """Seconds, since the first frame, of every frame that is not like the one before. Raises `VideoError`.

    `threshold` in (0, 1) is how different they are at least: the mean change of their colours, or how much more of
    them changes than did between the two frames before, whichever is less.
    """
    compared = av.filter.Graph()
    pixels = av.VideoFormat("rgb24", WIDTH, HEIGHT)
    frames = compared.add_buffer(width=WIDTH, height=HEIGHT, format=pixels, time_base=TICK)
    chosen, kept = compared.add("select", f"gt(scene\\,{threshold})"), compared.add("buffersink")
    frames.link_to(chosen)
    chosen.link_to(kept)
    compared.configure()
    colours, found = VideoReformatter(), []
    for number, (shown_s, frame) in enumerate(_every_frame(path, time.monotonic() + DEADLINE_S + duration_s)):
        small = colours.reformat(frame, WIDTH, HEIGHT, "rgb24")
        small.pts, small.time_base = number, TICK
        compared.push(small)
        try:
            compared.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            continue
        found.append(shown_s)
    return found


def _every_frame(path: Path, deadline: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """All frames of a file, or of a folder of pictures, with the seconds from which they are on display."""
    if path.is_dir():
        for number, file in enumerate(frame_folder.frame_files(path)):
            yield number / frame_folder.FPS, av.VideoFrame.from_ndarray(frame_folder.decode(file), "rgb24")
        return
    with open_reader(path, deadline, "read", threads=1) as reader:
        yield from reader.every_frame()
