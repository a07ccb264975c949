"""Videos below one folder, by the names that files of records give them.

A name may be a path, or an id without folder and ending, as data sets about ActivityNet, MSRVTT and MSVD have them.
Nothing outside the folder is ever found: not by `..`, not by an absolute path, not through a link.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.intake.arrivals import SUFFIXES
from vlm_rlaif.warehouse.intake.conversations import shown
from vlm_rlaif.warehouse.media.frame_folder import frame_files, is_frame_folder
from vlm_rlaif.warehouse.media.frames import VideoError
from vlm_rlaif.warehouse.records import row_id

FEATURES = {".pkl", ".npy", ".npz", ".pt", ".pth"}
"""Endings of features that were computed from a video of the same name."""
SHOWN = 3


class Finder:
    """Finds videos below `root`. Raises `ValueError` with the reason where it does not."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserError(f"There is no folder {root}.", "--videos names the folder below which the videos lie.")
        self.root = os.path.realpath(root)
        self._shown = str(root)
        self._found: dict[str, Path | ValueError] = {}
        self._frames: dict[str, tuple[str, str]] = {}
        """Folder as records name it -> its path and a mark of its images."""
        self._index: dict[str, list[str]] | None = None

    def find(self, video: str | tuple[str, ...]) -> Path:
        """The file or the folder of frames that is meant; a tuple lists the frames themselves."""
        if isinstance(video, tuple):
            return Path(self._folder_of(video))
        if video not in self._found:
            self._found[video] = self._result(video)
        found = self._found[video]
        if isinstance(found, ValueError):
            raise found
        return found

    def _result(self, name: str) -> Path | ValueError:
        try:
            return Path(self._search(name))
        except OSError as error:
            return ValueError(f"{shown(name)} cannot be read: {error.strerror}")
        except ValueError as error:
            return error.with_traceback(None)

    def _search(self, name: str) -> str:
        name = name.removeprefix("file://")
        if "://" in name:
            raise ValueError(f"{shown(name)} is an address, not a file")
        if is_video(path := self._below(name)):
            return path
        for suffix in sorted(SUFFIXES):
            if os.path.isfile(path := self._below(name + suffix)):
                return path
        for spelled in _spellings(name):
            if matches := self._matches(spelled):
                return self._only(name, matches)
        raise ValueError(f"there is no video {shown(name)} below {self._shown}")

    def _below(self, name: str) -> str:
        """The real path of a name, which lies below the root."""
        path = os.path.realpath(os.path.join(self.root, name))
        if path != self.root and not path.startswith(self.root.rstrip(os.sep) + os.sep):
            raise ValueError(f"{shown(name)} leads out of {self._shown}")
        return path

    def _only(self, name: str, matches: list[str]) -> str:
        """The one path among several; files come before folders of frames."""
        files = [path for path in matches if os.path.isfile(path)]
        if len(found := sorted(files or matches)) == 1:
            return found[0]
        some = ", ".join(os.path.relpath(path, self.root) for path in found[:SHOWN])
        raise ValueError(f"{len(found)} videos below {self._shown} are called {shown(name)}, such as {some}")

    def _matches(self, spelled: str) -> list[str]:
        """Videos of this name in any folder, or in the folder that the name has before it."""
        if self._index is None:
            self._index = self._walk()
        folder, base = os.path.split(os.path.normpath(spelled))
        stem, suffix = os.path.splitext(base)
        whole = suffix.lower() in SUFFIXES
        found = set()
        for path in self._index.get(stem if whole else base, []):
            there, name = os.path.split(path)
            if (not whole or name == base) and (not folder or f"{os.sep}{there}".endswith(f"{os.sep}{folder}")):
                found.add(self._below(path))
        return [path for path in found if is_video(path)]

    def _walk(self) -> dict[str, list[str]]:
        """Name without its ending -> paths below the root, of video files and of all folders."""
        index: dict[str, list[str]] = {}
        for folder, folders, files in os.walk(self.root):
            for name in (*folders, *files):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in SUFFIXES:
                    index.setdefault(stem, []).append(os.path.relpath(os.path.join(folder, name), self.root))
            for name in folders:
                index.setdefault(name, []).append(os.path.relpath(os.path.join(folder, name), self.root))
        return index

    def _folder_of(self, images: Sequence[str]) -> str:
        """The folder whose images are exactly these."""
        folder, parts = os.path.dirname(images[0]), [image.rpartition("/") for image in images]
        if any(part[0] != parts[0][0] for part in parts):
            raise ValueError("its images lie in several folders")
        if folder not in self._frames:
            path = self._below(folder.removeprefix("file://"))
            self._frames[folder] = path, self._listing(path)
        path, listing = self._frames[folder]
        if row_id(*sorted(name for *_, name in parts)) != listing:
            raise ValueError(f"its images are not exactly those of the folder {shown(folder)}")
        return path

    def _listing(self, path: str) -> str:
        """A short mark of the images of a folder."""
        if not os.path.isdir(path):
            raise ValueError(f"there is no folder {shown(os.path.relpath(path, self.root))} below {self._shown}")
        try:
            files = frame_files(Path(path))
        except (VideoError, OSError) as error:
            raise ValueError(f"its images cannot be read: {error}") from None
        return row_id(*sorted(file.name for file in files))


def is_video(path: str) -> bool:
    """Whether there is a file, or a folder of frames, to be opened as a video."""
    return os.path.isfile(path) or (os.path.isdir(path) and is_frame_folder(Path(path)))


def _spellings(name: str) -> Iterator[str]:
    """What a video of this name may be called, its ending apart.

    >>> list(_spellings("a/b.mp4"))
    ['a/b.mp4', 'a/b', 'a/v_b']
    >>> list(_spellings("6513"))
    ['6513', 'v_6513', 'video6513', 'vid6513']
    """
    yield name
    stem, suffix = os.path.splitext(name)
    if suffix.lower() in SUFFIXES | FEATURES:
        yield stem
    else:
        stem = name
    folder, base = os.path.split(stem)
    prefixes = ("v_", "video", "vid") if base.isdecimal() else ("v_",)
    for prefix in prefixes:
        yield os.path.join(folder, prefix + base)
