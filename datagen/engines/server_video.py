"""A video as a part of a message to a server: its frames pixel by pixel, or the file itself.

vLLM takes the frames that our own engines show, with their times; any other server takes them as images. Frames
travel as PNG, which loses nothing. A part is JSON that is made once and shared by all requests about the video.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_rlaif.datagen.engine import VideoPart
from vlm_rlaif.datagen.engines.clips import Clip, metadata
from vlm_rlaif.warehouse.errors import UserError

EXACT_BITS = 52
"""Integers of so many bits are exact as floating point numbers, too."""


@dataclass(frozen=True, slots=True)
class Media:
    """What stands for a video in a message."""

    parts: bytes
    """JSON of one or more content parts, with commas between them."""
    about: dict[str, Any] = field(default_factory=dict)
    """How vLLM is to read it (`media_io_kwargs`)."""


def png(frame: NDArray[np.uint8]) -> bytes:
    """A frame (H, W, 3) as a PNG file; every row is written as its difference from the one above."""
    height, width = frame.shape[:2]
    rows = np.full((height, 1 + 3 * width), 2, dtype=np.uint8)  # 2 is PNG's number of that filter
    flat = frame.reshape(height, 3 * width)
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def as_frames(clip: Clip) -> Media:
    """The frames as vLLM's list of pictures that are one video."""
    url = b"data:video/jpeg;base64," + b",".join(_pictures(clip))  # vLLM looks at the pictures, not at this name
    return Media(_url_part(b"video_url", url), frame_numbers(clip))


def as_images(clip: Clip) -> Media:
    """The frames as images, one after the other; their times are lost."""
    urls = (b"data:image/png;base64," + picture for picture in _pictures(clip))
    return Media(b",".join(_url_part(b"image_url", url) for url in urls))


def as_file(part: VideoPart, *, local: bool) -> Media:
    """The whole file, by its path where the server may open it; vLLM takes the frames. Blocks while it reads."""
    if part.start_s is not None or part.end_s is not None:
        raise UserError(
            "`frames: {sampler: server}` sends whole videos; this stage asks about a part of one.",
            "Leave `sampler` out: frames are then taken here, and sent.",
        )
    if local:
        url = part.path.resolve().as_uri().encode()
    else:
        url = b"data:video/mp4;base64," + base64.b64encode(part.path.read_bytes())
    return Media(_url_part(b"video_url", url), {"num_frames": part.frames.count})


def frame_numbers(clip: Clip) -> dict[str, Any]:
    """Times of frames as vLLM takes them: whole numbers, which over `fps` are what `metadata` says.

    The frame rate is multiplied by a power of two, and the numbers with it, so that rounding changes nothing. A
    reader of the rate of the chosen frames (numbers given / number of all x fps) finds the one of `metadata`.
    """
    about = metadata(clip)
    largest = max(1.0, about["total_num_frames"], *about["frames_indices"])
    scale = 2.0 ** (EXACT_BITS - math.ceil(math.log2(largest)))
    return {
        "num_frames": -1,
        "fps": about["fps"] * scale,
        "frames_indices": [round(number * scale) for number in about["frames_indices"]],
        "total_num_frames": round(about["total_num_frames"] * scale),
        "duration": about["duration"],
        "do_sample_frames": False,
    }


def _pictures(clip: Clip) -> list[bytes]:
    """Base64 of every frame; one that is repeated is made once."""
    made: list[bytes] = []
    for i, frame in enumerate(clip.frames):
        same = i > 0 and np.array_equal(frame, clip.frames[i - 1])
        made.append(made[-1] if same else base64.b64encode(png(frame)))
    return made


def _url_part(kind: bytes, url: bytes) -> bytes:
    """Neither Base64 nor the address of a file has a character that JSON would escape."""
    return b'{"type":"%s","%s":{"url":"%s"}}' % (kind, kind, url)
