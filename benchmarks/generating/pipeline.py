"""C4: what a stage adds to the bare engine. Runs in the environment that `tests/vllm/install.sh` makes.

`respond` samples two answers to every question about videos of which it shows 50 frames: with `run_stage`, from the
warehouse to rows in the warehouse, decoding included; against `LLM.generate` of the same vLLM on the same prompts,
whose frames lie in memory already. The stage runs with an empty and with a full frame cache. A randomly initialised
Qwen3-VL of about 50 million parameters, on the CPU; vLLM's own caches are emptied before every run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import random_qwen

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engines.clips import read_clip
from vlm_rlaif.datagen.engines.vllm_engine import VLLMEngine
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.datagen.plan import respond_stage
from vlm_rlaif.datagen.shapes.add import add_world
from vlm_rlaif.datagen.shapes.world import World, describe
from vlm_rlaif.warehouse import config
from vlm_rlaif.warehouse.media.frame_cache import folder_of
from vlm_rlaif.warehouse.store import Warehouse

RECIPE = """
world: {{videos: {videos}, seed: 3, questions: 1, size: 128}}
respond:
  model: {model}
  prompt: respond_v1
  frames: {{count: 50, size: {size}}}
  sampling: {{temperature: 1.0, max_new_tokens: 16}}
  samples: 2
"""
SHAPE = {"hidden": 640, "layers": 11, "heads": 10, "key_heads": 2, "inner": 1792}
SMALL_SHAPE = {"hidden": 128, "layers": 2, "heads": 4, "key_heads": 2, "inner": 256}
WAYS = ("bare", "cold", "warm")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--small", action="store_true", help="a toy model, one round: to see that it runs")
    small = arguments.parse_args().small
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = [prompt.load("respond_v1").user, *(describe(World(seed=3).video(i)) for i in range(50))]
        parameters = random_qwen.write(folder / "model", texts, **(SMALL_SHAPE if small else SHAPE))
        recipe = read_recipe(folder, videos=4 if small else 400, size=64 if small else 128)
        untouched = fill(folder / "untouched", recipe)
        engine = VLLMEngine(str(folder / "model"), max_model_len=4096)
        say(f"{parameters / 1e6:.0f} M parameters")
        measure("bare", engine, untouched, recipe)  # what is slow only once
        rounds = [{way: measure(way, engine, untouched, recipe) for way in WAYS} for _ in range(1 if small else 3)]
        engine.close()
    print(json.dumps(figures(rounds)))


def read_recipe(folder: Path, videos: int, size: int) -> config.Recipe:
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.format(videos=videos, model=folder / "model", size=size))
    return config.load(str(file))


def fill(folder: Path, recipe: config.Recipe) -> Warehouse:
    """Videos and questions, and nothing else."""
    folder.mkdir()
    warehouse = Warehouse.create(folder / "w.duckdb")
    assert recipe.world is not None
    add_world(warehouse, recipe.world)
    shutil.copy(warehouse.path, folder / "before.duckdb")
    return warehouse


@dataclass(frozen=True, slots=True)
class Took:
    """What a run took."""

    seconds: float
    computing_s: float
    """CPU time of the thread that drives vLLM, which computes in it: other work on the machine does not count."""
    bound_by: str


def measure(way: str, engine: VLLMEngine, warehouse: Warehouse, recipe: config.Recipe) -> Took:
    shutil.copy(warehouse.folder / "before.duckdb", warehouse.path)
    if way == "cold":
        shutil.rmtree(folder_of(warehouse.path), ignore_errors=True)
    vllm = engine.llm.llm_engine
    vllm.reset_prefix_cache()
    vllm.reset_mm_cache()
    vllm.reset_encoder_cache()
    stage = respond_stage(recipe)
    if way == "bare":
        requests = [stage.request(warehouse, row) for row in stage.pending(warehouse)]
        prompts = [engine.prompt(each, read_clip(each.video) if each.video else None) for each in requests]
        params = [engine.params(each) for each in requests]
        begun, computed = time.monotonic(), time.thread_time()
        engine.llm.generate(prompts, params, use_tqdm=False)
        took = Took(time.monotonic() - begun, time.thread_time() - computed, "engine")
    else:
        begun, computed = time.monotonic(), time.thread_time()
        outcome = run_stage(warehouse, stage, lambda: engine)
        took = Took(time.monotonic() - begun, time.thread_time() - computed, outcome.bound_by)
        wordless = warehouse.value("SELECT count(*) FROM failures WHERE kind = 'empty'")
        if outcome.failed != wordless:  # a random model sometimes says nothing
            sys.exit(f"{outcome.failed - wordless} rows failed.")
        say(f"  { ({cause: round(spent, 1) for cause, spent in engine.meter.seconds().items()}) }")
    say(f"{way}: {took.seconds:.1f} s, {took.computing_s:.1f} s of them computing, bound by {took.bound_by}")
    return took


def figures(rounds: list[dict[str, Took]]) -> dict[str, dict[str, Any]]:
    def figure(values: list[float], unit: str, about: str) -> dict[str, Any]:
        found = {"value": median(values), "low": min(values), "high": max(values), "n": len(values), "unit": unit}
        return {**found, "about": about}

    def over_bare(way: str) -> list[float]:
        return [one[way].seconds / one["bare"].seconds for one in rounds]

    computing = [one["cold"].computing_s / one["bare"].computing_s for one in rounds]
    bound = [float(one[way].bound_by == "engine") for one in rounds for way in ("cold", "warm")]
    return {
        "pipeline_overhead": figure(over_bare("cold"), "x", "C4: a stage, its frames not decoded yet"),
        "pipeline_overhead_warm": figure(over_bare("warm"), "x", "the same stage, its frames in the frame cache"),
        "pipeline_computing": figure(
            computing, "x", "the same ratio of the CPU time of the thread that drives vLLM: without the neighbours"
        ),
        "pipeline_bare_seconds": figure([one["bare"].seconds for one in rounds], "s", "what the bare engine took"),
        "pipeline_engine_bound": figure([sum(bound) / len(bound)], "", "share of the stage's runs that say so"),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
