"""The stream that made the embedded models, the flawed data of the policy start, and the SFT loop."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import torch

from vlm_rlaif.datagen import models
from vlm_rlaif.datagen.engines.transformers_engine import load_model
from vlm_rlaif.datagen.shapes import truth as shapes_truth
from vlm_rlaif.datagen.shapes import world as shapes
from vlm_rlaif.train import flawed
from vlm_rlaif.train.embedded import SCHEDULE, VERDICT_WEIGHT, Stream, make_sample, mixture_at
from vlm_rlaif.train.embedded_model import build, make_tokenizer
from vlm_rlaif.train.sft import SFTConfig, fit


def stream(rank: int = 0) -> Stream:
    return Stream(make_tokenizer(), batch_size=4, seed=0, rank=rank, mixture_at=lambda _: SCHEDULE[-1][1])


def test_a_step_has_the_same_batch_whenever_it_is_asked_for() -> None:
    one, other = stream(), stream()
    other(20)
    assert torch.equal(one(3).input_ids, other(3).input_ids)
    assert torch.equal(one(3).vision["pixel_values_videos"], other(3).vision["pixel_values_videos"])
    pixels = [stream(rank)(3).vision["pixel_values_videos"] for rank in (0, 1)]
    assert not torch.equal(*pixels)


def test_every_stage_of_the_schedule_shares_out_all_of_its_samples() -> None:
    for until, mixture in SCHEDULE:
        assert abs(sum(mixture.values()) - 1) < 1e-9
        assert mixture_at(until - 1) == mixture


def test_every_word_of_the_world_is_one_token() -> None:
    tokenizer, rng = make_tokenizer(), random.Random(0)
    for task in SCHEDULE[-1][1]:
        sample = make_sample(rng, task)
        text = f"{sample.user} {sample.answer}"
        assert len(tokenizer.encode(text, add_special_tokens=False)) == len(text.split())


def test_a_verdict_weighs_more_than_a_word() -> None:
    batch = stream()(0)
    assert batch.weight is not None and set(batch.weight.unique().tolist()) <= {1.0, VERDICT_WEIGHT}
    assert (batch.weight[~batch.target] == 1).all()


def test_the_flawed_data_are_wrong_most_of_the_time_where_they_are_meant_to_be() -> None:
    """More of the same data cannot repair the policy start: the wrong value is the most frequent one."""
    rng, said = random.Random(0), Counter[str]()
    counts = Counter[bool]()
    for video in shapes.World(3).videos(400):
        for question in shapes.questions(video):
            answer = flawed.answer(rng, video, question)
            if question.kind == "colour" and question.reference.endswith("is purple ."):
                said[answer.split()[-2]] += 1
            if question.kind == "count":
                counts[shapes_truth.score("count", question.reference, answer).fully_right] += 1
    assert said.most_common(1)[0][0] == "blue" and said["purple"] > 0
    assert counts[False] > counts[True] > 0


def test_supervised_training_resumes_exactly(tmp_path: Path) -> None:
    def trained(folder: str, stops: tuple[int, ...]) -> dict[str, torch.Tensor]:
        for steps in stops:
            model, _ = build(seed=1)
            config = SFTConfig(steps=steps, muon_learning_rate=0.01, warmup_steps=1, save_steps=2, decay_fraction=0.0)
            fit(model, stream(), config, tmp_path / folder)
        return {name: p.detach() for name, p in model.named_parameters()}

    straight, resumed = trained("straight", (4,)), trained("resumed", (2, 4))
    for name, parameter in straight.items():
        assert torch.equal(parameter, resumed[name]), name


def test_the_shipped_checkpoints_load_and_are_small() -> None:
    for role in ("judge", "policy-start"):
        model = load_model(models.resolve(f"embedded:{role}"), "cpu")
        assert sum(p.numel() for p in model.parameters()) <= 800_000
