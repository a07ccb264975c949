"""Frames in another order, some of them missing, or all grey: what a model sees when it has to give a worse answer.

Whether the answer is worse is never assumed: a judge compares it with the answer to the video as it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlm_rlaif.warehouse.records import row_id

GREY = 127


def spoil(
    frames: NDArray[np.uint8], times_s: tuple[float, ...], kind: str, key: str
) -> tuple[NDArray[np.uint8], tuple[float, ...]]:  # fmt: skip
    """The frames (T, H, W, 3) and their times as a model is given them; `key` makes each video its own case."""
    if kind == "blank":
        return np.full_like(frames, GREY), times_s
    shown = order(len(frames), kind, key)
    return frames[shown], tuple(times_s[frame] for frame in sorted(shown))


def order(count: int, kind: str, key: str) -> list[int]:
    """Which of `count` frames are shown, in their new order. Two frames or more never stay as they were.

    `key` decides how they are shuffled, and which third of them, in a row, is dropped.

    >>> order(4, "reversed", "video")
    [3, 2, 1, 0]
    >>> len(order(6, "dropped", "video"))
    4
    """
    whole = list(range(count))
    if kind == "reversed":
        return whole[::-1]
    if kind == "shuffled":
        mixed = sorted(whole, key=lambda frame: row_id(kind, key, frame))
        return mixed if mixed != whole else mixed[::-1]
    missing = max(1, count // 3)
    first = int(row_id(kind, key), 16) % (count - missing + 1)
    return whole[:first] + whole[first + missing :]
