"""The seam between stages and models: requests in, completions out, as a stream.

An engine pulls requests as it has room and yields completions as they finish, in any order; there is no batch
barrier. It never raises for one bad request: that completion carries an `error`. `ScriptedEngine` answers from
a function, for tests and for trying a recipe without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vlm_rlaif.warehouse.config import Frames, Sampling
from vlm_rlaif.warehouse.media.frame_cache import folder_of
from vlm_rlaif.warehouse.store import Warehouse


@dataclass(frozen=True, slots=True)
class VideoPart:
    """A video, or the part of it between two moments."""

    path: Path
    frames: Frames
    start_s: float | None = None
    end_s: float | None = None
    video_id: str | None = None
    """Hash of the content; with it the file is held against it, and frames that `cache` holds are not decoded."""
    cache: Path | None = None

    @staticmethod
    def of(
        warehouse: Warehouse, row: Mapping[str, Any], frames: Frames,
        start_s: float | None = None, end_s: float | None = None,
    ) -> VideoPart:  # fmt: skip
        """The video of a row with its `uri` and `video_id`."""
        path, cache = warehouse.video_path(row["uri"]), folder_of(warehouse.path)
        return VideoPart(path, frames, start_s, end_s, row.get("video_id"), cache)


@dataclass(frozen=True, slots=True)
class Request:
    """One thing to ask a model. `request_id` is the id of the row that it will become."""

    request_id: str
    user: str
    system: str = ""
    video: VideoPart | None = None
    choices: tuple[str, ...] = ()
    """Answer with one of these, each a single token; their log-probabilities come back."""
    sampling: Sampling = Sampling()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back for a request."""

    request_id: str
    text: str = ""
    finish: str = "stop"
    """`stop`, or `length` when the token limit cut the answer off."""
    tokens_in: int = 0
    tokens_out: int = 0
    cached_tokens: int = 0
    logprob: float | None = None
    """Sum of the answer's token log-probabilities."""
    choice_logprobs: dict[str, float] = field(default_factory=dict)
    """Natural log-probability of each choice over the whole vocabulary."""
    error: str = ""
    """Why there is no answer; empty when there is one."""
    error_kind: str = "engine"
    """`engine`, `video` or `too_long`; meaningful only with an error."""


class Engine(Protocol):
    """Anything that answers requests."""

    @property
    def name(self) -> str:
        """For the run's record: `transformers`, `vllm`, `scripted`."""

    @property
    def model(self) -> str:
        """Folder or hub id of the model."""

    @property
    def revision(self) -> str:
        """What pins the weights: a hash of them for a folder, a commit for a hub id."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Answer every request, in any order."""

    def close(self) -> None:
        """Free the model."""


Script = Callable[[Request], str | dict[str, float]]
"""(request) -> the text to answer, or probabilities of the choices."""


class ScriptedEngine:
    """Answers from a function: deterministic, instant, without a model. A raised ValueError is an engine error.

    >>> engine = ScriptedEngine(lambda request: request.user.upper())
    >>> [c.text for c in engine.generate([Request("1", "hello")])]
    ['HELLO']
    """

    name = "scripted"
    model = "scripted"

    def __init__(self, script: Script, revision: str = "v1") -> None:
        self._script = script
        self.revision = revision

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        from math import exp, log

        for request in requests:
            try:
                said = self._script(request)
            except ValueError as error:
                yield Completion(request.request_id, error=str(error))
                continue
            if isinstance(said, str):
                words = len(said.split())
                yield Completion(request.request_id, said, tokens_out=words, logprob=-float(words))
                continue
            logprobs = {c: log(max(said.get(c, 0.0), 1e-9)) for c in request.choices}
            best = max(logprobs, key=lambda choice: logprobs[choice])
            yield Completion(
                request.request_id,
                best,
                tokens_out=1,
                logprob=log(min(1.0, exp(logprobs[best]))),
                choice_logprobs=logprobs,
            )

    def close(self) -> None:
        """Nothing to free."""
