"""A folder that is there whole or not at all, and the note in it that says what it holds.

Files are written to a hidden folder beside it, which is renamed at the end. What a killed export left there is taken
away by the next one. Nothing that an export did not write is ever deleted.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.exports.files import write_json

NOTE = "export.json"
KEYS = {"rows_hash", "format", "rows", "ties", "unfit", "judges", "missing", "files"}
VIDEOS = "videos"
"""Where an export's own copies of videos lie; they are not in its note."""


def stands(out: Path, wanted: dict[str, Any]) -> bool:
    """Whether a folder holds the export that is wanted: its note says so, and its files have the sizes in it."""
    note = read_note(out)
    if note is None or any(note.get(key) != value for key, value in wanted.items()):
        return False
    return all(_size(out / name) == size for name, size in note["files"].items())


def read_note(out: Path) -> dict[str, Any] | None:
    """The note of an export, or None where there is none that can be read."""
    try:
        note = json.loads((out / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(note, dict) and note.keys() >= KEYS and isinstance(note["files"], dict)
    return note if whole else None


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def check_free(out: Path, *, force: bool) -> None:
    """Raise `UserError` unless a folder may be written: it is not there, or empty, or an export to be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; an export is a folder.")
    note = read_note(out)
    if note is None:
        raise UserError(f"{out} holds files that no export wrote.", "Choose another folder.")
    if not force:
        raise UserError(
            f"{out} holds another export ({note.get('format')}, rows {note.get('rows_hash')}).",
            "Choose another folder, or replace it: --force",
        )
    ours = {*note["files"], NOTE}
    strange = sorted(
        name
        for path in out.rglob("*")
        if (path.is_symlink() or not path.is_dir())
        and (name := str(path.relative_to(out))) not in ours
        and not name.startswith(f"{VIDEOS}/")
    )
    if strange:
        raise UserError(
            f"{out} holds files that the export did not write: {', '.join(strange[:5])}.",
            "Move them away, or choose another folder.",
        )


@contextmanager
def whole(out: Path, note: dict[str, Any]) -> Iterator[Path]:
    """A folder to write to, which becomes `out` when the block ends well.

    `note` is written last, as it is by then, with the sizes of the files.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.parent / f".{out.name}.vlm-rlaif-partial"
        partial.mkdir(exist_ok=True)
        with _alone(partial, out):
            try:
                for left in partial.iterdir():
                    shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
                yield partial
                write_json(partial / NOTE, {**note, "files": _sizes(partial)})
                _replace(partial, out)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written: {error.strerror or error}.",
            "Nothing was left there. Make room, or choose another folder.",
        ) from None


@contextmanager
def _alone(partial: Path, out: Path) -> Iterator[None]:
    """Hold the lock of a folder, which dies with its process."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UserError(f"Another export is writing to {out}.", "Wait for it, or choose another folder.") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file but the videos."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.stat().st_size for name, path in found.items() if not name.startswith(f"{VIDEOS}/")}


def _replace(partial: Path, out: Path) -> None:
    """Put the new folder in the place of the old one, if there is one."""
    old = out.parent / f".{out.name}.vlm-rlaif-old"
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(partial, out)
    shutil.rmtree(old, ignore_errors=True)
