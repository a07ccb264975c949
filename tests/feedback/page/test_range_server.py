"""Videos over HTTP in parts: what `Range` means, and what is never given."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.feedback.page.range_server import LoopbackServer, part_of, serve_videos
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.media.frames import VideoError

KNOWN, GONE, CHANGED, FOLDER, WEBM, UNKNOWN = ("0" * 19 + digit for digit in "012345")
BYTES = bytes(range(256)) * 40


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    headers: dict[str, str]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LoopbackServer]:
    (tmp_path / "known.mp4").write_bytes(BYTES)
    (tmp_path / "known.webm").write_bytes(b"web")
    places = {KNOWN: "known.mp4", GONE: "gone.mp4", FOLDER: "", WEBM: "known.webm"}

    def videos(video_id: str) -> Path | None:
        if video_id == CHANGED:
            raise VideoError("cat.mp4: it is another video by now.")
        return tmp_path / places[video_id] if video_id in places else None

    with serve_videos(videos) as server:
        yield server


def ask(server: LoopbackServer, address: str, method: str = "GET", **headers: str) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, address, headers={name.replace("_", "-"): value for name, value in headers.items()})
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return Reply(reply.status, body, dict(reply.getheaders()))


def test_a_video_is_given_whole(server: LoopbackServer) -> None:
    reply = ask(server, f"/video/{KNOWN}")
    assert (reply.status, reply.body) == (200, BYTES)
    assert reply.headers["Accept-Ranges"] == "bytes"
    assert reply.headers["Content-Type"] == "video/mp4"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert ask(server, f"/video/{WEBM}").headers["Content-Type"] == "video/webm"


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [("0-0", 0, 1), ("5-99", 5, 100), ("10200-", 10200, 10240), ("-7", 10233, 10240), ("0-99999", 0, 10240),
     ("-99999", 0, 10240)],
)  # fmt: skip
def test_a_part_is_given_with_its_place(server: LoopbackServer, asked: str, begin: int, end: int) -> None:
    reply = ask(server, f"/video/{KNOWN}", Range=f"bytes={asked}")
    assert (reply.status, reply.body) == (206, BYTES[begin:end])
    assert reply.headers["Content-Range"] == f"bytes {begin}-{end - 1}/10240"
    assert reply.headers["Content-Length"] == str(end - begin)


@pytest.mark.parametrize("asked", ["10240-", "99999-100000", "-0"])
def test_a_part_past_the_end_is_refused_with_the_size(server: LoopbackServer, asked: str) -> None:
    reply = ask(server, f"/video/{KNOWN}", Range=f"bytes={asked}")
    assert (reply.status, reply.body, reply.headers["Content-Range"]) == (416, b"", "bytes */10240")


@pytest.mark.parametrize("asked", ["bytes=", "bytes=-", "bytes=9-5", "bytes=0-1,5-6", "lines=1-2", "bytes=a-b", "x",
                                   f"bytes={'9' * 5000}-", f"bytes=-{'9' * 5000}"])  # fmt: skip
def test_a_range_that_says_nothing_means_all(server: LoopbackServer, asked: str) -> None:
    assert ask(server, f"/video/{KNOWN}", Range=asked).status == 200


def test_a_part_of_an_older_file_is_not_mixed_with_the_newer_one(server: LoopbackServer) -> None:
    tag = ask(server, f"/video/{KNOWN}").headers["ETag"]
    assert ask(server, f"/video/{KNOWN}", Range="bytes=0-4", If_Range=tag).status == 206
    assert ask(server, f"/video/{KNOWN}", Range="bytes=0-4", If_Range='"older"').status == 200


def test_head_says_the_length_and_sends_nothing(server: LoopbackServer) -> None:
    whole, part = (ask(server, f"/video/{KNOWN}", "HEAD", **h) for h in ({}, {"Range": "bytes=2-5"}))
    assert (whole.status, whole.body, whole.headers["Content-Length"]) == (200, b"", "10240")
    assert (part.status, part.body, part.headers["Content-Length"]) == (206, b"", "4")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (f"/video/{UNKNOWN}", "no video"), (f"/video/{GONE}", "No such file"), (f"/video/{CHANGED}", "another video"),
        (f"/video/{FOLDER}", "a folder"), ("/video/../known.mp4", "VIDEO_ID"),
        ("/video/%2e%2e%2fknown.mp4", "VIDEO_ID"),
        ("/video//etc/passwd", "VIDEO_ID"), ("/etc/passwd", "VIDEO_ID"), (f"/video/{KNOWN}/..", "VIDEO_ID"),
        (f"/video/{KNOWN}\\..", "VIDEO_ID"), ("/", "VIDEO_ID"),
    ],
)  # fmt: skip
def test_what_cannot_be_given_is_a_404_in_words(server: LoopbackServer, address: str, words: str) -> None:
    reply = ask(server, address)
    assert reply.status == 404
    assert words in reply.body.decode()
    assert reply.headers["Content-Type"].startswith("text/plain")


@pytest.mark.parametrize(
    "name", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost:1@evil.example", "::1", ""]
)
def test_a_page_that_calls_this_machine_by_its_own_name_gets_nothing(server: LoopbackServer, name: str) -> None:
    reply = ask(server, f"/video/{KNOWN}", Host=name.format(port=server.server_port))
    assert (reply.status, len(reply.body) < 200) == (403, True)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "127.0.0.1:9999", "localhost:{port}", "[::1]:80"])
def test_a_browser_may_come_through_a_tunnel_of_another_port(server: LoopbackServer, name: str) -> None:
    assert ask(server, f"/video/{KNOWN}", Host=name.format(port=server.server_port)).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_but_reading_is_answered(server: LoopbackServer, method: str) -> None:
    assert ask(server, f"/video/{KNOWN}", method).status == 501


def test_a_browser_that_goes_away_disturbs_nobody(
    server: LoopbackServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "known.mp4").open("r+b") as file:
        file.truncate(200_000_000)  # a hole, which takes no room
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            host = f"127.0.0.1:{server.server_port}"
            connection.sendall(f"GET /video/{KNOWN} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert connection.recv(10)
    assert ask(server, f"/video/{KNOWN}", Range="bytes=0-9").body == BYTES[:10]
    assert capfd.readouterr() == ("", "")


def test_a_named_pipe_is_no_video(server: LoopbackServer, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gone.mp4")
    assert "a named pipe" in ask(server, f"/video/{GONE}").body.decode()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "example.org", "::"])
def test_an_address_that_others_reach_is_refused(host: str) -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1"):
        serve_videos(lambda _: None, host)


def test_a_port_that_is_taken_is_said_with_the_way_out(server: LoopbackServer) -> None:
    with pytest.raises(UserError, match="in use by another program"):
        serve_videos(lambda _: None, port=server.server_port)


def test_a_closed_server_answers_no_more(server: LoopbackServer) -> None:
    server.close()
    with pytest.raises(ConnectionError):
        ask(server, f"/video/{KNOWN}")


@given(st.integers(0, 30), st.integers(0, 40), st.integers(0, 40))
def test_a_part_is_what_slicing_says(size: int, first: int, last: int) -> None:
    content = bytes(range(size))
    part = part_of(f"bytes={first}-{last}", size)
    assert part is None if first > last else bytes(content[i] for i in part or ()) == content[first : last + 1]
    suffix = part_of(f"bytes=-{last}", size)
    assert suffix is not None
    assert bytes(content[i] for i in suffix) == content[max(0, size - last) :]


def test_scripts_of_named_pages_may_read_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "known.mp4").write_bytes(BYTES)
    studio = "http://127.0.0.1:8080"
    with serve_videos(lambda _: tmp_path / "known.mp4", origins={studio}) as server:
        for origin, allowed in ((studio, studio), ("http://evil.example", None), ("null", None)):
            headers = ask(server, f"/video/{KNOWN}", Origin=origin).headers
            assert headers.get("Access-Control-Allow-Origin") == allowed
