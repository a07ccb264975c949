"""Fixtures that every floor shares: a warehouse, a few real videos, a recipe, the command, a busy neighbour."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from hypothesis import settings

from vlm_rlaif.datagen.shapes.render import write_mp4
from vlm_rlaif.datagen.shapes.world import World
from vlm_rlaif.warehouse import cli, config
from vlm_rlaif.warehouse.intake.arrivals import split_of
from vlm_rlaif.warehouse.records import Label, Pair, Question, Record, Response, Spec, Video, row_id
from vlm_rlaif.warehouse.store import Warehouse

RECIPE = """
clip: {{parts: 2}}
caption: {{model: {model}, prompt: caption_compact_v1, frames: {{count: 2}}}}
context: {{prompt: context_compact_v1}}
ask: {{model: {model}, prompt: ask_v1}}
respond: {{model: {model}, prompt: respond_compact_v1, frames: {{count: 2}}}}
label:
  model: {model}
  prompt: judge_compact_v1
  context_prompt: judge_context_compact_v1
  frames: {{count: 2}}
"""
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")
HOLD = "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an empty warehouse, to be copied."""
    return Warehouse.create(tmp_path_factory.mktemp("empty") / "w.duckdb").path


@pytest.fixture
def warehouse(empty: Path, tmp_path: Path) -> Warehouse:
    """A new, empty warehouse."""
    return Warehouse(Path(shutil.copy(empty, tmp_path)))


@pytest.fixture(scope="session")
def asked_file(empty: Path) -> Path:
    """The file of a warehouse with three videos (rows without files) and two questions about each, to be copied."""
    rows: list[Record] = []
    for name in ("cat", "dog", "owl"):
        video_id = row_id("video", name)
        rows.append(
            Video(
                video_id=video_id, uri=f"{name}.mp4", source="test", video_group=video_id,
                split=split_of(video_id), status="ok", duration_s=4.0, run_id="test",
            )
        )  # fmt: skip
        for text in (f"what does the {name} do ?", f"what colour is the {name} ?"):
            rows.append(
                Question(
                    question_id=row_id("question", video_id, text), video_id=video_id, text=text,
                    source="imported", run_id="test",
                )
            )  # fmt: skip
    warehouse = Warehouse(Path(shutil.copy(empty, empty.with_name("asked.duckdb"))))
    warehouse.append(rows)
    return warehouse.path


@pytest.fixture
def asked(asked_file: Path, tmp_path: Path) -> Warehouse:
    """A warehouse with three videos (rows without files) and two questions about each."""
    return Warehouse(Path(shutil.copy(asked_file, tmp_path / "w.duckdb")))


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small mp4 files of the shapes world, `0.mp4` to `2.mp4`."""
    folder = tmp_path_factory.mktemp("shapes")
    for video in World(seed=7).videos(3):
        write_mp4(video, folder / f"{video.index}.mp4", size=32)
    return folder


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of every stage, whose model is an empty folder: the engines of these tests are scripted."""
    model = tmp_path_factory.mktemp("model")
    (model / "config.json").write_text("{}")
    path = model / "tiny.yaml"
    path.write_text(RECIPE.format(model=model))
    return path


@pytest.fixture(scope="session")
def recipe(recipe_file: Path) -> config.Recipe:
    return config.load(str(recipe_file))


@dataclass(frozen=True, slots=True)
class Result:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `vlm-rlaif ARGUMENTS` in this process, exactly as the console script does."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["vlm-rlaif", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, said.out, said.err)

    return run


MakeLora = Callable[..., Path]


@pytest.fixture(scope="session")
def make_lora(tmp_path_factory: pytest.TempPathFactory) -> MakeLora:
    """`make_lora(model, std=0.3, rank=4)`: an adapter with random weights, as peft saves it; `std=0`: untrained."""

    def make(model: str, *, std: float = 0.3, rank: int = 4, seed: int = 0) -> Path:
        import torch

        from vlm_rlaif.datagen import models
        from vlm_rlaif.datagen.engines.transformers_engine import load_model
        from vlm_rlaif.train import vlm

        folder = tmp_path_factory.mktemp("lora")
        config = vlm.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=vlm.TARGETS)
        adapted = vlm.get_peft_model(load_model(models.download(model), "cpu"), config)
        torch.manual_seed(seed)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name and std:
                torch.nn.init.normal_(weight.data, std=std)
        adapted.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        return folder

    return make


Hold = Callable[[Warehouse], AbstractContextManager["subprocess.Popen[str]"]]


@pytest.fixture
def hold() -> Hold:
    """Opens the warehouse in another process for as long as the block lasts, or until its input is closed."""

    @contextmanager
    def held(warehouse: Warehouse) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-c", HOLD, str(warehouse.path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            assert process.stdin is not None
            try:
                yield process
            finally:
                process.stdin.close()

    return held


JudgedRows = Callable[..., list[Record]]


@pytest.fixture(scope="session")
def judged_rows() -> JudgedRows:
    """`judged_rows(video_ids, pairs=5)`: questions, responses, pairs, and a judge's labels in both orders.

    The judge is sure of some pairs, in conflict with itself on others; the words hold HTML unless `plain`.
    """

    def make(video_ids: list[str], *, pairs: int = 5, plain: bool = False) -> list[Record]:
        judge, policy = (
            Spec.make(stage=stage, model="tiny", revision=stage, prompt=prompt, prompt_hash=prompt, frames={},
                      sampling={}, upstream={})
            for stage, prompt in (("label", "judge_v1"), ("respond", "respond_v1"))
        )  # fmt: skip
        rows: list[Record] = [judge, policy]
        for video, number in itertools.product(video_ids, range(pairs)):
            question = row_id("question", video, number)
            asked = f"what happens in part {number} ?" if plain else f"<b>what</b> happens in part {number} ?"
            rows.append(Question(question_id=question, video_id=video, text=asked,
                                 source="imported", run_id="test"))  # fmt: skip
            a, b = sorted(row_id("response", question, side) for side in (0, 1))
            long = "and then it stops " * (number % 3)
            script = "" if plain else f"<script>document.title = 'run'</script><img src=x onerror=alert({number})> "
            for response, text in ((a, f"it {script}turns {long}."), (b, f"it falls {number} times .")):
                rows.append(Response(response_id=response, question_id=question, spec_id=policy.spec_id, text=text,
                                     sample_index=int(response == b), seed=0, tokens=len(text.split()), finish="stop",
                                     logprob=None, run_id="test"))  # fmt: skip
            pair = row_id("pair", a, b)
            rows.append(Pair(pair_id=pair, question_id=question, response_a=a, response_b=b, strategy="two",
                             run_id="test"))  # fmt: skip
            chance = int(pair[:4], 16) / 0xFFFF
            for order, p_a in (("ab", chance), ("ba", chance if number % 4 else 1 - chance)):
                rows.append(Label(label_id=row_id("label", judge.spec_id, pair, None, order, 0), pair_id=pair,
                                  spec_id=judge.spec_id, context_id=None, shown_order=order, vote=0,
                                  choice="a" if p_a > 0.5 else "b", p_a=p_a, p_tie=0.0, reply="", cached_tokens=0,
                                  run_id="test"))  # fmt: skip
        return rows

    return make


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, for tests marked `browser`. It asks nobody for anything by itself."""
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=quiet)
        yield opened
        opened.close()
