"""The figures of a journey: what the labels, the reward models and the policy are worth, with intervals.

Everything is computed from rows of the warehouse and clustered by video. Agreement with the truth counts pairs whose
answers differ in truth: 1 when the label names the truer one, 1/2 for a tie, 0 otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from vlm_rlaif.datagen.plan import context_spec
from vlm_rlaif.feedback.judges.pairwise import label_stage
from vlm_rlaif.feedback.judges.plan import judge_spec
from vlm_rlaif.feedback.stats.estimates import Estimate, agreement_with_truth, clustered_mean, paired_difference
from vlm_rlaif.feedback.truth import agreements, differing_facts, pair_truths
from vlm_rlaif.train.run import taught_by
from vlm_rlaif.warehouse.config import Recipe
from vlm_rlaif.warehouse.store import Warehouse

if TYPE_CHECKING:
    from vlm_rlaif.datagen.shapes.truth import Truth
    from vlm_rlaif.train.reward import LabeledPair, RewardModel

Figures = dict[str, Estimate]
REWARD_GAINS = {"rm_video_gain": ("rm", "rm_text_only"), "rm_context_gain": ("rm_context", "rm")}
"""Figure -> the two reward models that it compares on the same pairs."""


def label_figures(warehouse: Warehouse, recipe: Recipe) -> Figures:
    """`label_accuracy` of every arm, `context_gain`, and the gain by kind of fact."""
    found: Figures = {}
    by_arm: dict[str, dict[str, float]] = {}
    videos: dict[str, str] = {}
    facts: dict[str, set[str]] = {}
    for arm in recipe.label.arms if recipe.label else []:
        rows = shapes_preferences(warehouse, label_stage(recipe, arm).spec.spec_id)
        truths = [pair_truths(row) for row in rows]
        for row, pair in zip(rows, truths, strict=True):
            videos[row["pair_id"]], facts[row["pair_id"]] = row["video_id"], differing_facts(*pair)
        scored = dict(zip((row["pair_id"] for row in rows), agreements(rows, truths), strict=True))
        by_arm[arm] = {pair: value for pair, value in scored.items() if not math.isnan(value)}
        found[f"label_accuracy_{arm}"] = _mean(by_arm[arm], videos)
    if {"context", "none"} <= by_arm.keys():
        both = sorted(by_arm["context"].keys() & by_arm["none"].keys())
        found["context_gain"] = _gain(by_arm, both, videos)
        for kind in sorted({kind for pair in both for kind in facts[pair]}):
            chosen = [pair for pair in both if kind in facts[pair]]
            found[f"context_gain_{kind}"] = _gain(by_arm, chosen, videos)
    return found


def shapes_preferences(warehouse: Warehouse, judge: str, split: str | None = None) -> list[dict[str, Any]]:
    """Preferences of a judge on questions whose truth is known."""
    rows = warehouse.preferences(judge=judge, split=split).to_dicts()
    return [row for row in rows if row["kind"] is not None and row["reference"] is not None]


def _mean(values: dict[str, float], videos: dict[str, str]) -> Estimate:
    return clustered_mean(list(values.values()), [videos[pair] for pair in values])


def _gain(by_arm: dict[str, dict[str, float]], pairs: Sequence[str], videos: dict[str, str]) -> Estimate:
    first, second = ([by_arm[arm][pair] for pair in pairs] for arm in ("context", "none"))
    return paired_difference(first, second, [videos[pair] for pair in pairs])


def reward_figures(
    warehouse: Warehouse, recipe: Recipe, folders: Mapping[str, Sequence[Path]], split: str = "test"
) -> Figures:
    """Accuracy of reward models against the truth on held-out videos, and of the judge beside them.

    `folders`: a name (`rm`, `rm_text_only`) -> its checkpoints, one per seed. Seeds are averaged pair by pair, so
    that an interval speaks of videos. `_KIND_only` counts pairs that differ in this kind of fact alone; with videos
    run backwards (`_time_reversed`) a model that sees motion loses accuracy on those that differ in motion.
    """
    from vlm_rlaif.train.reward import pairs_from_rows

    judge = judge_spec(recipe, taught_by(recipe)).spec_id
    rows = shapes_preferences(warehouse, judge, split)
    truths = [pair_truths(row) for row in rows]
    kept = [i for i, (a, b) in enumerate(truths) if a.fraction != b.fraction]
    rows, truths = [rows[i] for i in kept], [truths[i] for i in kept]
    videos = [row["video_id"] for row in rows]
    labels = agreements(rows, truths)
    found = {"label_accuracy_held_out": clustered_mean(labels, videos)}
    accuracies: dict[str, list[float]] = {}
    pairs = pairs_from_rows(rows, warehouse.video_path)
    kinds = [differing_facts(*pair) for pair in truths]
    for name, seeds in folders.items():
        accuracies[name], reversed_time = _accuracies(seeds, pairs, truths)
        found[f"{name}_accuracy"] = clustered_mean(accuracies[name], videos)
        for kind in sorted(set().union(*kinds)):
            at = [i for i, differing in enumerate(kinds) if differing == {kind}]
            where = [videos[i] for i in at]
            forwards = [accuracies[name][i] for i in at]
            found[f"{name}_accuracy_{kind}_only"] = clustered_mean(forwards, where)
            if kind == "motion" and reversed_time is not None:
                backwards = [reversed_time[i] for i in at]
                found[f"{name}_accuracy_motion_only_time_reversed"] = clustered_mean(backwards, where)
                found[f"{name}_time_gain_motion_only"] = paired_difference(forwards, backwards, where)
        if reversed_time is not None:
            found[f"{name}_accuracy_time_reversed"] = clustered_mean(reversed_time, videos)
    for gain, (better, worse) in REWARD_GAINS.items():
        if {better, worse} <= accuracies.keys():
            found[gain] = paired_difference(accuracies[better], accuracies[worse], videos)
    return found


def _accuracies(
    folders: Sequence[Path], pairs: Sequence[LabeledPair], truths: Sequence[tuple[Truth, Truth]]
) -> tuple[list[float], list[float] | None]:
    """How often each pair is put in the right order, averaged over checkpoints; then with videos run backwards.

    The second is None for a model that sees no video.
    """
    from vlm_rlaif.train.reward import RewardModel

    forwards, backwards = [], []
    for folder in folders:
        model = RewardModel.load(folder)
        forwards.append(_right(model, pairs, truths))
        if model.prompts.frames is not None:
            model.look(backwards=True)
            backwards.append(_right(model, pairs, truths))
    return _per_pair(forwards), _per_pair(backwards) if backwards else None


def _per_pair(seeds: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(pair) for pair in zip(*seeds, strict=True)]


def _right(model: RewardModel, pairs: Sequence[LabeledPair], truths: Sequence[tuple[Truth, Truth]]) -> list[float]:
    """Per pair: 1 when the truer response scores higher, 1/2 for equal scores, 0 otherwise."""
    scores_a, scores_b = model.score([pair.a for pair in pairs]), model.score([pair.b for pair in pairs])
    named = [0.5 if a == b else float(a > b) for a, b in zip(scores_a, scores_b, strict=True)]
    first, second = ([pair[side].fraction for pair in truths] for side in (0, 1))
    return [float(value) for value in agreement_with_truth(named, first, second)]


def answer_rows(warehouse: Warehouse, spec_id: str, metric: str = "truth") -> list[dict[str, Any]]:
    """(question_id, sample_index, value, tokens, video_id, kind) of one model's scored answers."""
    return warehouse.rows(
        "SELECT a.question_id, a.sample_index, a.text, a.tokens, s.value, q.video_id, q.kind FROM answers a"
        " JOIN scores s ON s.answer_id = a.answer_id AND s.metric = ? AND s.judge = 'truth'"
        " JOIN questions q ON q.question_id = a.question_id WHERE a.spec_id = ?"
        " ORDER BY a.question_id, a.sample_index",
        [metric, spec_id],
    )


def policy_figures(
    warehouse: Warehouse, start: Sequence[str], trained: Sequence[str], name: str = "policy"
) -> Figures:
    """Truth of greedy answers before and after, and the paired difference (`NAME_gain`), by kind as well.

    `start` and `trained` are answer specs. Of several (seeds) every question's mean counts, so that an interval
    speaks of videos.
    """
    found: Figures = {}
    for metric in ("truth", "fully_right"):
        sides = [[_by_question(warehouse, spec, metric) for spec in specs] for specs in (start, trained)]
        known = {question: row for side in sides for rows in side for question, row in rows.items()}
        questions = sorted(known)
        videos = [known[q]["video_id"] for q in questions]
        old, new = ([_mean_value(side, q) for q in questions] for side in sides)
        suffix = "" if metric == "truth" else f"_{metric}"
        found[f"start_truth{suffix}"] = clustered_mean(old, videos)
        found[f"{name}_truth{suffix}"] = clustered_mean(new, videos)
        found[f"{name}_gain{suffix}"] = paired_difference(new, old, videos)
        if metric == "truth":
            for kind in sorted({row["kind"] for row in known.values()}):
                at = [i for i, q in enumerate(questions) if known[q]["kind"] == kind]
                found[f"{name}_gain_{kind}"] = paired_difference(
                    [new[i] for i in at], [old[i] for i in at], [videos[i] for i in at]
                )
            lengths = ([_mean_value(side, q, "tokens") for q in questions] for side in sides)
            for who, tokens in zip(("start", name), lengths, strict=True):
                found[f"{who}_tokens"] = clustered_mean(tokens, videos, unit="tokens")
    return found


def _by_question(warehouse: Warehouse, spec_id: str, metric: str) -> dict[str, dict[str, Any]]:
    return {row["question_id"]: row for row in answer_rows(warehouse, spec_id, metric)}


def _mean_value(seeds: Sequence[dict[str, dict[str, Any]]], question: str, name: str = "value") -> float | None:
    """None where a model gave no answer (its failure is a row): missing is counted, and is not zero."""
    if not all(question in rows for rows in seeds):
        return None
    return fmean(float(rows[question][name]) for rows in seeds)


def questions_with_context(warehouse: Warehouse, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Question id -> text, video and the narrative that this recipe's judge reads."""
    rows = warehouse.rows(
        "SELECT q.question_id, q.text, v.uri, c.text AS context FROM questions q JOIN videos v USING (video_id)"
        " LEFT JOIN contexts c ON c.video_id = v.video_id AND c.spec_id = ?",
        [context_spec(recipe).spec_id if recipe.context else None],
    )
    return {row["question_id"]: row for row in rows}


def sampled_truth(warehouse: Warehouse, spec_id: str, name: str) -> Figures:
    """Mean truth of a model's sampled answers."""
    rows = answer_rows(warehouse, spec_id)
    values, videos = [r["value"] for r in rows], [r["video_id"] for r in rows]
    return {f"{name}_truth_sampled": clustered_mean(values, videos)}


def sampled_gain(warehouse: Warehouse, start: str, trained: str, name: str) -> Figures:
    """What training did to sampled answers: the paired difference of every question's mean truth.

    Beside the greedy gain this says whether the distribution became truer, or only its most frequent answer changed.
    """
    sides: list[dict[str, list[float]]] = []
    videos: dict[str, str] = {}
    for spec in (start, trained):
        values: dict[str, list[float]] = {}
        for row in answer_rows(warehouse, spec):
            values.setdefault(row["question_id"], []).append(row["value"])
            videos[row["question_id"]] = row["video_id"]
        sides.append(values)
    asked = sorted(videos)
    old, new = ([fmean(values[q]) if q in values else None for q in asked] for values in sides)
    return {f"{name}_gain_sampled": paired_difference(new, old, [videos[q] for q in asked])}


def best_of_n(
    warehouse: Warehouse, spec_id: str, reward_folder: Path, questions: dict[str, dict[str, Any]]
) -> Figures:
    """Truth of the sampled answer that the reward model likes best: what picking alone can do.

    `questions`: as `questions_with_context` gives them. A model that reads narratives leaves videos without one out.
    """
    from vlm_rlaif.train.reward import RewardModel, Scored

    model = RewardModel.load(reward_folder)
    told = model.settings.context_prompt is not None
    rows = [r for r in answer_rows(warehouse, spec_id) if not told or questions[r["question_id"]]["context"]]
    scores = model.score(
        [
            Scored(
                warehouse.video_path(questions[r["question_id"]]["uri"]),
                questions[r["question_id"]]["text"], r["text"], questions[r["question_id"]]["context"],
            )
            for r in rows
        ]
    )  # fmt: skip
    best: dict[str, tuple[float, dict[str, Any]]] = {}
    for row, value in zip(rows, scores, strict=True):
        if row["question_id"] not in best or value > best[row["question_id"]][0]:
            best[row["question_id"]] = (value, row)
    chosen = [row for _, row in best.values()]
    n = max((row["sample_index"] for row in rows), default=-1) + 1
    truth = clustered_mean([r["value"] for r in chosen], [r["video_id"] for r in chosen])
    return {f"best_of_{n}_truth": truth}


def win_figures(warehouse: Warehouse, judge: str) -> Figures:
    """How probable the judge finds it that the trained policy's answer beats the start's, both orders.

    An answer that was judged in one order alone is missing: position bias would be counted.
    """
    rows = warehouse.rows(
        "SELECT q.video_id, CASE WHEN count(s.value) = 2 THEN avg(s.value) END AS value FROM scores s"
        " JOIN answers a USING (answer_id) JOIN questions q ON q.question_id = a.question_id WHERE s.judge = ?"
        " GROUP BY q.video_id, a.answer_id",
        [judge],
    )
    return {"win_rate": clustered_mean([r["value"] for r in rows], [r["video_id"] for r in rows])}


def as_table(figures: Figures) -> list[dict[str, str]]:
    """Rows to print."""
    return [{"figure": name, "value": str(estimate)} for name, estimate in figures.items()]


def select(figures: Figures, names: Iterable[str]) -> Figures:
    """Some figures, in the order of the names; absent ones are left out."""
    return {name: figures[name] for name in names if name in figures}
