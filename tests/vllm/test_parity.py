"""vLLM answers as transformers does: the same tokens, texts and log-probabilities from the embedded model.

On a CPU: `tests/vllm/install.sh`, then `OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/vllm -m vllm`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vlm_rlaif.datagen.engine import Completion, Engine, Request, VideoPart
from vlm_rlaif.datagen.engines.clips import read_clip
from vlm_rlaif.datagen.engines.encode import Conversation
from vlm_rlaif.datagen.engines.transformers_engine import TransformersEngine
from vlm_rlaif.datagen.engines.vllm_engine import VLLMEngine
from vlm_rlaif.datagen.shapes.render import write_mp4
from vlm_rlaif.datagen.shapes.world import SCENE_S, ShapesVideo, World
from vlm_rlaif.warehouse.config import Frames, Sampling

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

MODEL = "embedded:judge"
DENSE = Frames(count=6, size=32)
SPARSE = Frames(count=3, size=32, repeat=2)
GREEDY = Sampling(max_new_tokens=24)
WARM = Sampling(temperature=1.5, max_new_tokens=24)
CLOSE = 1e-3
"""How far log-probabilities of the two engines may lie apart."""


@pytest.fixture(scope="module")
def vllm() -> Iterator[VLLMEngine]:
    engine = VLLMEngine(MODEL, max_num_seqs=4)  # fewer than the requests below, so that some of them wait
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def transformers() -> Iterator[TransformersEngine]:
    engine = TransformersEngine(MODEL, device="cpu", batch_size=3)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, world = tmp_path_factory.mktemp("videos"), World(seed=11)
    paths = [folder / f"{i}.mp4" for i in range(6)]
    for i, path in enumerate(paths):
        write_mp4(world.video(i), path)
    return paths


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen seconds: times of ten seconds and more are several tokens of the embedded model, below it one."""
    world = World(seed=12)
    scenes = [scene for video in world.videos(20) for scene in video.scenes][:8]
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    write_mp4(ShapesVideo(0, tuple(scenes)), path)
    return path


def captions(videos: list[Path]) -> list[Request]:
    return [
        Request(f"caption {i}", "describe the clip .", video=VideoPart(v, DENSE, 0.0, SCENE_S), sampling=GREEDY)
        for i, v in enumerate(videos)
    ]


def answers(videos: list[Path], sampling: Sampling = GREEDY) -> list[Request]:
    return [
        Request(f"answer {i}", "what does the red circle do ?", video=VideoPart(v, SPARSE), sampling=sampling, seed=i)
        for i, v in enumerate(videos)
    ]


def verdicts(videos: list[Path]) -> list[Request]:
    question = "question what does the red circle do ? A : it moves left B : a blue square grows . verdict"
    return [
        Request(f"verdict {i}", question, video=VideoPart(v, SPARSE), choices=("A", "B", "C"))
        for i, v in enumerate(videos)
    ]


def ask(engine: Engine, requests: Iterable[Request]) -> dict[str, Completion]:
    return {done.request_id: done for done in engine.generate(requests)}


def same(one: dict[str, Completion], other: dict[str, Completion]) -> None:
    """Equal but for rounding, and for what only one engine can know."""
    assert one.keys() == other.keys()
    for key in one:
        a, b = one[key], other[key]
        assert a.logprob == pytest.approx(b.logprob, abs=CLOSE)
        assert a.choice_logprobs == pytest.approx(b.choice_logprobs, abs=CLOSE)
        assert replace(a, logprob=None, choice_logprobs={}, cached_tokens=0) == replace(
            b, logprob=None, choice_logprobs={}, cached_tokens=0
        )


def test_both_engines_write_the_same_captions(
    vllm: VLLMEngine, transformers: TransformersEngine, videos: list[Path]
) -> None:
    found = ask(vllm, captions(videos))
    same(found, ask(transformers, captions(videos)))
    assert all(done.text and done.finish == "stop" for done in found.values())


def test_both_engines_give_the_same_answers_from_repeated_frames(
    vllm: VLLMEngine, transformers: TransformersEngine, videos: list[Path]
) -> None:
    same(ask(vllm, answers(videos)), ask(transformers, answers(videos)))


def test_both_engines_cut_an_answer_off_at_the_same_token(
    vllm: VLLMEngine, transformers: TransformersEngine, videos: list[Path]
) -> None:
    short = answers(videos, Sampling(max_new_tokens=2))
    found = ask(vllm, short)
    same(found, ask(transformers, short))
    assert {(done.finish, done.tokens_out) for done in found.values()} == {("length", 2)}


def test_both_engines_answer_without_a_video(vllm: VLLMEngine, transformers: TransformersEngine) -> None:
    request = Request("text", "how many shapes are there ?", system="context a red circle blinks .", sampling=GREEDY)
    same(ask(vllm, [request]), ask(transformers, [request]))


def test_both_engines_judge_with_the_same_log_probabilities(
    vllm: VLLMEngine, transformers: TransformersEngine, videos: list[Path]
) -> None:
    same(ask(vllm, verdicts(videos)), ask(transformers, verdicts(videos)))


def test_every_choice_has_a_log_probability_and_the_likeliest_is_the_text(
    vllm: VLLMEngine, videos: list[Path]
) -> None:
    for done in ask(vllm, verdicts(videos)).values():
        assert list(done.choice_logprobs) == ["A", "B", "C"]
        assert done.choice_logprobs[done.text] == max(done.choice_logprobs.values()) == done.logprob
        assert sum(math.exp(value) for value in done.choice_logprobs.values()) <= 1 + 1e-6
        assert (done.finish, done.tokens_out) == ("stop", 1)


def test_a_seed_gives_the_same_sample_in_any_order_and_company(vllm: VLLMEngine, videos: list[Path]) -> None:
    requests = answers(videos, WARM)
    first = ask(vllm, requests)
    again = ask(vllm, [*captions(videos), *reversed(requests)])
    assert {key: again[key].text for key in first} == {key: done.text for key, done in first.items()}
    assert {key: again[key].logprob for key in first} == pytest.approx(
        {key: done.logprob for key, done in first.items()}, abs=CLOSE
    )


def test_different_seeds_give_different_samples(vllm: VLLMEngine, videos: list[Path]) -> None:
    [request] = answers(videos[:1], replace(WARM, temperature=2.0))  # a model that is sure says one thing
    many = [replace(request, request_id=str(seed), seed=seed) for seed in range(8)]
    assert len({done.text for done in ask(vllm, many).values()}) > 2


def test_visual_tokens_are_never_sampled(vllm: VLLMEngine) -> None:
    visual, other = vllm.encoder.visual_ids(), vllm.encoder.pad_id
    assert len(visual) == 4
    request = Request("x", "what is it ?", sampling=Sampling(temperature=2.0, max_new_tokens=8))
    params = vllm.params(request)
    params.allowed_token_ids = [*visual, other]
    [made] = vllm.llm.generate([vllm.prompt(request, None)], [params], use_tqdm=False)
    assert made.outputs[0].token_ids == [other] * 8


def test_a_request_that_vllm_refuses_is_one_error(vllm: VLLMEngine, videos: list[Path]) -> None:
    hot, *others = answers(videos)
    found = ask(vllm, [replace(hot, sampling=Sampling(temperature=50.0)), *others])
    assert found["answer 0"].error_kind == "engine" and "temperature" in found["answer 0"].error
    assert all(found[request.request_id].text for request in others)


def test_a_corrupt_file_is_one_error_and_the_others_are_answered(
    vllm: VLLMEngine, videos: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(videos[0].read_bytes()[:300] + bytes(500))
    found = ask(vllm, answers([videos[0], broken, *videos[1:]]))
    assert len(found) == len(videos) + 1
    failed = found.pop("answer 1")
    assert failed.error_kind == "video" and str(broken) in failed.error and not failed.text
    assert all(done.text and not done.error for done in found.values())


@pytest.mark.parametrize("sentences", [339, 1000], ids=["with its video", "by its text alone"])
def test_a_prompt_that_is_too_long_is_one_error_and_its_video_still_answers(
    vllm: VLLMEngine, transformers: TransformersEngine, videos: list[Path], sentences: int
) -> None:
    frames = Frames(count=4, size=30 + 2 * (sentences == 339))  # frames that vLLM has not seen yet
    good = Request("good", "what is it ?", video=VideoPart(videos[0], frames), sampling=GREEDY)
    long = replace(good, request_id="long", user="the red circle moves left . " * sentences)
    found = ask(vllm, [long, good])
    assert (found["long"].error_kind, found["long"].text) == ("too_long", "")
    same({"good": found["good"]}, ask(transformers, [good]))


def test_prompts_are_the_same_tokens(
    vllm: VLLMEngine, transformers: TransformersEngine, videos: list[Path], long_video: Path
) -> None:
    late = VideoPart(long_video, Frames(count=3, size=32, repeat=2), 4.0, 16.0)
    odd = VideoPart(long_video, Frames(count=5, size=32))
    requests = [
        *captions(videos[:2]), *answers(videos[:2]), *verdicts(videos[:2]),
        Request("late", "describe the clip .", "context judge", video=late),
        Request("odd", "describe the clip .", video=odd),
        Request("text", "how many shapes are there ?"),
    ]  # fmt: skip
    for request in requests:
        clip = read_clip(request.video) if request.video else None
        params = vllm.params(replace(request, sampling=Sampling(max_new_tokens=1)))
        [made] = vllm.llm.generate([vllm.prompt(request, clip)], [params], use_tqdm=False)
        [ours] = transformers.encoder.encode([Conversation(request.user, request.system, clip)])
        assert made.prompt_token_ids == ours.ids, request.request_id
        starts, ends = (
            ours.ids.count(vllm.encoder.processor.tokenizer.convert_tokens_to_ids(name))
            for name in ("<|vision_start|>", "<|vision_end|>")
        )
        pairs = math.ceil(len(clip.times_s) / 2) if clip else 0
        assert (starts, ends) == (pairs, pairs), "one pair of marks around every frame group"


def test_equal_frames_at_other_times_are_another_prompt(vllm: VLLMEngine, videos: list[Path]) -> None:
    """vLLM caches processed videos by content: the times must be part of it."""
    request = Request("x", "describe the clip .", video=VideoPart(videos[0], DENSE, 0.0, SCENE_S))
    assert request.video is not None
    clip = read_clip(request.video)
    later = replace(clip, times_s=tuple(t + 4 for t in clip.times_s))
    params = vllm.params(request)
    made = vllm.llm.generate([vllm.prompt(request, c) for c in (clip, later)], [params] * 2, use_tqdm=False)
    assert made[0].prompt_token_ids != made[1].prompt_token_ids


def test_questions_about_one_video_share_its_prefix(vllm: VLLMEngine, videos: list[Path]) -> None:
    part = VideoPart(videos[5], Frames(count=16, size=32))
    questions = ("what colour is the circle ?", "how many shapes are there ?")
    found = [ask(vllm, [Request(text, text, video=part, sampling=GREEDY)])[text] for text in questions]
    assert found[0].cached_tokens == 0 and found[1].cached_tokens >= 32


def test_a_stream_that_is_left_early_does_not_disturb_the_next(vllm: VLLMEngine, videos: list[Path]) -> None:
    expected = {key: done.text for key, done in ask(vllm, captions(videos)).items()}
    stream = vllm.generate(iter(answers(videos)))
    assert next(stream).text
    stream.close()
    assert {key: done.text for key, done in ask(vllm, captions(videos)).items()} == expected


def test_requests_are_pulled_as_there_is_room(vllm: VLLMEngine, videos: list[Path]) -> None:
    pulled: list[str] = []

    def source() -> Iterator[Request]:
        for i in range(40):
            pulled.append(str(i))
            yield Request(str(i), "what is it ?", video=VideoPart(videos[0], SPARSE), sampling=GREEDY)

    stream = vllm.generate(source())
    next(stream)
    assert len(pulled) <= 4 * vllm.max_num_seqs  # half of them decoded ahead
    assert 1 + sum(1 for _ in stream) == len(pulled) == 40


def test_a_closed_engine_leaves_the_other_one_running(vllm: VLLMEngine, videos: list[Path]) -> None:
    expected = ask(vllm, captions(videos[:2]))
    other = VLLMEngine(MODEL, max_num_seqs=2)
    same(ask(other, captions(videos[:2])), expected)
    other.close()
    same(ask(vllm, captions(videos[:2])), expected)
