"""Progress of long work: a bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

PLAIN_EVERY_S = 15.0
RICH_EVERY_S = 0.1


class Bar:
    """Counts what is done. Writes to standard error, so that standard output stays the result's.

    with Bar("caption", 412) as bar:
        bar.advance(1)
    """

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done = title, total, 0
        self._note: object = ""
        self._rich: Progress | None = None
        self._started = self._said = time.monotonic()
        if sys.stderr.isatty():
            self._rich = Progress(
                TextColumn("{task.description}"), BarColumn(16), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
                console=Console(stderr=True), transient=True, expand=True,
            )  # fmt: skip
            self._task = self._rich.add_task(title, total=total, note="")

    def advance(self, steps: int = 1, note: object = "") -> None:
        """`note` is put into words when it is shown, which is now and then."""
        self.done += steps
        self._note = note or self._note
        now = time.monotonic()
        if now - self._said < (PLAIN_EVERY_S if self._rich is None else RICH_EVERY_S):
            return
        self._said = now
        if self._rich is not None:
            self._rich.update(self._task, completed=self.done, note=self._note)
        else:
            print(self._line(now - self._started), file=sys.stderr, flush=True)

    def _line(self, spent_s: float) -> str:
        """`caption: 120 of 412, 0:01:12 left, 1.7 rows/s`."""
        left_s = (self.total - self.done) * spent_s / self.done if self.done else 0.0
        said = [f"{self.title}: {self.done:,} of {self.total:,}", f"{timedelta(seconds=round(left_s))} left"]
        return ", ".join([*said, str(self._note)] if str(self._note) else said)

    def __enter__(self) -> Bar:
        if self._rich is not None:
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._rich is not None:
            self._rich.stop()
