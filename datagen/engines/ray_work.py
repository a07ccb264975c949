"""What several workers still have to be given: requests of one video stay together, and those of lost workers return.

No Ray in here.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import groupby, islice

from vlm_rlaif.datagen.engine import Completion, Halted, Request

BUNDLE = 256
"""Requests about one video that go to one worker; of more, several workers compute the video."""
CHANCES = 3
"""A request that was with so many workers when they were lost is not given to another."""


class Work:
    """A source of requests for several workers.

    >>> work = Work(Request(str(i), "hello") for i in range(2))
    >>> [request.request_id for request in work.take()], work.ended
    (['0'], False)
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        self._bundles = bundles(requests)
        self._next = self._pull()
        self._again: deque[Request] = deque()
        self._suspects: deque[Request] = deque()
        """Requests that two workers were lost with: given out last, one at a time."""
        self._lost: Counter[str] = Counter()
        self._guilty: list[Completion] = []

    @property
    def dry(self) -> bool:
        """Nothing is left but suspects, unless something is given back."""
        return self._next is None and not self._again

    @property
    def ended(self) -> bool:
        """Nothing is left, unless something is given back."""
        return self.dry and not self._suspects

    def take(self, *, alone: bool = False) -> list[Request]:
        """The requests of the next video, or a suspect for a worker that is `alone` with it; empty: none is left."""
        if self._again:
            bundle = list(islice(self._again, BUNDLE))
            for _ in bundle:
                self._again.popleft()
            return bundle
        if self._next is not None:
            bundle, self._next = self._next, self._pull()
            return bundle
        return [self._suspects.popleft()] if alone and self._suspects else []

    def _pull(self) -> list[Request] | None:
        try:
            return next(self._bundles, None)
        except Halted:
            return None

    def give_back(self, requests: Iterable[Request], reason: str) -> None:
        """Take back what a lost worker had not finished."""
        for request in requests:
            lost = self._lost[request.request_id] = self._lost[request.request_id] + 1
            if lost < CHANCES:
                (self._again if lost == 1 else self._suspects).append(request)
            else:
                said = f"{lost} workers were lost while they had this request. {reason}"
                self._guilty.append(Completion(request.request_id, error=said))

    def convict(self) -> list[Completion]:
        """Failures of requests that have cost too many workers. Only right if workers have finished others."""
        guilty, self._guilty = self._guilty, []
        return guilty


def bundles(requests: Iterable[Request]) -> Iterator[list[Request]]:
    """Requests that follow each other and are about the same video; without one, one by one."""
    for _, group in groupby(requests, key=_subject):
        while bundle := list(islice(group, BUNDLE)):
            yield bundle


def _subject(request: Request) -> str:
    return request.request_id if request.video is None else str(request.video.video_id or request.video.path)
