"""Supervised fine-tuning: one loop for a warehouse's rows and for the stream that made the embedded model.

`fit` asks for the batch of a step by its number, so a run that was killed goes on from its last checkpoint
with exactly the batches that it would have seen. Several processes share one step over gloo. What a batch is
made of is not its business: see `data.py` (rows of a warehouse) and `embedded.py` (the shapes world).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from vlm_rlaif.datagen.prompt import load
from vlm_rlaif.train import checkpoint
from vlm_rlaif.train.data import Batch, PromptCache, join
from vlm_rlaif.train.jobs import identity
from vlm_rlaif.train.vlm import Backbone, export
from vlm_rlaif.warehouse.config import FineTuning
from vlm_rlaif.warehouse.records import row_id

BatchAt = Callable[[int], Batch]
"""(step) -> this process's share of that step's batch."""
OnLog = Callable[[dict[str, float]], None]


@dataclass(frozen=True, slots=True)
class SFTConfig:
    """How long and how fast."""

    steps: int
    learning_rate: float = 3e-3
    """Peak rate of AdamW, which trains embeddings, heads, norms and biases (and all, without Muon)."""
    muon_learning_rate: float = 0.0
    """Peak rate of Muon for the hidden matrices; 0 = AdamW trains them too."""
    warmup_steps: int = 100
    decay_fraction: float = 0.3
    """The last part of the run, in which the rate falls linearly to nothing."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    save_steps: int = 100
    logging_steps: int = 20


def sft_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy over the tokens of the answers: `batch.target` (B, T) True = counts.

    With `batch.weight` the mean is a weighted one.
    """
    hidden = model.model(**batch.inputs()).last_hidden_state[:, :-1]
    wanted = batch.target[:, 1:]
    logits = model.lm_head(hidden[wanted])
    losses = nn.functional.cross_entropy(logits.float(), batch.input_ids[:, 1:][wanted], reduction="none")
    if batch.weight is None:
        return losses.mean()
    weight = batch.weight[:, 1:][wanted]
    return (losses * weight).sum() / weight.sum()


def fit(
    model: nn.Module,
    batch_at: BatchAt,
    config: SFTConfig,
    folder: Path,
    on_log: OnLog = lambda _: None,
    fingerprint: str = "",
) -> list[dict[str, float]]:
    """Train to `config.steps`, resuming from the newest checkpoint in `folder`; returns the log.

    `fingerprint` names what `batch_at` gives: a checkpoint with another one is refused.
    """
    optimizers = _optimizers(model, config)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    step, history = 0, []
    if kept := checkpoint.load_latest(folder, fingerprint):
        step, history = kept.step, kept.log_history
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept.weights[name])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(kept.optimizer[name])
    model.train()
    started, recent = time.monotonic(), []
    while step < config.steps:
        rate = rate_at(step, config)
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
        loss = sft_loss(model, batch_at(step))
        loss.backward()
        average_gradients(parameters.values())
        nn.utils.clip_grad_norm_(parameters.values(), config.max_grad_norm)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        recent.append(loss.item())
        if step % config.logging_steps == 0 or step == config.steps:
            entry = {
                "step": step,
                "loss": sum(recent) / len(recent),
                "lr_fraction": rate,
                "seconds": time.monotonic() - started,
            }
            history.append(entry)
            recent = []
            if _rank() == 0:
                on_log(entry)
        if _rank() == 0 and (step % config.save_steps == 0 or step == config.steps):
            states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
            checkpoint.save(folder, checkpoint.State(step, dict(parameters), states, history, fingerprint))
    return history


def rate_at(step: int, config: SFTConfig) -> float:
    """Warm-up, plateau, linear decay; a fraction of the peak rate.

    >>> [round(rate_at(s, SFTConfig(steps=100, warmup_steps=10)), 2) for s in (0, 9, 50, 85, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.03]
    """
    decay_steps = max(1, round(config.steps * config.decay_fraction))
    return min(1.0, (step + 1) / config.warmup_steps, (config.steps - step) / decay_steps)


def average_gradients(parameters: Any) -> None:
    """Sum the gradients over all processes and divide; nothing to do in a single process."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _optimizers(model: nn.Module, config: SFTConfig) -> Mapping[str, torch.optim.Optimizer]:
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    hidden = [p for n, p in trainable if config.muon_learning_rate and p.ndim == 2 and "embed" not in n]
    rest = [p for _, p in trainable if not any(p is h for h in hidden)]
    made: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(
            [{"params": rest, "peak": config.learning_rate}],
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
        )
    }
    if hidden:
        made["muon"] = torch.optim.Muon(
            [{"params": hidden, "peak": config.muon_learning_rate}],
            lr=config.muon_learning_rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="original",
        )
    return made


def fine_tune(
    settings: FineTuning,
    examples: list[tuple[Path, str, str]],
    folder: Path,
    merged: str,
    on_log: Callable[[int, dict[str, float]], None],
) -> int:
    """LoRA fine-tuning on (video, question, answer); writes a plain checkpoint to `folder/merged`."""
    torch.manual_seed(settings.seed)
    backbone = Backbone(settings.model)
    backbone.add_adapter("sft", settings.lora)
    prompts, template = PromptCache(backbone.encoder, settings.frames), load(settings.prompt)
    per_epoch = -(-len(examples) // settings.batch_size)

    def batch_at(step: int) -> Batch:
        epoch, place = divmod(step, per_epoch)
        order = list(examples)
        random.Random(f"sft/{settings.seed}/{epoch}").shuffle(order)
        rows = order[place * settings.batch_size : (place + 1) * settings.batch_size]
        wanted = [(path, template.render(question=question)) for path, question, _ in rows]
        texts = [answer for _, _, answer in rows]
        tokens = backbone.encoder.tokenizer(texts, add_special_tokens=False)["input_ids"]
        answers = [[*ids, backbone.eos_id] for ids in tokens]
        return join(prompts.get(wanted), answers, backbone.encoder.pad_id, backbone.device)

    config = SFTConfig(steps=per_epoch * settings.epochs, learning_rate=settings.learning_rate, warmup_steps=10)
    asked = [(path.name, question, answer) for path, question, answer in examples]
    fingerprint = row_id("sft", *identity(settings), backbone.revision, asked)
    with backbone.activate("sft", learn=True):
        fit(
            backbone.base, batch_at, config, folder / "training",
            lambda entry: on_log(int(entry["step"]), {"loss/sft": entry["loss"]}), fingerprint,
        )  # fmt: skip
    export(folder / merged, backbone, "sft")
    return config.steps
