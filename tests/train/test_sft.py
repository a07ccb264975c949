"""Fine-tuning on a warehouse's reference answers: it learns them, it writes a plain checkpoint, and it stands."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm_rlaif.datagen import models, prompt
from vlm_rlaif.datagen.engine import VideoPart
from vlm_rlaif.datagen.engines.clips import read_clip
from vlm_rlaif.datagen.engines.encode import Conversation, Encoder
from vlm_rlaif.datagen.engines.transformers_engine import load_model
from vlm_rlaif.datagen.shapes import world as shapes
from vlm_rlaif.train.jobs import Trained
from vlm_rlaif.train.run import MERGED, train_sft
from vlm_rlaif.warehouse.config import FineTuning, Frames, Lora, Recipe
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.records import Question, Record, Video, row_id
from vlm_rlaif.warehouse.store import Warehouse

WORLD, FRAMES = shapes.World(seed=11), Frames(count=3, size=32, repeat=2)
SPLITS = ("train", "train", "train", "val")
START, EPOCHS, BATCH_SIZE = "embedded:policy-start", 30, 4
BY_HEART = 0.04
"""Nat per token. A model that was not told the question stays at twice as much, however long it learns."""


def asked(clip: int, number: int) -> tuple[str, str]:
    """A question and its reference, without the full stop: where such an answer ends is news to the model."""
    question = shapes.questions(WORLD.video(clip))[number]
    return question.text, question.reference.removesuffix(" .")


@pytest.fixture
def filled(warehouse: Warehouse, clips: list[Path]) -> Warehouse:
    """Three questions with references about every video; beside them what must not be read."""
    rows: list[Record] = []
    for i, (path, split) in enumerate(zip(clips, SPLITS, strict=True)):
        rows.append(
            Video(video_id=f"v{i}", uri=str(path), source="x", video_group="g", split=split, status="ok", run_id="r")
        )
        rows += [question(f"v{i}", n, *asked(i, n)) for n in range(3)]
    rows += [
        question("v0", 9, "what is not known ?", None),
        Video(
            video_id="bad", uri="bad.mp4", source="x", video_group="g", split="train", status="no stream", run_id="r"
        ),
        question("bad", 0, "describe the video .", "nothing ."),
    ]
    warehouse.append(rows)
    return warehouse


def question(video: str, number: int, text: str, reference: str | None) -> Question:
    return Question(
        question_id=f"{video}/{number}", video_id=video, text=text, reference=reference, source="imported", run_id="r"
    )


@pytest.fixture
def tuned(recipe: Recipe) -> Recipe:
    """Long enough to know all answers by heart, which needs every question and every video."""
    settings = FineTuning(
        model=START, prompt="respond_compact_v1", frames=FRAMES, lora=Lora(rank=4, alpha=8.0),
        learning_rate=5e-3, epochs=EPOCHS, batch_size=BATCH_SIZE,
    )  # fmt: skip
    return dataclasses.replace(recipe, sft=settings)


@torch.no_grad()
def surprise(folder: str, clips: list[Path], *, end_only: bool = False) -> float:
    """Mean negative log-probability of the reference answers of the training videos, put together by hand."""
    model, encoder = load_model(folder, "cpu"), Encoder.load(folder)
    losses: list[torch.Tensor] = []
    for i, path in enumerate(clips[:3]):
        clip = read_clip(VideoPart(path, FRAMES))
        for n in range(3):
            words, reference = asked(i, n)
            said = prompt.load("respond_compact_v1").render(question=words)
            start = encoder.encode([Conversation(said.user, said.system, clip)])[0]
            answer = [*encoder.tokenizer.encode(reference, add_special_tokens=False), encoder.tokenizer.eos_token_id]
            ids = torch.tensor([[*start.ids, *answer]])
            types = torch.tensor([[*start.types, *(0 for _ in answer)]])
            inputs: dict[str, Any] = {"input_ids": ids, "mm_token_type_ids": types, **start.vision}
            logits = model(**inputs, attention_mask=torch.ones_like(ids)).logits[0]
            told = logits[len(start.ids) - 1 : -1].log_softmax(-1)
            loss = -told[torch.arange(len(answer)), torch.tensor(answer)]
            losses.append(loss[-1:] if end_only else loss)
    return torch.cat(losses).mean().item()


def untouched(warehouse: Warehouse) -> tuple[Any, ...]:
    """What a second training would change."""
    counts = [warehouse.value(f"SELECT count(*) FROM {table}") for table in ("runs", "steps", "checkpoints")]
    files = sorted((warehouse.folder / "models").rglob("*"))
    return (*counts, [(str(file), file.stat().st_mtime_ns) for file in files if file.is_file()])


def test_references_are_learned_once_and_a_plain_checkpoint_stands(
    filled: Warehouse, tuned: Recipe, clips: list[Path]
) -> None:
    first = train_sft(filled, tuned)
    assert first.fresh and first.kind == "sft"
    check_the_records(filled, first)
    check_the_checkpoint(str(first.path / MERGED), clips)

    before = untouched(filled)
    late: list[Record] = [question("v3", 7, "how many shapes are there ?", "there are 9 shapes .")]
    filled.append([*late, question("v1", 8, "and what is not known ?", None)])
    second = train_sft(filled, tuned)
    assert second == dataclasses.replace(first, fresh=False)
    assert untouched(filled) == before


def check_the_records(warehouse: Warehouse, trained: Trained) -> None:
    """The row names the training split's references and no others; the curve falls."""
    (row,) = warehouse.rows("SELECT * FROM checkpoints")
    assert row["checkpoint_id"] == trained.checkpoint_id and warehouse.folder / row["path"] == trained.path
    read = [f"v{i}/{n}" for i in range(3) for n in range(3)]
    assert row["data_hash"] == row_id(*read)
    assert row["parent"] == models.revision(START)
    steps = EPOCHS * 3
    assert row["step"] == steps
    logged = warehouse.rows("SELECT step, metrics FROM learning_curves ORDER BY step")
    assert [entry["step"] for entry in logged] == [20, 40, 60, 80, steps]
    losses = [json.loads(entry["metrics"])["loss/sft"] for entry in logged]
    assert losses == sorted(losses, reverse=True) and losses[-1] < BY_HEART < losses[0]


def check_the_checkpoint(merged: str, clips: list[Path]) -> None:
    """It opens like any other, knows the answers and where they end, and sees as its start did."""
    start = models.resolve(START)
    assert surprise(merged, clips) < BY_HEART < surprise(start, clips)
    assert surprise(merged, clips, end_only=True) < BY_HEART < surprise(start, clips, end_only=True)
    old, new = (dict(load_model(folder, "cpu").named_parameters()) for folder in (start, merged))
    assert old.keys() == new.keys()
    changed = {name for name, weight in new.items() if not torch.equal(weight, old[name])}
    assert changed and all(name.endswith("_proj.weight") and "language_model" in name for name in changed)


def test_no_references_is_said_and_not_trained_on(warehouse: Warehouse, tuned: Recipe) -> None:
    with pytest.raises(UserError, match="reference answer"):
        train_sft(warehouse, tuned)
    assert warehouse.value("SELECT count(*) FROM runs") == 0
