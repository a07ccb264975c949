"""Other people's files become rows: their videos, questions, responses and preferences.

A record that does not fit is listed with its place and the reason, and stops the others only if `strict` says so.
Ids are hashes of the content, so importing again writes nothing, and one pair of two files is one pair. An import
that was killed is repeated; it has written whole batches. Memory does not grow with the files.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.intake.arrivals import Arrivals
from vlm_rlaif.warehouse.intake.conversations import shown
from vlm_rlaif.warehouse.intake.finding import Finder
from vlm_rlaif.warehouse.intake.json_records import Entry
from vlm_rlaif.warehouse.intake.meanings import Asked
from vlm_rlaif.warehouse.intake.reading import read
from vlm_rlaif.warehouse.intake.rows import rows_of
from vlm_rlaif.warehouse.intake.sources import Source, Wishes, printable, sources_of
from vlm_rlaif.warehouse.journal import only_one, replay
from vlm_rlaif.warehouse.progress import Bar
from vlm_rlaif.warehouse.records import Question, Record, primary_key
from vlm_rlaif.warehouse.runs import OpenRun, Outcome, record_run
from vlm_rlaif.warehouse.store import Warehouse

BATCH = 2_000
"""Questions that are in memory at a time."""
SHOWN = 20
"""Records that `auto` looks at, and bad ones that are shown."""
VOTES = {"a": 0, "b": 1, "tie": 2}
"""A file that says both, of the same pair, has voted twice; the view `preferences` makes a tie of it."""
LOOKED_AT = 1_000
"""Entries among which `auto` looks for readable records."""
SHOWN_TABLES = ("videos", "questions", "responses", "pairs", "labels")


@dataclass(frozen=True, slots=True)
class Imported(Outcome):
    """How `import` ended. `failed` counts the bad records."""

    files: tuple[tuple[str, str, int], ...] = ()
    """(file, its format, how many records were read)."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Table -> rows written."""
    bad: tuple[str, ...] = ()
    """Place and reason of bad records; without `every_bad` of the first ones."""
    unreadable: int = 0
    """Videos that cannot be read. Each is a row that says why, and its records are bad ones."""
    removed: int = 0
    """Records about videos that were taken out of the warehouse, and stay out."""
    other_reference: int = 0
    """Questions that stand with another reference: the first one stays."""
    other_split: int = 0
    """Known videos that keep a split which is not the one asked for."""
    moved: int = 0
    """Known videos that were found at a new place."""
    dry_run: bool = False

    def __str__(self) -> str:
        counts = {
            "Bad records": self.failed,
            "Videos found at a new place": self.moved,
            "About videos that were taken out": self.removed,
            "Questions that stand with another reference": self.other_reference,
            "Videos that keep another split": self.other_split,
        }
        tables = ", ".join(f"{table}: {count}" for table, count in self.rows.items())
        done = f"{self.written} rows {'would be ' * self.dry_run}written ({tables})" if tables else "nothing to do"
        return ". ".join([f"{self.stage}: {done}", *(f"{what}: {count}" for what, count in counts.items() if count)])


def import_files(warehouse: Warehouse, paths: Sequence[Path], wishes: Wishes) -> Imported:
    """Read files of records, or folders of them, into a warehouse."""
    sources = sources_of(paths, wishes)
    finder = Finder(wishes.videos)
    arrivals = Arrivals(warehouse, wishes.split)
    if wishes.dry_run:
        return _Import(warehouse, wishes, finder, arrivals).read(sources)
    with only_one(warehouse, "import"), ExitStack() as stack:
        replay(warehouse)
        if wishes.strict:
            checked = _Import(warehouse, wishes, finder, arrivals).read(sources)
            if checked.failed:
                raise UserError(*checked.bad[:SHOWN], f"Nothing was written. Bad records: {checked.failed}.")
        return _Import(warehouse, wishes, finder, arrivals, stack).read(sources)


@dataclass(slots=True)
class _Import:
    """An import under way. Without a stack nothing is written: rows are only counted."""

    warehouse: Warehouse
    wishes: Wishes
    finder: Finder
    arrivals: Arrivals
    stack: ExitStack | None = None
    run: OpenRun | None = None
    files: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    failed: int = 0
    removed: int = 0
    other_reference: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    """Table -> rows that were written, or would be."""
    counted: set[str] = field(default_factory=set)
    """Ids of rows that were counted and not written."""
    waiting: list[tuple[str, str, Asked, Path]] = field(default_factory=list)
    """(place, name of the source, question, path of its video)."""

    def read(self, sources: Sequence[Source]) -> Imported:
        """Read all files to their end, or to the limit."""
        done, left = [], self.wishes.limit
        self.files = [printable(str(source.file)) for source in sources]
        progress = _Progress(sources)
        with progress:
            for source in sources:
                count = 0
                for entry in itertools.islice(read(source.file, progress.tick), left):
                    count += entry.place != str(source.file)  # what is wrong with a whole file is no record
                    self._take(entry, source)
                    if len(self.waiting) >= BATCH:
                        self._flush(progress)
                left = None if left is None else left - count
                done.append((printable(str(source.file)), source.format.name, count))
                progress.end_of(source.file)
            self._flush(progress)
        return self._end(done)

    def _take(self, entry: Entry, source: Source) -> None:
        """One record: what it asks waits until there is enough of it."""
        try:
            if entry.problem:
                raise ValueError(entry.problem)
            if not isinstance(entry.record, dict):
                raise ValueError(f"it is not an object: {shown(entry.record)}")
            asked = source.format.read(entry.record)
            self.waiting += [(entry.place, source.name, one, self.finder.find(one.video)) for one in asked]
        except ValueError as error:
            self._refuse(entry.place, str(error))
        except RecursionError:
            self._refuse(entry.place, "it is nested too deeply")

    def _refuse(self, place: str, reason: str) -> None:
        self.failed += 1
        if self.wishes.every_bad or len(self.bad) < SHOWN:
            self.bad.append(printable(f"{place}: {reason}"))

    def _flush(self, progress: _Progress) -> None:
        """The waiting questions become rows, after their videos."""
        waiting, self.waiting = self.waiting, []
        new = dict.fromkeys(path for *_, path in waiting if not self.arrivals.has_seen(path))
        for _ in self.arrivals.see(list(new)):
            self._write_videos()
            progress.advance(0, f"{self.arrivals.added} new videos")
        self._write_videos()
        made: dict[str, Record] = {}
        left_out: dict[str, Path] = {}
        for place, name, asked, path in waiting:
            if self.arrivals.problem(path):
                left_out[place] = path
                continue
            for row in rows_of(self.arrivals.video_ids[str(path)], asked, name):
                self._keep(made, row)
        for place, path in left_out.items():
            self._leave_out(place, path)
        self._write(list(made.values()))

    def _leave_out(self, place: str, path: Path) -> None:
        """A record about a video of which nothing can be asked."""
        if self.arrivals.video_ids.get(str(path)) in self.arrivals.removed:
            self.removed += 1
        else:
            self._refuse(place, self.arrivals.problem(path))

    def _keep(self, made: dict[str, Record], row: Record) -> None:
        stands = made.setdefault(_id(row), row)
        if isinstance(row, Question) and isinstance(stands, Question):
            self.other_reference += row.reference not in (None, stands.reference)

    def _write_videos(self) -> None:
        if self.stack is not None and self.arrivals.rows:
            run = self._start(self.stack)
            run.append(self.arrivals.take(run.run_id))

    def _write(self, rows: list[Record]) -> None:
        fresh = self.warehouse.unknown(rows) if rows else []
        self._compare({_id(row) for row in fresh}, rows)
        if self.stack is None:
            fresh = [row for row in fresh if _id(row) not in self.counted]
            self.counted |= {_id(row) for row in fresh}
        elif fresh:
            run = self._start(self.stack)
            self.warehouse.append([replace(row, run_id=run.run_id) for row in fresh])
            run.written += sum(row.table in SHOWN_TABLES for row in fresh)
        self.rows.update(row.table for row in fresh)

    def _compare(self, fresh: set[str], rows: list[Record]) -> None:
        """Count the questions that stand with another reference."""
        asked = {row.question_id: row.reference for row in rows if isinstance(row, Question) and row.reference}
        known = [question_id for question_id in asked if question_id not in fresh]
        if known:
            query = "SELECT question_id, reference FROM questions WHERE question_id IN (SELECT unnest($ids))"
            for row in self.warehouse.rows(query, {"ids": known}):
                self.other_reference += row["reference"] != asked[row["question_id"]]

    def _start(self, stack: ExitStack) -> OpenRun:
        """The run, which begins with the first row that is new."""
        if self.run is None:
            config = {
                "files": self.files, "videos": str(self.wishes.videos), "format": self.wishes.format,
                "source": self.wishes.source, "split": self.wishes.split, "columns": dict(self.wishes.columns),
                "limit": self.wishes.limit,
            }  # fmt: skip
            self.run = stack.enter_context(record_run(self.warehouse, "import", config, "none"))
        return self.run

    def _end(self, files: list[tuple[str, str, int]]) -> Imported:
        moved = self.arrivals.settle() if self.stack is not None else 0
        if self.run is not None:
            self.run.failed = self.failed
        self.rows["videos"] = self.arrivals.added
        rows = {table: self.rows[table] for table in SHOWN_TABLES if self.rows[table]}
        written = sum(rows.values())
        return Imported(
            "import", written, self.failed, pending=written, run_id=self.run.run_id if self.run else None,
            files=tuple(files), rows=rows, bad=tuple(self.bad), unreadable=len(self.arrivals.unreadable),
            removed=self.removed, other_reference=self.other_reference, other_split=self.arrivals.other_split,
            moved=moved, dry_run=self.wishes.dry_run,
        )  # fmt: skip


def _id(row: Record) -> str:
    """The key of a row of a table whose key is one column; ids of different tables are different."""
    return str(getattr(row, primary_key(type(row))[0]))


class _Progress(Bar):
    """How much of the files has been read, in percent."""

    def __init__(self, sources: Sequence[Source]) -> None:
        super().__init__("import %", 100)
        self._total = sum(source.file.stat().st_size for source in sources) or 1
        self._before = 0

    def tick(self, at: int) -> None:
        """The reader is at this byte of its file."""
        percent = 100 * (self._before + at) // self._total
        if percent > self.done:
            self.advance(percent - self.done)

    def end_of(self, file: Path) -> None:
        self._before += file.stat().st_size
