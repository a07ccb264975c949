"""How a job is asked to stop: Ctrl-C, SIGTERM (as cluster schedulers send before they kill), or the clock.

The first signal lets what is in flight finish; the second one stops at once. Either way everything that is finished
is kept.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from vlm_rlaif.datagen.portion import Portion

SIGNALS = (signal.SIGINT, signal.SIGTERM)
WORDS = b"\nStopping: what is in flight is finished. Once more stops at once.\n"


class Halt:
    """Whether no further request should be begun. Signals count while it is open.

    They are handled where Python lets them be, in the main thread, and only those that are not ignored (as they are
    under nohup).

        with Halt(portion) as halt:
            while not halt.asked: ...
    """

    def __init__(self, portion: Portion) -> None:
        self._portion = portion
        self._before: dict[signal.Signals, Any] = {}
        self.interrupted = False
        """A signal came."""

    @property
    def asked(self) -> bool:
        return self.interrupted or self._portion.over

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        os.write(2, WORDS)  # print may be what it has interrupted

    def __enter__(self) -> Halt:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before is not signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():  # None: one that Python did not install, and cannot put back
            signal.signal(number, signal.SIG_DFL if before is None else before)
