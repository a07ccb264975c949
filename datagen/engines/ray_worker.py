"""An engine in a process of its own, as `ray_engine.py` places it on a node. No Ray in here.

Requests come in and completions go out with the same call, a few at a time; in between the engine streams in a
thread, and pulls from what waits here as it has room.
"""

from __future__ import annotations

import platform
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from vlm_rlaif.datagen.engine import Completion, Engine, EngineDied, Request
from vlm_rlaif.warehouse.errors import UserError

REPORT_S = 1.0
"""A worker says at least this often how it does."""
LEAVE_S = 60.0
"""How long an engine may take to leave a stream that nobody reads any more."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came of loading the model."""

    revision: str = ""
    prefix_cache: bool = False
    problem: str = ""
    """Why there is no engine: a mistake of the user, in words."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker has done since it was asked last."""

    completions: tuple[Completion, ...]
    waiting: int
    """Requests that its engine has not pulled yet."""
    seconds: dict[str, float]
    """Of the engine's meter, since the stream began."""
    ended: bool = False
    """The stream is over, and all its completions have been given out before."""
    problem: str = ""
    """What ended it: a mistake of the user, in words."""
    broken: str = ""
    """What ended it: an error that is nobody's request's."""


class Stream:
    """One run of an engine over requests that arrive bundle by bundle."""

    def __init__(self, number: int, engine: Engine) -> None:
        self.number, self._engine = number, engine
        self._changed = threading.Condition()
        self._inbox: deque[Request] = deque()
        self._outbox: list[Completion] = []
        self._all_here = self._left = self._over = False
        self._problem = self._broken = ""
        engine.meter.reset()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def exchange(self, requests: Sequence[Request], *, last: bool, reserve: int) -> Report:
        """Take requests in, and wait for completions, or until fewer than `reserve` requests wait.

        `last` says that no more will come.
        """
        with self._changed:
            self._inbox.extend(requests)
            self._all_here |= last
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._outbox or self._over or (not self._all_here and len(self._inbox) < reserve), REPORT_S
            )
            done, self._outbox = tuple(self._outbox), []
            report = Report(done, len(self._inbox), self._engine.meter.seconds())
            if done or not self._over:
                return report
            return replace(report, ended=True, problem=self._problem, broken=self._broken)

    def leave(self) -> None:
        """Nobody reads it any more: the engine drops what it has begun."""
        with self._changed:
            self._left = self._all_here = True
            self._inbox.clear()
            self._changed.notify_all()
        self._thread.join(LEAVE_S)
        if self._thread.is_alive():
            raise TimeoutError("The engine did not leave its last stream.")

    def _run(self) -> None:
        try:
            for done in self._engine.generate(self._requests()):
                with self._changed:
                    if self._left:
                        break
                    self._outbox.append(done)
                    self._changed.notify_all()
        except EngineDied as error:
            self._broken = str(error)
        except UserError as error:
            self._problem = str(error)
        except Exception as error:  # whatever it is, the driver has to hear of it
            self._broken = f"{type(error).__name__}: {error}"
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _requests(self) -> Iterator[Request]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._inbox or self._all_here)
                if not self._inbox:
                    return
                request = self._inbox.popleft()
                self._changed.notify_all()
            yield request


class Worker:
    """An engine and the stream that it is in. It has one caller, who waits for each answer."""

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._stream: Stream | None = None

    def where(self) -> str:
        """The name of its machine."""
        return platform.node()

    def load(self) -> Loaded:
        """Load the model."""
        try:
            self._engine = self._make_engine()
        except UserError as error:
            return Loaded(problem=str(error))
        return Loaded(self._engine.revision, self._engine.prefix_cache)

    def exchange(self, number: int, requests: Sequence[Request], *, last: bool, reserve: int) -> Report:
        """Go on with the stream of this number; a new number begins a new stream, and leaves the old one."""
        assert self._engine is not None
        if self._stream is None or self._stream.number != number:
            if self._stream is not None:
                self._stream.leave()
            self._stream = Stream(number, self._engine)
        report = self._stream.exchange(requests, last=last, reserve=reserve)
        return replace(report, completions=tuple(map(self._placed, report.completions)))

    def _placed(self, done: Completion) -> Completion:
        """A file that cannot be read may lie on another machine: say on which it was looked for."""
        if not done.error or done.error_kind != "video":
            return done
        return replace(done, error=f"{done.error} (on {self.where()})")
