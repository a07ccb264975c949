"""What is wrong around a warehouse: files that moved or changed, jobs that died, what they left lying about."""

from __future__ import annotations

import glob
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from vlm_rlaif.warehouse.care.merge import live_runs
from vlm_rlaif.warehouse.care.row_checks import EXAMPLES, Finding
from vlm_rlaif.warehouse.progress import Bar
from vlm_rlaif.warehouse.store import Warehouse

PROBED_FILES = 200
"""Videos that are opened, unless all are hashed."""
LEFTOVER_AGE_S = 3600.0
"""What nobody has touched for this long, and whose process is gone, was left behind."""
LEAST_FREE_BYTES = 1 << 30
WHOLE: Mapping[str, tuple[str, ...]] = {
    "sft": ("merged/config.json",),
    "reward": ("vlm_rlaif.json", "adapter_model.safetensors", "head.safetensors"),
    "ppo": ("vlm_rlaif.json", "adapter_model.safetensors", "merged/config.json"),
}
"""Kind of a checkpoint -> the files without which it cannot be used."""
BEFORE = {"adapter_model.safetensors": "adapter.safetensors"}
"""What a file was called in older checkpoints, which are read as well."""


def check_videos(warehouse: Warehouse, *, hashes: bool) -> Iterator[Finding]:
    """Videos that are not at their place, or whose place holds something else."""
    from vlm_rlaif.warehouse.intake.arrivals import hash_of, look

    missing, changed = [], []
    rows = warehouse.stream(
        "SELECT video_id, uri, width, height, codec FROM videos WHERE status = 'ok' ORDER BY video_id"
    )
    with Bar("videos", len(rows)) as bar:
        for number, row in enumerate(rows):
            path, said = warehouse.video_path(row["uri"]), f"{row['video_id']} ({row['uri']})"
            if not path.exists():
                missing.append(said)
            elif hashes:
                changed += [said] * (hash_of(path) != row["video_id"])
            elif number < PROBED_FILES:
                found = look(path)
                changed += [said] * any(found.get(c) != row[c] for c in ("width", "height", "codec"))
            bar.advance()
    relocate = f"vlm-rlaif relocate {warehouse.path} FOLDER"
    yield from _some("videos", "videos that are not at their place", missing, relocate)
    yield from _some("videos", "videos whose place holds something else", changed, relocate)


def check_jobs(warehouse: Warehouse) -> Iterator[Finding]:
    """Runs and journals of jobs that are gone."""
    repair = f"vlm-rlaif doctor {warehouse.path} --repair"
    running = "SELECT run_id FROM runs WHERE status = 'running' ORDER BY run_id"
    before = [row["run_id"] for row in warehouse.rows(running)]
    alive = live_runs(warehouse)
    journals = {path.stem for path in warehouse.journal_folder.glob("*.jsonl")}
    after = {row["run_id"] for row in warehouse.rows(running)}  # jobs begin and end while we look
    gone = [run_id for run_id in before if run_id in after and run_id not in journals]
    yield from _some("jobs", "journals of jobs that died, with finished rows", sorted(journals - {*alive}), repair)
    yield from _some("jobs", "runs that say they are running, without a job", gone, repair)
    yield from _some("jobs", "jobs that are running", alive, harmless=True)


def check_outputs(warehouse: Warehouse) -> Iterator[Finding]:
    """Checkpoints and exports that are not where they were written."""
    rows = warehouse.rows("SELECT kind, path FROM checkpoints ORDER BY path")
    broken: dict[str, list[str]] = {}
    for row in rows:
        folder = warehouse.folder / row["path"]
        if not folder.is_dir():
            broken.setdefault(row["kind"], []).append(f"{row['path']}: there is no such folder")
        elif lacks := [name for name in WHOLE.get(row["kind"], ()) if not _stands(folder, name)]:
            broken.setdefault(row["kind"], []).append(f"{row['path']}: there is no {', '.join(lacks)}")
    for kind, said in broken.items():
        command = f"vlm-rlaif train {kind} {warehouse.path} --recipe RECIPE"
        yield from _some("checkpoints", f"{kind} checkpoints that are not whole", said, command)
    paths = [row["path"] for row in warehouse.rows("SELECT path FROM exports ORDER BY path")]
    gone = [path for path in paths if not (warehouse.folder / path).exists()]
    yield from _some("exports", "exports that are not where they were written", gone, harmless=True)


def _stands(folder: Path, name: str) -> bool:
    return (folder / name).is_file() or (folder / BEFORE.get(name, name)).is_file()


def check_leftovers(warehouse: Warehouse) -> Iterator[Finding]:
    """What a killed process left, and the room on the disk."""
    repair = f"vlm-rlaif doctor {warehouse.path} --repair"
    found = [str(path) for path in leftovers(warehouse)]
    yield from _some("leftovers", "temporary files and folders of processes that were killed", found, repair)
    free = shutil.disk_usage(warehouse.folder).free
    if free < LEAST_FREE_BYTES:
        yield Finding("disk", 1, f"disks with only {free / 1e9:.1f} GB left", [str(warehouse.folder)], "df -h")


def leftovers(warehouse: Warehouse) -> list[Path]:
    """Temporary files of this warehouse that nobody uses any more."""
    from vlm_rlaif.warehouse.media.frame_cache import folder_of, proxies_of

    name, folder = warehouse.path.name, warehouse.folder
    found = [*folder.glob(f"{name}.purge-*"), *folder.glob(f"{name}.tmp"), *folder_of(warehouse.path).glob("*.tmp"),
             *proxies_of(warehouse.path).glob("*.tmp")]  # fmt: skip
    for row in warehouse.rows("SELECT path FROM checkpoints"):
        found += (folder / row["path"]).rglob(".partial-*")
    exports = "SELECT DISTINCT config->>'$.path' AS path FROM runs WHERE stage = 'export' AND status <> 'done'"
    for row in warehouse.rows(exports):
        out = folder / (row["path"] or ".")
        found += out.parent.glob(f".{glob.escape(out.name)}.vlm-rlaif-partial")
    return sorted(path for path in found if _is_left(path))


def _is_left(path: Path) -> bool:
    """Whether its process is gone, and nobody has touched anything in it for a while."""
    pid = re.search(r"-(\d+)", path.name)
    if pid and _is_alive(int(pid[1])):
        return False
    touched = max(part.lstat().st_mtime for part in (path, *path.rglob("*")))
    return time.time() - touched > LEFTOVER_AGE_S


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _some(check: str, what: str, found: list[str], mend: str = "", *, harmless: bool = False) -> Iterator[Finding]:
    if found:
        yield Finding(check, len(found), what, found[:EXAMPLES], mend, harmless)
