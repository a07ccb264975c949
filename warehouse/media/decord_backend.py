"""A second way to the same frames: decord, held against what the packets say.

decord 0.6 returns wrong frames without an error where frames are never shown (edit lists), where a jump lands
elsewhere (MPEG-TS and MPEG-PS), and where frames stand before their keyframe (open groups of pictures). Such files
are refused here. It serves comparison; every stage reads with `video.py`.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlm_rlaif.warehouse.errors import MissingExtra
from vlm_rlaif.warehouse.media.container import open_box, packets_of
from vlm_rlaif.warehouse.media.frames import Pixels, Sample, VideoError, centres, scale_by_area, span_of, start_of
from vlm_rlaif.warehouse.media.reader import TOLERANCE_S, Mode, open_reader, read_through_if_lost

INEXACT_JUMPS = ("mpegts", "mpeg")


def sample_decord(
    path: Path, count: int, *, start_s: float | None = None, end_s: float | None = None,
    size: int | None = None, deadline_s: float = 60.0,
) -> Sample:  # fmt: skip
    """The frames of `video.sample` through decord; raises `VideoError` where decord cannot be trusted."""
    try:
        import decord
    except ImportError:
        raise MissingExtra("decord", "decord") from None
    begin_s, deadline = start_of(count, start_s, end_s), time.monotonic() + deadline_s

    def ends(mode: Mode) -> tuple[float, float, bool]:
        with open_reader(path, deadline, mode, threads=1) as reader:
            return reader.origin_s, reader.end_of(end_s), reader.damaged

    first_s, until_s, damaged = read_through_if_lost(ends, "auto")
    span_s = span_of(path, begin_s, until_s)
    starts_s = _display_times(path, deadline) - first_s
    index = np.searchsorted(starts_s, np.asarray(centres(begin_s, span_s, count)) + TOLERANCE_S, side="right") - 1
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        if len(reader) != len(starts_s) or abs(starts_s[0]) > TOLERANCE_S:
            raise VideoError(f"{path}: decord counts {len(reader)} frames where {len(starts_s)} are shown.")
        frames: Pixels = reader.get_batch(index).asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        raise VideoError(f"{path}: decord cannot read it: {str(error).splitlines()[0]}") from error
    if size is not None:
        frames = np.concatenate([scale_by_area(frame[None], size) for frame in frames])
    return Sample(frames, tuple(starts_s[index].tolist()), span_s, damaged)


def _display_times(path: Path, deadline: float) -> NDArray[np.float64]:
    """When each frame goes on display on the file's own clock, by its packets; nothing is decoded."""
    times_s: list[float] = []
    with open_box(path, deadline) as (box, stream):
        if box.format.name in INEXACT_JUMPS:
            raise VideoError(f"{path}: decord's jumps in {box.format.name} land on other frames.")
        keyframe_s = -np.inf
        for packet in packets_of(box, stream, path, deadline):
            if not packet.size or packet.is_discard:
                continue
            if packet.pts is None:
                raise VideoError(f"{path}: its packets do not say when they are shown.")
            times_s.append(float(packet.pts * packet.time_base))
            if packet.is_keyframe:
                keyframe_s = times_s[-1]
            if times_s[-1] < keyframe_s:
                raise VideoError(f"{path}: frames stand before their keyframe; decord loses them in a jump.")
    return np.sort(np.asarray(times_s))
