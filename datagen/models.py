"""Which model is meant: `embedded:NAME`, a folder, a hub id, or `served:NAME`; and what pins its weights.

A revision is part of every key, so rows made with other weights under the same name are other rows. Of a model that
only a server has nobody here knows the weights: its revision is empty, and its name is all that pins it.
"""

from __future__ import annotations

import functools
import hashlib
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from vlm_rlaif.warehouse.errors import MissingExtra, UserError, nearest

EMBEDDED = "embedded:"
SERVED = "served:"
MODEL_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "*.py"]
"""What is fetched from the hub: never a pickle. `*.py` runs only where an engine is told to trust it."""


def resolve(model: str) -> str:
    """A folder of weights, a hub id, or the name of a model that only a server has; asks nobody."""
    if model.startswith(SERVED):
        if not model.removeprefix(SERVED).strip():
            raise UserError("served: needs the name that the server gives the model.", "--model served:NAME")
        return model
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
            "Give a folder, a hub id such as owner/name, embedded:judge, or served:NAME with a --server.",
        )
    return model


def download(model: str) -> str:
    """A folder with exactly the weights that `revision` names; those of a hub id are fetched where they are missing.

    Whatever loads a model loads this folder: a hub id may mean other weights by then. A served model has none.
    """
    found = resolve(model)
    if model.startswith(SERVED):
        raise UserError(
            f"{model} is a model that only a server has: nothing here can load it.",
            "--server http://HOST:PORT/v1 asks the server; a folder or a hub id can be loaded.",
        )
    if Path(found).is_dir():
        return found
    commit = revision(model)
    with _asking_the_hub(model):
        from huggingface_hub import snapshot_download

        folder = snapshot_download(model, revision=commit, allow_patterns=MODEL_FILES)
    if not any(Path(folder).glob("*.safetensors")):
        raise UserError(
            f"The model {model} has no weights as *.safetensors; pickles are never loaded.",
            "Give the path of a folder with --model FOLDER.",
        )
    return folder


@functools.cache
def revision(model: str) -> str:
    """Hash of the configuration and weights of a folder; the cached commit of a hub id; of a served model nothing."""
    found = resolve(model)
    if model.startswith(SERVED):
        return ""
    folder = Path(found)
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
    """The commit that `main` points to in the local hub cache.

    When it is not there, the hub is asked for the configuration, which notes the commit in the cache: from then on
    the model stays the same on this machine, with a network or without.
    """
    with _asking_the_hub(model):
        from huggingface_hub import constants, snapshot_download

        ref = Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}" / "refs" / "main"
        if ref.is_file():
            return ref.read_text(encoding="utf-8").strip()
        return Path(snapshot_download(model, allow_patterns="config.json")).name


@contextmanager
def _asking_the_hub(model: str) -> Iterator[None]:
    """Whatever goes wrong (the name, the network, the token, the disk) is told as one mistake of the user."""
    try:
        yield
    except ModuleNotFoundError:
        raise MissingExtra(f"The hub model {model}", "models") from None
    except Exception as error:  # names, networks and disks fail with errors that have no other class in common
        raise UserError(
            f"The model {model} is no folder here, and it could not be had from the hub:",
            f"  {type(error).__name__}: {textwrap.shorten(str(error), 300)}",
            "Give the path of a folder with --model FOLDER.",
        ) from None
