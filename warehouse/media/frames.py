"""What is known of a video and what is taken from it: times in seconds, pixels as (N, H, W, 3) RGB.

Pure arithmetic on numbers and arrays. It opens no file; `video.py` does.

>>> centres(0.0, 6.0, 3)
[1.0, 3.0, 5.0]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class VideoError(Exception):
    """A file that does not give the frames asked for. The message names the file and what is wrong."""


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

    frames: Pixels
    """(count, H, W, 3) RGB, upright."""
    times_s: tuple[float, ...]
    """When each frame goes on display."""
    span_s: float
    """The display time that was divided."""
    damaged: bool
    """A decode error, a frame marked corrupt, or over a tenth of the promised time missing. Not every
    damaged frame is noticed, and a second reading may differ: key nothing on such pixels."""


def centres(start_s: float, span_s: float, count: int) -> list[float]:
    """The middles of `count` equal parts."""
    return [start_s + span_s * (part + 0.5) / count for part in range(count)]


def start_of(count: int, start_s: float | None, end_s: float | None) -> float:
    """Where the part that was asked for begins; a ValueError when it holds no time or no frames."""
    begin_s = start_s or 0.0
    if count < 1 or begin_s < 0 or (end_s is not None and end_s <= begin_s):
        raise ValueError(f"no frames to take: count={count}, start_s={start_s}, end_s={end_s}")
    return begin_s


def span_of(name: object, begin_s: float, until_s: float) -> float:
    """The seconds to divide, of a video that ends at `until_s`."""
    if until_s <= begin_s:
        raise VideoError(f"{name}: no frame is on display at {begin_s:.2f} s, the video ends at {until_s:.2f} s.")
    return until_s - begin_s


def stack(name: object, pictures: Sequence[Pixels]) -> Pixels:
    """Pictures to (N, H, W, 3)."""
    if len({picture.shape for picture in pictures}) > 1:
        raise VideoError(f"{name}: frames change size within the video; sample it with a size.")
    return np.stack(pictures)


def scale_by_area(frames: Pixels, size: int) -> Pixels:
    """(N, H, W, 3) to (N, size, size, 3): every new pixel is the mean of the area that it covers.

    >>> scale_by_area(np.array([[[[0] * 3, [100] * 3]] * 2], np.uint8), 1).tolist()
    [[[[50, 50, 50]]]]
    """
    height, width = frames.shape[1:3]
    kind = np.int32 if height * width < 2**23 else np.int64  # 4K fits, 8K does not
    by_rows, rows = _overlaps(frames, size, 1, kind)
    sums, columns = _overlaps(by_rows, size, 2, kind)
    area = rows * columns
    return np.asarray((sums + area // 2) // area, np.uint8)


def _overlaps(values: NDArray[Any], size: int, axis: int, kind: type[np.integer[Any]]) -> tuple[NDArray[Any], int]:
    """Sums over what each of `size` new places along an axis covers, and how much that is.

    The unit of length divides both the old and the new pixels, so that sums are whole numbers: all old pixels that
    begin within a new one, less the part of the first that lies before it, plus that of the one after the last.
    """
    length = values.shape[axis]
    common = math.gcd(length, size)
    old, new = size // common, length // common
    edges = np.arange(size + 1) * new
    first, before = edges // old, (edges % old).astype(kind)
    parts = values.take(np.minimum(first, length - 1), axis).astype(kind)
    parts *= before.reshape(-1, *[1] * (values.ndim - axis - 1))
    sums = _sums(values, first, axis, kind)
    sums *= old
    sums += np.diff(parts, axis=axis)
    return sums, new


def _sums(values: NDArray[Any], first: NDArray[Any], axis: int, kind: type[np.integer[Any]]) -> NDArray[Any]:
    """The sum of places first[i] up to first[i + 1] for each i. Whole rows of pixels are quickest one by one."""
    if axis > 1:
        made: NDArray[Any] = np.add.reduceat(values, np.minimum(first[:-1], values.shape[axis] - 1), axis, kind)
        made *= (np.diff(first) > 0)[:, None]  # an empty sum is zero
        return made
    made = np.empty((len(values), len(first) - 1, *values.shape[2:]), kind)
    for place, (begin, end) in enumerate(itertools.pairwise(first)):
        np.add.reduce(values[:, begin:end], axis=1, dtype=kind, out=made[:, place])
    return made


def upright(pixels: Pixels, rotation: int) -> Pixels:
    """(H, W, 3) turned counter-clockwise; PyAV, unlike other readers, leaves that to its caller."""
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns(rotation)))


def quarter_turns(rotation: int) -> int:
    """0 to 3, counter-clockwise, for degrees of either sign."""
    return round(rotation / 90) % 4
