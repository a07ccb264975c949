"""Which model is meant: `embedded:NAME`, a folder, or a hub id; and what pins its weights.

A revision is part of every key, so rows made with other weights under the same name are other rows.
"""

from __future__ import annotations

import functools
import hashlib
import os
from importlib import resources
from pathlib import Path

from vlm_rlaif.warehouse.errors import UserError, nearest

EMBEDDED = "embedded:"


def resolve(model: str) -> str:
    """A folder of weights, or a hub id that transformers can find in its cache or on the hub."""
    if model.startswith(EMBEDDED):
        name = model.removeprefix(EMBEDDED)
        shipped = Path(str(resources.files("vlm_rlaif.datagen") / "embedded"))
        names = sorted(p.name for p in shipped.iterdir() if p.is_dir()) if shipped.is_dir() else []
        if name not in names:
            raise UserError(
                f"There is no embedded model {name!r}.{nearest(name, names)}",
                f"Embedded models: {', '.join(names) or 'none'}.",
            )
        return str(shipped / name)
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} is not a model: it has no config.json.")
        return str(folder.resolve())
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(f"There is no model folder {model}.")
    if "/" not in model:
        raise UserError(
            f"There is no model {model!r}.",
            "Give a folder, a hub id such as owner/name, or embedded:judge.",
        )
    return model


@functools.cache
def revision(model: str) -> str:
    """Hash of the configuration and weights of a folder; the cached commit of a hub id."""
    folder = Path(resolve(model))
    if folder.is_dir():
        digest = hashlib.blake2b(digest_size=10)
        for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
            digest.update(file.name.encode())
            digest.update(_file_hash(file))
        return digest.hexdigest()
    return _hub_commit(model)


def _file_hash(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").digest()


def _hub_commit(model: str) -> str:
    """The commit that `main` points to in the local hub cache; asks the hub when it is not there."""
    cache = Path(os.environ.get("HF_HUB_CACHE", Path.home() / ".cache/huggingface/hub"))
    ref = cache / f"models--{model.replace('/', '--')}" / "refs" / "main"
    if ref.is_file():
        return ref.read_text(encoding="utf-8").strip()
    from huggingface_hub import model_info
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return str(model_info(model).sha)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"The model {model} is neither a folder nor in the local cache, and the hub did not answer:",
            f"  {type(error).__name__}",
            "Give the path of a folder with --model.",
        ) from None
