"""Training state on disk: written beside its final name, renamed when complete, the manifest last.

A folder `checkpoint-N` that has a `trainer_state.json` is whole; anything else is the remains of a crash and is
ignored. Tensors are safetensors files; optimizer and random states load with `weights_only=True`.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from vlm_rlaif.warehouse.errors import UserError

MANIFEST = "trainer_state.json"


@dataclass(frozen=True, slots=True)
class State:
    """What a trainer needs to go on as if nothing had happened."""

    step: int
    weights: dict[str, torch.Tensor]
    """Trainable parameters by name."""
    optimizer: dict[str, Any]
    log_history: list[dict[str, float]]
    fingerprint: str
    """Hash of what is trained, on what and how: another training never goes on from this state."""


def save(folder: Path, state: State, keep: int = 1) -> Path:
    """Write `folder/checkpoint-STEP` and delete all but the newest `keep` checkpoints of this folder."""
    final = folder / f"checkpoint-{state.step}"
    partial = folder / f".partial-{os.getpid()}-{state.step}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(
        {name: t.detach().contiguous().clone() for name, t in state.weights.items()},
        partial / "weights.safetensors",
    )
    torch.save({"optimizer": state.optimizer, "rng": torch.get_rng_state()}, partial / "optimizer.pt")
    manifest = {"step": state.step, "log_history": state.log_history, "fingerprint": state.fingerprint}
    (partial / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in _whole(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def load_latest(folder: Path, fingerprint: str) -> State | None:
    """The newest whole checkpoint below `folder`, or None. Restores torch's random state as a side effect.

    Raises `UserError` when the folder belongs to a training of something else.
    """
    found = _whole(folder)
    if not found:
        return None
    manifest = json.loads((found[-1] / MANIFEST).read_text(encoding="utf-8"))
    if manifest.get("fingerprint") != fingerprint:
        raise UserError(
            f"{folder} holds the state of another training: other settings, other data or other weights.",
            "Train into another folder, or remove this one.",
        )
    kept = torch.load(found[-1] / "optimizer.pt", weights_only=True)
    torch.set_rng_state(kept["rng"])
    return State(
        step=manifest["step"],
        weights=load_file(found[-1] / "weights.safetensors"),
        optimizer=kept["optimizer"],
        log_history=manifest["log_history"],
        fingerprint=fingerprint,
    )


def _whole(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if (path / MANIFEST).is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))
