"""The seam between stages and models: requests in, completions out, as a stream.

An engine pulls requests as it has room and yields completions as they finish, in any order; there is no batch
barrier. It never raises for one bad request: that completion carries an `error`. `ScriptedEngine` answers from
a function, for tests and for trying a recipe without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import exp, log
from pathlib import Path
from typing import Any, Protocol

from vlm_rlaif.datagen.meter import Meter
from vlm_rlaif.warehouse.config import Frames, Sampling
from vlm_rlaif.warehouse.errors import UserError
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
    adapter: str = ""
    """Folder of a LoRA adapter over the engine's model; empty = the model as it is."""
    json_schema: str = ""
    """JSON schema (as JSON text) that the answer has to fit. An engine that can constrain its output does."""


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


class Halted(Exception):
    """Raised by a stream of requests when the job is to stop: what an engine has not begun is given up."""


class EngineDied(UserError):
    """An engine is gone, in the middle of its work. Another one could go on."""


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

    @property
    def gpus(self) -> int:
        """Graphics cards that it keeps busy, as far as is known; 0 on a CPU."""

    @property
    def prefix_cache(self) -> bool:
        """Whether it finds the beginning of a prompt again that it has just computed for another request."""

    @property
    def meter(self) -> Meter:
        """Where the time of the stream goes; the engine keeps it while it generates."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Answer every request, in any order.

        When the requests raise `Halted`, what is in flight is finished, and nothing else is begun.
        """

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
    gpus = 0
    prefix_cache = False

    def __init__(self, script: Script, revision: str = "v1") -> None:
        self._script = script
        self.revision = revision
        self.meter = Meter()

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            with self.meter.working():
                completion = self._answer(request)
            yield completion

    def _answer(self, request: Request) -> Completion:
        try:
            said = self._script(request)
        except ValueError as error:
            return Completion(request.request_id, error=str(error))
        if isinstance(said, str):
            words = len(said.split())
            return Completion(request.request_id, said, tokens_out=words, logprob=-float(words))
        logprobs = {choice: log(max(said.get(choice, 0.0), 1e-9)) for choice in request.choices}
        best = max(logprobs, key=lambda choice: logprobs[choice])
        return Completion(
            request.request_id, best, tokens_out=1, logprob=log(min(1.0, exp(logprobs[best]))),
            choice_logprobs=logprobs,
        )  # fmt: skip

    def close(self) -> None:
        """Nothing to free."""
