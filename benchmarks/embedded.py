"""What the embedded checkpoints can do, on fresh samples of the shapes world.

    python benchmarks/embedded.py [--samples 1000] [--models DIR]

Exact match of captions, answers and verdicts, with 95 % intervals; answers and verdicts also by kind of question. The
policy start, which is flawed on purpose, is measured on captions and answers against the same references. Writes
`benchmarks/results/embedded.json`, from which the model card quotes; for the models of a rebuild (`--models`), as
`vlm-rlaif train embedded --into DIR` makes them, `embedded_rebuilt.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from vlm_rlaif.datagen import models
from vlm_rlaif.datagen.engines.encode import Encoder
from vlm_rlaif.datagen.engines.transformers_engine import load_model
from vlm_rlaif.feedback.stats.estimates import Estimate, clustered_mean
from vlm_rlaif.train.embedded import Sample, collate, make_sample

RESULTS = Path(__file__).parent / "results" / "embedded.json"
TASKS = {"judge": ("caption", "answer", "judge_context", "judge"), "policy-start": ("caption", "answer")}
BATCH = 100


def right(model: Any, tokenizer: Any, samples: list[Sample]) -> list[bool]:
    """Is the whole answer (for a verdict: the label) what it should be, token by token, teacher-forced?"""
    batch = collate(tokenizer, samples)
    with torch.no_grad():
        predicted = model(**batch.inputs()).logits[:, :-1].argmax(-1)
    hits = (predicted == batch.input_ids[:, 1:]) | ~batch.target[:, 1:]
    found = []
    for i, sample in enumerate(samples):
        answer = len(tokenizer.encode(sample.answer, add_special_tokens=False)) + 1
        last = int(batch.mask[i].sum()) - 1
        found.append(bool(hits[i, last - answer : last].all()))
    return found


def measure(folder: Path, role: str, task: str, count: int) -> dict[str, Estimate]:
    """Accuracy of one task, over all samples and by the first words of the question."""
    model, tokenizer = load_model(folder, "cpu"), Encoder.load(folder).tokenizer
    rng = random.Random(f"measure/{task}")
    samples = [make_sample(rng, task) for _ in range(count)]
    found = [ok for i in range(0, count, BATCH) for ok in right(model, tokenizer, samples[i : i + BATCH])]
    name = f"{role}_{task}"
    result = {name: clustered_mean(found, list(range(count)))}
    kinds: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        words = sample.user.rpartition("question ")[2].split()[:2]
        kinds.setdefault("_".join(words), []).append(i)
    if task != "caption":
        for kind, at in sorted(kinds.items()):
            result[f"{name}_{kind}"] = clustered_mean([found[i] for i in at], at)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--models", type=Path, help="a rebuild; the shipped models when left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Estimate] = {}
    for role, tasks in TASKS.items():
        folder = options.models / role if options.models else models.resolve(f"embedded:{role}")
        for task in tasks:
            figures |= measure(folder, role, task, options.samples)
    for name, estimate in figures.items():
        print(f"{name:48} {estimate}")
    as_json = {name: estimate.as_json() for name, estimate in figures.items()}
    results = RESULTS.with_name("embedded_rebuilt.json") if options.models else RESULTS
    results.write_text(json.dumps(as_json, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
