"""A tiny untrained model and a few videos: enough to prove what must hold for any weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlm_rlaif.datagen.shapes import render as shapes_video
from vlm_rlaif.datagen.shapes import world as shapes
from vlm_rlaif.train.embedded_model import build, save
from vlm_rlaif.train.reward import Scored
from vlm_rlaif.warehouse.config import PPO, Frames, Lora, Rewarding, Sampling

torch.set_num_threads(1)
FRAMES = Frames(count=3, size=32, repeat=2)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a randomly initialised model; louder weights than a fresh net's, so that samples differ."""
    folder = tmp_path_factory.mktemp("tiny")
    model, processor = build(seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
    save(model, processor, folder)
    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    world = shapes.World(seed=11)
    paths = [folder / f"{i}.mp4" for i in range(4)]
    for i, path in enumerate(paths):
        shapes_video.write_mp4(world.video(i), path)
    return paths


@pytest.fixture
def rows(clips: list[Path]) -> list[Scored]:
    questions = ["describe the video .", "how many shapes are there ?", "what colour is the circle ?"]
    answers = ["first a red circle grows .", "there are 3 shapes .", "the circle is blue and that is that ."]
    return [Scored(clip, q, a) for clip, q, a in zip(clips, questions, answers, strict=False)]


@pytest.fixture
def reward_settings(tiny: Path) -> Rewarding:
    return Rewarding(
        model=str(tiny), prompt="reward_compact_v1", frames=FRAMES, lora=Lora(rank=4, alpha=8.0),
        learning_rate=3e-3, epochs=2, batch_pairs=4,
    )  # fmt: skip


@pytest.fixture
def ppo_settings(tiny: Path) -> PPO:
    return PPO(
        model=str(tiny), prompt="respond_compact_v1", frames=FRAMES, lora=Lora(rank=4, alpha=8.0),
        iterations=2, episodes=6, micro_batch=3, mini_batches=2, epochs=2, save_every=1,
        sampling=Sampling(temperature=1.0, max_new_tokens=8),
    )  # fmt: skip
