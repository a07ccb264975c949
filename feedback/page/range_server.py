"""Videos over HTTP on this machine, in parts (Range), so that a browser can seek in them.

    with serve_videos(videos) as server:
        print(f"{server.url}/video/{video_id}")

`videos` says where the file of a video lies. Only ids are asked for, never paths; only GET and HEAD are answered,
only on a loopback address, and only to browsers that call it by that: a page from elsewhere whose own name is made to
point to this machine gets nothing. It is not a web server for a network.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import threading
from collections.abc import Callable, Collection
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.media.container import require_regular
from vlm_rlaif.warehouse.media.frames import VideoError

Videos = Callable[[str], Path | None]
"""Video id -> its file; None when there is no such video. May raise `UserError`, `VideoError` or OSError."""
VIDEO_ADDRESS = re.compile(r"/video/([0-9a-f]{20})")
KINDS = {".webm": "video/webm"}
"""Of files that browsers play; every other one is an mp4."""
IDLE_S = 60.0
"""A connection on which nothing is asked for so long is closed."""
LOOPBACK_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?")
"""What a browser on this machine calls this server in `Host`; the port is another one through a tunnel."""
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class LoopbackServer(ThreadingHTTPServer):
    """A thread per connection, on a loopback address. It holds its port at once, and answers once it is started."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, handler: type[Handler], host: str = "127.0.0.1", port: int = 0) -> None:
        if not _is_loopback(host):
            raise UserError(f"{host} is no address of this machine alone: videos and labels are served on 127.0.0.1.")
        try:
            super().__init__((host, port), handler)
        except OSError as error:
            taken = "is in use by another program" if error.errno == errno.EADDRINUSE else str(error.strerror)
            raise UserError(f"Port {port} {taken}.", "Name another one, or 0 for any free one: --port 0") from None
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True)

    def start(self) -> Self:
        """Answer from now on, in a thread that ends with the program."""
        self._thread.start()
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        """Answer nothing any more; connections that are open are cut when the program ends."""
        if self._thread.is_alive():
            self.shutdown()
        self.server_close()

    def __exit__(self, *_: object) -> None:
        self.close()


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD; a subclass has `answer`, which sends something for an address that it knows."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "vlm-rlaif", ""
    timeout = IDLE_S
    server: LoopbackServer

    def answer(self, address: str) -> None:
        raise NotImplementedError

    def do_GET(self) -> None:
        try:
            if not LOOPBACK_HOST.fullmatch(self.headers.get("Host", "")):
                self.say(
                    HTTPStatus.FORBIDDEN, f"This server is called {self.server.url}, and answers to no other name."
                )
                return
            self.answer(self.path)
        except (ConnectionError, TimeoutError):  # the browser went on to something else
            self.close_connection = True

    do_HEAD = do_GET

    def say(self, status: HTTPStatus, text: str) -> None:
        """An answer in plain words."""
        self.send(text.encode(), "text/plain; charset=utf-8", status)

    def send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, **headers: str) -> None:
        self.begin(status, kind, len(body), {"Cache-Control": "no-store", **headers})
        if self.command != "HEAD":
            self.wfile.write(body)

    def begin(self, status: HTTPStatus, kind: str, length: int, headers: dict[str, str]) -> None:
        """The head of an answer."""
        self.send_response(status)
        common = {"Content-Type": kind, "Content-Length": str(length), "X-Content-Type-Options": "nosniff"}
        for name, value in {**common, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_video(self, videos: Videos, video_id: str) -> None:
        """A video or the part of it that is asked for; 404, in words, where it cannot be had."""
        try:
            path = videos(video_id)
            if path is None:
                self.say(HTTPStatus.NOT_FOUND, f"There is no video {video_id}.")
                return
            require_regular(path)
            file = path.open("rb")
        except (UserError, VideoError) as error:
            self.say(HTTPStatus.NOT_FOUND, str(error))
        except OSError as error:
            self.say(HTTPStatus.NOT_FOUND, f"The file of the video {video_id} cannot be read: {error.strerror}.")
        else:
            with file:
                self.send_part(file, KINDS.get(path.suffix, "video/mp4"))

    def send_part(self, file: Any, kind: str) -> None:
        """What `Range` asks for of an open file: 206, all of it (200), or 416 where it has no such bytes."""
        status = os.fstat(file.fileno())
        size, tag = status.st_size, f'"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"'
        headers = {"Accept-Ranges": "bytes", "ETag": tag, "Cache-Control": "private, max-age=60"}
        asked = self.headers.get("Range", "")
        part = part_of(asked if self.headers.get("If-Range", tag) == tag else "", size)
        if part is None:
            begin, length = 0, size
            self.begin(HTTPStatus.OK, kind, size, headers)
        elif not part:
            self.begin(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, kind, 0, headers | {"Content-Range": f"bytes */{size}"}
            )
            return
        else:
            begin, length = part.start, len(part)
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
            self.begin(HTTPStatus.PARTIAL_CONTENT, kind, length, headers)
        if self.command != "HEAD" and length and self.connection.sendfile(file, begin, length) < length:
            self.close_connection = True  # the file became shorter meanwhile: the promised length never comes

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to the command."""


def part_of(asked: str, size: int) -> range | None:
    """The bytes that a `Range` header means: none where there are no such bytes, None where all are meant.

    Several parts at once, and what cannot be understood, are all (RFC 9110, 14.2).

    >>> part_of("bytes=2-5", 10), part_of("bytes=-3", 10), part_of("bytes=8-99", 10), part_of("bytes=10-", 10)
    (range(2, 6), range(7, 10), range(8, 10), range(0, 0))
    """
    found = _RANGE.fullmatch(asked.strip())
    if found is None or found[1] == found[2] == "":
        return None
    first, last = found[1], found[2]
    if first and last and int(first) > int(last):
        return None
    begin, end = (int(first), int(last or size)) if first else (max(0, size - int(last)), size)
    part = range(begin, min(end + 1, size))
    return part if part else range(0)


def serve_videos(
    videos: Videos, host: str = "127.0.0.1", port: int = 0, *, origins: Collection[str] = ()
) -> LoopbackServer:
    """A server of videos at `/video/VIDEO_ID`, for as long as it is not closed; port 0 is any free one.

    Pages of `origins` (`http://127.0.0.1:8080`) may read the bytes in scripts, as Label Studio's player does.
    Raises `UserError` for a port that is taken, and for an address that others could reach.
    """

    class VideoHandler(Handler):
        def answer(self, address: str) -> None:
            if found := VIDEO_ADDRESS.fullmatch(address):
                self.send_video(videos, found[1])
            else:
                self.say(HTTPStatus.NOT_FOUND, "Videos are at /video/VIDEO_ID.")

        def begin(self, status: HTTPStatus, kind: str, length: int, headers: dict[str, str]) -> None:
            if (origin := self.headers.get("Origin")) in origins:
                headers = {**headers, "Access-Control-Allow-Origin": str(origin), "Vary": "Origin"}
            super().begin(status, kind, length, headers)

    return LoopbackServer(VideoHandler, host, port).start()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or (ipaddress.ip_address(host).is_loopback and ":" not in host)
    except ValueError:
        return False
