"""Frames that were decoded once, kept beside the warehouse for every stage and every process.

An entry is one file, named by the video's content and by what was taken from it. A wrong one is impossible: the
file behind a video's place is held against the content it is known by, what was changed is refused, and an entry
whose own bytes are not as they were written is decoded anew. Damaged videos are not kept, because two readings of
one may differ.

The folder is a convenience. It may be deleted at any time, holds at most `MOST_BYTES` and a quarter of the disk
that is free, and drops what was not used for longest. Where it cannot be written, frames are decoded.

    FrameCache(Path("w.duckdb.frames")).sample(path, video_id, 8, size=224)
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlm_rlaif.warehouse.media.frames import Sample, VideoError
from vlm_rlaif.warehouse.records import row_id

MOST_BYTES = 20 * 2**30
SHARE_OF_FREE = 0.25
"""Of the disk space that would be free without the cache."""
SHARE_OF_ONE = 1 / 8
"""One entry takes no more than this of what is free, or of the whole cache."""
DISK_BYTES_PER_S = 200e6
"""What an ordinary disk reads: frames that are decoded quicker are not kept."""
SWEEPS = 50
"""How often the cache is counted and cut back while as much is written to it as it may hold."""
ABANDONED_S = 3600.0
"""A temporary file of this age belongs to a process that was killed."""
SETTLED_S = 2.0
"""A file that was changed less than this before it was hashed could change once more and look the same."""
BLOCK = 4096
"""What the smallest file takes on a disk."""
CRC_DIGITS = 8


@dataclass(frozen=True, slots=True)
class FrameCache:
    """A folder of decoded frames, shared by all processes; without a state of its own."""

    folder: Path
    most_bytes: int = MOST_BYTES

    def sample(
        self, path: Path, video_id: str, count: int, *, start_s: float | None = None, end_s: float | None = None,
        size: int | None = None,
    ) -> Sample:  # fmt: skip
        """What `video.sample` takes from the file, decoded once.

        Raises `VideoError`, also when the file is not the video `video_id` any more.
        """
        import av

        from vlm_rlaif.warehouse.media import video

        seen = self._require_content(path, video_id)
        key = row_id(video_id, count, start_s, end_s, size, video.SAMPLER_VERSION, av.__version__)
        entry = self.folder / f"{video_id}-{key}.frames"
        if (kept := _read(entry, key)) is not None:
            return kept
        with self._one_at_a_time(key):
            if (kept := _read(entry, key)) is not None:  # somebody else was decoding it
                return kept
            begun = time.monotonic()
            taken = video.sample(path, count, start_s=start_s, end_s=end_s, size=size)
            took_s = time.monotonic() - begun
            if look(path) != seen:
                raise VideoError(f"{path}: it changed while it was read.")
            if not taken.damaged and taken.frames.nbytes < took_s * DISK_BYTES_PER_S:
                self._keep(entry, key, taken)
            return taken

    def _require_content(self, path: Path, video_id: str) -> str:
        """How a file looks that has the content of a video; it is hashed when it does not look as before."""
        from vlm_rlaif.warehouse.media import video

        if not re.fullmatch("[0-9a-f]{20}", video_id):
            raise VideoError(f"{path}: {video_id!r} is not the hash of a video.")
        looks = look(path)
        note = self.folder / f"{video_id}-{row_id(os.path.abspath(path))}.seen"
        if _text(note) == looks:
            return looks
        begun = time.time()
        try:
            found = video.content_id(path)
        except OSError as error:
            raise VideoError(f"{path}: {error.strerror}") from None
        if found != video_id:
            raise VideoError(
                f"{path}: it is not the video {video_id} any more, its bytes are those of {found}."
                " Run vlm-rlaif add again."
            )
        if look(path) == looks and begun - _changed_at(path) > SETTLED_S:
            self._write(note, looks.encode())
        return looks

    def _keep(self, entry: Path, key: str, taken: Sample) -> None:
        header = {"key": key, "shape": taken.frames.shape, "times_s": taken.times_s, "span_s": taken.span_s}
        body = b"\n" + json.dumps(header).encode() + b"\n"
        pixels = np.ascontiguousarray(taken.frames).data.cast("B")
        crc = zlib.crc32(pixels, zlib.crc32(body))
        with suppress(OSError):
            self.folder.mkdir(exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            if pixels.nbytes < SHARE_OF_ONE * min(free, self.most_bytes):
                self._write(entry, f"{crc:0{CRC_DIGITS}x}".encode() + body, pixels)
                if random.random() * self.most_bytes < SWEEPS * max(pixels.nbytes, BLOCK):
                    self.sweep()

    def _write(self, path: Path, *parts: bytes | memoryview) -> None:
        """Whole or not at all. A disk that is full or may not be written is no failure: nothing is kept."""
        draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        with suppress(OSError):
            self.folder.mkdir(exist_ok=True)
            try:
                with draft.open("xb") as file:
                    file.writelines(parts)
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what killed processes left, and what was not used for longest until the rest is small enough."""
        now, found = time.time(), []
        for file in os.scandir(self.folder):
            if file.name.endswith(".lock"):
                continue
            with suppress(FileNotFoundError):
                about = file.stat()
                if file.name.endswith(".tmp") and now - about.st_mtime > ABANDONED_S:
                    os.unlink(file)
                else:
                    found.append((about.st_mtime, max(about.st_size, BLOCK), file.path))
        held = sum(size for _, size, _ in found)
        most = min(self.most_bytes, SHARE_OF_FREE * (shutil.disk_usage(self.folder).free + held))
        if held <= most:
            return
        for _, size, path in sorted(found):
            Path(path).unlink(missing_ok=True)
            held -= size
            if held <= 0.9 * most:
                return

    @contextmanager
    def _one_at_a_time(self, key: str) -> Iterator[None]:
        """Whoever wants the same frames waits for them. Without a place for the lock they are decoded twice."""
        try:
            self.folder.mkdir(exist_ok=True)
            lock = (self.folder / f"{key[:2]}.lock").open("ab")
        except OSError:
            yield
            return
        with lock:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def folder_of(warehouse: Path) -> Path:
    """Where the frames of a warehouse's videos are kept."""
    return warehouse.with_name(warehouse.name + ".frames")


def proxies_of(warehouse: Path) -> Path:
    """Where the copies of a warehouse's videos lie that are made for browsers."""
    return warehouse.with_name(warehouse.name + ".proxies")


def _read(entry: Path, key: str) -> Sample | None:
    """An entry as it was written, None where there is none or it is damaged. Read, it counts as used."""
    try:
        with entry.open("rb") as file:
            content = bytearray(os.fstat(file.fileno()).st_size)
            file.readinto(content)
    except OSError:
        return None
    with suppress(OSError):
        os.utime(entry)
    try:
        if int(content[:CRC_DIGITS], 16) != zlib.crc32(memoryview(content)[CRC_DIGITS:]):
            return None
        end = content.index(b"\n", CRC_DIGITS + 1)
        header = json.loads(content[CRC_DIGITS + 1 : end])
        pixels = np.frombuffer(content, np.uint8, offset=end + 1).reshape(header["shape"])
    except ValueError:
        return None
    if header["key"] != key:
        return None
    return Sample(pixels, tuple(header["times_s"]), header["span_s"], damaged=False)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _statuses(path: Path) -> list[tuple[str, os.stat_result]]:
    """Of a file, or of every picture of a folder of frames."""
    from vlm_rlaif.warehouse.media.frame_folder import frame_files

    try:
        return [(file.name, file.stat()) for file in (frame_files(path) if path.is_dir() else [path])]
    except OSError as error:
        raise VideoError(f"{path}: {error.strerror}") from None


def look(path: Path) -> str:
    """What changes with every write to a file, without reading it."""
    return row_id(
        *([name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in _statuses(path))
    )


def _changed_at(path: Path) -> float:
    return max(max(status.st_mtime, status.st_ctime) for _, status in _statuses(path))
