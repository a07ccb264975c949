"""From a prompt and frames to what a model takes: the one place where text and pixels become tensors.

The sampling engine, the reward model and PPO all read sequences that were made here, so they see the same token
ids and the same pixels. Works with any processor of transformers that takes `videos=`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vlm_rlaif.datagen.engines import torchvision_repair
from vlm_rlaif.datagen.engines.clips import Clip, metadata
from vlm_rlaif.warehouse.errors import MissingExtra, UserError

torchvision_repair.declare_missing_operators()


@dataclass(frozen=True, slots=True)
class Conversation:
    """A user's turn with an optional system text and an optional video."""

    user: str
    system: str = ""
    clip: Clip | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """One prompt, ready for the model, not padded."""

    ids: list[int]
    """Token ids, the assistant's turn opened."""
    types: list[int]
    """Per token: 0 = text, otherwise the kind of visual token (`mm_token_type_ids`)."""
    vision: dict[str, torch.Tensor]
    """Inputs of the vision tower; rows of several prompts are concatenated."""


class TooLong(ValueError):
    """A prompt that the model cannot take in one piece. It is never cut: the frames would be cut with it."""

    def __init__(self, row: Encoded, limit: int) -> None:
        visual = sum(kind != 0 for kind in row.types)
        super().__init__(
            f"The prompt is {len(row.ids):,} tokens long, {visual:,} of them for its video, but prompt and answer"
            f" together may be {limit:,}: show fewer or smaller frames, or less text."
        )


class Encoder:
    """The tokenizer, chat template and pixel processing of one model."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = self.tokenizer.eos_token_id if pad is None else pad

    @classmethod
    def load(cls, folder: str, trust_remote_code: bool = False) -> Encoder:
        try:
            from transformers import AutoProcessor
        except ImportError:
            raise MissingExtra("Running a model", "models") from None
        try:
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except (ValueError, OSError) as error:
            raise UserError(f"{folder} has no processor that can be loaded:", f"  {error}") from None
        if not hasattr(processor, "video_processor"):
            raise UserError(f"{folder} is not a video-language model: it has no video processor.")
        return cls(processor)

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded]:
        """Prompts of one kind (all with video, or all without) to token ids and pixels."""
        texts = [self._chat(c) for c in conversations]
        clips = [c.clip for c in conversations if c.clip is not None]
        video: dict[str, Any] = {}
        if clips:
            video = {
                "videos": [clip.frames for clip in clips],
                "video_metadata": [metadata(clip) for clip in clips],
                "do_sample_frames": False,
            }
        made = self.processor(text=texts, padding=False, **video)
        rows = made["input_ids"]
        types = made.get("mm_token_type_ids", [[0] * len(row) for row in rows])
        vision = _split(made, len(texts)) if clips else [{} for _ in texts]
        return [
            Encoded(list(ids), list(kinds), pixels) for ids, kinds, pixels in zip(rows, types, vision, strict=True)
        ]

    def prompt(self, conversation: Conversation) -> str:
        """The text that `encode` gives to the processor: for an engine that makes tokens and pixels itself."""
        return self._chat(conversation)

    def _chat(self, conversation: Conversation) -> str:
        content: list[dict[str, str]] = [{"type": "text", "text": conversation.user}]
        if conversation.clip is not None:
            content.insert(0, {"type": "video"})
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if conversation.system:
            system = [{"type": "text", "text": conversation.system}]
            messages.insert(0, {"role": "system", "content": system})
        return str(self.processor.apply_chat_template(messages, add_generation_prompt=True))

    def choice_ids(self, choices: Sequence[str]) -> list[int]:
        """The token of each choice; an error when one of them is not a single token."""
        found = [self.tokenizer.encode(c, add_special_tokens=False) for c in choices]
        for choice, ids in zip(choices, found, strict=True):
            if len(ids) != 1:
                raise UserError(f"The label {choice!r} is {len(ids)} tokens of this model's tokenizer, not one.")
        return [ids[0] for ids in found]

    def visual_ids(self) -> list[int]:
        """Tokens that stand for pixels; a model that samples one breaks its own next forward."""
        known = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        found = {getattr(self.processor, name, None) for name in known}
        return sorted(i for i in found if i is not None)


def _split(made: Any, count: int) -> list[dict[str, torch.Tensor]]:
    """The vision tower's inputs of a batch, apart again."""
    names = [n for n in made if n not in ("input_ids", "attention_mask", "mm_token_type_ids")]
    tensors = {
        n: torch.as_tensor(np.asarray(made[n])) if not torch.is_tensor(made[n]) else made[n]
        for n in names
        if n != "video_metadata"
    }
    if "video_grid_thw" in tensors:
        patches = tensors["video_grid_thw"].prod(dim=1).tolist()
        parts = {n: t.split(patches) if n == "pixel_values_videos" else t.split(1) for n, t in tensors.items()}
    else:
        parts = {n: t.split(1) for n, t in tensors.items() if len(t) == count}
    return [{n: split[i] for n, split in parts.items()} for i in range(count)]


def collate(rows: Sequence[Encoded], pad_id: int, *, side: str, device: Any = "cpu") -> dict[str, torch.Tensor]:
    """Pad prompts to one batch of model inputs, on the `left` (to generate) or the `right`."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    types = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(longest - len(row.ids), None) if side == "left" else slice(len(row.ids))
        ids[i, place] = torch.tensor(row.ids)
        mask[i, place] = 1
        types[i, place] = torch.tensor(row.types)
    batch = {"input_ids": ids, "attention_mask": mask}
    if types.any():
        batch["mm_token_type_ids"] = types
    for name in rows[0].vision:
        batch[name] = torch.cat([row.vision[name] for row in rows])
    return {name: tensor.to(device) for name, tensor in batch.items()}
