"""The experiment of the README: what AI feedback is worth in a world whose truth is known.

    python benchmarks/shapes_journey.py --into runs/shapes-full [--recipe shapes-full] [--seeds 3]

Runs the recipe once up to the labels, then per seed four arms of the same loop (reward model, then PPO): labels made
with context, the same with a reward model that reads the narrative too, labels made without context, and random
labels; and a reward model that cannot see the video. The labels are the
same in every seed: the judge is greedy, so repeating them would repeat them. Everything is resumable: run it again
and it goes on. `--only-seed K` trains what belongs to one seed and stops, so that a process per core can share the
work once the labels stand.

Writes `benchmarks/results/shapes_journey.json` (each figure with value, low, high, n, unit; 95 % intervals clustered
by video), the learning curves below `docs/shapes_journey/`, and the part between the marks of README.md. Reward
models and greedy answers are averaged over the seeds item by item, so an interval speaks of videos, and the range of
the seeds stands beside it; sampled answers, best of n and the win rate are those of seed 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from vlm_rlaif.datagen.engines.make import Engines, EngineSettings
from vlm_rlaif.datagen.job import Stage, run_stages
from vlm_rlaif.datagen.portion import Portion
from vlm_rlaif.eval import figures
from vlm_rlaif.eval.answer import answer_stage
from vlm_rlaif.eval.conductor import Journey, check, generate
from vlm_rlaif.eval.curves import draw, learning_curves, remark
from vlm_rlaif.eval.figures import Figures
from vlm_rlaif.eval.truth import score_answers
from vlm_rlaif.eval.win import win_stage
from vlm_rlaif.feedback.stats.estimates import clustered_mean
from vlm_rlaif.train.jobs import Trained
from vlm_rlaif.train.run import MERGED, text_only, train_ppo, train_reward, with_labels
from vlm_rlaif.warehouse.config import Recipe, load
from vlm_rlaif.warehouse.store import Warehouse

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "shapes_journey.json"
PLOTS = ROOT / "docs" / "shapes_journey"
HEADLINES = {
    "label_accuracy_context": "labels made with context agree with the truth",
    "label_accuracy_none": "labels made without context agree with the truth",
    "context_gain": "gain of the labels by context, same judge, same pairs",
    "label_accuracy_held_out": "labels made with context, on the held-out videos of the next rows",
    "rm_accuracy": "reward model on held-out videos, against the truth",
    "rm_text_only_accuracy": "reward model that cannot see the video",
    "rm_video_gain": "gain of the reward model by the video",
    "rm_accuracy_motion_only": "reward model, pairs that differ in motion alone",
    "rm_time_gain_motion_only": "what it loses on them when videos run backwards",
    "rm_context_accuracy": "reward model that reads the narrative as well",
    "rm_context_gain": "gain of the reward model by the narrative",
    "rm_context_accuracy_motion_only": "with the narrative, pairs that differ in motion alone",
    "start_truth": "right facts in the start's greedy answers",
    "policy_truth": "right facts in the RLAIF policy's greedy answers",
    "policy_gain": "gain of the policy",
    "context_rm_gain": "gain of the same loop with a reward model that reads the narrative",
    "context_rm_policy_gain": "policy of that loop against the policy above",
    "no_context_gain": "gain of the same loop on labels made without context",
    "context_policy_gain": "policy on labels with context against this one",
    "random_label_gain": "gain of the same loop on random labels",
    "random_label_gain_over_seeds": "the same, with the interval over seeds: each draws labels of its own",
    "start_truth_sampled": "right facts in the start's sampled answers",
    "policy_gain_sampled": "gain of the policy, sampled answers (seed 0)",
    "random_label_gain_sampled": "gain on random labels, sampled answers (seed 0)",
    "best_of_16_truth": "best of 16 samples of the start by the reward model (seed 0)",
    "win_rate": "the judge prefers the RLAIF policy's answer to the start's (seed 0)",
}
"""Rows of the README's table."""


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with the seeds of everything after the labels replaced."""
    assert recipe.reward and recipe.ppo
    return dataclasses.replace(
        recipe,
        reward=dataclasses.replace(recipe.reward, seed=seed),
        ppo=dataclasses.replace(recipe.ppo, seed=seed),
    )


def told(recipe: Recipe) -> Recipe:
    """The reward model reads the narrative as the judge did; the policy does not."""
    assert recipe.reward
    return dataclasses.replace(
        recipe, reward=dataclasses.replace(recipe.reward, context_prompt="reward_context_compact_v1")
    )


ARMS: dict[str, Callable[[Recipe], Recipe]] = {
    "policy": lambda recipe: with_labels(recipe, "context"),
    "context_rm": told,
    "no_context": lambda recipe: with_labels(recipe, "none"),
    "random_label": lambda recipe: with_labels(recipe, "random"),
}
"""Name of an arm's policy in the figures -> how its recipe differs."""
REWARDS: dict[str, Callable[[Recipe], Recipe]] = {"rm": ARMS["policy"], "rm_text_only": text_only, "rm_context": told}


def train(warehouse: Warehouse, recipe: Recipe) -> dict[str, Trained]:
    """Everything that one seed trains, by role; what stands is left alone."""
    trained = {role: train_reward(warehouse, change(recipe)) for role, change in REWARDS.items()}
    for arm, change in ARMS.items():
        changed = change(recipe)
        trained[arm] = train_ppo(warehouse, changed, train_reward(warehouse, changed))
    return trained


class Answers:
    """Greedy answers of models, made when they are missing, and scored."""

    def __init__(self, warehouse: Warehouse, recipe: Recipe, ask: Callable[[Stage], None]) -> None:
        self.warehouse, self.recipe, self.ask = warehouse, recipe, ask

    def specs(self, models: Sequence[str | None]) -> list[str]:
        """The answer specs of some models (None: the policy's start)."""
        stages = [answer_stage(self.recipe, model) for model in models]
        for stage in stages:
            self.ask(stage)
        score_answers(self.warehouse)
        return [stage.spec.spec_id for stage in stages]


def run(recipe: Recipe, warehouse: Warehouse, seeds: int) -> tuple[dict[str, Any], dict[str, str]]:
    """All arms and seeds; returns what is written to the results file, and the learning curves as SVG."""
    check(recipe)
    journey, engines = Journey(), Engines(EngineSettings("transformers"))

    def ask(stages: Sequence[Stage]) -> None:
        journey.add(*run_stages(warehouse, stages, engines.of(stages[0].spec.model), Portion()))

    recipe = generate(warehouse, recipe, journey, ask)
    trained = [train(warehouse, with_seed(recipe, seed)) for seed in range(seeds)]
    answers = Answers(warehouse, recipe, ask)
    start = answers.specs([None])
    by_arm = {arm: answers.specs([str(roles[arm].path / MERGED) for roles in trained]) for arm in ARMS}
    found: Figures = {
        **figures.label_figures(warehouse, recipe),
        **figures.reward_figures(warehouse, recipe, folders(trained)),
    }
    for arm, specs in by_arm.items():
        found |= figures.policy_figures(warehouse, start, specs, arm)
    for name, better, worse in (
        ("context_policy", "policy", "no_context"),
        ("context_rm_policy", "context_rm", "policy"),
    ):
        against = figures.policy_figures(warehouse, by_arm[worse], by_arm[better], name)
        found |= {key: estimate for key, estimate in against.items() if key.startswith(f"{name}_gain")}
    found |= first_seed(warehouse, recipe, ask, trained[0])
    per_seed: dict[str, list[float | None]] = {}
    for seed, roles in enumerate(trained):
        alone = figures.reward_figures(warehouse, recipe, folders([roles]))
        for arm, specs in by_arm.items():
            alone |= figures.policy_figures(warehouse, start, [specs[seed]], arm)
        for name in (*(f"{role}_accuracy" for role in REWARDS), *(f"{arm}_gain" for arm in ARMS), "policy_truth"):
            per_seed.setdefault(name, []).append(alone[name].value)
    for arm in ARMS:
        gains = per_seed[f"{arm}_gain"]
        found[f"{arm}_gain_over_seeds"] = clustered_mean(gains, range(len(gains)), unit="points")
    engines.close()
    curves = learning_curves(
        warehouse,
        {roles[arm].checkpoint_id: f"{arm}, seed {seed}" for seed, roles in enumerate(trained) for arm in ARMS},
    )
    results = {
        "recipe": recipe.name, "seeds": seeds, "failed_rows": journey.failed,
        "rows": {table: warehouse.value(f"SELECT count(*) FROM {table}") for table in ("videos", "pairs", "labels")},
        "figures": {name: estimate.as_json() for name, estimate in found.items()},
        "per_seed": per_seed,
        "remarks": [said for curve in curves if (said := remark(curve))],
    }  # fmt: skip
    return results, draw(curves)


def folders(trained: Sequence[dict[str, Trained]]) -> dict[str, list[Path]]:
    """Role of a reward model -> the folders of its checkpoints, seed by seed."""
    return {name: [roles[name].path for roles in trained] for name in REWARDS}


def first_seed(
    warehouse: Warehouse, recipe: Recipe, ask: Callable[[Stage], None], trained: dict[str, Trained]
) -> Figures:
    """Sampled answers, best of n and win rate: controls that one seed answers."""
    assert recipe.evaluate
    n, policy = recipe.evaluate.best_of, str(trained["policy"].path / MERGED)
    models = [None, *(str(trained[arm].path / MERGED) for arm in ARMS)]
    sampled = [answer_stage(recipe, model, samples=n) for model in models]
    for stage in sampled:
        ask(stage)
    score_answers(warehouse)
    start, *specs = (stage.spec.spec_id for stage in sampled)
    found: Figures = figures.sampled_truth(warehouse, start, "start")
    for arm, spec in zip(ARMS, specs, strict=True):
        found |= figures.sampled_truth(warehouse, spec, arm) | figures.sampled_gain(warehouse, start, spec, arm)
    new, old = (answer_stage(recipe, model).spec.spec_id for model in (policy, None))
    judge = win_stage(recipe, new, old)
    ask(judge)
    questions = figures.questions_with_context(warehouse, recipe)
    return {
        **found,
        **figures.best_of_n(warehouse, start, trained["rm"].path, questions),
        **figures.win_figures(warehouse, judge.spec.spec_id),
    }


def readme_table(results: dict[str, Any]) -> str:
    """The table between the marks of the README."""
    lines = ["| figure | value | 95 % interval | seeds | n | what it is |", "|---|---|---|---|---|---|"]
    for name, words in HEADLINES.items():
        if (figure := results["figures"].get(name)) is None:
            continue
        scale, unit = (100, " %") if figure["unit"] == "fraction" else (1, f" {figure['unit']}")
        value, low, high = (
            "?" if figure[key] is None else f"{scale * figure[key]:.1f}" for key in ("value", "low", "high")
        )
        seeds = [scale * v for v in results["per_seed"].get(name, []) if v is not None]
        spread = f"{min(seeds):.1f} to {max(seeds):.1f}" if len(seeds) > 1 else ""
        lines.append(f"| `{name}` | {value}{unit} | {low} to {high} | {spread} | {figure['n']:,} | {words} |")
    rows = ", ".join(f"{count:,} {table}" for table, count in results["rows"].items())
    seeds_words = f"{results['seeds']} seed{'s' if results['seeds'] > 1 else ''}"
    return "\n".join(
        [
            *lines, "",
            f"Recipe `{results['recipe']}`: {rows}; {seeds_words} of reward model and PPO. The judge is greedy, so"
            " the labels are the same in every seed. Intervals are clustered by video; `seeds` is the lowest and"
            " the highest of the seeds.",
        ]
    )  # fmt: skip


def publish(results: dict[str, Any], plots: dict[str, str]) -> None:
    """Into the README between its marks, with the plots beside it in `docs/shapes_journey/`."""
    PLOTS.mkdir(parents=True, exist_ok=True)
    for name, svg in plots.items():
        (PLOTS / f"{name}.svg").write_text(svg, encoding="utf-8")
    images = [f"![{name} over the steps of PPO](docs/shapes_journey/{name}.svg)" for name in plots]
    hacked = [f"* {said}" for said in results["remarks"] if "HACKING" in said] or ["* none"]
    heading = f"Reward hacking, looked for in all {len(results['remarks'])} runs of PPO:"
    section = "\n".join([readme_table(results), "", heading, "", *hacked, "", *images])
    readme = ROOT / "README.md"
    marks = r"(<!-- results:begin -->\n).*(\n<!-- results:end -->)"
    text = re.sub(marks, lambda m: m[1] + section + m[2], readme.read_text("utf-8"), flags=re.S)
    readme.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=ROOT / "runs" / "shapes-full")
    parser.add_argument("--recipe", default="shapes-full")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only-seed", type=int, metavar="K")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
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


if __name__ == "__main__":
    main()
