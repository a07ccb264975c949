"""How the embedded model was made: the shapes world streamed through the project's own SFT loop.

    vlm-rlaif train embedded --into DIR        (two processes, about 75 minutes on two idle CPU cores)

Five stages of one mixture (`SCHEDULE`): seeing first, then judging of short answers, of what objects do, of
everything, of long answers. Samples are made on the fly from (seed, process, step), so nothing is stored and a
killed run goes on exactly. The policy start is a second, short run over data that is wrong on purpose (`flawed.py`).
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from vlm_rlaif.datagen import prompt
from vlm_rlaif.datagen.engines.transformers_engine import load_model
from vlm_rlaif.datagen.shapes import render as shapes_video
from vlm_rlaif.datagen.shapes import truth as shapes_truth
from vlm_rlaif.datagen.shapes import world as shapes
from vlm_rlaif.train import flawed
from vlm_rlaif.train.data import Batch
from vlm_rlaif.train.embedded_model import (
    ASSISTANT,
    END,
    FRAME_SIZE,
    PATCH_SIZE,
    USER,
    build,
    make_processor,
    save,
)
from vlm_rlaif.train.sft import SFTConfig, fit

CLIP_FRAMES = 6
"""A clip is seen at six moments."""
VIDEO_MOMENTS = 3
"""The whole video is seen at three moments, each given twice: a temporal patch of 2 mixes none."""
TEMPORAL_PATCH = 2
VISUAL_TOKENS = (FRAME_SIZE // PATCH_SIZE // 2) ** 2
SCHEDULE: tuple[tuple[int, dict[str, float]], ...] = (
    (1000, {"caption": 0.5, "answer": 0.5}),
    (
        3600,
        {
            "caption": 0.06, "answer": 0.1, "check_context_short": 0.16, "check_short": 0.12,
            "judge_context_short": 0.34, "judge_short": 0.22,
        },
    ),
    (
        4250,
        {
            "caption": 0.05, "answer": 0.05, "answer_context_action": 0.25,
            "check_context_action": 0.2, "judge_context_action": 0.27, "judge_context_short": 0.1,
            "judge_short": 0.08,
        },
    ),
    (
        4900,
        {
            "caption": 0.08, "answer": 0.1, "answer_context": 0.08, "check_context": 0.04,
            "check": 0.04, "judge_context": 0.42, "judge": 0.24,
        },
    ),
    (
        10**9,
        {
            "caption": 0.06, "answer": 0.06, "check_context_long": 0.06, "check_context_action": 0.03,
            "judge_context": 0.25, "judge_context_long": 0.29, "judge": 0.11, "judge_long": 0.14,
        },
    ),
)  # fmt: skip
"""(until step, share of each task). First see; then check and judge short answers, which emerges long before the
judging of whole descriptions; then look up in the context what an object does; then everything, long answers
most."""
SUFFIXES = {
    "short": ("action", "colour", "after", "count"), "action": ("action",), "long": ("describe", "after"),
}  # fmt: skip
"""End of a task's name -> the kinds of question that it is about."""
VERDICT_WEIGHT = 5.0
"""A verdict is one token beside the many of an answer: it counts this much more."""
LOOKAHEAD = 8
"""Batches made together and sorted by length, to waste little on padding."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One training conversation: frames as poses (not yet pixels), a prompt and the answer to learn."""

    task: str
    poses: np.ndarray
    """(CLIP_FRAMES, MOST_SHAPES, 7), see `shapes_video.poses`."""
    times_s: tuple[float, ...]
    """Time of each temporal patch."""
    user: str
    answer: str
    true_responses: tuple[str, ...] = ()
    """Responses inside a judge's prompt that are entirely right: their words are learnt as well.

    A judge that predicts the right words of a response sees at once where a wrong one departs from them;
    with the verdict's single token alone this took several times as many samples to emerge.
    """


AnswerFor = Callable[[random.Random, shapes.ShapesVideo, shapes.ShapesQuestion], str]


def moments(start_s: float, span_s: float, count: int) -> list[tuple[float, int]]:
    """(time, frame number) on display at the centres of `count` equal parts, as `video.sample` takes them."""
    times = [start_s + span_s * (part + 0.5) / count for part in range(count)]
    return [(int(t * shapes.FPS + 1e-6) / shapes.FPS, int(t * shapes.FPS + 1e-6)) for t in times]


def make_sample(rng: random.Random, task: str, answer_for: AnswerFor = lambda _r, _v, q: q.reference) -> Sample:
    """Draw a video and one conversation about it."""
    video = shapes.make_video(rng)
    right: tuple[str, ...] = ()
    if task == "caption":
        number = rng.randrange(len(video.scenes))
        taken = moments(number * shapes.SCENE_S, shapes.SCENE_S, CLIP_FRAMES)
        user, answer = prompt.load("caption_compact_v1").user, shapes.caption(video.scenes[number])
    else:
        taken = [m for m in moments(0.0, video.duration_s, VIDEO_MOMENTS) for _ in range(2)]
        question = rng.choice(_by_kind(rng, video, task.rpartition("_")[2]))
        if task == "answer":
            user, answer = question.text, answer_for(rng, video, question)
        elif task.startswith("answer_context"):
            user = f"context {_narrative(rng, video)} question {question.text}"
            answer = question.reference
        elif task.startswith("check"):
            user, answer = make_check(rng, video, question, context="context" in task)
        else:
            user, answer, right = make_verdict(rng, video, question, context="context" in task)
    times = tuple((taken[i][0] + taken[i + 1][0]) / 2 for i in range(0, len(taken), TEMPORAL_PATCH))
    poses = shapes_video.poses(video, [n for _, n in taken])
    return Sample(task, poses, times, user, answer, right)


def _by_kind(rng: random.Random, video: shapes.ShapesVideo, which: str) -> list[shapes.ShapesQuestion]:
    """Questions of one kind, drawn evenly from all kinds or from those of `SUFFIXES`, where there are any."""
    asked = shapes.questions(video)
    asked = [q for q in asked if q.kind in SUFFIXES.get(which, shapes.KINDS)] or asked
    kind = rng.choice(sorted({q.kind for q in asked}))
    return [q for q in asked if q.kind == kind]


def make_verdict(
    rng: random.Random, video: shapes.ShapesVideo, question: shapes.ShapesQuestion, *, context: bool
) -> tuple[str, str, tuple[str, ...]]:
    """A pair of answers of different truth (sometimes equal: `C`), which one is truer, and which are right."""
    wish_tie = rng.random() < 0.12
    for _ in range(8):
        edits = rng.choices([(0, 1), (0, 2), (1, 2), (1, 3), (1, 1), (2, 2)], [8, 4, 2, 1, 2, 1])[0]
        a, b = (shapes_truth.corrupt(rng, question.kind, question.reference, n) for n in rng.sample(edits, 2))
        a_truth, b_truth = (shapes_truth.score(question.kind, question.reference, x).fraction for x in (a, b))
        if (a_truth == b_truth) == wish_tie:
            break
    verdict = "C" if a_truth == b_truth else "A" if a_truth > b_truth else "B"
    fields: dict[str, Any] = {"question": question.text, "response_a": a, "response_b": b}
    name = "judge_compact_v1"
    if context:
        name, fields["context"] = "judge_context_compact_v1", _narrative(rng, video)
    right = tuple(sorted({x for x in (a, b) if x == question.reference}))
    return prompt.load(name).render(**fields).user, verdict, right


def make_check(
    rng: random.Random, video: shapes.ShapesVideo, question: shapes.ShapesQuestion, *, context: bool
) -> tuple[str, str]:
    """One answer and whether it is entirely right: what a judge must be able to do twice."""
    right = rng.random() < 0.5
    edits = 0 if right else rng.choice((1, 1, 2))
    said = shapes_truth.corrupt(rng, question.kind, question.reference, edits)
    before = f"context {_narrative(rng, video)} " if context else ""
    answer = "yes" if said == question.reference else "no"
    return f"{before}question {question.text} A : {said} verdict", answer


def _narrative(rng: random.Random, video: shapes.ShapesVideo) -> str:
    line = prompt.load("context_compact_v1")
    return " ".join(
        line.render(start_s=round(i * shapes.SCENE_S), caption=_seen(rng, scene)).user
        for i, scene in enumerate(video.scenes)
    )


def _seen(rng: random.Random, scene: shapes.Scene) -> str:
    """A caption as a good captioner gives it: now and then with one mistake."""
    right = shapes.caption(scene)
    if rng.random() >= 0.04:
        return right
    return shapes_truth.corrupt(rng, "after", f"then {right}", 1).removeprefix("then ")


@dataclass(slots=True)
class Stream:
    """Batches of the shapes world by step number, the same for the same (seed, rank)."""

    tokenizer: Any
    batch_size: int
    seed: int
    rank: int
    mixture_at: Callable[[int], dict[str, float]]
    """Share of each task at a step."""
    answer_for: AnswerFor = lambda _r, _v, q: q.reference
    _group: int = -1
    _batches: list[list[Sample]] | None = None

    def __call__(self, step: int) -> Batch:
        group, place = divmod(step, LOOKAHEAD)
        if group != self._group or self._batches is None:
            self._group, self._batches = group, self._make(group)
        noise = np.random.default_rng([self.seed, self.rank, step])
        return collate(self.tokenizer, self._batches[place], noise)

    def _make(self, group: int) -> list[list[Sample]]:
        rng = random.Random(f"embedded/{self.seed}/{self.rank}/{group}")
        mixture = self.mixture_at(group * LOOKAHEAD)
        tasks = rng.choices(list(mixture), list(mixture.values()), k=self.batch_size * LOOKAHEAD)
        samples = [make_sample(rng, task, self.answer_for) for task in tasks]
        samples.sort(key=lambda sample: len(sample.user.split()) + len(sample.answer.split()))
        size = self.batch_size
        batches = [samples[i * size : (i + 1) * size] for i in range(LOOKAHEAD)]
        rng.shuffle(batches)
        return batches


def collate(tokenizer: Any, samples: list[Sample], noise: np.random.Generator | None = None) -> Batch:
    """Samples to a right-padded batch; token for token what the model's own processor makes.

    `noise` blurs pixel values by up to 8 of 255, about what an encoder does to a real file.
    """
    to_id = tokenizer.convert_tokens_to_ids
    head, video_id = to_id(USER), to_id("<|video_pad|>")
    start, end = to_id("<|vision_start|>"), to_id("<|vision_end|>")
    users = tokenizer([s.user for s in samples], add_special_tokens=False)["input_ids"]
    answers = tokenizer([s.answer for s in samples], add_special_tokens=False)["input_ids"]
    truths = sorted({text for s in samples for text in s.true_responses})
    truth_ids = dict(
        zip(truths, tokenizer(truths, add_special_tokens=False)["input_ids"], strict=True) if truths else ()
    )
    rows, prompts = [], []
    for sample, user, answer in zip(samples, users, answers, strict=True):
        visual = [
            token
            for time_s in sample.times_s
            for token in (to_id(f"<{time_s:.1f} seconds>"), start, *[video_id] * VISUAL_TOKENS, end)
        ]
        before = [head, *visual, *user, to_id(ASSISTANT)]
        rows.append([*before, *answer, to_id(END)])
        prompts.append(len(before))
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    target = torch.zeros(ids.shape, dtype=torch.bool)
    for i, (row, first) in enumerate(zip(rows, prompts, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
        target[i, first : len(row)] = True
        for begin, stop in _spans(users[i], [truth_ids[text] for text in samples[i].true_responses]):
            target[i, first - 1 - len(users[i]) + begin : first - 1 - len(users[i]) + stop] = True
    frames = shapes_video.draw(np.concatenate([s.poses for s in samples]), FRAME_SIZE)
    if noise is not None:
        shift = noise.integers(-8, 9, frames.shape, np.int16)
        frames = (frames + shift).clip(0, 255).astype(np.uint8)
    grid = FRAME_SIZE // PATCH_SIZE
    vision = {
        "pixel_values_videos": patchify(torch.from_numpy(frames)),
        "video_grid_thw": torch.tensor([[CLIP_FRAMES // TEMPORAL_PATCH, grid, grid]] * len(rows)),
        "mm_token_type_ids": (ids == video_id).long() * 2,
    }
    weight = torch.ones(ids.shape)
    for i, (sample, first) in enumerate(zip(samples, prompts, strict=True)):
        weight[i, first] = VERDICT_WEIGHT if sample.task.startswith(("judge", "check")) else 1.0
    return Batch(ids, mask, target, vision, weight)


def _spans(ids: list[int], wanted: list[list[int]]) -> list[tuple[int, int]]:
    """Where the last occurrence of each wanted run of tokens lies in `ids`."""
    found = []
    for run in wanted:
        starts = range(len(ids) - len(run), -1, -1)
        start = next(i for i in starts if ids[i : i + len(run)] == run)
        found.append((start, start + len(run)))
    return found


def patchify(frames: torch.Tensor) -> torch.Tensor:
    """Frames (N, 32, 32, 3) uint8 to Qwen's patches (N/2 * 16, 384), as its video processor orders them."""
    grid, merge = FRAME_SIZE // PATCH_SIZE, 2
    scaled = frames.float() / 127.5 - 1
    parts = scaled.view(-1, TEMPORAL_PATCH, grid // merge, merge, PATCH_SIZE, grid // merge, merge, PATCH_SIZE, 3)
    return parts.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, 3 * TEMPORAL_PATCH * PATCH_SIZE**2)


def mixture_at(step: int) -> dict[str, float]:
    """The tasks of a step."""
    return next(mixture for until, mixture in SCHEDULE if step < until)


JUDGE = SFTConfig(steps=5900, learning_rate=4e-3, muon_learning_rate=0.02, decay_fraction=0.2, save_steps=100)
POLICY_START = SFTConfig(steps=300, learning_rate=1e-3, muon_learning_rate=0.005, decay_fraction=0.7, save_steps=100)
BATCH_SIZE = 256


def train(into: Path, processes: int = 2) -> None:
    """Rebuild both embedded checkpoints below `into`: `judge`, then `policy-start` from it."""
    for role in ("judge", "policy-start"):
        if (into / role / "config.json").is_file():
            continue
        (into / role).mkdir(parents=True, exist_ok=True)
        port = 29500 + os.getpid() % 2000
        spawn(_worker, (processes, port, into, role), processes)


def _worker(rank: int, processes: int, port: int, into: Path, role: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    size = BATCH_SIZE // processes
    if role == "judge":
        model, processor = build(seed=0)
        config, stream = JUDGE, Stream(processor.tokenizer, size, 0, rank, mixture_at)
    else:
        processor = make_processor()
        model = load_model(str(into / "judge"), "cpu")
        config = POLICY_START
        stream = Stream(processor.tokenizer, size, 1, rank, lambda _step: {"answer": 1.0}, flawed.answer)
    fit(model, stream, config, into / role / "training", lambda e: print(json.dumps(e), flush=True))
    if rank == 0:
        save(model, processor, into / role)
    dist.destroy_process_group()
