"""The frames of a request, as every engine is given them. No torch: a server's client needs none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_rlaif.datagen.engine import VideoPart
from vlm_rlaif.datagen.engines.perturb import spoil
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.media.frame_cache import FrameCache
from vlm_rlaif.warehouse.media.video import sample


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames as a model is given them."""

    frames: NDArray[np.uint8]
    """(T, H, W, 3)."""
    times_s: tuple[float, ...]
    """Display time of every frame."""


def read_clip(part: VideoPart) -> Clip:
    """Decode the frames that a request asks for; raises `VideoError`."""
    spec = part.frames
    if spec.sampler != "ours":
        raise UserError(
            "`frames: {sampler: server}` is for a server that takes the frames from the file itself.",
            "--server http://HOST:PORT/v1 names one; without `sampler`, frames are taken here.",
        )
    asked: dict[str, Any] = {"start_s": part.start_s, "end_s": part.end_s, "size": spec.size}
    if part.cache is not None and part.video_id is not None:
        taken = FrameCache(part.cache).sample(part.path, part.video_id, spec.count, **asked)
    else:
        taken = sample(part.path, spec.count, **asked)
    frames, times_s = taken.frames, taken.times_s
    if spec.perturb:
        key = f"{part.video_id or part.path.name} {part.start_s} {spec.perturb_seed}"
        frames, times_s = spoil(frames, times_s, spec.perturb, key)
    frames = np.repeat(frames, spec.repeat, axis=0)
    return Clip(frames, tuple(t for t in times_s for _ in range(spec.repeat)))


def metadata(clip: Clip) -> dict[str, Any]:
    """What processors want to know about frames that are already chosen.

    Frame numbers are written so that number / fps is the display time: models that read time read the truth.
    """
    times = clip.times_s
    steps = np.diff(times)
    step_s = float(steps.mean()) if len(steps) and steps.mean() > 0 else 1.0
    height, width = clip.frames.shape[1:3]
    return {
        "fps": 1 / step_s,
        "total_num_frames": len(times),
        "duration": times[-1] - times[0] + step_s,
        "frames_indices": [t / step_s for t in times],
        "height": height,
        "width": width,
    }
