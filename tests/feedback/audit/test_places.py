"""Where browsers find the videos: only those of the plan, only below the root, only what they can play."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from vlm_rlaif.feedback.audit import places
from vlm_rlaif.feedback.audit.planning import Asked, plan_audit
from vlm_rlaif.feedback.audit.tasks import AuditPair, find_plan, pairs_of
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.intake.add import add_videos
from vlm_rlaif.warehouse.records import Record
from vlm_rlaif.warehouse.store import Warehouse

STUDIO = "http://127.0.0.1:8080"


class Storages:
    """The part of a server that gives out folders."""

    def __init__(self) -> None:
        self.shared: list[str] = []

    def share_folder(self, project: int, path: str) -> None:
        self.shared.append(path)


@pytest.fixture
def filmed(
    warehouse: Warehouse, shapes_folder: Path, tmp_path: Path, judged_rows: Callable[..., list[Record]]
) -> Warehouse:
    """A plan over three videos that are really there."""
    add_videos(warehouse, Path(shutil.copytree(shapes_folder, tmp_path / "mine")))
    ids = [row["video_id"] for row in warehouse.rows("SELECT video_id FROM videos ORDER BY video_id")]
    warehouse.append(judged_rows(ids, pairs=2))
    judge = warehouse.value("SELECT any_value(spec_id) FROM labels")
    plan_audit(warehouse, "spring", Asked(judge=judge, size=4, strata=[]))
    return warehouse


def pairs(warehouse: Warehouse) -> list[AuditPair]:
    return pairs_of(warehouse, find_plan(warehouse, "spring").plan_id)


def local(warehouse: Warehouse, root: Path, server: Any = None) -> places.Place:
    return places.local_files(warehouse, server or Storages(), 1, "abc", root)


def test_our_own_server_is_named_by_its_address(filmed: Warehouse) -> None:
    pair = pairs(filmed)[0]
    assert places.served(filmed, "http://127.0.0.1:8078/")(pair) == f"http://127.0.0.1:8078/video/{pair.video_id}"
    with pytest.raises(UserError, match="no address"):
        places.served(filmed, "127.0.0.1:8078")


def test_a_video_that_is_another_file_by_now_is_not_shown(filmed: Warehouse, tmp_path: Path) -> None:
    pair = pairs(filmed)[0]
    filmed.video_path(pair.uri).write_bytes(b"something else")
    found, wrong = places.prepare(places.served(filmed, "http://x"), pairs(filmed), print)
    assert list(wrong) == [pair.video_id] and pair.video_id not in found and "not the video" in wrong[pair.video_id]


def test_videos_are_copied_below_the_root_and_only_once(filmed: Warehouse, tmp_path: Path) -> None:
    (root := tmp_path / "media").mkdir()
    server = Storages()
    place = local(filmed, root, server)
    pair = pairs(filmed)[0]
    assert place(pair) == f"/data/local-files/?d=vlm-rlaif-abc/{pair.video_id}.mp4"
    copy = root / "vlm-rlaif-abc" / f"{pair.video_id}.mp4"
    assert copy.read_bytes() == filmed.video_path(pair.uri).read_bytes() and server.shared == [str(copy.parent)]
    before = copy.stat().st_mtime_ns
    local(filmed, root)(pair)
    assert copy.stat().st_mtime_ns == before and [file.name for file in copy.parent.iterdir()] == [copy.name]


def test_a_copy_that_is_not_whole_or_leads_elsewhere_is_made_anew(filmed: Warehouse, tmp_path: Path) -> None:
    (root := tmp_path / "media").mkdir()
    pair = pairs(filmed)[0]
    local(filmed, root)(pair)
    copy, whole = root / "vlm-rlaif-abc" / f"{pair.video_id}.mp4", filmed.video_path(pair.uri).read_bytes()
    copy.write_bytes(whole[:10])
    local(filmed, root)(pair)
    assert copy.read_bytes() == whole and copy.stat().st_mode & 0o777 == 0o644, "others may read it, too"
    (secret := tmp_path / "secret.mp4").write_bytes(b"mine")
    copy.unlink()
    copy.symlink_to(secret)
    local(filmed, root)(pair)
    assert copy.read_bytes() == whole and not copy.is_symlink() and secret.read_bytes() == b"mine"


def test_drafts_of_a_push_that_was_killed_are_removed(filmed: Warehouse, tmp_path: Path) -> None:
    (folder := tmp_path / "media" / "vlm-rlaif-abc").mkdir(parents=True)
    (folder / f"{places.DRAFT}x1y2").write_bytes(b"half")
    (folder / "notes.txt").write_text("somebody's")
    local(filmed, folder.parent)
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]


def test_a_root_that_is_not_there_and_a_link_that_leads_out_are_refused(filmed: Warehouse, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="DOCUMENT_ROOT="):
        local(filmed, tmp_path / "nothing")
    (root := tmp_path / "media").mkdir()
    (root / "vlm-rlaif-abc").symlink_to(tmp_path)
    with pytest.raises(UserError, match="outside of the document root"):
        local(filmed, root)


def test_nothing_but_the_plans_videos_is_served_and_to_label_studio_alone(filmed: Warehouse) -> None:
    shown = pairs(filmed)
    others = {row["video_id"] for row in filmed.rows("SELECT video_id FROM videos")} - {one.video_id for one in shown}
    with places.serving(filmed, shown, STUDIO, 0) as address:
        good = f"{address}/video/{shown[0].video_id}"
        part = httpx.get(good, headers={"Range": "bytes=0-9", "Origin": STUDIO})
        assert (part.status_code, len(part.content)) == (206, 10)
        assert part.headers["Access-Control-Allow-Origin"] == STUDIO
        assert httpx.get(good, headers={"Origin": "http://localhost:8080"}).headers["Access-Control-Allow-Origin"]
        for stranger in ("http://evil.example", "http://127.0.0.1:8081", "null"):
            assert "Access-Control-Allow-Origin" not in httpx.get(good, headers={"Origin": stranger}).headers
        for wrong in (*others, "../w.duckdb", "%2e%2e/w.duckdb", "0" * 20):
            assert httpx.get(f"{address}/video/{wrong}").status_code == 404
    assert threading.active_count() < 20


def test_a_port_that_is_taken_is_said(filmed: Warehouse) -> None:
    with places.serving(filmed, [], STUDIO, 0) as address:
        again = places.serving(filmed, [], STUDIO, int(address.rsplit(":", 1)[1]))
        with pytest.raises(UserError, match="in use"), again:
            pass
