"""The pages over HTTP, on this machine alone. A snapshot is read; nothing is written, run or fetched from elsewhere.

Pages are made of escaped text, and tell the browser to run and load nothing but the files of `static/`. Videos come
from where the warehouse says they lie, if their bytes are those that it knows.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import duckdb

from vlm_rlaif.feedback.page.list_page import list_page
from vlm_rlaif.feedback.page.listing import NOBODY, Filter, Listing
from vlm_rlaif.feedback.page.markup import tag
from vlm_rlaif.feedback.page.pair import look_up
from vlm_rlaif.feedback.page.pair_page import pair_page
from vlm_rlaif.feedback.page.playable import playable
from vlm_rlaif.feedback.page.range_server import VIDEO_ADDRESS, Handler, LoopbackServer
from vlm_rlaif.feedback.page.shell import About, shell
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.inspection.find import records
from vlm_rlaif.warehouse.inspection.printing import printable
from vlm_rlaif.warehouse.media.frame_cache import proxies_of
from vlm_rlaif.warehouse.store import Warehouse

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; media-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
STATIC = {
    "page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml",
}  # fmt: skip
HEADERS = {
    "Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pages:
    """What is shown: a snapshot, and the warehouse that it is of, for its videos."""

    warehouse: Warehouse
    about: About
    connection: duckdb.DuckDBPyConnection
    listing: Listing
    judge: str | None = None
    """Whose list comes first; None: of the judge with the most pairs."""

    def list(self, query: str, after: int | None, before: int | None) -> bytes:
        return list_page(self.listing, self.about, self._filter(query), after, before)

    def pair(self, pair_id: str, query: str) -> bytes | None:
        """None where there is no such pair."""
        with self.connection.cursor() as cursor:
            card = look_up(cursor, pair_id)
        return pair_page(self.listing, self.about, self._filter(query), card) if card else None

    def video(self, video_id: str) -> Path | None:
        with self.connection.cursor() as cursor:
            found = records(cursor, "SELECT video_id, uri FROM videos WHERE video_id = ?", [video_id])
        return playable(self.warehouse, found[0], proxies_of(self.warehouse.path)) if found else None

    def _filter(self, query: str) -> Filter:
        judges = [row["judge"] for row in self.listing.judges]
        filter = Filter.read(query, self.judge or next(iter(judges), NOBODY))
        if judges and filter.judge not in judges:
            raise UserError(f"There is no judge {printable(filter.judge)} in this snapshot.")
        return filter


class PageServer(LoopbackServer):
    """Holds its port from the first moment on, and answers once there is something to show."""

    pages: Pages

    def __init__(self, port: int = 0) -> None:
        super().__init__(PageHandler, port=port)

    def show(self, pages: Pages) -> None:
        self.pages = pages
        self.start()


class PageHandler(Handler):
    server: PageServer

    def answer(self, address: str) -> None:
        try:
            self._answer(address)
        except UserError as error:
            self._sorry(HTTPStatus.BAD_REQUEST, str(error))
        except ConnectionError:
            raise
        except Exception:
            traceback.print_exc()
            self._sorry(HTTPStatus.INTERNAL_SERVER_ERROR, "This page could not be made. The terminal says why.")

    def _answer(self, address: str) -> None:
        try:
            place = urlsplit(address)
        except ValueError:  # `//[`, say, which means a host
            self._sorry(HTTPStatus.NOT_FOUND, f"{printable(address)} is no address.")
            return
        pages = self.server.pages
        folder, _, name = unquote(place.path).removeprefix("/").partition("/")
        if place.path == "/":
            after, before = (_number(place.query, end) for end in ("after", "before"))
            self._page(pages.list(place.query, after, before))
        elif folder == "pair" and (page := pages.pair(name, place.query)):
            self._page(page)
        elif found := VIDEO_ADDRESS.fullmatch(place.path):
            self.send_video(pages.video, found[1])
        elif folder == "static" and name in STATIC:
            body = files("vlm_rlaif.feedback.page").joinpath("static", name).read_bytes()
            self.send(body, STATIC[name])
        else:
            self._sorry(
                HTTPStatus.NOT_FOUND, f"There is nothing at {printable(unquote(place.path))} in this snapshot."
            )

    def _page(self, body: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send(body, "text/html; charset=utf-8", status)

    def _sorry(self, status: HTTPStatus, words: str) -> None:
        body = tag("main", tag("p", words), tag("p", tag("a", "All pairs", href="/")), class_="empty")
        self._page(shell(self.server.pages.about, "Sorry", body), status)

    def begin(self, status: HTTPStatus, kind: str, length: int, headers: dict[str, str]) -> None:
        super().begin(status, kind, length, {**HEADERS, **headers})


def _number(query: str, name: str) -> int | None:
    """A place in the list, as an address says it."""
    (given,) = parse_qs(query).get(name, [""])[:1]
    return int(given) if given.isdecimal() and len(given) < 19 else None
