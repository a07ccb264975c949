"""Sequences, masks and scores: what a trainer is fed and where a score is read."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from vlm_rlaif.datagen.engines.clips import Clip
from vlm_rlaif.datagen.engines.encode import Conversation, Encoded, Encoder
from vlm_rlaif.datagen.shapes.render import draw
from vlm_rlaif.train.data import join
from vlm_rlaif.train.embedded import collate, make_sample
from vlm_rlaif.train.reward import ADAPTER_NAME, RewardModel, Scored
from vlm_rlaif.train.vlm import Backbone, scalar_head
from vlm_rlaif.warehouse.config import Rewarding
from vlm_rlaif.warehouse.errors import UserError


@pytest.fixture(scope="module")
def model(tiny: Path) -> RewardModel:
    from vlm_rlaif.warehouse.config import Frames

    torch.manual_seed(0)
    settings = Rewarding(model=str(tiny), prompt="reward_compact_v1", frames=Frames(count=3, size=32, repeat=2))
    backbone = Backbone(str(tiny))
    backbone.add_adapter(ADAPTER_NAME, settings.lora)
    return RewardModel(backbone, scalar_head(backbone.hidden_size), settings)


def test_a_score_does_not_depend_on_its_neighbours_or_on_padding(model: RewardModel, rows: list[Scored]) -> None:
    """R4."""
    together = model.score(rows)
    alone = [model.score([row])[0] for row in rows]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(score, 3) for score in together}) == len(rows)


def test_the_score_is_read_at_the_end_of_sequence_token(model: RewardModel, rows: list[Scored]) -> None:
    """R4: appended when it is missing, never twice."""
    tokens = model.backbone.encoder.tokenizer([r.response for r in rows], add_special_tokens=False)["input_ids"]
    bare, ended = model.batch(rows, tokens), model.batch(rows, [[*t, model.backbone.eos_id] for t in tokens])
    assert torch.equal(bare.input_ids, ended.input_ids)
    last = bare.mask.sum(1) - 1
    assert (bare.input_ids[torch.arange(len(rows)), last] == model.backbone.eos_id).all()


def test_masks_come_from_lengths_even_when_pad_and_eos_are_the_same_token() -> None:
    """R5."""
    prompts = [Encoded([5, 9, 5], [0, 0, 0], {}), Encoded([5], [0], {})]
    batch = join(prompts, [[9, 9], [7, 7, 7, 9, 9]], pad_id=9)
    assert batch.mask.sum(1).tolist() == [5, 6]
    assert batch.target.int().tolist() == [[0, 0, 0, 1, 1, 0], [0, 1, 1, 1, 1, 1]]


def test_responses_are_not_marked_as_visual_tokens(tiny: Path, clips: list[Path], model: RewardModel) -> None:
    batch = model.batch([Scored(clips[0], "describe the video .", "first a red circle grows .")])
    types = batch.vision["mm_token_type_ids"]
    assert types[~batch.target].any() and not types[batch.target].any()


def test_the_fast_path_of_the_embedded_model_equals_its_own_processor(tiny: Path) -> None:
    """Token for token and pixel for pixel: what was trained on is what the engines see."""
    encoder, rng = Encoder.load(str(tiny)), random.Random(5)
    for task in ("caption", "answer", "judge_context", "judge", "check_context"):
        sample = make_sample(rng, task)
        fast = collate(encoder.tokenizer, [sample])
        times = tuple(t for t in sample.times_s for _ in range(2))
        slow = encoder.encode([Conversation(sample.user, clip=Clip(draw(sample.poses, 32), times))])[0]
        length = len(slow.ids)
        assert fast.input_ids[0, :length].tolist() == slow.ids
        assert fast.vision["mm_token_type_ids"][0, :length].tolist() == slow.types
        pixels = slow.vision["pixel_values_videos"].numpy()
        np.testing.assert_allclose(fast.vision["pixel_values_videos"].numpy(), pixels, atol=1e-6)


def test_a_context_aware_reward_model_refuses_a_row_without_narrative(model: RewardModel, clips: list[Path]) -> None:
    settings = dataclasses.replace(model.settings, context_prompt="reward_context_compact_v1")
    aware = RewardModel(model.backbone, model.head, settings)
    told = Scored(clips[0], "describe the video .", "a red circle grows .", context="0 s a red circle grows .")
    assert aware.rendered(told).user.startswith("context 0 s")
    with pytest.raises(UserError, match="has none"):
        aware.rendered(dataclasses.replace(told, context=None))
