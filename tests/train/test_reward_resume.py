"""A reward training that was stopped and started again is the one that nobody stopped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlm_rlaif.train.reward import LabeledPair, RewardTrainer, Scored
from vlm_rlaif.train.vlm import ADAPTER, CARD, HEAD
from vlm_rlaif.warehouse.config import Rewarding

EPOCHS, PAIRS, SAVES_EVERY = 9, 6, 50


@pytest.fixture
def settings(reward_settings: Rewarding) -> Rewarding:
    """One pair per step; the first saved step lies in the middle of an epoch."""
    assert SAVES_EVERY < EPOCHS * PAIRS < 2 * SAVES_EVERY and SAVES_EVERY % PAIRS
    return dataclasses.replace(reward_settings, epochs=EPOCHS, batch_pairs=1)


@pytest.fixture
def pairs(clips: list[Path]) -> list[LabeledPair]:
    """Labels that differ, so that a step with the wrong pair learns something else."""
    shown = [("red", "grows"), ("blue", "blinks"), ("green", "shrinks"), ("red", "moves left"), ("yellow", "grows")]
    return [
        LabeledPair(
            str(i),
            a=Scored(clips[i % 4], "describe the video .", f"a {colour} circle {motion} ."),
            b=Scored(clips[i % 4], "describe the video .", f"a {motion} {colour} square and a blue cross blinks ."),
            p_a=p_a,
        )
        for i, ((colour, motion), p_a) in enumerate(
            zip([*shown, ("purple", "blinks")], [1.0, 0.25, 0.0, 0.75, 0.5, 0.875], strict=True)
        )
    ]


class Stopped(Exception):
    """What ends a training from outside."""


def train(settings: Rewarding, pairs: list[LabeledPair], folder: Path, stop_at: int | None = None) -> list[int]:
    """The steps that were taken."""
    taken: list[int] = []

    def note(step: int, metrics: dict[str, float]) -> None:
        taken.append(step)
        if step == stop_at:
            raise Stopped

    trainer = RewardTrainer(settings, pairs, folder)
    assert trainer.steps == EPOCHS * PAIRS
    if stop_at is None:
        trainer.train(note)
    else:
        with pytest.raises(Stopped):
            trainer.train(note)
    return taken


def test_a_stopped_reward_training_ends_bit_equal_to_an_undisturbed_one(
    settings: Rewarding, pairs: list[LabeledPair], tmp_path: Path
) -> None:
    assert train(settings, pairs, tmp_path / "straight") == list(range(1, EPOCHS * PAIRS + 1))
    train(settings, pairs, tmp_path / "stopped", stop_at=SAVES_EVERY + 2)
    assert not (tmp_path / "stopped" / ADAPTER).exists()
    resumed = train(settings, pairs, tmp_path / "stopped")
    assert resumed == list(range(SAVES_EVERY + 1, EPOCHS * PAIRS + 1))
    for file in (ADAPTER, HEAD):
        wanted, found = load_file(tmp_path / "straight" / file), load_file(tmp_path / "stopped" / file)
        assert wanted.keys() == found.keys()
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), name
    cards = [json.loads((tmp_path / folder / CARD).read_text()) for folder in ("straight", "stopped")]
    assert cards[0] == cards[1] and cards[0]["std"] > 0


def test_what_was_stopped_before_its_first_save_starts_over(
    settings: Rewarding, pairs: list[LabeledPair], tmp_path: Path
) -> None:
    train(settings, pairs, tmp_path / "stopped", stop_at=3)
    train(settings, pairs, tmp_path / "stopped", stop_at=1)
