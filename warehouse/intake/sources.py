"""What is to be imported: the files, how their records are written, and what their rows are called."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from vlm_rlaif.warehouse.errors import UserError, nearest
from vlm_rlaif.warehouse.intake.formats import FORMATS, UNKNOWN, Format, format_named, recognise, resembles
from vlm_rlaif.warehouse.intake.meanings import read_columns
from vlm_rlaif.warehouse.intake.reading import files_of, read

FIRST = 20
"""Records by which a format is recognised."""
LOOKED_AT = 1_000
"""Entries among which they are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How files are to be read."""

    videos: Path
    """The folder below which the videos lie."""
    format: str = "auto"
    source: str | None = None
    """What the rows are called; by default each file's name, or that of the folder of a saved data set."""
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    """What a column holds -> its name, for tables."""
    limit: int | None = None
    strict: bool = False
    dry_run: bool = False
    every_bad: bool = False
    """Keep the reasons of all bad records, not of the first ones."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file, how its records are written, and what its rows are called."""

    file: Path
    format: Format
    name: str


def sources_of(paths: Sequence[Path], wishes: Wishes) -> list[Source]:
    """The files that paths stand for. Raises `UserError` where one is in no known format."""
    files = {file: path for path in paths for file in files_of(path)}
    return [Source(file, _format_of(file, wishes), _name_of(file, path, wishes)) for file, path in files.items()]


def _format_of(file: Path, wishes: Wishes) -> Format:
    """The format that was asked for, or the one that the first records have."""
    if wishes.format != "auto" and not wishes.columns:
        return format_named(wishes.format)
    entries = itertools.islice(read(file), LOOKED_AT)
    records = list(itertools.islice((entry.record for entry in entries if isinstance(entry.record, dict)), FIRST))
    if wishes.columns:
        return _columns(file, wishes, {str(key) for record in records for key in record})
    found = recognise(records)
    if found is None and records:
        raise UserError(
            f"{file} is in no known format. {resembles(records)}",
            f"Formats: {', '.join(known.name for known in FORMATS)}. --format names one; columns with other names"
            " are named with --question-column and its like.",
        )
    return found or UNKNOWN


def _columns(file: Path, wishes: Wishes, there: set[str]) -> Format:
    """The format of a table with columns that the user has named."""
    if wishes.format not in ("auto", "columns"):
        raise UserError(f"Named columns belong to the format columns, not to {wishes.format}.")
    missing = [name for name in wishes.columns.values() if name not in there]
    if missing and there:
        close = nearest(missing[0], there) or f" It has {', '.join(sorted(there))}."
        raise UserError(f"{file} has no column {missing[0]!r}.{close}")
    return replace(format_named("columns"), read=partial(read_columns, columns=wishes.columns))


def _name_of(file: Path, given: Path, wishes: Wishes) -> str:
    """What the rows of a file are called; parts of a saved dataset have the name of its folder."""
    part = given.is_dir() and file.suffix.lower() in (".arrow", ".parquet")
    name = wishes.source or (given.resolve().name if part else file.stem)
    if printable(name) != name:
        raise UserError(f"The name of {printable(str(file))} is not UTF-8. Its rows need another one: --source NAME.")
    return name


def printable(text: str) -> str:
    """Text in which what is no UTF-8 is spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()
