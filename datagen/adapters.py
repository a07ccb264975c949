"""A LoRA adapter in peft's format: a folder with `adapter_config.json` and `adapter_model.safetensors`.

Its hash is part of every key, as the model's is. Names and shapes are read from the header of the file; what runs
the adapter loads it. Pickles (`adapter_model.bin`) are never read.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from vlm_rlaif.datagen import models
from vlm_rlaif.warehouse.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CARD = "vlm_rlaif.json"
"""What this project's trainers write beside an adapter: among other things which weights it was trained on."""
NAMES_OF_THE_BASE = ("base_model_name_or_path", "revision", "peft_version")
"""Where an adapter comes from; they change nothing that it does."""
PREFIX = "base_model.model."
MOST_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is known about an adapter before it is loaded."""

    folder: Path
    rank: int
    """The largest that it has."""
    base: str
    """The model that it says it belongs to; may be empty."""
    base_revision: str
    """The hash of that model's weights, where a trainer of this project has noted it."""
    shapes: Mapping[str, tuple[int, ...]]
    """Tensor -> shape."""


def resolve(adapter: str) -> str:
    """The folder of an adapter; an empty name stays empty. Raises `UserError`."""
    if not adapter:
        return ""
    folder = Path(adapter).expanduser()
    for name in (CONFIG, WEIGHTS):
        if (folder / name).is_file():
            continue
        pickle = name == WEIGHTS and (folder / "adapter_model.bin").is_file()
        raise UserError(
            f"{adapter} is not a LoRA adapter: it has no {name}.",
            "Its weights are a pickle (adapter_model.bin), which is never loaded: save them as safetensors."
            if pickle
            else "Give a folder that peft, or a trainer of this project, has saved.",
        )
    return str(folder.resolve())


@functools.cache
def revision(adapter: str) -> str:
    """Hash of an adapter's weights and configuration, wherever it lies; empty without one."""
    if not adapter:
        return ""
    folder = Path(resolve(adapter))
    config = {name: value for name, value in _config(folder).items() if name not in NAMES_OF_THE_BASE}
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=10)
    with (folder / WEIGHTS).open("rb") as stream:
        digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


def read(adapter: str) -> Adapter:
    """Look at an adapter without loading it; raises `UserError`."""
    folder = Path(resolve(adapter))
    config = _config(folder)
    if config.get("peft_type", "LORA") != "LORA":
        raise UserError(f"{adapter} is a {config['peft_type']} adapter; only LoRA is known.")
    try:
        rank = max(config["r"], *config.get("rank_pattern", {}).values(), 1)
        card = json.loads((folder / CARD).read_text(encoding="utf-8")) if (folder / CARD).is_file() else {}
        shapes = {name: tuple(tensor["shape"]) for name, tensor in _header(folder / WEIGHTS)[0].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"  {type(error).__name__}: {error}"
        raise UserError(f"{adapter} is no LoRA adapter that can be read:", said) from None
    return Adapter(folder, rank, config.get("base_model_name_or_path") or "", card.get("base_revision", ""), shapes)


def fit(adapter: Adapter, model: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `UserError` unless an adapter belongs to a model whose parameters have these shapes.

    A note of our trainers settles it. Without one, every tensor has to find a layer of its name and size.
    """
    said = f" It says that it was trained on {adapter.base}." if adapter.base else ""
    trained_on, here = adapter.base_revision, models.revision(model)
    if len(trained_on) == len(here) and trained_on != here:  # a hash and a commit tell nothing about each other
        raise UserError(
            f"The adapter {adapter.folder} was trained on other weights ({trained_on}) than those of {model}"
            f" ({here}).{said}"
        )
    for name, shape in sorted(adapter.shapes.items()):
        problem = _problem(name, shape, shapes)
        if problem:
            raise UserError(
                f"The adapter {adapter.folder} does not fit {model}: {name} {list(shape)} {problem}.{said}"
            )
    if not adapter.base_revision and _are_hub_ids(adapter.base, model) and adapter.base != model:
        click.echo(f"Warning: the adapter {adapter.folder} was trained on {adapter.base}, not {model}.", err=True)


def is_trained(adapter: Adapter) -> bool:
    """Whether an adapter does anything: before training all its B matrices are zero."""
    header, begin = _header(adapter.folder / WEIGHTS)
    with (adapter.folder / WEIGHTS).open("rb") as stream:
        for name, tensor in header.items():
            if name.endswith(".lora_B.weight"):
                first, end = tensor["data_offsets"]
                stream.seek(begin + first)
                if any(stream.read(end - first)):
                    return True
    return False


def _problem(name: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Why a tensor of an adapter has no place in the model; empty when it has one."""
    layer, _, side = name.removeprefix(PREFIX).partition(".lora_")
    if side not in ("A.weight", "B.weight"):
        return "is neither a lora_A nor a lora_B matrix"
    found = shapes.get(f"{layer}.weight")
    if found is None:
        return "has no layer of its name there"
    own, theirs = (shape[-1], found[-1]) if side == "A.weight" else (shape[0], found[0])
    return "" if own == theirs else f"belongs to a layer of another size than the model's {list(found)}"


def _are_hub_ids(*names: str) -> bool:
    return all(name.count("/") == 1 and not Path(name).exists() for name in names)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} is not JSON: {error}.") from None
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG} is no configuration of an adapter: it is not a JSON object.")
    return config


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, and where their bytes begin; raises `ValueError`."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > MOST_HEADER_BYTES:
            raise ValueError(f"{file.name} is no safetensors file")
        header: dict[str, Any] = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size
