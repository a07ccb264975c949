"""What a trainer is fed: warehouse rows become padded batches whose masks say what is real and what counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlm_rlaif.datagen.engine import VideoPart
from vlm_rlaif.datagen.engines.clips import Clip, read_clip
from vlm_rlaif.datagen.engines.encode import Conversation, Encoded, Encoder, collate
from vlm_rlaif.datagen.prompt import Rendered
from vlm_rlaif.warehouse.config import Frames
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.media.video import VideoError


@dataclass(frozen=True, slots=True)
class Batch:
    """B sequences padded on the right to T tokens, with the pixels of their videos."""

    input_ids: torch.Tensor
    """(B, T) int64."""
    mask: torch.Tensor
    """(B, T) bool, True = a real token."""
    target: torch.Tensor
    """(B, T) bool, True = a token of the response (its end-of-sequence token included): what counts."""
    vision: dict[str, torch.Tensor]
    """What the vision tower takes, as the model's processor names it; rows in batch order."""
    weight: torch.Tensor | None = None
    """(B, T) how much each target token counts; None = all the same."""

    def inputs(self) -> dict[str, Any]:
        """Keyword arguments of the model's forward."""
        return {"input_ids": self.input_ids, "attention_mask": self.mask.long(), **self.vision}


def join(prompts: Sequence[Encoded], responses: Sequence[list[int]], pad_id: int, device: Any = "cpu") -> Batch:
    """Prompts and the response tokens that follow them. Masks come from lengths, never from token ids.

    Visual token types of the response are zeros: a model that is not told so misplaces its positions.
    """
    rows = [Encoded(p.ids + r, p.types + [0] * len(r), p.vision) for p, r in zip(prompts, responses, strict=True)]
    inputs = collate(rows, pad_id, side="right", device=device)
    ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask").bool()
    place = torch.arange(ids.shape[1], device=ids.device)
    first = torch.tensor([len(p.ids) for p in prompts], device=ids.device)
    return Batch(ids, mask, mask & (place >= first[:, None]), inputs)


class PromptCache:
    """Prompts encoded once: the same token ids and pixels for every epoch, rollout and adapter.

    Holds the pixels of every video that it was asked for, in memory, once per video and frame setting.
    """

    def __init__(self, encoder: Encoder, frames: Frames | None, *, backwards: bool = False) -> None:
        self.encoder, self.frames = encoder, frames
        """Without frames the model reads text alone: the text-only control."""
        self.backwards = backwards
        """Show the frames in reverse order: a probe of whether a model sees motion."""
        self._clips: dict[Path, Clip] = {}
        self._pixels: dict[Path, dict[str, torch.Tensor]] = {}
        self._prompts: dict[tuple[Path, Rendered], Encoded] = {}

    def get(self, wanted: Sequence[tuple[Path, Rendered]]) -> list[Encoded]:
        """(video file, prompt) -> encoded prompts, in order."""
        new = [key for key in dict.fromkeys(wanted) if key not in self._prompts]
        if new:
            said = [Conversation(r.user, r.system, self._clip(path)) for path, r in new]
            for (path, rendered), row in zip(new, self.encoder.encode(said), strict=True):
                shared = self._pixels.setdefault(path, row.vision)
                self._prompts[path, rendered] = Encoded(row.ids, row.types, shared)
        return [self._prompts[key] for key in wanted]

    def _clip(self, path: Path) -> Clip | None:
        if self.frames is None:
            return None
        if path not in self._clips:
            try:
                clip = read_clip(VideoPart(path, self.frames))
            except VideoError as error:
                raise UserError(
                    str(error), "The file was readable once. Put it back, then run the same command."
                ) from None
            self._clips[path] = Clip(clip.frames[::-1].copy(), clip.times_s) if self.backwards else clip
        return self._clips[path]
