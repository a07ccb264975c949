"""Where an exported record finds its video: at its absolute path, or in the export's own folder `videos`."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from vlm_rlaif.warehouse.exports.folder import VIDEOS
from vlm_rlaif.warehouse.records import row_id
from vlm_rlaif.warehouse.store import Warehouse

MODES = ("path", "copy", "link")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")


class Places:
    """Puts each video in its place when the first record asks for it; `missing` lists those that are not there."""

    def __init__(self, warehouse: Warehouse, mode: str, into: Path) -> None:
        self._warehouse, self._mode, self._into = warehouse, mode, into
        self._known: dict[str, str] = {}
        self.missing: list[str] = []

    def of(self, video_id: str, uri: str) -> str:
        """The video's path as a record names it."""
        if video_id not in self._known:
            self._known[video_id] = self._place(video_id, uri)
        return self._known[video_id]

    def _place(self, video_id: str, uri: str) -> str:
        source = os.path.normpath(self._warehouse.video_path(uri))
        place = source if self._mode == "path" else f"{VIDEOS}/{file_name(video_id, uri)}"
        try:
            if not os.path.exists(source):
                raise FileNotFoundError("no such file")
            if self._mode != "path":
                self._put(source, self._into / place)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) in _DISK_FULL:
                raise
            self.missing.append(f"{uri}: {getattr(error, 'strerror', None) or error}")
        return place

    def _put(self, source: str, target: Path) -> None:
        target.parent.mkdir(exist_ok=True)
        if self._mode == "link":
            os.symlink(source, target)
        elif os.path.isdir(source):  # the frames of a video
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)


def file_name(video_id: str, uri: str) -> str:
    """The name of a video's file in the export: its id and its suffix, whatever stands in its uri.

    >>> file_name("0a1b", "films/Cat and dog.MP4"), file_name("0a1b", "a/../b.mp4/..")
    ('0a1b.mp4', '0a1b')
    """
    name = video_id if _NAME.fullmatch(video_id) else row_id(video_id)
    suffix = Path(uri).suffix
    return f"{name}{suffix.lower()}" if _SUFFIX.fullmatch(suffix) else name
