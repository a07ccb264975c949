"""The engine for throughput: vLLM in this process, requests in and completions out as a stream.

Its twin is `transformers_engine.py`: the same prompts, pixels and log-probabilities (`tests/vllm/test_parity.py`
holds them together). A seed repeats a sample within an engine; the other one draws other random numbers. Frames are
decoded in threads ahead of the model, and requests of one video find their shared prefix in vLLM's cache. vLLM is
imported when an engine is made.
"""

from __future__ import annotations

import gc
import itertools
import math
import os
import weakref
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import torch

from vlm_rlaif.datagen import models
from vlm_rlaif.datagen.engine import Completion, Request
from vlm_rlaif.datagen.engines.encode import Clip, Conversation, Encoder, metadata, read_clip
from vlm_rlaif.warehouse.errors import MissingExtra, UserError
from vlm_rlaif.warehouse.media.video import VideoError

CPU_CACHE_BYTES = 2**30
"""Keys and values that vLLM keeps on a CPU, where it has no memory of its own to measure."""
CPU_BLOCK_TOKENS = 32
"""Only whole blocks of a prompt are found again; the CPU's default of 128 is longer than a short prompt."""
TOO_LONG = ("maximum context length", "maximum model length", "encoder cache size")
"""How vLLM words it: the text alone, the text with the video, or the video alone does not fit."""

_open: weakref.WeakSet[VLLMEngine] = weakref.WeakSet()
"""Engines that share what vLLM keeps once per process."""
_closed: list[Any] = []
"""The vLLM of engines that were closed before the last one was."""


class VLLMEngine:
    """Answers requests as they come; a finished one leaves at once and makes room for the next."""

    name = "vllm"

    def __init__(
        self, model: str, *, max_num_seqs: int = 64, max_model_len: int | None = None,
        gpu_memory_share: float = 0.9, decode_threads: int = 2, trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        folder = models.download(model)
        self.model, self.revision = model, models.revision(model)
        self.encoder = Encoder.load(folder, trust_remote_code)
        self.max_num_seqs, self.decode_threads = max_num_seqs, decode_threads
        self.llm = load(
            folder, max_num_seqs=max_num_seqs, max_model_len=max_model_len, trust_remote_code=trust_remote_code,
            gpu_memory_utilization=gpu_memory_share,
        )  # fmt: skip
        self._keys = itertools.count()
        self._finished: dict[str, Any] = {}
        """vLLM's outputs that their stream has not collected yet, by key."""
        _open.add(self)

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        """Twice as many requests as vLLM runs at once are in flight: the rest of them wait or are decoded."""
        waiting = iter(requests)
        decoding: dict[Future[Clip | None], Request] = {}
        running: dict[str, Request] = {}
        with ThreadPoolExecutor(self.decode_threads) as pool:
            try:
                while True:
                    room = 2 * self.max_num_seqs - len(decoding) - len(running)
                    for request in itertools.islice(waiting, room):
                        decoding[pool.submit(_decode, request)] = request
                    if not decoding and not running:
                        return
                    if not running:
                        wait(decoding, return_when=FIRST_COMPLETED)
                    for future in [future for future in decoding if future.done()]:
                        request = decoding.pop(future)
                        refused = self._start(request, future, running)
                        if refused:
                            yield refused
                    yield from self._step(running)
            finally:  # a stream that is left early leaves nothing behind
                for future in decoding:
                    future.cancel()
                self.llm.llm_engine.abort_request(list(running))
                for key in running:
                    self._finished.pop(key, None)

    def _start(self, request: Request, future: Future[Clip | None], running: dict[str, Request]) -> Completion | None:
        """Hand a request to vLLM, or say why it cannot be."""
        from vllm.exceptions import VLLMClientError

        try:
            clip = future.result()
        except VideoError as error:
            return Completion(request.request_id, error=str(error), error_kind="video")
        key = str(next(self._keys))
        try:
            self.llm.llm_engine.add_request(key, self.prompt(request, clip), self.params(request))
        except (ValueError, VLLMClientError) as error:
            if clip is not None:  # vLLM has noted the video as handed over, and would not hand it over again
                self.llm.llm_engine.reset_mm_cache()
            kind = "too_long" if any(words in str(error) for words in TOO_LONG) else "engine"
            return Completion(request.request_id, error=str(error), error_kind=kind)
        running[key] = request
        return None

    def prompt(self, request: Request, clip: Clip | None) -> dict[str, Any]:
        """What vLLM is asked: the text with one placeholder, and the frames with their times."""
        made: dict[str, Any] = {"prompt": self.encoder.prompt(Conversation(request.user, request.system, clip))}
        if clip is not None:
            about = {**metadata(clip), "do_sample_frames": False}  # the frames are already chosen
            made["multi_modal_data"] = {"video": (clip.frames, about)}
        return made

    def params(self, request: Request) -> Any:
        """How vLLM samples: visual tokens never, and with log-probabilities that make up for leaving them out."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        common = {"detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY}
        if request.choices:
            ids = self.encoder.choice_ids(request.choices)
            return SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=ids, **common)
        visual, sampling = self.encoder.visual_ids(), request.sampling
        return SamplingParams(
            max_tokens=sampling.max_new_tokens, temperature=sampling.temperature, top_p=sampling.top_p,
            seed=request.seed, logit_bias=dict.fromkeys(visual, -math.inf) or None,
            logprob_token_ids=visual or None, logprobs=None if visual else 0, **common,
        )  # fmt: skip

    def _step(self, running: dict[str, Request]) -> Iterator[Completion]:
        """Let every running request go on by a token, and give out what has ended."""
        if not running:
            return
        if not any(key in self._finished for key in running):
            for output in self.llm.llm_engine.step():
                if output.finished:
                    self._finished[output.request_id] = output
        for key in [key for key in running if key in self._finished]:
            request = running.pop(key)
            yield self._completion(request, self._finished.pop(key))

    def _completion(self, request: Request, output: Any) -> Completion:
        answer = output.outputs[0]
        if answer.finish_reason not in ("stop", "length"):
            return Completion(request.request_id, error=f"vLLM ended the request: {answer.finish_reason}.")
        tokens_in, cached = len(output.prompt_token_ids), output.num_cached_tokens or 0
        if request.choices:
            ids = self.encoder.choice_ids(request.choices)
            found = {c: answer.logprobs[0][i].logprob for c, i in zip(request.choices, ids, strict=True)}
            best = max(found, key=lambda choice: found[choice])
            return Completion(
                request.request_id, best, tokens_in=tokens_in, tokens_out=1, cached_tokens=cached,
                logprob=found[best], choice_logprobs=found,
            )  # fmt: skip
        ids, visual = list(answer.token_ids), self.encoder.visual_ids()
        return Completion(
            request.request_id, self.encoder.tokenizer.decode(ids, skip_special_tokens=True).strip(),
            finish=answer.finish_reason, tokens_in=tokens_in, tokens_out=len(ids), cached_tokens=cached,
            logprob=sum(_without(step, i, visual) for step, i in zip(answer.logprobs, ids, strict=True)),
        )  # fmt: skip

    def close(self) -> None:
        """Free the model's memory, and with the last engine what vLLM keeps for the process."""
        from vllm import envs
        from vllm.distributed import cleanup_dist_env_and_memory

        _open.discard(self)
        if envs.VLLM_ENABLE_V1_MULTIPROCESSING:
            self.llm.llm_engine.engine_core.shutdown()
        else:  # in this process it would stop the other engines too: they wait for the last
            _closed.append(self.llm)
        del self.llm
        if not _open:
            while _closed:
                _closed.pop().llm_engine.engine_core.shutdown()
            gc.collect()
            cleanup_dist_env_and_memory()


def load(folder: str, *, max_model_len: int | None, **options: Any) -> Any:
    """vLLM with a video-language model: exact fp32 in this process on a CPU, its own precision on a GPU."""
    on_cpu = not torch.cuda.is_available()
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if on_cpu:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        options |= {
            "dtype": "float32", "enforce_eager": True, "block_size": CPU_BLOCK_TOKENS,
            "kv_cache_memory_bytes": CPU_CACHE_BYTES,
        }  # fmt: skip
    try:
        from vllm import LLM
    except ImportError:
        raise MissingExtra("The vLLM engine", "vllm") from None
    try:
        return LLM(
            folder, enable_prefix_caching=True, limit_mm_per_prompt={"video": 1, "image": 0}, seed=0,
            use_tqdm_on_load=False, **options,
            max_model_len=-1 if max_model_len is None else max_model_len,  # -1: what fits into memory
        )  # fmt: skip
    except (ValueError, OSError) as error:
        raise UserError(f"vLLM cannot run {folder}:", f"  {error}") from None


def _without(step: dict[int, Any], token: int, forbidden: list[int]) -> float:
    """Log-probability of a token when the forbidden ones, whose probabilities are in `step`, are impossible."""
    gone = sum(math.exp(step[i].logprob) for i in forbidden)
    return float(step[token].logprob) - math.log1p(-min(gone, 1 - 1e-12))


def _decode(request: Request) -> Clip | None:
    return read_clip(request.video) if request.video else None
