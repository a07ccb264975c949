"""One request to one server and its reply, told apart: an answer, a refusal, or something to be tried again.

Knows HTTP, and nothing about other requests: `server_traffic.py` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import httpx

from vlm_rlaif.datagen.engine import Completion, Request, VideoPart
from vlm_rlaif.datagen.engines import server_start, server_wire
from vlm_rlaif.datagen.engines.server_start import CONNECT_S, Found
from vlm_rlaif.datagen.engines.server_video import Media, as_file
from vlm_rlaif.datagen.engines.server_wire import BrokenReply, Dialect
from vlm_rlaif.datagen.engines.window import Window
from vlm_rlaif.warehouse.errors import UserError

OVERLOADED = (429, 503)
AWAY = (502, 503, 504)
"""What a router says when there is no server behind it."""
AGAIN = (408, 425)
HOPELESS = (402, 404, 405)
"""No credit, no such model, no such place: no other request would fare better."""


@dataclass(slots=True, eq=False)
class Asked:
    """A request on its way."""

    request: Request
    media: Media | None = None
    file: VideoPart | None = None
    """In the place of `media`: the file goes, as the server can take it."""
    video: str | None = None
    """What it is about; requests with the same go to the same server."""
    label_ids: Sequence[int] = ()
    attempts: int = 0
    """How often it went wrong by its own fault, as far as anyone can tell."""
    waited: int = 0
    """How often it was put off."""
    constrained: bool = False


@dataclass(slots=True, eq=False)
class Server:
    """What the traffic knows about a server."""

    found: Found
    window: Window
    in_flight: int = 0
    backlog: deque[Asked] = field(default_factory=deque)
    """Requests about its videos that wait for room."""
    answered_s: float = 0.0
    """When it last answered anything sensible."""
    closed_until_s: float = 0.0
    """It said when to come again."""


class Delay(Exception):
    """A request has to be sent again. Its own fault or not: `counts`."""

    def __init__(self, words: str, *, counts: bool, after_s: float | None = None) -> None:
        super().__init__(words)
        self.counts, self.after_s = counts, after_s


class Down(Delay):
    """A server takes no connection."""


class Clients:
    """HTTP clients with one connection each: httpx's own pool compares every connection with every other."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._free: dict[str, list[httpx.AsyncClient]] = {}
        self._open = contextlib.AsyncExitStack()

    @contextlib.asynccontextmanager
    async def one(self, url: str) -> AsyncIterator[httpx.AsyncClient]:
        """A client that nobody else uses meanwhile, with an open connection to this server where there is one."""
        free = self._free.setdefault(url, [])
        client = free.pop() if free else await self._open.enter_async_context(self._made(url))
        try:
            yield client
        finally:
            free.append(client)

    def _made(self, url: str) -> httpx.AsyncClient:
        times = httpx.Timeout(self.timeout_s, connect=CONNECT_S)
        limits = httpx.Limits(max_connections=1, keepalive_expiry=30)
        return httpx.AsyncClient(**server_start.connection(url), timeout=times, limits=limits)

    async def __aenter__(self) -> Clients:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()


class Exchange:
    """What is common to all requests: the connections, and what the servers are known to understand."""

    def __init__(self, clients: Clients, dialect: Dialect) -> None:
        self.clients, self.dialect = clients, dialect

    async def ask(self, asked: Asked, server: Server) -> Completion | None:
        """Ask, and read the reply; None = ask once more, otherwise. Raises `Delay`, and `UserError` to end it all."""
        dialect, sent_s = self.dialect, time.monotonic()
        reply = await self._post(asked, server, sent_s, dialect)
        status = reply.status_code
        if status == 200:
            return self._read(asked, reply)
        words = f"HTTP {status}: {server_wire.words_of(reply.content)}"
        if status in OVERLOADED:
            server.window.refused(time.monotonic(), sent_s, server.in_flight)
        if status == 429 or status in AWAY:
            after_s = _retry_after(reply)
            if after_s is not None:
                server.closed_until_s = max(server.closed_until_s, time.monotonic() + after_s)
            raise Delay(words, counts=status in AWAY and server.answered_s > sent_s, after_s=after_s)
        if server_wire.NO_TIMES in words:
            raise UserError(
                f"The server {server.found.url} does not let a request say when its frames are shown:", f"  {words}",
                f"vllm serve ... {server_wire.NO_TIMES}",
            )  # fmt: skip
        if server_wire.learn(dialect, asked.request, words) != dialect:  # others may have learnt it meanwhile
            self.dialect = server_wire.learn(self.dialect, asked.request, words)
            return None
        if status >= 500 or status in AGAIN:
            raise Delay(words, counts=True)
        if status in (401, 403):
            raise server_start.refused_key(server.found.url, status)
        if status in HOPELESS or status < 400:
            ids = ", ".join(card["id"] for card in server.found.cards)
            raise UserError(f"The server {server.found.url} answered {words}", f"It serves: {ids}.")
        return server_wire.refusal(asked.request, words, server.found.most_tokens)

    async def _post(self, asked: Asked, server: Server, sent_s: float, dialect: Dialect) -> httpx.Response:
        media = asked.media
        if asked.file is not None:
            media = await asyncio.to_thread(_file, asked.file, dialect.local_files)
        pieces = server_wire.body(
            asked.request, server.found.names[asked.request.adapter], dialect, media=media,
            label_ids=asked.label_ids, constrained=asked.constrained,
        )  # fmt: skip
        about = {"Content-Type": "application/json", "Content-Length": str(sum(map(len, pieces)))}
        content = pieces[0] if len(pieces) == 1 else _stream(pieces)
        try:
            async with self.clients.one(server.found.url) as client:
                return await client.post(f"{server.found.url}/chat/completions", content=content, headers=about)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Down(f"{server.found.url}: {error}", counts=False) from None
        except httpx.TimeoutException:
            server.window.refused(time.monotonic(), sent_s, server.in_flight, hard=True)
            raise Delay(f"No answer within {self.clients.timeout_s:g} s.", counts=True) from None
        except httpx.TransportError as error:
            words = f"The connection was lost ({type(error).__name__}{f': {error}' if str(error) else ''})."
            raise Delay(words, counts=True) from None

    def _read(self, asked: Asked, reply: httpx.Response) -> Completion | None:
        try:
            done = server_wire.completion(asked.request, reply.content, asked.label_ids)
        except BrokenReply as error:
            raise Delay(str(error), counts=True) from None
        unlabelled = asked.request.choices and not done.choice_logprobs and not done.error
        if unlabelled and self.dialect.vllm and not asked.constrained:
            asked.constrained = True
            return None
        return done


def _retry_after(reply: httpx.Response) -> float | None:
    """Seconds that a server asks to wait. A date, which is also allowed, is left to the back-off."""
    try:
        return max(0.0, float(reply.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


async def _stream(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@functools.lru_cache(maxsize=4)
def _file(part: VideoPart, local: bool) -> Media:
    """Requests about one video, which leave together, share its bytes."""
    return as_file(part, local=local)
