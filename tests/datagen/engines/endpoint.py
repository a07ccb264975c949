"""An OpenAI-compatible endpoint for tests: a small HTTP server in a thread, whose answers a function makes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the endpoint says to one request."""

    body: bytes | str | Body
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    hang_up: bool = False
    """Close the connection in the place of an answer."""


def chat(text: str, *, finish: str = "stop", cached: int = 0, logprobs: list[Any] | None = None) -> Answer:
    """A reply as servers give it."""
    message = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if logprobs is not None:
        message["logprobs"] = {"content": logprobs}
    used = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": cached}}
    return Answer({"id": "x", "object": "chat.completion", "choices": [message], "usage": used})


def refuse(status: int, message: str, **headers: str) -> Answer:
    return Answer({"error": {"message": message, "code": status}}, status, headers)


def text_of(body: Body) -> str:
    """What the user's turn of a request says."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else next(p["text"] for p in content if p["type"] == "text")


Script = Callable[[Body, int], Answer]
"""(request, how often its text has been asked before) -> answer."""


def echo(body: Body, before: int) -> Answer:
    return chat(text_of(body).upper())


class Endpoint:
    """`with Endpoint(script) as endpoint:` serves at `endpoint.url` and notes what it was asked."""

    def __init__(self, script: Script = echo, *, models: list[Body] | None = None, key: str = "") -> None:
        self.script, self.key = script, key
        self.models = models or [{"id": "tiny", "object": "model", "owned_by": "tests", "max_model_len": 2048}]
        self.pages: dict[str, Callable[[Body], Answer]] = {}
        """Further paths, `/metrics` say."""
        self.asked: list[Body] = []
        self.in_flight = self.most_in_flight = 0
        self.port = 0
        self._before: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Endpoint:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to answer; once more at the same port after `stop`."""
        up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(up)), daemon=True)
        self._thread.start()
        assert up.wait(10)

    def stop(self) -> None:
        """Close every connection at once, as a killed server does."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join()

    async def _serve(self, up: threading.Event) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()
        server = await asyncio.start_server(self._talk, "127.0.0.1", self.port, limit=2**26)
        self.port = server.sockets[0].getsockname()[1]
        up.set()
        await self._end.wait()
        server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines if line)
                content = await reader.readexactly(int(headers.get("content-length", 0)))
                answer = await self._answer(first.split()[1], headers, json.loads(content) if content else {})
                if answer.hang_up:
                    break
                writer.write(_http(answer))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, path: str, headers: dict[str, str], body: Body) -> Answer:
        if self.key and headers.get("authorization") != f"bearer {self.key}":
            return refuse(401, "wrong key")
        if path in self.pages:
            return self.pages[path](body)
        if path == "/v1/models":
            return Answer({"object": "list", "data": self.models})
        if path != "/v1/chat/completions":
            return refuse(404, "no such place")
        text = text_of(body)
        answer = self.script(body, self._before[text])
        self._before[text] += 1
        self.asked.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(answer.after_s)
        finally:
            self.in_flight -= 1
        return answer


def _http(answer: Answer) -> bytes:
    content = answer.body if isinstance(answer.body, str | bytes) else json.dumps(answer.body)
    raw = content if isinstance(content, bytes) else content.encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(raw)), **answer.headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {answer.status} X\r\n{head}\r\n".encode() + raw
