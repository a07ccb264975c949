"""Sampling with a seed per row."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm_rlaif.datagen.engine import Completion, Request, VideoPart
from vlm_rlaif.datagen.engines.clips import read_clip
from vlm_rlaif.datagen.engines.decoding import SeededDraw, draw, keep_top_p
from vlm_rlaif.datagen.engines.encode import Conversation, Encoder, collate
from vlm_rlaif.datagen.engines.transformers_engine import TransformersEngine, load_model
from vlm_rlaif.train.data import join
from vlm_rlaif.train.ppo_math import logprobs_of
from vlm_rlaif.warehouse.config import Frames, Sampling

FRAMES = Frames(count=3, size=32, repeat=2)


def test_noise_and_argmax_draw_from_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    seeds = list(range(20_000))
    scores = SeededDraw(Sampling(temperature=1.0), seeds, [])(torch.zeros(1), logits.repeat(len(seeds), 1))
    counts = torch.bincount(scores.argmax(-1), minlength=4) / len(seeds)
    assert torch.allclose(counts, logits.softmax(-1), atol=0.015)


def test_temperature_zero_takes_the_best_token_and_never_a_forbidden_one() -> None:
    scores = SeededDraw(Sampling(), [0], [2])(torch.zeros(1), torch.tensor([[0.0, 1.0, 9.0]]))
    assert scores.argmax().item() == 1


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    kept = keep_top_p(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), 0.7)
    assert torch.isfinite(kept).tolist() == [[True, True, False, False]]


@pytest.fixture(scope="module")
def engine(tiny: Path) -> TransformersEngine:
    return TransformersEngine(str(tiny), batch_size=3)


def requests(clips: list[Path], temperature: float) -> list[Request]:
    sampling = Sampling(temperature=temperature, max_new_tokens=6)
    texts = ["describe the video .", "how many shapes are there ?", "what colour is the circle in it ?"]
    return [
        Request(str(i), texts[i % 3], video=VideoPart(clips[i % 4], FRAMES), sampling=sampling, seed=i)
        for i in range(6)
    ]


def test_the_same_seed_gives_the_same_answer_in_any_batch(engine: TransformersEngine, clips: list[Path]) -> None:
    """L11."""
    asked = requests(clips, 1.0)
    together = {c.request_id: c.text for c in engine.generate(asked)}
    alone = {c.request_id: c.text for r in reversed(asked) for c in engine.generate([r])}
    assert together == alone
    assert len(set(together.values())) > 1


def test_sampling_and_a_forward_over_the_result_agree_on_log_probabilities(tiny: Path, clips: list[Path]) -> None:
    """L2: cached decoding with left padding against a full forward with right padding."""
    encoder, model = Encoder.load(str(tiny)), load_model(str(tiny), "cpu")
    texts = ["describe the video .", "a much longer question about how many shapes there are in it ?"]
    prompts = encoder.encode(
        [Conversation(t, clip=read_clip(VideoPart(c, FRAMES))) for t, c in zip(texts, clips, strict=False)]
    )
    drawn = draw(
        model, collate(prompts, encoder.pad_id, side="left"), Sampling(temperature=1.0, max_new_tokens=7),
        [1, 2], eos_ids=[encoder.tokenizer.eos_token_id], pad_id=encoder.pad_id,
        forbidden=encoder.visual_ids(),
    )  # fmt: skip
    batch = join(prompts, drawn.tokens, encoder.pad_id)
    with torch.no_grad():
        logits = model(**batch.inputs()).logits[:, :-1].float()
    logits[..., encoder.visual_ids()] = -torch.inf
    forward = logprobs_of(logits, batch.input_ids[:, 1:])[batch.target[:, 1:]]
    sampled = torch.tensor([value for row in drawn.logprobs for value in row])
    assert (forward - sampled).abs().max() < 1e-4


def test_the_habits_of_a_checkpoint_stay_out_of_sampling(tiny: Path, clips: list[Path]) -> None:
    """A repetition penalty in `generation_config.json` would make rollouts those of another policy."""
    encoder, model = Encoder.load(str(tiny)), load_model(str(tiny), "cpu")
    prompts = encoder.encode([Conversation("describe the video .", clip=read_clip(VideoPart(clips[0], FRAMES)))])

    def said() -> list[list[int]]:
        return draw(
            model, collate(prompts, encoder.pad_id, side="left"), Sampling(max_new_tokens=12), [1],
            eos_ids=[encoder.tokenizer.eos_token_id], pad_id=encoder.pad_id, forbidden=encoder.visual_ids(),
        ).tokens  # fmt: skip

    plain = said()
    model.generation_config.repetition_penalty = 50.0
    assert said() == plain
    assert model.generation_config.repetition_penalty == 50.0


def test_choices_come_back_with_log_probabilities_of_the_whole_vocabulary(
    engine: TransformersEngine, clips: list[Path]
) -> None:
    asked = [
        Request(str(i), "which ?", video=VideoPart(clip, FRAMES), choices=("A", "B", "C"))
        for i, clip in enumerate(clips)
    ]
    for completion in engine.generate(asked):
        assert completion.choice_logprobs.keys() == {"A", "B", "C"}
        assert sum(torch.tensor(list(completion.choice_logprobs.values())).exp()) < 1
        assert completion.text == max(completion.choice_logprobs, key=lambda c: completion.choice_logprobs[c])


def test_an_unreadable_video_fails_alone(engine: TransformersEngine, clips: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    asked = requests(clips, 0.0)[:2]
    asked.insert(1, Request("bad", "what ?", video=VideoPart(tmp_path / "bad.mp4", FRAMES)))
    done = {c.request_id: c for c in engine.generate(asked)}
    assert done["bad"].error_kind == "video" and "bad.mp4" in done["bad"].error
    assert not done["0"].error and not done["1"].error


def test_a_request_that_the_model_cannot_take_fails_alone(engine: TransformersEngine, clips: list[Path]) -> None:
    """A placeholder of a video in the words, and no frames for it."""
    asked = requests(clips, 0.0)
    broken = dataclasses.replace(asked[0], request_id="broken", user="what is <|video_pad|> ?")
    done = {c.request_id: c for c in engine.generate([*asked[:3], broken, *asked[3:]])}
    assert done["broken"].error and done["broken"].error_kind == "engine"
    assert {name for name, c in done.items() if not c.error} == {r.request_id for r in asked}


def test_a_batch_is_full_when_its_frames_fill_the_memory(tiny: Path, clips: list[Path]) -> None:
    sizes = []

    class Counting(TransformersEngine):
        def _answer(self, batch: list[Any]) -> list[Completion]:
            sizes.append(len(batch))
            return super()._answer(batch)

    asked = requests(clips, 0.0)
    one_clip = read_clip(asked[0].video).frames.nbytes
    engine = Counting(str(tiny), batch_size=64, frame_bytes=one_clip + 1)
    sizes.clear()  # its canary
    assert len(list(engine.generate(asked))) == 6 and sizes == [2, 2, 2]
