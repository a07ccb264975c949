"""Finished prompts to look at, exactly as a model would be given them; no model is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from vlm_rlaif.datagen.engine import Request
from vlm_rlaif.warehouse.records import Spec


@dataclass(frozen=True, slots=True)
class Preview:
    """What a row of a stage asks."""

    row_id: str
    model: str
    prompt: str
    system: str
    user: str
    video: str
    """File, part and frames; empty without one."""
    choices: tuple[str, ...]
    adapter: str
    json_schema: str
    tokens: int | None
    """Of text and video, as the model's processor counts them; None where it was not asked."""

    @staticmethod
    def of(spec: Spec, request: Request, tokens: int | None = None) -> Preview:
        return Preview(
            request.request_id, spec.model, spec.prompt, request.system, request.user, _video(request),
            request.choices, request.adapter, request.json_schema, tokens,
        )  # fmt: skip

    def __str__(self) -> str:
        about = {
            "row": self.row_id, "model": self.model, "adapter": self.adapter, "prompt": self.prompt,
            "video": self.video, "choices": " ".join(self.choices), "schema": self.json_schema,
            "tokens": "" if self.tokens is None else f"{self.tokens:,}",
        }  # fmt: skip
        lines = [f"{name:<8} {value}" for name, value in about.items() if value]
        if self.system:
            lines.append(f"--- system ---\n{self.system}")
        return "\n".join([*lines, f"--- user ---\n{self.user}"])


def _video(request: Request) -> str:
    if request.video is None:
        return ""
    part = request.video
    span = "" if part.start_s is None else f" {part.start_s}-{part.end_s} s"
    return f"{part.path}{span}: {part.frames.count} frames, each {part.frames.repeat} times"
