"""vLLM as an engine: adapters beside the model itself, new weights, structured replies, and what goes wrong.

On a CPU: `tests/vllm/install.sh`, then `OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/vllm -m vllm`.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen import models
from vlm_rlaif.datagen.engine import Completion, Engine, Request, VideoPart
from vlm_rlaif.datagen.engines.make import EngineSettings, make
from vlm_rlaif.datagen.engines.transformers_engine import TransformersEngine
from vlm_rlaif.datagen.engines.vllm_engine import VLLMEngine
from vlm_rlaif.datagen.shapes.render import write_mp4
from vlm_rlaif.datagen.shapes.world import World
from vlm_rlaif.warehouse.config import Frames, Sampling
from vlm_rlaif.warehouse.errors import UserError

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

MODEL = "embedded:judge"
CLOSE = 1e-3
ROOT = Path(__file__).parents[2]
MakeLora = Callable[..., Path]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> VideoPart:
    path = tmp_path_factory.mktemp("videos") / "0.mp4"
    write_mp4(World(seed=11).video(0), path)
    return VideoPart(path, Frames(count=6, size=32))


@pytest.fixture(scope="module")
def vllm() -> Iterator[VLLMEngine]:
    engine = VLLMEngine(MODEL, max_num_seqs=4)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def loras(make_lora: MakeLora) -> tuple[str, str]:
    return str(make_lora(MODEL)), str(make_lora(MODEL, seed=1, rank=16))


def ask(engine: Engine, requests: Iterable[Request]) -> dict[str, Completion]:
    return {done.request_id: done for done in engine.generate(requests)}


def mixed(video: VideoPart, *folders: str) -> list[Request]:
    """Answers and verdicts, of the model itself and of its adapters in turn."""
    text = "what does the red circle do ?"
    asked = Request("", text, video=video, sampling=Sampling(max_new_tokens=12))
    verdict = replace(asked, choices=("A", "B", "C"))
    return [
        replace(kind, request_id=f"{number} {folder} {bool(kind.choices)}", adapter=folder)
        for number in range(3)
        for kind in (asked, verdict)
        for folder in folders
    ]


def test_adapters_answer_as_in_transformers_in_any_company(
    vllm: VLLMEngine, video: VideoPart, loras: tuple[str, str]
) -> None:
    """vLLM 0.32 on a CPU gives a request without an adapter the wrong one when both share a batch."""
    requests = mixed(video, "", *loras)
    found, wanted = ask(vllm, requests), ask(TransformersEngine(MODEL, device="cpu"), requests)
    assert found.keys() == wanted.keys() and len(found) == 18
    for key, done in found.items():
        assert (done.text, done.error) == (wanted[key].text, "")
        assert done.logprob == pytest.approx(wanted[key].logprob, abs=CLOSE)
        assert done.choice_logprobs == pytest.approx(wanted[key].choice_logprobs, abs=CLOSE)
    assert len({round(done.logprob or 0, 6) for done in found.values()}) == 6


def test_vllm_starts_again_only_for_an_adapter_that_has_no_room(
    make_lora: MakeLora, video: VideoPart, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = VLLMEngine(MODEL, enable_lora=True, max_lora_rank=8)
    first = engine.llm
    ask(engine, mixed(video, "", str(make_lora(MODEL, rank=3))))
    assert engine.llm is first
    ask(engine, mixed(video, str(make_lora(MODEL, rank=9))))
    assert engine.llm is not first
    assert "--engine-option max_lora_rank=16" in capsys.readouterr().err
    engine.close()


def test_an_adapter_that_vllm_cannot_run_is_told_in_its_words(vllm: VLLMEngine, make_lora: MakeLora) -> None:
    folder = make_lora(MODEL)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(UserError, match="DoRA"):
        next(vllm.generate([Request("x", "what ?", adapter=str(folder))]))


def test_new_weights_are_what_the_next_answers_come_from(vllm: VLLMEngine, video: VideoPart, tmp_path: Path) -> None:
    requests = mixed(video, "")
    before = ask(vllm, requests)
    other = changed_weights(tmp_path)
    vllm.reload(str(other))
    assert vllm.revision == models.revision(str(other)) != models.revision(MODEL)
    moved, wanted = ask(vllm, requests), ask(TransformersEngine(str(other), device="cpu"), requests)
    assert {key: done.logprob for key, done in moved.items()} == pytest.approx(
        {key: done.logprob for key, done in wanted.items()}, abs=CLOSE
    )
    vllm.reload(models.download(MODEL))
    again = ask(vllm, requests)
    assert {key: done.logprob for key, done in again.items()} == pytest.approx(
        {key: done.logprob for key, done in before.items()}, abs=CLOSE
    )
    assert any(abs((before[key].logprob or 0) - (moved[key].logprob or 0)) > 0.01 for key in before)


def changed_weights(folder: Path) -> Path:
    """The model with a little noise on all weights, those of the vision tower included."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(models.download(MODEL), folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    weights = load_file(folder / "model.safetensors")
    noisy = {name: w + 0.02 * w.std() * torch.randn_like(w) if w.ndim > 1 else w for name, w in weights.items()}
    save_file(noisy, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_reply_fits_its_json_schema(tmp_path: Path) -> None:
    """Of a model that says anything at all: its weights are random."""
    spec = importlib.util.spec_from_file_location("random_qwen", ROOT / "benchmarks/generating/random_qwen.py")
    assert spec and spec.loader
    random_qwen: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(random_qwen)
    random_qwen.write(tmp_path, ["what ?"], hidden=128, layers=2, heads=4, key_heads=2, inner=96)
    engine = VLLMEngine(str(tmp_path))
    schema = json.dumps({
        "type": "object", "properties": {"sure": {"type": "boolean"}, "kind": {"enum": ["what", "when"]}},
        "required": ["sure", "kind"], "additionalProperties": False,
    })  # fmt: skip
    asked = Request("x", "what ?", sampling=Sampling(temperature=1.0, max_new_tokens=60), json_schema=schema)
    found = ask(engine, [replace(asked, request_id=str(seed), seed=seed) for seed in range(8)])
    replies = [json.loads(done.text) for done in found.values()]
    assert all(reply["kind"] in ("what", "when") and reply["sure"] in (True, False) for reply in replies)
    assert len({done.text for done in found.values()}) > 1
    [broken] = ask(engine, [replace(asked, json_schema="{")]).values()
    assert broken.error and broken.error_kind == "engine"
    engine.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_num_sequences": 3}, "no option 'max_num_sequences'. Did you mean 'max_num_seqs'?"),
        ({"quantization": "fp7"}, "Unknown quantization method: fp7"),
        ({"max_model_len": 2048, "kv_cache_memory_bytes": 2**18}, "--engine-option max_model_len="),
    ],
)
def test_options_go_to_vllm_and_what_it_refuses_is_told_in_its_words(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        make(EngineSettings("vllm", options=options), MODEL)
    assert words in str(error.value)


def test_sampled_requests_of_more_tokens_than_vllm_computes_at_a_time_all_answer(vllm: VLLMEngine) -> None:
    """vLLM 0.32 on a CPU stops at a request with a seed whose prompt it computes in pieces."""
    words = "the red circle moves left . " * 250
    sampling = Sampling(temperature=1.0, max_new_tokens=4)
    requests = [Request(str(i), f"the {i} {words}", sampling=sampling, seed=i) for i in range(8)]
    step = vllm.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    found = ask(vllm, requests)
    assert sum(done.tokens_in for done in found.values()) > 2 * step
    assert all(done.text and not done.error for done in found.values())


def test_options_reach_vllm() -> None:
    engine = VLLMEngine(MODEL, max_num_seqs=3, max_model_len=512, block_size=64, enable_prefix_caching=False)
    config = engine.llm.llm_engine.vllm_config
    assert (config.scheduler_config.max_num_seqs, config.model_config.max_model_len) == (3, 512)
    assert (config.cache_config.block_size, config.cache_config.enable_prefix_caching) == (64, False)
    assert (engine.max_num_seqs, engine.max_model_len, engine.gpus) == (3, 512, 0)
    engine.close()


def test_a_prompt_that_is_too_long_says_how_long(vllm: VLLMEngine, video: VideoPart) -> None:
    long = Request("long", "the red circle moves left . " * 338, video=video)
    [found] = ask(vllm, [long]).values()
    assert (found.error_kind, found.text) == ("too_long", "")
    [row] = vllm.encoder.encode([conversation(long)])
    visual = sum(kind != 0 for kind in row.types)
    assert visual > 0 and f"{len(row.ids):,} tokens long, {visual:,} of them for its video" in found.error
    assert f"{vllm.max_model_len:,}" in found.error


def conversation(request: Request) -> Any:
    from vlm_rlaif.datagen.engines.clips import read_clip
    from vlm_rlaif.datagen.engines.encode import Conversation

    return Conversation(request.user, request.system, read_clip(request.video) if request.video else None)


def test_an_architecture_that_vllm_does_not_know_is_an_error_in_words(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models.download(MODEL), tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchModel"]}))
    with pytest.raises(UserError, match="NoSuchModel"):
        VLLMEngine(str(folder))


def test_a_process_of_vllm_that_is_killed_ends_the_stream_in_words_and_keeps_what_was_finished(
    tmp_path: Path, video: VideoPart
) -> None:
    script = tmp_path / "die.py"
    script.write_text(
        textwrap.dedent(f"""
        import multiprocessing, os, signal
        from pathlib import Path
        from vlm_rlaif.datagen.engine import Request
        from vlm_rlaif.datagen.engines.vllm_engine import VLLMEngine
        from vlm_rlaif.warehouse.config import Sampling
        from vlm_rlaif.warehouse.errors import UserError

        if __name__ == "__main__":
            engine = VLLMEngine("{MODEL}", max_num_seqs=2)
            asked = [Request(str(i), "what is it ?", sampling=Sampling(max_new_tokens=8)) for i in range(500)]
            done = 0
            try:
                for completion in engine.generate(asked):
                    done += 1
                    if done == 5:
                        for child in multiprocessing.active_children():
                            os.kill(child.pid, signal.SIGKILL)
            except UserError as error:
                print("FINISHED", done, error)
            engine.close()
        """)
    )
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert "FINISHED" in run.stdout, run.stderr[-2000:]
    assert "vLLM died while it was working" in run.stdout and "to go on" in run.stdout
