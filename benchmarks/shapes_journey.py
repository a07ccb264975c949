"""The experiment of the README: does feedback with context make a better policy, on a world whose truth is known?

    python benchmarks/shapes_journey.py --into runs/shapes-full [--recipe shapes-full] [--seeds 3]

Runs the recipe once up to the labels, then per seed: the reward model, its text-only control, PPO, and the same loop
on random labels. Everything is resumable: run it again and it goes on. `--only-seed K` trains what belongs to one
seed and stops, so that a process per core can share the work once the labels stand. Writes
`benchmarks/results/shapes_journey.json` (each figure with value, low, high, n, unit; 95 % intervals clustered by
video) and the table between the marks of README.md. Figures of several seeds are computed on the mean over seeds of
every item, so an interval speaks of videos, and the spread of the seeds stands beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from vlm_rlaif.datagen.engines import Engines
from vlm_rlaif.datagen.job import Stage, run_stage
from vlm_rlaif.eval import figures
from vlm_rlaif.eval.answer import answer_stage
from vlm_rlaif.eval.conductor import Journey, generate
from vlm_rlaif.eval.curves import draw, learning_curves, remark
from vlm_rlaif.eval.figures import Figures
from vlm_rlaif.eval.metrics import clustered_mean, paired_difference
from vlm_rlaif.eval.truth import score_answers
from vlm_rlaif.eval.win import win_stage
from vlm_rlaif.train.jobs import Trained
from vlm_rlaif.train.run import MERGED, text_only, train_ppo, train_reward, with_labels
from vlm_rlaif.warehouse.config import Recipe, load
from vlm_rlaif.warehouse.store import Warehouse

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "shapes_journey.json"
PLOTS = ROOT / "docs" / "shapes_journey"
ARMS = ("policy", "random_label")
REWARDS = ("rm", "rm_text_only")
HEADLINES = {
    "label_accuracy_context": "labels made with context agree with the truth",
    "label_accuracy_none": "labels made without context agree with the truth",
    "context_gain": "gain of the labels by context, same judge, same pairs",
    "rm_accuracy": "reward model on held-out videos, against the truth",
    "rm_text_only_accuracy": "reward model that cannot see the video",
    "rm_video_gain": "gain of the reward model by the video",
    "rm_accuracy_time_reversed": "the same reward model, videos shown backwards",
    "label_accuracy_held_out": "the judge's labels on the same held-out videos",
    "start_truth": "right facts in the start's greedy answers",
    "policy_truth": "right facts in the RLAIF policy's greedy answers",
    "policy_gain": "gain of the policy",
    "random_label_gain": "the same loop on random labels",
    "start_truth_sampled": "right facts in the start's sampled answers",
    "policy_truth_sampled": "right facts in the RLAIF policy's sampled answers",
    "best_of_16_truth": "best of 16 samples of the start by the reward model",
    "win_rate": "the judge prefers the RLAIF policy's answer",
}


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with the seeds of everything after the responses replaced."""
    assert recipe.reward and recipe.ppo
    return dataclasses.replace(
        recipe,
        reward=dataclasses.replace(recipe.reward, seed=seed),
        ppo=dataclasses.replace(recipe.ppo, seed=seed),
    )


def train(warehouse: Warehouse, recipe: Recipe) -> dict[str, Trained]:
    """Everything that one seed trains, by role; what stands is left alone."""
    chance = with_labels(recipe, "random")
    reward, chance_reward = train_reward(warehouse, recipe), train_reward(warehouse, chance)
    return {
        "rm": reward,
        "rm_text_only": train_reward(warehouse, text_only(recipe)),
        "policy": train_ppo(warehouse, recipe, reward),
        "random_label": train_ppo(warehouse, chance, chance_reward),
    }


def mean_over_seeds(per_seed: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Question id -> its row with the mean value over seeds; a question that a seed left open is left out."""
    answered = set.intersection(*(set(rows) for rows in per_seed))
    return {
        key: {**per_seed[0][key], "value": sum(rows[key]["value"] for rows in per_seed) / len(per_seed)}
        for key in sorted(answered)
    }


def gain(start: dict[str, dict[str, Any]], trained: list[dict[str, dict[str, Any]]], name: str) -> Figures:
    """Truth after training and its paired gain over the start, seeds averaged item by item."""
    mean = mean_over_seeds(trained)
    keys = sorted(start)
    videos = [start[k]["video_id"] for k in keys]
    new = [mean[k]["value"] if k in mean else None for k in keys]  # missing is counted, and is not zero
    old = [start[k]["value"] for k in keys]
    found = {f"{name}_truth": clustered_mean(new, videos), f"{name}_gain": paired_difference(new, old, videos)}
    for kind in sorted({start[k]["kind"] for k in keys}):
        at = [i for i, k in enumerate(keys) if start[k]["kind"] == kind]
        found[f"{name}_gain_{kind}"] = paired_difference(
            [new[i] for i in at], [old[i] for i in at], [videos[i] for i in at]
        )
    return found


def run(recipe: Recipe, warehouse: Warehouse, seeds: int) -> tuple[dict[str, Any], dict[str, str]]:
    """All arms and seeds; returns what is written to the results file, and the learning curves as SVG."""
    journey, engines = Journey(), Engines("transformers")

    def ask(stage: Stage) -> None:
        journey.add(run_stage(warehouse, stage, engines.of(stage.spec.model)))

    def answered(model: str | None) -> dict[str, dict[str, Any]]:
        stage = answer_stage(recipe, model)
        ask(stage)
        score_answers(warehouse)
        return {r["question_id"]: r for r in figures.answer_rows(warehouse, stage.spec.spec_id)}

    generate(warehouse, recipe, journey, ask)
    trained = [train(warehouse, with_seed(recipe, seed)) for seed in range(seeds)]
    start = answered(None)
    found: Figures = {
        **figures.label_figures(warehouse, recipe),
        "start_truth": clustered_mean([r["value"] for r in start.values()], [r["video_id"] for r in start.values()]),
        **figures.reward_figures(warehouse, recipe, paths(trained, REWARDS)),
    }
    spread: dict[str, list[float | None]] = {}
    for arm in ARMS:
        per_seed = [answered(str(roles[arm].path / MERGED)) for roles in trained]
        found |= gain(start, per_seed, arm)
        spread[f"{arm}_truth"] = [fmean(row["value"] for row in rows.values()) for rows in per_seed]
    for roles in trained:
        for name, estimate in figures.reward_figures(warehouse, recipe, paths([roles], REWARDS)).items():
            if name in ("rm_accuracy", "rm_text_only_accuracy"):
                spread.setdefault(name, []).append(estimate.value)
    found |= first_seed(warehouse, recipe, engines, str(trained[0]["policy"].path / MERGED), trained[0]["rm"].path)
    engines.close()
    curves = learning_curves(
        warehouse,
        {roles[arm].checkpoint_id: f"{arm}, seed {seed}" for seed, roles in enumerate(trained) for arm in ARMS},
    )
    return {
        "recipe": recipe.name, "seeds": seeds,
        "figures": {name: estimate.as_json() for name, estimate in found.items()},
        "per_seed": spread,
        "remarks": [said for curve in curves if (said := remark(curve))],
    }, draw(curves)  # fmt: skip


def paths(trained: Sequence[dict[str, Trained]], names: Sequence[str]) -> dict[str, list[Path]]:
    """Role -> the folders of its checkpoints, seed by seed."""
    return {name: [roles[name].path for roles in trained] for name in names}


def first_seed(warehouse: Warehouse, recipe: Recipe, engines: Engines, policy: str, reward: Path) -> Figures:
    """Sampled answers, best of n and win rate: controls that one seed answers."""
    assert recipe.evaluate
    n = recipe.evaluate.best_of
    for model in (None, policy):
        stage = answer_stage(recipe, model, samples=n)
        run_stage(warehouse, stage, engines.of(stage.spec.model))
    score_answers(warehouse)
    new, old = (answer_stage(recipe, m).spec.spec_id for m in (policy, None))
    judge = win_stage(recipe, new, old)
    run_stage(warehouse, judge, engines.of(judge.spec.model))
    questions = figures.questions_with_context(warehouse, recipe)
    sampled = [answer_stage(recipe, m, samples=n).spec.spec_id for m in (None, policy)]
    return {
        **figures.sampled_truth(warehouse, sampled[0], "start"),
        **figures.sampled_truth(warehouse, sampled[1], "policy"),
        **figures.best_of_n(warehouse, sampled[0], reward, questions),
        **figures.win_figures(warehouse, judge.spec.spec_id),
    }


def readme_table(results: dict[str, Any]) -> str:
    """The table between the marks of the README."""
    lines = ["| figure | value | 95 % interval | n | what it is |", "|---|---|---|---|---|"]
    for name, words in HEADLINES.items():
        if (figure := results["figures"].get(name)) is None:
            continue
        scale, unit = (100, " %") if figure["unit"] == "fraction" else (1, f" {figure['unit']}")
        value, low, high = (round(scale * figure[key], 1) for key in ("value", "low", "high"))
        lines.append(f"| `{name}` | {value}{unit} | {low} to {high} | {figure['n']:,} | {words} |")
    seeds = f"{results['seeds']} seed{'s' if results['seeds'] > 1 else ''}"
    return "\n".join([*lines, "", f"Recipe `{results['recipe']}`, {seeds}; intervals clustered by video."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=ROOT / "runs" / "shapes-full")
    parser.add_argument("--recipe", default="shapes-full")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only-seed", type=int, metavar="K")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.into.mkdir(parents=True, exist_ok=True)
    warehouse, recipe = Warehouse.create(options.into / "warehouse.duckdb"), load(options.recipe)
    if options.only_seed is not None:
        for role, trained in train(warehouse, with_seed(recipe, options.only_seed)).items():
            print(f"{role}: {trained}")
        return
    results, plots = run(recipe, warehouse, options.seeds)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(readme_table(results))
    if options.results == RESULTS:
        publish(results, plots)


def publish(results: dict[str, Any], plots: dict[str, str]) -> None:
    """Into the README between its marks, with the plots beside it in `docs/shapes_journey/`."""
    PLOTS.mkdir(parents=True, exist_ok=True)
    for name, svg in plots.items():
        (PLOTS / f"{name}.svg").write_text(svg, encoding="utf-8")
    images = [f"![{name} over the steps of PPO](docs/shapes_journey/{name}.svg)" for name in plots]
    remarks = [f"* {said}" for said in results["remarks"]]
    section = "\n".join([readme_table(results), "", *remarks, "", *images])
    readme = ROOT / "README.md"
    marks = r"(<!-- results:begin -->\n).*(\n<!-- results:end -->)"
    text = re.sub(marks, lambda m: m[1] + section + m[2], readme.read_text("utf-8"), flags=re.S)
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
