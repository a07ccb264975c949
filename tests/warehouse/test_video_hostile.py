"""Whatever lies at a path, reading it ends: with frames, or with a message that names it."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm_rlaif.datagen.shapes.render import write_mp4
from vlm_rlaif.datagen.shapes.world import World
from vlm_rlaif.warehouse.media.video import VideoError, hash_file, probe, sample

READS: dict[str, Callable[..., Any]] = {"probe": probe, "sample": lambda path, **limit: sample(path, 2, **limit)}
SOON_S = 5.0
"""Far more than anything here takes on a busy machine, and far less than for ever."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An mp4 file of some kilobytes."""
    path = tmp_path_factory.mktemp("small") / "small.mp4"
    write_mp4(World(seed=3).video(0), path, size=32)
    return path


@contextmanager
def soon() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < SOON_S


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path, read: Callable[..., Any]) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with soon(), pytest.raises(VideoError, match=r"pipe\.mp4: it is a named pipe, not a file"):
        read(tmp_path / "pipe.mp4")
    with soon(), pytest.raises(OSError, match="named pipe"):
        hash_file(tmp_path / "pipe.mp4")


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_link_to_a_device_without_an_end_is_refused(tmp_path: Path, read: Callable[..., Any]) -> None:
    (tmp_path / "endless.mp4").symlink_to("/dev/zero")
    with soon(), pytest.raises(VideoError, match=r"endless\.mp4: it is a device, not a file"):
        read(tmp_path / "endless.mp4")
    with soon(), pytest.raises(OSError, match="a device"):
        hash_file(tmp_path / "endless.mp4")


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
    with socket.socket(socket.AF_UNIX) as door:
        door.bind("s.mp4")
        with pytest.raises(VideoError, match="it is a socket"):
            probe(Path("s.mp4"))


def packed_anew(source: Path, path: Path) -> Path:
    """The same video in another container."""
    with av.open(str(source)) as old, av.open(str(path), "w") as box:
        stream = box.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                box.mux(packet)
    return path


@contextmanager
def growing(path: Path, block: bytes) -> Iterator[None]:
    """A file to which a block is appended again and again, faster than anybody decodes it."""
    stop = threading.Event()

    def write() -> None:
        with path.open("ab", buffering=0) as file:
            for _ in range(5000):
                if stop.wait(0.0005):
                    return
                file.write(block)

    path.write_bytes(20 * block)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def test_a_file_that_grows_for_ever_is_given_up_at_the_deadline(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "grows.ts"
    with growing(path, packed_anew(small, tmp_path / "block.ts").read_bytes()), soon():
        with pytest.raises(VideoError, match=r"grows\.ts: reading it took longer than it may"):
            sample(path, 4, mode="read", deadline_s=0.3)
        with pytest.raises(OSError, match="it is being written to"):
            hash_file(path)


def test_a_duration_of_centuries_is_not_believed(small: Path, tmp_path: Path) -> None:
    path = packed_anew(small, tmp_path / "centuries.mkv")
    lying = bytearray(path.read_bytes())
    place = lying.index(b"\x44\x89\x88") + 3  # the element of the duration: 8 bytes, in milliseconds
    lying[place : place + 8] = struct.pack(">d", 1e13)
    path.write_bytes(lying)
    true_s = probe(small).duration_s
    with soon():
        assert probe(path).duration_s == pytest.approx(true_s, abs=0.2)
        taken = sample(path, 4)
    assert taken.damaged and taken.span_s == pytest.approx(true_s, abs=0.2)
    assert (taken.frames == sample(small, 4).frames).all()


def test_frames_that_no_memory_holds_are_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "wide.gif"
    screen = struct.pack("<HHBBB", 12_000, 12_000, 0x80, 0, 0) + bytes(6)
    picture = b"," + struct.pack("<HHHHB", 0, 0, 12_000, 12_000, 0) + b"\x02\x02\x44\x01\x00;"
    path.write_bytes(b"GIF89a" + screen + picture)
    with pytest.raises(VideoError, match=r"wide\.gif: frames of 12000 x 12000 pixels are not read"):
        sample(path, 1)


@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile {name}\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{name}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/{name}\n#EXT-X-ENDLIST\n",
    ],
)
def test_a_playlist_that_calls_itself_a_video_leads_nowhere(small: Path, playlist: str) -> None:
    path = small.with_name("list.mp4")
    path.write_text(playlist.format(name=small.name))
    with soon(), pytest.raises(VideoError, match=r"list\.mp4"):
        probe(path)


@pytest.mark.parametrize("name", ["10:30.mp4", "concat:small.mp4", "-", "%03d.mp4", "a\nb.mp4"])
def test_a_name_is_only_a_name(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(small.read_bytes())
    assert probe(Path(name)) == probe(small)


changes = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=20)


@given(changes=changes, keep=st.one_of(st.just(1.0), st.floats(0, 1)))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_bytes_give_frames_or_a_message(
    small: Path, tmp_path: Path, changes: list[tuple[float, int]], keep: float
) -> None:
    broken = bytearray(small.read_bytes())
    for place, mask in changes:
        broken[int(place * len(broken))] ^= mask
    path = tmp_path / "broken.mp4"
    path.write_bytes(broken[: int(keep * len(broken))])
    with soon():
        for read in READS.values():
            try:
                read(path, deadline_s=SOON_S / 4)
            except VideoError as error:
                assert str(error).startswith(f"{path}: ")
