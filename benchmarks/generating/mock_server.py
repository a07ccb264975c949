"""A server that costs nothing and behaves like one that does: slots, a queue, heavy-tailed times, and mishaps.

    python benchmarks/generating/mock_server.py [--slots 64] [--metrics] [--calm]

Prints its port. How long a prompt takes (log-normal, mean 0.5 s, sigma 0.6, at most 5 s) and what happens to it
depends on the prompt's `row-NUMBER` alone, so that the work is the same for every client: 1 % are answered with HTTP
500 and 1 % with half a JSON, the first time. `GET /stats` says what was asked since `POST /reset`. `--calm` leaves
the mishaps out and takes the same time for each; `POST /reset?whole` leaves the half JSON out. Written on asyncio
alone, to take little of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import re
import sys
import time
from collections import Counter, deque
from typing import Any

MEAN_S, SIGMA, MOST_S = 0.5, 0.6, 5.0
CALM_S = MEAN_S
ROW = re.compile(rb"row-(\d+)")


def service_s(row: int) -> float:
    """How long a slot works on a row."""
    made = random.Random(row).lognormvariate(math.log(MEAN_S) - SIGMA**2 / 2, SIGMA)
    return min(MOST_S, made)


def mishap(row: int) -> str:
    """What goes wrong with a row the first time; mostly nothing."""
    drawn = random.Random(-1 - row).random()
    return "500" if drawn < 0.01 else "half" if drawn < 0.02 else ""


class Mock:
    """The slots and the queue before them, first come first served."""

    def __init__(self, slots: int, calm: bool) -> None:
        self.slots, self.calm = slots, calm
        self.busy = 0
        self.queue: deque[tuple[int, Connection]] = deque()
        self.reset()

    def reset(self, whole: bool = False) -> None:
        self.whole = whole
        self.attempts: Counter[int] = Counter()
        self.answered = 0
        self.worked_s = 0.0
        self.first_s = self.last_s = time.monotonic()

    def arrive(self, row: int, connection: Connection) -> None:
        if not self.attempts:
            self.first_s = time.monotonic()
        self.attempts[row] += 1
        if self.busy < self.slots:
            self.begin(row, connection)
        else:
            self.queue.append((row, connection))

    def begin(self, row: int, connection: Connection) -> None:
        self.busy += 1
        took_s = CALM_S if self.calm else service_s(row)
        first = self.attempts[row] == 1
        asyncio.get_running_loop().call_later(took_s, self.finish, row, first, took_s, connection)

    def finish(self, row: int, first: bool, took_s: float, connection: Connection) -> None:
        self.busy -= 1
        self.worked_s += took_s
        self.answered += 1
        self.last_s = time.monotonic()
        what = mishap(row) if first and not self.calm else ""
        text = f"What is to be seen in number {row} ?"
        if what == "500":
            connection.reply(500, b'{"error": {"message": "a mishap", "code": 500}}')
        else:
            content = json.dumps(answer(text)).encode()
            connection.reply(200, content[: len(content) // 2] if what == "half" and not self.whole else content)
        while self.queue and self.busy < self.slots:
            self.begin(*self.queue.popleft())

    def stats(self) -> dict[str, Any]:
        span_s = self.last_s - self.first_s
        return {
            "requests": sum(self.attempts.values()), "rows": len(self.attempts), "answered": self.answered,
            "span_s": span_s, "busy": self.worked_s / self.slots / max(1e-9, span_s),
        }  # fmt: skip

    def gauges(self) -> bytes:
        lines = (("running", self.busy), ("waiting", len(self.queue)))
        return "".join(f'vllm:num_requests_{name}{{engine="0"}} {value}.0\n' for name, value in lines).encode()


def answer(text: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {
        "id": "mock", "object": "chat.completion", "created": 0, "model": "mock", "choices": [choice], "usage": usage,
    }  # fmt: skip


class Connection(asyncio.Protocol):
    """HTTP/1.1 with `Content-Length` or in chunks, one request after the other."""

    def __init__(self, mock: Mock, metrics: bool) -> None:
        self.mock, self.metrics = mock, metrics
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            if b"transfer-encoding: chunked" in head:
                if not self.buffer.endswith(b"0\r\n\r\n"):
                    return
                body, rest = self.buffer[end + 4 :], b""
            else:
                found = re.search(rb"content-length: (\d+)", head)
                length = int(found[1]) if found else 0
                if len(self.buffer) < end + 4 + length:
                    return
                body, rest = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            first, self.buffer = self.buffer[: self.buffer.index(b"\r\n")], rest
            self.handle(first.split()[1], body)

    def handle(self, path: bytes, body: bytes) -> None:
        path, _, query = path.partition(b"?")
        if path == b"/v1/chat/completions":
            found = ROW.search(body)
            if found:
                return self.mock.arrive(int(found[1]), self)
            self.reply(200, json.dumps(answer("fine")).encode())  # a client's own probe
        elif path == b"/v1/models":
            card = {"object": "model", "owned_by": "mock", "created": 0}
            data = [{**card, "id": name} for name in ("mock", "other")]
            self.reply(200, json.dumps({"object": "list", "data": data}).encode())
        elif path == b"/metrics" and self.metrics:
            self.reply(200, self.mock.gauges())
        elif path == b"/reset":
            self.mock.reset(query == b"whole")
            self.reply(200, b"{}")
        elif path == b"/stats":
            self.reply(200, json.dumps(self.mock.stats()).encode())
        else:
            self.reply(404, b'{"error": {"message": "no such place"}}')

    def reply(self, status: int, body: bytes) -> None:
        head = f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


async def serve(slots: int, metrics: bool, calm: bool) -> None:
    mock = Mock(slots, calm)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(mock, metrics), "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until whoever started it closes the pipe


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--slots", type=int, default=64)
    arguments.add_argument("--metrics", action="store_true", help="say how many run and wait, as vLLM does")
    arguments.add_argument("--calm", action="store_true", help="the same time for each, and nothing goes wrong")
    given = arguments.parse_args()
    asyncio.run(serve(given.slots, given.metrics, given.calm))


if __name__ == "__main__":
    main()
