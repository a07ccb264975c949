"""C3: what a shared prefix saves. Runs in the environment that `tests/vllm/install.sh` makes.

Judging as the project does it: per video one question, four pairs of responses, both orders, a prompt of video,
narrative and question that all eight requests share, and one token to answer. A randomly initialised Qwen3-VL of
about 50 million parameters runs in vLLM on the CPU, driven by our engine. Requests leave grouped by video (as our
stages send them) or shuffled, with prefix caching or without. The small cache holds the keys and values of about two
and a half prompts, so that shuffled requests cannot simply find everything; the large one holds all of them. vLLM's
caches of processed frames and encoded videos are as they are by default in all cells, and empty when one begins.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))

import random_qwen

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engine import Request, VideoPart
from vlm_rlaif.datagen.engines.vllm_engine import VLLMEngine
from vlm_rlaif.datagen.shapes.render import write_mp4
from vlm_rlaif.datagen.shapes.world import World, describe
from vlm_rlaif.warehouse.config import Frames

SHAPE = {"hidden": 640, "layers": 11, "heads": 10, "key_heads": 2, "inner": 1792}
SMALL_SHAPE = {"hidden": 128, "layers": 2, "heads": 4, "key_heads": 2, "inner": 256}
FRAMES = Frames(count=16, size=192)
PAIRS = 4
WORDY = 40
"""Lines of a narrative."""
BYTES_PER_NUMBER = 4
SMALL_CACHE, LARGE_CACHE = 4096, 65536
"""Tokens whose keys and values fit."""
SIDE_BY_SIDE = 8
"""Requests that vLLM runs at a time."""
BLOCK = 32


@dataclass(frozen=True, slots=True)
class Cell:
    """A way to dispatch, and an engine."""

    name: str
    shuffled: bool
    engine: str
    """`plain` (no prefix caching), `small` or `large` (the cache)."""


CELLS = (
    Cell("shuffled", True, "plain"), Cell("grouped", False, "plain"), Cell("shuffled_cached", True, "small"),
    Cell("grouped_cached", False, "small"), Cell("shuffled_large_cache", True, "large"),
    Cell("grouped_large_cache", False, "large"),
)  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--small", action="store_true", help="a toy model, one round: to see that it runs")
    small = arguments.parse_args().small
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        requests = judging(folder, videos=2 if small else 8)
        shape = SMALL_SHAPE if small else SHAPE
        parameters = random_qwen.write(folder / "model", [f"{r.system} {r.user}" for r in requests], **shape)
        engines = start(str(folder / "model"), shape)
        say(f"{parameters / 1e6:.0f} M parameters, {len(requests)} requests")
        rounds = [{cell.name: measure(engines[cell.engine], requests, cell, turn) for cell in CELLS}
                  for turn in range(1 if small else 3)]  # fmt: skip
        for engine in engines.values():
            engine.close()
    print(json.dumps(figures(rounds, len(requests), parameters)))


def judging(folder: Path, videos: int) -> list[Request]:
    """All requests, grouped by video."""
    world, wording = World(seed=5), prompt.load("judge_context_v1")
    found = []
    for video in world.videos(videos):
        rng = random.Random(video.index)
        path = folder / f"{video.index}.mp4"
        write_mp4(video, path, FRAMES.size or 0)
        told = [describe(world.video(1000 + 100 * video.index + i)) for i in range(WORDY)]
        context = "\n".join(f"{i:02d} s: {said}" for i, said in enumerate(told))
        for pair in range(PAIRS):
            responses = rng.sample(told, 2)
            for order in ("ab", "ba"):
                first, second = responses if order == "ab" else responses[::-1]
                said = wording.render(
                    context=context, question="what happens in the video ?", response_a=first, response_b=second
                )
                found.append(
                    Request(
                        f"{video.index}/{pair}/{order}", said.user, said.system, VideoPart(path, FRAMES),
                        choices=("A", "B", "C"),
                    )
                )  # fmt: skip
    return found


def start(model: str, shape: dict[str, int]) -> dict[str, VLLMEngine]:
    per_token = 2 * shape["layers"] * shape["key_heads"] * (shape["hidden"] // shape["heads"]) * BYTES_PER_NUMBER

    def engine(cache_tokens: int, caching: bool) -> VLLMEngine:
        return VLLMEngine(
            model, max_num_seqs=SIDE_BY_SIDE, enable_prefix_caching=caching, max_model_len=4096,
            kv_cache_memory_bytes=(cache_tokens + BLOCK) * per_token,
        )  # fmt: skip

    return {
        "plain": engine(LARGE_CACHE, False),
        "small": engine(SMALL_CACHE, True),
        "large": engine(LARGE_CACHE, True),
    }


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of all requests."""

    seconds: float
    tokens_in: int
    hit_rate: float


def measure(engine: VLLMEngine, requests: list[Request], cell: Cell, turn: int) -> Measured:
    asked = list(requests)
    if cell.shuffled:
        random.Random(turn).shuffle(asked)
    vllm = engine.llm.llm_engine
    vllm.reset_prefix_cache()
    vllm.reset_mm_cache()
    vllm.reset_encoder_cache()
    begun = time.monotonic()
    done = list(engine.generate(replace(r, seed=turn) for r in asked))
    seconds = time.monotonic() - begun
    failed = [each.error for each in done if each.error]
    if failed:
        sys.exit(f"{len(failed)} requests failed: {failed[0]}")
    tokens = sum(each.tokens_in for each in done)
    found = Measured(seconds, tokens, sum(each.cached_tokens for each in done) / tokens)
    say(f"round {turn + 1} {cell.name}: {seconds:.1f} s, {tokens / len(done):.0f} tokens a prompt, "
        f"{found.hit_rate:.0%} cached")  # fmt: skip
    return found


def figures(rounds: list[dict[str, Measured]], requests: int, parameters: int) -> dict[str, dict[str, object]]:
    def figure(values: list[float], unit: str, about: str) -> dict[str, object]:
        found = {"value": median(values), "low": min(values), "high": max(values), "n": len(values), "unit": unit}
        return {**found, "about": about}

    def speedup(name: str, about: str) -> dict[str, object]:
        return figure([one["shuffled"].seconds / one[name].seconds for one in rounds], "x", about)

    def hits(name: str, about: str) -> dict[str, object]:
        return figure([one[name].hit_rate for one in rounds], "", about)

    tokens = rounds[0]["shuffled"].tokens_in / requests
    beside = "over shuffled dispatch without caching"
    return {
        "prefix_speedup": speedup("grouped_cached", f"C3: grouped, a cache of {SMALL_CACHE} tokens, {beside}"),
        "prefix_hit_rate": hits("grouped_cached", "share of prompt tokens found in that cache"),
        "prefix_speedup_shuffled": speedup("shuffled_cached", f"shuffled, the same cache, {beside}"),
        "prefix_hit_rate_shuffled": hits("shuffled_cached", "its hit rate"),
        "prefix_speedup_grouping_alone": speedup("grouped", f"grouped without caching, {beside}"),
        "prefix_speedup_large_cache": speedup("grouped_large_cache", f"grouped, all prompts fit the cache, {beside}"),
        "prefix_speedup_shuffled_large_cache": speedup(
            "shuffled_large_cache", f"shuffled, all prompts fit the cache, {beside}"
        ),
        "prefix_prompt_tokens": figure([tokens], "tokens", f"a prompt; {parameters / 1e6:.0f} M parameters"),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
