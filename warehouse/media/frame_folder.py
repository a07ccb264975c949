"""A folder of pictures as a video: what published sets of extracted frames look like.

Frames stand in the natural order of their names, `frame_2.jpg` before `frame_10.jpg`, and frame i is on display
during [i, i + 1) seconds: nothing in such a folder says how fast it was. The video's id is the hash of the
frames in their order, so the folder's name and place do not matter. Nothing outside the folder is read.

It is not a slide show of anything: pictures in folders below it are not its frames.

    probe(Path("frames/cat")).frames
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from pathlib import Path

import av
import numpy as np

from vlm_rlaif.warehouse.media.container import decoder_of, require_regular
from vlm_rlaif.warehouse.media.frames import (
    Pixels,
    Probe,
    Sample,
    VideoError,
    centres,
    scale_by_area,
    span_of,
    stack,
    upright,
)
from vlm_rlaif.warehouse.media.reader import TOLERANCE_S

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
FPS = 1.0
FORMATS = {"format_whitelist": "jpeg_pipe,png_pipe,webp_pipe,bmp_pipe"}
LARGEST_FILE = 2**28
"""Bytes of one picture."""


def is_frame_folder(path: Path) -> bool:
    """Whether a folder holds pictures directly."""
    try:
        return any(_is_picture(name) for name in os.listdir(path))
    except OSError:
        return False


def frame_files(path: Path) -> list[Path]:
    """The pictures of a folder in natural order. Raises `VideoError` when there is none, or one leads out of it."""
    try:
        names = [name for name in os.listdir(path) if _is_picture(name)]
        inside = path.resolve(strict=True)
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror}") from None
    if not names:
        raise VideoError(f"{path}: it is a folder without pictures ({', '.join(sorted(SUFFIXES))}).")
    files = [path / name for name in sorted(names, key=_natural)]
    for file in files:
        if file.is_symlink() and not Path(os.path.realpath(file)).is_relative_to(inside):
            raise VideoError(f"{file}: it leads out of its folder.")
    return files


def hash_folder(path: Path) -> str:
    """20 hex digits that identify the frames, their bytes and their order, whatever they are called."""
    digest = hashlib.blake2b(digest_size=10)
    for file in frame_files(path):
        digest.update(hashlib.blake2b(_read(file)).digest())
    return digest.hexdigest()


def probe(path: Path) -> Probe:
    """What the folder is, by the first frame; the last one is looked at too."""
    files = frame_files(path)
    height, width = decode(files[0]).shape[:2]
    decode(files[-1])
    return Probe(len(files) / FPS, FPS, len(files), width, height, codec="frames", rotation=0)


def sample(path: Path, count: int, start_s: float, end_s: float | None, size: int | None) -> Sample:
    """The frames on display at the centres of `count` equal parts of [start_s, end_s]."""
    files = frame_files(path)
    asked_s = len(files) / FPS if end_s is None else end_s
    span_s = span_of(path, start_s, min(asked_s, len(files) / FPS))
    places = [int((target_s + TOLERANCE_S) * FPS) for target_s in centres(start_s, span_s, count)]
    pictures: dict[int, Pixels] = {}
    for place in dict.fromkeys(places):
        picture = decode(files[place])
        pictures[place] = picture if size is None else scale_by_area(picture[None], size)[0]
    frames = stack(path, [pictures[place] for place in places])
    return Sample(frames, tuple(place / FPS for place in places), span_s, span_s < 0.9 * (asked_s - start_s))


def decode(file: Path) -> Pixels:
    """One picture as (H, W, 3), upright. Raises `VideoError`."""
    try:
        with av.open(io.BytesIO(_read(file)), mode="r", container_options=FORMATS) as box:
            decoder_of(box.streams.video[0], file)
            frame = next(box.decode(video=0))
            return upright(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8), frame.rotation)
    except (av.error.FFmpegError, StopIteration, IndexError) as error:
        raise VideoError(
            f"{file}: it is not a picture: {getattr(error, 'strerror', '') or 'nothing in it'}"
        ) from None


def _read(file: Path) -> bytes:
    try:
        if require_regular(file).st_size > LARGEST_FILE:
            raise VideoError(f"{file}: a picture of more than {LARGEST_FILE >> 20} MiB is none.")
        return file.read_bytes()
    except OSError as error:
        raise VideoError(f"{file}: {error.strerror}") from None


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _natural(name: str) -> tuple[list[str | int], str]:
    """Numbers count as numbers.

    >>> sorted(["f10.jpg", "f2.jpg", "f1.jpg"], key=_natural)
    ['f1.jpg', 'f2.jpg', 'f10.jpg']
    """
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name
