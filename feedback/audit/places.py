"""Where a browser finds the videos of an audit: our own server on this machine, or a folder that Label Studio serves.

Either way a file is given that browsers play, a copy in H.264 where the video itself is of another kind.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

from vlm_rlaif.feedback.audit.label_studio import LOOPBACK, Server, Task, plain_address
from vlm_rlaif.feedback.audit.tasks import AuditPair
from vlm_rlaif.feedback.page.playable import playable
from vlm_rlaif.feedback.page.range_server import serve_videos
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.media.frame_cache import proxies_of
from vlm_rlaif.warehouse.media.frames import VideoError
from vlm_rlaif.warehouse.store import Warehouse

VIDEO_PORT = 8078
DEFAULT_VIDEOS = f"http://127.0.0.1:{VIDEO_PORT}"

DRAFT = ".vlm-rlaif-draft-"
READABLE = 0o644
"""Of copies: the server may run as another user."""
TELL_EVERY_S = 5.0
Place = Callable[[AuditPair], str]
"""A pair -> the address of its video. Raises `VideoError` where there is no file that browsers play."""


def served(warehouse: Warehouse, address: str) -> Place:
    """Videos come from `audit serve`, at this address."""
    base = plain_address(address, f"--videos {DEFAULT_VIDEOS}")

    def place(pair: AuditPair) -> str:
        _play(warehouse, pair)
        return f"{base}/video/{pair.video_id}"

    return place


def address_of(tasks: Sequence[Task]) -> str | None:
    """Where standing tasks find their videos: most of them, an address for `served`; `audit serve` if there are none.

    None where they are files below Label Studio's document root.
    """
    bases = Counter(task.video.rpartition("/video/")[0] for task in tasks)
    base = bases.most_common(1)[0][0] if bases else DEFAULT_VIDEOS
    return base if base.startswith(("http://", "https://")) else None


def forgotten(pair: AuditPair) -> str:
    """The place of a pair whose plan has its videos below a document root that was not named again."""
    raise UserError("The videos of this audit are files below the document root of Label Studio: name it again.",
                    "--local-files ROOT   (or --videos URL, for all of them)")  # fmt: skip


def local_files(warehouse: Warehouse, server: Server, project: int, plan_id: str, root: Path) -> Place:
    """Videos are copied to a folder below Label Studio's own document root, which it serves to those logged in."""
    if not root.is_dir():
        raise UserError(
            f"There is no folder {root}. It is the document root of the server:",
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true"
            f" LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root} label-studio start",
        )
    root = root.resolve()
    folder = root / f"vlm-rlaif-{plan_id}"
    try:
        folder.mkdir(exist_ok=True)
        for draft in folder.glob(f"{DRAFT}*"):  # of a push that was killed
            draft.unlink()
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}.") from None
    if folder.resolve() != folder:
        raise UserError(f"{folder} leads to {folder.resolve()}, which may be outside of the document root.",
                        f"rm {folder}")  # fmt: skip
    server.share_folder(project, str(folder))

    def place(pair: AuditPair) -> str:
        source = _play(warehouse, pair)
        target = folder / f"{pair.video_id}{'.webm' if source.suffix == '.webm' else '.mp4'}"
        if target.is_symlink() or not target.is_file() or target.stat().st_size != source.stat().st_size:
            _copy(source, target)
        return f"/data/local-files/?d={quote(str(target.relative_to(root)))}"

    return place


def prepare(
    place: Place, pairs: Iterable[AuditPair], tell: Callable[[str], None]
) -> tuple[dict[str, str], dict[str, str]]:
    """(video -> address, video -> what is wrong with it), of the videos of the pairs. Copies may take minutes."""
    found: dict[str, str] = {}
    wrong: dict[str, str] = {}
    first = {pair.video_id: pair for pair in pairs}
    said_s = time.monotonic()
    for number, (video, pair) in enumerate(first.items()):
        if time.monotonic() - said_s > TELL_EVERY_S:
            said_s = time.monotonic()
            tell(f"{number:,} of {len(first):,} videos are ready to be played")
        try:
            found[video] = place(pair)
        except VideoError as error:
            wrong[video] = str(error)
    return found, wrong


@contextmanager
def serving(warehouse: Warehouse, pairs: Iterable[AuditPair], studio: str, port: int) -> Iterator[str]:
    """Serve the videos of the pairs, and no other file, to pages of Label Studio on this machine; the address."""
    shown: Mapping[str, AuditPair] = {pair.video_id: pair for pair in pairs}

    def find(video_id: str) -> Path | None:
        return _play(warehouse, shown[video_id]) if video_id in shown else None

    with serve_videos(find, port=port, origins=_origins(studio)) as server:
        yield server.url


def _origins(studio: str) -> set[str]:
    """What browsers call the pages of a server; this machine has several names."""
    parts = urlsplit(studio)
    names = {parts.netloc}
    if parts.hostname in LOOPBACK:
        names |= {f"{name}:{parts.port}" if parts.port else name for name in ("127.0.0.1", "localhost", "[::1]")}
    return {f"{parts.scheme}://{name}" for name in names}


def _play(warehouse: Warehouse, pair: AuditPair) -> Path:
    video = {"video_id": pair.video_id, "uri": pair.uri}
    return playable(warehouse, video, proxies_of(warehouse.path))


def _copy(source: Path, target: Path) -> None:
    """A whole file or none, whatever happens in between."""
    draft: Path | None = None
    try:
        number, name = tempfile.mkstemp(prefix=DRAFT, dir=target.parent)
        draft = Path(name)
        with source.open("rb") as read, os.fdopen(number, "wb") as written:
            shutil.copyfileobj(read, written)
        draft.chmod(READABLE)
        draft.replace(target)
    except OSError as error:
        raise UserError(f"{source} cannot be copied to {target}: {error.strerror}.",
                        "Make room on the disk, then run the same command again.") from None  # fmt: skip
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)
