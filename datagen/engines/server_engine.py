"""The engine that asks OpenAI-compatible servers: `vllm serve`, a router in front of many, a hosted API.

    vlm-rlaif feedback label w.duckdb --recipe R --server http://127.0.0.1:8000/v1 [--server ...]

Needs neither torch nor transformers. Requests travel on an event loop in a thread of its own (`server_traffic.py`),
where some always wait with their frames made, so that a busy caller leaves no slot of a server idle. How many are in
flight is found out (`window.py`). A seed repeats a sample on one server; no two servers have to draw alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from types import TracebackType

import httpx

from vlm_rlaif.datagen import models
from vlm_rlaif.datagen.engine import Completion, Request, VideoPart
from vlm_rlaif.datagen.engines import server_start
from vlm_rlaif.datagen.engines.clips import Clip
from vlm_rlaif.datagen.engines.feed import DECODE_THREADS, Feed, Ready
from vlm_rlaif.datagen.engines.server_exchange import Asked, Clients, Exchange, Server
from vlm_rlaif.datagen.engines.server_traffic import Traffic
from vlm_rlaif.datagen.engines.server_video import Media, as_frames, as_images
from vlm_rlaif.datagen.engines.server_wire import Dialect
from vlm_rlaif.datagen.engines.window import MOST, Window
from vlm_rlaif.datagen.meter import Meter
from vlm_rlaif.warehouse.errors import UserError

AHEAD = 32
"""Requests at least that wait ready to be sent; as many as are in flight where those are more."""
FEED = 64
"""Requests that wait for their frames at most. All that were begun are finished when a job is asked to stop."""
MEDIA_BYTES = 2**29
"""Memory of videos that are on their way, or wait ready to be sent."""
AT_A_TIME = 8
LOOK_S = 0.1
"""How often frames are looked for that have been decoded meanwhile."""
VIDEOS = {"frames": as_frames, "images": as_images}


class ServerEngine:
    """Answers requests with the help of one or more servers."""

    name = "server"
    gpus = 0

    def __init__(
        self, model: str, *, servers: Sequence[str], max_in_flight: int = MOST, concurrency: int | None = None,
        retries: int = 6, timeout_s: float = 600.0, patience_s: float = 600.0, videos: str = "auto",
        decode_threads: int = DECODE_THREADS,
    ) -> None:  # fmt: skip
        """`max_in_flight` bounds the window of each server, and `concurrency` fixes it.

        A row that went wrong `retries` times after the first is a failure; a server may take `timeout_s` for a reply;
        when no server answers for `patience_s` the job ends. `videos` are sent as vLLM's `frames` or as `images`.
        """
        if videos not in ("auto", *VIDEOS):
            raise UserError(f"videos={videos}: an engine option that is auto, frames or images.")
        found = server_start.find(servers, model)
        self.model, self.revision, self.meter = model, models.revision(model), Meter()
        self.prefix_cache = False
        """Whether a server has ever told of prompt tokens that it found in its cache."""
        self.servers = [Server(each, Window(most=max_in_flight, fixed=concurrency)) for each in found]
        self.dialect = Dialect(vllm=all(each.vllm for each in found if each.up))
        self._media_of = VIDEOS[("frames" if self.dialect.vllm else "images") if videos == "auto" else videos]
        self._retries, self.timeout_s, self._patience_s = retries, timeout_s, patience_s
        self._decode_threads = decode_threads
        self._label_ids: dict[tuple[str, ...], tuple[int, ...]] = {}

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Send requests as there is room for them, and give out answers as they come."""
        files: dict[str, VideoPart] = {}
        source = self._without_files(requests, files)
        self.meter.mark(cause="engine")
        coming = Feed(source, self.meter, ahead=FEED, threads=self._decode_threads)
        with coming as feed, _Line(self) as line:
            self.meter.mark(cause="prompt")
            while True:
                while line.has_room():
                    taken = feed.take(AT_A_TIME, at_least=0 if line.open else 1)
                    yield from (ready.refused for ready in taken if ready.refused)
                    for ready in taken:
                        if not ready.refused:
                            line.send(ready, files.pop(ready.request.request_id, None))
                    if not taken:
                        break
                if not line.open and feed.ended and not len(feed):
                    return
                cause = "decode" if feed.decoding else "engine" if feed.ended else "prompt"
                self.meter.mark(cause=cause)
                done = line.receive()
                if done is not None:
                    self.prefix_cache |= done.cached_tokens > 0
                    yield done

    def _without_files(self, requests: Iterable[Request], files: dict[str, VideoPart]) -> Iterator[Request]:
        """The requests, those apart from their video whose file is sent: it is not decoded here."""
        for request in requests:
            if request.adapter and request.adapter not in self.servers[0].found.names:
                self._find_adapter(request.adapter)
            if request.video is None or request.video.frames.sampler == "ours":
                yield request
                continue
            if not self.dialect.vllm:
                raise UserError(
                    "`frames: {sampler: server}` needs vLLM: no other server can be told how many to take."
                )
            files[request.request_id] = request.video
            yield replace(request, video=None)

    def _find_adapter(self, folder: str) -> None:
        for server in self.servers:
            up = server.found.up
            server.found.names[folder] = server_start.adapter_name(server.found, folder) if up else ""

    def label_ids(self, choices: tuple[str, ...]) -> tuple[int, ...]:
        """Their tokens, where a server tells; asked once."""
        if choices and self.dialect.vllm and choices not in self._label_ids:
            try:
                self._label_ids[choices] = server_start.label_ids([each.found for each in self.servers], choices)
            except httpx.TransportError:  # it is down: the next request asks again
                return ()
        return self._label_ids.get(choices, ())

    def traffic(self, exchange: Exchange, finished: SimpleQueue[Completion | BaseException]) -> Traffic:
        """The servers, to be kept busy on an event loop."""
        return Traffic(
            self.servers, self.model, exchange, finished, self.meter, retries=self._retries,
            patience_s=self._patience_s,
        )  # fmt: skip

    def media(self, clip: Clip) -> Media:
        """Frames as these servers take them."""
        return self._media_of(clip)

    def close(self) -> None:
        """Nothing to free: connections last as long as a stream."""


@dataclass(slots=True)
class _Shared:
    """A video that is or will be ready to be sent, for the requests about it."""

    made: Future[Media]
    size_bytes: int
    users: int = 0


class _Line:
    """The thread with the event loop, as the thread of the caller sees it."""

    def __init__(self, engine: ServerEngine) -> None:
        self.open = 0
        """Requests that were sent and have not come back."""
        self._engine = engine
        self._finished: SimpleQueue[Completion | BaseException] = SimpleQueue()
        self._pool = ThreadPoolExecutor(2, "media")
        self._media: dict[VideoPart, _Shared] = {}
        self._parts: dict[str, VideoPart] = {}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._live, name="servers", daemon=True)

    def _live(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:  # nobody else would hear of it
            self._finished.put(error)
        finally:
            self._ready.set()

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with Clients(self._engine.timeout_s) as clients:
            exchange = Exchange(clients, self._engine.dialect)
            self._traffic = self._engine.traffic(exchange, self._finished)
            self._ready.set()
            await self._traffic.run(self._stop)
        self._engine.dialect = exchange.dialect

    def has_room(self) -> bool:
        """Whether another request should be made ready."""
        limit, busy = self._traffic.limit, sum(server.in_flight for server in self._engine.servers)
        bytes_held = sum(shared.size_bytes for shared in self._media.values() if shared.users)
        return self.open - busy < max(AHEAD, limit) and bytes_held < MEDIA_BYTES

    def send(self, ready: Ready, file: VideoPart | None) -> None:
        """Hand a request over, as soon as its frames are made."""
        request = ready.request
        part = file or request.video
        video = (part.video_id or str(part.path)) if part else None
        asked = Asked(request, file=file, video=video, label_ids=self._engine.label_ids(request.choices))
        self.open += 1
        if ready.clip is None or request.video is None:
            self._loop.call_soon_threadsafe(self._traffic.add, [asked])
            return
        shared = self._share(request.video, ready.clip)
        self._parts[request.request_id] = request.video
        shared.made.add_done_callback(lambda made: self._add(asked, made))

    def _add(self, asked: Asked, made: Future[Media]) -> None:
        if made.cancelled():
            return
        if (error := made.exception()) is not None:
            self._finished.put(error)
            return
        asked.media = made.result()
        with contextlib.suppress(RuntimeError):  # the stream was left meanwhile
            self._loop.call_soon_threadsafe(self._traffic.add, [asked])

    def _share(self, part: VideoPart, clip: Clip) -> _Shared:
        shared = self._media.get(part)
        if shared is None:
            self._media = {each: used for each, used in self._media.items() if used.users}
            made = self._pool.submit(self._engine.media, clip)
            shared = self._media[part] = _Shared(made, clip.frames.nbytes)
            made.add_done_callback(lambda _: self._weigh(shared))
        shared.users += 1
        return shared

    def _weigh(self, shared: _Shared) -> None:
        if not shared.made.cancelled() and not shared.made.exception():
            shared.size_bytes = len(shared.made.result().parts)

    def receive(self) -> Completion | None:
        """The next answer, or nothing when none came for a moment. Raises what ended the traffic."""
        try:
            done = self._finished.get(timeout=LOOK_S)
        except Empty:
            return None
        if isinstance(done, BaseException):
            raise done
        self.open -= 1
        part = self._parts.pop(done.request_id, None)
        if part is not None:
            self._media[part].users -= 1
        return done

    def __enter__(self) -> _Line:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is still on its way is called back."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
