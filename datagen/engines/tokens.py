"""Tokens of prompts as the model's own processor counts them: text, video and chat template, without the weights.

Heavy: it imports torch and decodes the videos. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_rlaif.datagen import models
from vlm_rlaif.datagen.engine import Request
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.media.video import VideoError

if TYPE_CHECKING:
    from vlm_rlaif.datagen.engines.encode import Encoder


def count_tokens(model: str, requests: Sequence[Request]) -> list[int | None]:
    """Tokens of every prompt; None where they cannot be counted: a model that is not here, a video that is broken."""
    installed = find_spec("torch") is not None and find_spec("transformers") is not None
    folder = _folder_here(model) if installed else None
    if folder is None:
        return [None] * len(requests)
    from vlm_rlaif.datagen.engines.encode import Encoder

    try:
        encoder = Encoder.load(folder)
    except UserError:
        return [None] * len(requests)
    return [_count(encoder, request) for request in requests]


def _folder_here(model: str) -> str | None:
    """The folder of a model's processor, if it lies on this machine."""
    if model.startswith(models.SERVED):
        return None
    found = models.resolve(model)
    if not Path(found).is_dir():
        from huggingface_hub import snapshot_download

        try:
            found = snapshot_download(model, revision=models.revision(model), local_files_only=True)
        except (OSError, ValueError):
            return None
    return found if (Path(found) / "tokenizer_config.json").is_file() else None


def _count(encoder: Encoder, request: Request) -> int | None:
    from vlm_rlaif.datagen.engines.clips import read_clip
    from vlm_rlaif.datagen.engines.encode import Conversation

    try:
        clip = None if request.video is None else read_clip(request.video)
        (row,) = encoder.encode([Conversation(request.user, request.system, clip)])
    except (VideoError, ValueError):
        return None
    return len(row.ids)
