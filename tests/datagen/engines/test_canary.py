"""The canary: broken weights, tokenizers and adapters are found before the work begins."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vlm_rlaif.datagen import adapters, models
from vlm_rlaif.datagen.engine import Request, ScriptedEngine
from vlm_rlaif.datagen.engines.canary import Canary
from vlm_rlaif.datagen.engines.encode import Encoder
from vlm_rlaif.datagen.engines.transformers_engine import TransformersEngine
from vlm_rlaif.warehouse.errors import UserError

MODEL = "embedded:judge"
MakeLora = Callable[..., Path]
Script = Callable[[Request], str | dict[str, float]]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load(models.download(MODEL))


def canary(encoder: Encoder, script: Script, *, vocabulary: int = 10_000) -> Canary:
    return Canary(ScriptedEngine(script), encoder, vocabulary=vocabulary, exact=True)


def says(request: Request, *, other: float = 0.2) -> dict[str, float]:
    return {"A": other if request.adapter else 0.5, "B": 0.3, "C": 0.1}


def test_a_sound_model_passes(encoder: Encoder) -> None:
    canary(encoder, says).after_weights()


def test_it_takes_next_to_no_time() -> None:
    engine = TransformersEngine(MODEL, device="cpu")
    begun = time.monotonic()
    engine.canary.after_weights()
    assert time.monotonic() - begun < 1.0, "3 ms where nobody else works"


def test_weights_that_are_no_numbers_are_found_when_the_model_loads(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(models.download(MODEL), tmp_path / "broken"))
    weights = load_file(folder / "model.safetensors")
    [name] = [name for name in weights if name.endswith("layers.0.mlp.down_proj.weight")]
    weights[name][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="computes no numbers"):
        TransformersEngine(str(folder), device="cpu")


def test_an_engine_that_cannot_answer_is_told_in_its_words(encoder: Encoder) -> None:
    def broken(request: Request) -> str:
        raise ValueError("no such kernel")

    with pytest.raises(UserError, match="no such kernel"):
        canary(encoder, broken)


def test_a_tokenizer_of_another_model_is_found(encoder: Encoder) -> None:
    with pytest.raises(UserError, match="does not go with its weights"):
        canary(encoder, says, vocabulary=5)


@pytest.mark.parametrize(
    "template", ["{{ 'hello' }}", "{% for said in messages %}{{ said['content'][-1]['text'] }}{% endfor %}"]
)
def test_a_chat_template_that_loses_words_or_opens_no_turn_is_found(template: str) -> None:
    other = Encoder.load(models.download(MODEL))
    other.processor.chat_template = template
    with pytest.raises(UserError, match="chat template"):
        canary(other, says)


def test_an_adapter_that_changes_something_passes(encoder: Encoder, make_lora: MakeLora) -> None:
    canary(encoder, says).after_adapter(adapters.read(str(make_lora(MODEL))))


def test_a_trained_adapter_that_changes_nothing_has_the_wrong_names(encoder: Encoder, make_lora: MakeLora) -> None:
    with pytest.raises(UserError, match="changes nothing"):
        canary(encoder, lambda request: says(request, other=0.5)).after_adapter(adapters.read(str(make_lora(MODEL))))


def test_an_adapter_that_leaks_into_other_requests_is_found(encoder: Encoder, make_lora: MakeLora) -> None:
    loaded: list[bool] = []

    def leaks(request: Request) -> dict[str, float]:
        loaded.extend([True] * bool(request.adapter))
        return {"A": 0.2 if loaded else 0.5, "B": 0.3 + 0.01 * bool(request.adapter), "C": 0.1}

    with pytest.raises(UserError, match="do not ask for it"):
        canary(encoder, leaks).after_adapter(adapters.read(str(make_lora(MODEL))))
