"""Pixels of the shapes world: frames as arrays and real H.264 files.

`draw` renders any set of moments at any size with antialiased edges; a small frame drawn directly and a
big one scaled down look the same to a model. `write_mp4` encodes with PyAV's own x264.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlm_rlaif.datagen.shapes.world import FPS, SCENE_S, SHAPES, Shape, ShapesVideo

RGB = {
    "red": (230, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 235),
    "yellow": (240, 220, 40),
    "purple": (160, 50, 200),
}
BACKGROUND = 16.0
TRAVEL = 0.3
"""How far a moving shape travels in one scene, as a fraction of the width."""
BLINKS_PER_SCENE = 6
MOST_SHAPES = 2
FRAMES_PER_SCENE = round(SCENE_S * FPS)
_DIRECTION = {
    "moves left": (-1, 0),
    "moves right": (1, 0),
    "moves up": (0, -1),
    "moves down": (0, 1),
}


def pose(shape: Shape, moment: float) -> tuple[float, float, float, float]:
    """(x, y, radius, brightness) of a shape at `moment` in [0, 1) of its scene."""
    x, y, radius, brightness = shape.x, shape.y, shape.radius, 1.0
    if shape.motion in _DIRECTION:
        dx, dy = _DIRECTION[shape.motion]
        x, y = x + dx * (moment - 0.5) * TRAVEL, y + dy * (moment - 0.5) * TRAVEL
    elif shape.motion == "grows":
        radius *= 0.6 + 0.8 * moment
    elif shape.motion == "shrinks":
        radius *= 1.4 - 0.8 * moment
    elif (int(moment * BLINKS_PER_SCENE) + shape.phase) % 2:
        brightness = 0.35
    return x, y, radius, brightness


def poses(video: ShapesVideo, frame_numbers: Sequence[int]) -> NDArray[np.float32]:
    """What `draw` needs: (frames, MOST_SHAPES, 7) of x, y, radius, shape number (-1 = none), r, g, b."""
    out = np.full((len(frame_numbers), MOST_SHAPES, 7), -1, np.float32)
    for row, number in enumerate(frame_numbers):
        scene, step = divmod(number, FRAMES_PER_SCENE)
        for slot, shape in enumerate(video.scenes[scene]):
            x, y, radius, brightness = pose(shape, step / FRAMES_PER_SCENE)
            out[row, slot, :4] = x, y, radius, SHAPES.index(shape.shape)
            out[row, slot, 4:] = [BACKGROUND + (c - BACKGROUND) * brightness for c in RGB[shape.colour]]
    return out


def draw(poses: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """Render poses (N, MOST_SHAPES, 7) to frames (N, size, size, 3), edges one pixel soft."""
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    frames = np.full((len(poses), size, size, 3), BACKGROUND, np.float32)
    for slot in range(poses.shape[1]):
        for number in range(len(SHAPES)):
            rows = np.flatnonzero(poses[:, slot, 3] == number)
            if not len(rows):
                continue
            p = poses[rows, slot]
            dx = grid[None, None, :] - p[:, 0, None, None]
            dy = grid[None, :, None] - p[:, 1, None, None]
            outside = _distance(SHAPES[number], dx, dy, p[:, 2, None, None])
            cover = np.clip(0.5 - outside * size, 0, 1)[..., None]
            frames[rows] += cover * (p[:, None, None, 4:] - frames[rows])
    return (frames + 0.5).astype(np.uint8)


def _distance(
    shape: str, dx: NDArray[np.float32], dy: NDArray[np.float32], r: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Signed distance to the outline: below zero inside."""
    ax, ay = np.abs(dx), np.abs(dy)
    if shape == "circle":
        outside = np.sqrt(dx * dx + dy * dy) - r
    elif shape == "square":
        outside = np.maximum(ax, ay) - 0.88 * r
    elif shape == "triangle":
        outside = np.maximum(dy - 0.8 * r, (ax - 0.5 * (dy + r)) * 0.894)
    else:
        bar = 0.33 * r
        outside = np.minimum(np.maximum(ax - bar, ay - r), np.maximum(ax - r, ay - bar))
    return np.asarray(outside, np.float32)


def render(video: ShapesVideo, size: int = 96) -> NDArray[np.uint8]:
    """Every frame of the video, (frames, size, size, 3)."""
    return draw(poses(video, range(FRAMES_PER_SCENE * len(video.scenes))), size)


def write_mp4(video: ShapesVideo, path: Path, size: int = 96) -> None:
    """Encode the video as H.264; the same video gives the same bytes with the same encoder version."""
    import av  # heavy and only needed here

    partial = path.with_suffix(".partial.mp4")
    with av.open(str(partial), "w", options={"movflags": "+faststart"}) as box:
        stream = box.add_stream("libx264", rate=FPS)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        # x264's macroblock tree is not repeatable: with its vector code 1 small video in 40 got other bytes each time
        stream.options = {"crf": "16", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        for frame in render(video, size):
            box.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        box.mux(stream.encode())
    partial.rename(path)
