"""The engine that runs anywhere: adapters, prompts that are too long, tokens that must never come."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from vlm_rlaif.datagen import adapters, models
from vlm_rlaif.datagen.engine import Completion, Engine, Request
from vlm_rlaif.datagen.engines.decoding import draw
from vlm_rlaif.datagen.engines.encode import Conversation, collate
from vlm_rlaif.datagen.engines.transformers_engine import TransformersEngine, load_model, parameter_shapes
from vlm_rlaif.warehouse.config import Sampling
from vlm_rlaif.warehouse.errors import UserError

MODEL = "embedded:judge"
ASKED = Request("x", "what does the red circle do ?", sampling=Sampling(max_new_tokens=12))
MakeLora = Callable[..., Path]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine(MODEL, device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def lora(make_lora: MakeLora) -> str:
    return str(make_lora(MODEL))


def ask(engine: Engine, requests: Iterable[Request]) -> dict[str, Completion]:
    return {done.request_id: done for done in engine.generate(requests)}


def mixed(*folders: str) -> list[Request]:
    """The same question to every adapter, four times in turn."""
    return [replace(ASKED, request_id=f"{i} {folder}", adapter=folder) for i in range(4) for folder in folders]


def test_requests_with_and_without_adapters_do_not_disturb_each_other(
    engine: TransformersEngine, lora: str, make_lora: MakeLora
) -> None:
    other = str(make_lora(MODEL, seed=1, rank=8))
    together = ask(engine, mixed("", lora, other))
    for folder in ("", lora, other):
        alone = ask(TransformersEngine(MODEL, device="cpu"), mixed(folder))
        assert {key: together[key] for key in alone} == alone
    assert len({done.logprob for done in together.values()}) == 3


def test_an_adapter_answers_as_the_model_with_its_weights_added(lora: str, tmp_path: Path) -> None:
    """The slow, obvious twin: W + alpha / rank * B A, written out and saved as a model of its own."""
    from safetensors.torch import load_file

    plain = TransformersEngine(MODEL, device="cpu")
    net, learned = load_model(models.download(MODEL), "cpu"), load_file(f"{lora}/{adapters.WEIGHTS}")
    for name, a in learned.items():
        if name.endswith("lora_A.weight"):
            layer = net.get_submodule(name.removeprefix(adapters.PREFIX).removesuffix(".lora_A.weight"))
            layer.weight.data += 2 * learned[name.replace("lora_A", "lora_B")] @ a
    net.save_pretrained(tmp_path)
    plain.encoder.processor.save_pretrained(tmp_path)
    [worn] = ask(plain, [replace(ASKED, adapter=lora)]).values()
    [merged] = ask(TransformersEngine(str(tmp_path), device="cpu"), [ASKED]).values()
    assert worn.text == merged.text != ask(plain, [ASKED])["x"].text
    assert worn.logprob == pytest.approx(merged.logprob, abs=1e-3)


def test_an_adapter_of_another_model_stops_the_job_before_any_answer(
    engine: TransformersEngine, make_lora: MakeLora
) -> None:
    folder = make_lora("embedded:policy-start")
    (folder / adapters.CARD).write_text(json.dumps({"base_revision": "0" * 20}))
    with pytest.raises(UserError, match="trained on other weights"):
        next(engine.generate([replace(ASKED, adapter=str(folder))]))


def test_an_adapter_that_was_never_trained_is_told_and_changes_nothing(
    engine: TransformersEngine, make_lora: MakeLora, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ask(engine, mixed("", str(make_lora(MODEL, std=0))))
    assert "was never trained" in capsys.readouterr().err
    assert len({(done.text, done.logprob) for done in found.values()}) == 1


def test_the_shapes_of_a_model_are_known_without_its_weights() -> None:
    folder = models.download(MODEL)
    loaded = load_model(folder, "cpu").named_parameters()
    assert parameter_shapes(folder) == {name: tuple(weight.shape) for name, weight in loaded}


def test_a_prompt_that_is_too_long_is_one_error_with_the_numbers(engine: TransformersEngine) -> None:
    long = replace(ASKED, request_id="long", user="the red circle moves left . " * 400)
    found = ask(engine, [long, ASKED])
    assert found["long"].error_kind == "too_long" and not found["long"].text
    assert "2,403 tokens long, 0 of them for its video" in found["long"].error and "2,048" in found["long"].error
    assert found["x"].text


def test_visual_tokens_are_never_sampled_however_hot(engine: TransformersEngine) -> None:
    visual = set(engine.encoder.visual_ids())
    rows = collate(engine.encoder.encode([Conversation(ASKED.user)]) * 8, engine.encoder.pad_id, side="left")

    def drawn(forbidden: list[int]) -> set[int]:
        hot = Sampling(temperature=1e6, max_new_tokens=64)
        found = draw(
            engine.net, rows, hot, list(range(8)), eos_ids=[-1], pad_id=engine.encoder.pad_id, forbidden=forbidden
        )
        return {token for row in found.tokens for token in row}

    assert visual & drawn([]), "where nothing is forbidden they do come"
    assert not visual & drawn(sorted(visual))
