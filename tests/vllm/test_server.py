"""A vLLM server answers as vLLM in this process does: the same frames, times and log-probabilities, over HTTP.

On a CPU: `tests/vllm/install.sh`, then `OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/vllm -m vllm`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from vlm_rlaif.datagen import models
from vlm_rlaif.datagen.engine import Completion, Engine, Request, VideoPart
from vlm_rlaif.datagen.engines.server_engine import ServerEngine
from vlm_rlaif.datagen.engines.vllm_engine import VLLMEngine
from vlm_rlaif.datagen.shapes.render import write_mp4
from vlm_rlaif.datagen.shapes.world import World
from vlm_rlaif.warehouse.config import Frames, Sampling
from vlm_rlaif.warehouse.errors import UserError

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

MODEL = "embedded:judge"
SHOWN = Frames(count=6, size=32)
GREEDY = Sampling(max_new_tokens=24)
CLOSE, CLOSE_TEXT = 1e-3, 1e-2
"""How far log-probabilities of labels, and of answers, may lie from those in this process: there the tokens that
stand for pixels are never sampled, and the others are counted without them. A server knows nothing of that."""
START_S = 300
QUIET = {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


def serve(*options: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server of the embedded judge; it needs a while."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", models.resolve(MODEL),
        "--served-model-name", "judge-of-shapes", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
        "--enforce-eager", "--max-num-seqs", "8", "--block-size", "32", "--kv-cache-memory-bytes", str(2**29),
        "--limit-mm-per-prompt", '{"video":1,"image":0}', "--enable-prompt-tokens-details",
        "--trust-request-mm-kwargs", *options,
    ]  # fmt: skip
    environment = {**os.environ, **QUIET}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL), f"http://127.0.0.1:{port}/v1"


def wait_for(started: Sequence[tuple[subprocess.Popen[bytes], str]]) -> None:
    end = time.monotonic() + START_S
    for process, url in started:
        while True:
            assert process.poll() is None and time.monotonic() < end, "the server did not start"
            try:
                httpx.get(f"{url}/models").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.5)


@pytest.fixture(scope="module")
def adapter(make_lora: Callable[..., Path]) -> str:
    return str(make_lora(MODEL))


@pytest.fixture(scope="module")
def servers(videos: list[Path], adapter: str) -> Iterator[list[str]]:
    """Two servers of one model; the second one has an adapter and may read the videos' folder."""
    lora = ["--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"tuned={adapter}"]
    started = [serve(), serve("--allowed-local-media-path", str(videos[0].parent), *lora)]
    try:
        wait_for(started)
        yield [url for _, url in started]
    finally:
        for process, _ in started:
            process.terminate()
        for process, _ in started:
            process.wait(30)


@pytest.fixture(scope="module")
def inside() -> Iterator[VLLMEngine]:
    engine = VLLMEngine(MODEL, max_num_seqs=4)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, world = tmp_path_factory.mktemp("videos"), World(seed=11)
    paths = [folder / f"{i}.mp4" for i in range(6)]
    for i, path in enumerate(paths):
        write_mp4(world.video(i), path)
    return paths


def answers(videos: list[Path], *frames: Frames) -> list[Request]:
    question = "what does the red circle do ?"
    return [
        Request(f"{v} {f}", question, "context judge" if f else "", VideoPart(video, shown), sampling=GREEDY)
        for v, video in enumerate(videos)
        for f, shown in enumerate(frames or (Frames(count=3, size=32, repeat=2),))
    ]


def verdicts(videos: list[Path], each: int = 1) -> list[Request]:
    asked = "question what does the red circle do ? A : it moves left B : a blue square grows . verdict"
    return [
        Request(f"{v} {i}", asked + i * " .", video=VideoPart(video, SHOWN), choices=("A", "B", "C"))
        for v, video in enumerate(videos)
        for i in range(each)
    ]


def ask(engine: Engine, requests: Sequence[Request]) -> dict[str, Completion]:
    found = {done.request_id: done for done in engine.generate(requests)}
    assert found.keys() == {request.request_id for request in requests}
    return found


def same(one: dict[str, Completion], other: dict[str, Completion]) -> None:
    """Equal but for rounding and for the cache."""
    bare = {"logprob": None, "choice_logprobs": {}, "cached_tokens": 0}
    for key in one:
        assert replace(one[key], **bare) == replace(other[key], **bare)
        assert one[key].choice_logprobs == pytest.approx(other[key].choice_logprobs, abs=CLOSE)
        close = CLOSE if one[key].choice_logprobs else CLOSE_TEXT
        assert one[key].logprob == pytest.approx(other[key].logprob, abs=close)


def test_answers_are_the_same_over_http(servers: list[str], inside: VLLMEngine, videos: list[Path]) -> None:
    kinds = (Frames(count=3, size=32, repeat=2), Frames(count=6, size=32), Frames(count=5, size=48))
    requests = answers(videos, *kinds)
    found = ask(ServerEngine(MODEL, servers=servers[:1]), requests)
    same(found, ask(inside, requests))
    assert all(done.text and done.tokens_in > 20 for done in found.values())


def test_parts_of_a_video_are_told_with_their_times(
    servers: list[str], inside: VLLMEngine, videos: list[Path]
) -> None:
    requests = [
        Request(str(i), "describe the clip .", sampling=GREEDY,
                video=VideoPart(videos[0], Frames(count=3, size=32), start_s, 4.0))
        for i, start_s in enumerate((0.0, 0.3, 1.0, 1.55, 2.0, 3.1))
    ]  # fmt: skip
    same(ask(ServerEngine(MODEL, servers=servers[:1]), requests), ask(inside, requests))


def test_labels_have_the_same_log_probabilities_over_http(
    servers: list[str], inside: VLLMEngine, videos: list[Path]
) -> None:
    requests = verdicts(videos)
    same(ask(ServerEngine(MODEL, servers=servers[:1]), requests), ask(inside, requests))
    unasked = ServerEngine(MODEL, servers=servers[:1])
    unasked._label_ids[("A", "B", "C")] = ()  # as from a server that does not say how it makes tokens
    found, exact = ask(unasked, requests), ask(inside, requests)
    for key, done in found.items():
        assert done.text == exact[key].text
        assert all(done.choice_logprobs[c] >= exact[key].choice_logprobs[c] - CLOSE for c in ("A", "B", "C"))


def test_a_seed_repeats_a_sample(servers: list[str], videos: list[Path]) -> None:
    warm = Sampling(temperature=2.0, max_new_tokens=24)
    requests = [
        Request(str(seed), "what is it ?", video=VideoPart(videos[0], SHOWN), sampling=warm, seed=seed)
        for seed in range(8)
    ]
    one, two = (ask(ServerEngine(MODEL, servers=servers[:1]), order) for order in (requests, requests[::-1]))
    assert {key: done.text for key, done in one.items()} == {key: done.text for key, done in two.items()}
    assert len({done.text for done in one.values()}) > 2


def test_a_repeated_video_is_found_in_the_cache(servers: list[str], videos: list[Path]) -> None:
    engine = ServerEngine(MODEL, servers=servers[:1])
    part = VideoPart(videos[5], Frames(count=16, size=32))
    texts = ("what colour is it ?", "how many are there ?")
    found = [ask(engine, [Request(text, text, video=part, sampling=GREEDY)])[text] for text in texts]
    assert found[0].cached_tokens == 0 and found[1].cached_tokens >= 32
    assert engine.prefix_cache


def test_two_servers_share_the_work_and_each_video_stays_with_one(servers: list[str], videos: list[Path]) -> None:
    engine = ServerEngine(MODEL, servers=servers)
    sent: dict[str, set[str]] = {}
    traffic = engine.traffic

    def watched(exchange: Any, finished: Any) -> Any:
        ask_one = exchange.ask

        def note(asked: Any, server: Any) -> Any:
            sent.setdefault(asked.video, set()).add(server.found.url)
            return ask_one(asked, server)

        exchange.ask = note
        return traffic(exchange, finished)

    engine.traffic = watched  # type: ignore[method-assign]
    found = ask(engine, verdicts(videos, each=8))
    assert not [done.error for done in found.values() if done.error]
    assert len(sent) == 6 and all(len(urls) == 1 for urls in sent.values())
    assert set.union(*sent.values()) == set(servers)


def test_an_adapter_is_asked_for_by_name(
    servers: list[str], inside: VLLMEngine, videos: list[Path], adapter: str
) -> None:
    engine = ServerEngine(MODEL, servers=servers[1:])
    base = ask(engine, verdicts(videos))
    tuned = ask(engine, [replace(request, adapter=adapter) for request in verdicts(videos)])
    assert all(tuned[key].choice_logprobs != pytest.approx(base[key].choice_logprobs, abs=CLOSE) for key in base)
    same(tuned, ask(inside, [replace(request, adapter=adapter) for request in verdicts(videos)]))
    with pytest.raises(UserError, match="--enable-lora --lora-modules"):
        ask(ServerEngine(MODEL, servers=servers[:1]), [replace(verdicts(videos)[0], adapter=adapter)])


def test_a_file_is_read_by_the_server_or_sent_to_it(servers: list[str], videos: list[Path]) -> None:
    part = VideoPart(videos[0], Frames(count=4, sampler="server"))
    request = Request("file", "what does the red circle do ?", video=part, sampling=GREEDY)
    sent, read = (ask(ServerEngine(MODEL, servers=[url]), [request])["file"] for url in servers)
    assert sent.text and not sent.error
    assert (sent.text, sent.tokens_in) == (read.text, read.tokens_in)


def test_a_schema_holds_the_answer(servers: list[str]) -> None:
    request = Request("1", "how good is it ?", sampling=GREEDY, json_schema=json.dumps({"enum": [1, 2, 3]}))
    done = ask(ServerEngine(MODEL, servers=servers[:1]), [request])["1"]
    assert json.loads(done.text) in (1, 2, 3), done


def test_a_prompt_that_is_too_long_is_one_failure(servers: list[str], videos: list[Path]) -> None:
    good = answers(videos[:1])[0]
    long = replace(good, request_id="long", user="the red circle moves left . " * 1000)
    found = ask(ServerEngine(MODEL, servers=servers[:1]), [long, good])
    assert found["long"].error_kind == "too_long" and "token" in found["long"].error
    assert found[good.request_id].text
