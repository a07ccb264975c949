"""Prompts are files with a version in their name: a new wording is a new file, never an edit.

A file holds the user's turn, and before it, if a line `[user]` follows a line `[system]`, the system's. Lines
above the first such mark are for people. Fields stand in braces: `{question}`.

>>> load("respond_compact_v1").render(question="how many shapes are there ?").user
'how many shapes are there ?'
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from vlm_rlaif.warehouse.errors import UserError, nearest

_MARK = re.compile(r"^\[(system|user)\]\s*$", re.MULTILINE)
_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A finished prompt: what the model reads beside the video."""

    system: str
    user: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One version of one prompt."""

    name: str
    system: str
    user: str

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(_FIELD.findall(f"{self.system}\n{self.user}"))

    @property
    def text_hash(self) -> str:
        """Identifies the wording: part of every key of a row that was made with it."""
        return hashlib.sha256(f"{self.system}\0{self.user}".encode()).hexdigest()[:16]

    def render(self, **values: Any) -> Rendered:
        """Fill in the fields. Values are inserted as they are: braces in an answer stay braces."""
        if missing := sorted(self.fields - values.keys()):
            raise UserError(
                f"The prompt {self.name} asks for {{{missing[0]}}}, which this stage does not give.",
                f"It gives: {', '.join(sorted(values))}.",
            )
        return Rendered(*(_FIELD.sub(lambda m: str(values[m[1]]), turn) for turn in (self.system, self.user)))


@functools.cache
def load(name: str) -> Prompt:
    """Read a prompt by name (`judge_context_v1`) from the package, or by the path of a file of your own."""
    path = Path(name)
    if path.suffix == ".md":
        try:
            return parse(path.stem, path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The prompt file {path} cannot be read: {error}.") from None
    shipped = resources.files("vlm_rlaif.datagen") / "prompts"
    file = shipped / f"{name}.md"
    if not file.is_file():
        names = sorted(entry.name.removesuffix(".md") for entry in shipped.iterdir())
        raise UserError(f"There is no prompt {name!r}.{nearest(name, names)}", f"Known: {', '.join(names)}.")
    return parse(name, file.read_text(encoding="utf-8"))


def parse(name: str, text: str) -> Prompt:
    """Split a prompt file at its marks; without marks the whole file is the user's turn."""
    parts = _MARK.split(text)
    sections = dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))
    if not sections:
        return Prompt(name, "", text.strip())
    if not sections.get("user"):
        raise UserError(f"The prompt {name} has no [user] part, or an empty one.")
    return Prompt(name, sections.get("system", ""), sections["user"])
