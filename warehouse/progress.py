"""Progress of long work: a bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY_S = 15.0


class Bar:
    """Counts what is done. Writes to standard error, so that standard output stays the result's.

    with Bar("caption", 412) as bar:
        bar.advance(1)
    """

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done = title, total, 0
        self._note = ""
        self._rich: Progress | None = None
        self._started = self._said = time.monotonic()
        if sys.stderr.isatty():
            self._rich = Progress(
                TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
                console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._task = self._rich.add_task(title, total=total, note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps
        self._note = note or self._note
        if self._rich is not None:
            self._rich.update(self._task, completed=self.done, note=self._note)
        elif time.monotonic() - self._said > PLAIN_EVERY_S:
            self._said = time.monotonic()
            rate = self.done / (self._said - self._started)
            left_s = (self.total - self.done) / rate if rate else float("inf")
            print(
                f"{self.title}: {self.done} of {self.total}, about {left_s:.0f} s left {self._note}",
                file=sys.stderr, flush=True,
            )  # fmt: skip

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
