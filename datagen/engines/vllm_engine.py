"""The engine for throughput: vLLM in this process, requests in and completions out as a stream.

Its twin is `transformers_engine.py`: the same prompts, pixels and log-probabilities (`tests/vllm/test_parity.py`
holds them together). A seed repeats a sample within an engine; the other one draws other random numbers. Frames are
decoded in threads ahead of the model, and requests of one video find their shared prefix in vLLM's cache. vLLM is
imported when an engine is made. Whatever option is not ours is vLLM's own: `tensor_parallel_size`, `quantization`.
"""

from __future__ import annotations

import gc
import itertools
import math
import os
import weakref
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from typing import Any

import click
import torch

from vlm_rlaif.datagen import adapters, models
from vlm_rlaif.datagen.engine import Completion, EngineDied, Request
from vlm_rlaif.datagen.engines.canary import Canary
from vlm_rlaif.datagen.engines.clips import Clip, metadata
from vlm_rlaif.datagen.engines.encode import Conversation, Encoder, TooLong
from vlm_rlaif.datagen.engines.feed import DECODE_THREADS, Feed, Ready
from vlm_rlaif.datagen.engines.transformers_engine import load_model, parameter_shapes
from vlm_rlaif.datagen.engines.vllm_load import load, wake_when_killed
from vlm_rlaif.datagen.meter import Meter
from vlm_rlaif.warehouse.errors import UserError

IN_FLIGHT_BYTES = 2**32
"""Frames of the requests that vLLM holds: beyond this it is given no further video, however many it could run."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Of adapters, as vLLM makes room for them."""
TOO_LONG = ("maximum context length", "maximum model length")
"""How vLLM words it: the text alone, or the text with the video, does not fit."""
TOO_LARGE = "encoder cache size"
"""The video alone does not fit."""
KEPT = "What was finished is kept. Type the same command again to go on."

_open: weakref.WeakSet[VLLMEngine] = weakref.WeakSet()
"""Engines that share what vLLM keeps once per process."""
_closed: list[Any] = []
"""The vLLM of engines that were closed before the last one was."""


class VLLMEngine:
    """Answers requests as they come; a finished one leaves at once and makes room for the next."""

    name = "vllm"
    prefix_cache = True

    def __init__(
        self, model: str, *, decode_threads: int = DECODE_THREADS, trust_remote_code: bool = False, **options: Any
    ) -> None:  # fmt: skip
        """`options` are those of vLLM's `LLM`. `max_num_seqs` and the memory are vLLM's own choice on a GPU."""
        self._folder = models.download(model)
        self.model, self.revision = model, models.revision(model)
        self.encoder = Encoder.load(self._folder, trust_remote_code)
        self.decode_threads = decode_threads
        self._options = {**options, **({"trust_remote_code": True} if trust_remote_code else {})}
        self._shapes = parameter_shapes(self._folder, trust_remote_code)
        self.meter = Meter()
        self._keys = itertools.count()
        self._finished: dict[str, Any] = {}
        """vLLM's outputs that their stream has not collected yet, by key."""
        self._adapters: dict[str, Any] = {}
        """Folder of an adapter -> how vLLM is asked for it, of those that are loaded."""
        self._start_vllm()

    def _start_vllm(self) -> None:
        self.llm = load(self._folder, self._options)
        _open.add(self)
        config = self.llm.llm_engine.vllm_config
        self._on_cpu = not torch.cuda.is_available()
        self._in_process = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0"
        if not self._in_process:
            wake_when_killed(self.llm.llm_engine.engine_core)
        self.gpus: int = 0 if self._on_cpu else config.parallel_config.world_size
        self.max_num_seqs: int = config.scheduler_config.max_num_seqs
        self.max_model_len: int = config.model_config.max_model_len
        self._rank: int = config.lora_config.max_lora_rank if config.lora_config else 0
        rows = config.model_config.get_vocab_size()
        self.canary = Canary(self, self.encoder, vocabulary=rows, exact=config.model_config.dtype == torch.float32)

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        """Twice as many requests as vLLM runs at once are in flight; as many again are decoded ahead."""
        from vllm.v1.engine.exceptions import EngineDeadError

        running: dict[str, tuple[Request, int]] = {}
        most = 2 * self.max_num_seqs
        with Feed(requests, self.meter, ahead=most, threads=self.decode_threads) as feed:
            try:
                while True:
                    choose = partial(self._side_by_side, running=running)
                    for ready in feed.take(most, at_least=0 if running else 1, choose=choose):
                        refused = ready.refused or self._start(ready, running)
                        if refused:
                            yield refused
                    if running:
                        yield from self._work(running, feed)
                    elif feed.ended and not len(feed):
                        return
            except EngineDeadError:
                running.clear()
                raise EngineDied(
                    "vLLM died while it was working; why stands above, if it could still say so. (Killed without a"
                    " word: the machine was out of memory.)",
                    KEPT,
                ) from None
            finally:  # a stream that is left early leaves nothing behind
                if running:
                    self.llm.llm_engine.abort_request(list(running))
                for key in running:
                    self._finished.pop(key, None)

    def _side_by_side(self, ready: list[Ready], running: dict[str, tuple[Request, int]]) -> list[Ready]:
        """The first ones that vLLM has room for, and may compute together with those that run.

        An adapter that is not loaded yet waits until nothing runs. On a CPU vLLM answers a request without an
        adapter wrongly when one with an adapter is beside it (0.32), so there each kind waits for the other.
        """
        kinds = {request.adapter for request, _ in running.values()} or {ready[0].request.adapter}
        if not self._on_cpu:
            kinds |= {"", *self._adapters}
        room = 2 * self.max_num_seqs - len(running)
        held = {request.video: size for request, size in running.values()}
        if sum(held.values()) > IN_FLIGHT_BYTES and len(running) > 1:
            room = 0
        return [each for each in ready if each.request.adapter in kinds][:room]

    def _work(self, running: dict[str, tuple[Request, int]], feed: Feed) -> list[Completion]:
        cause = "decode" if feed.decoding else "engine" if feed.ended else "prompt"
        self.meter.mark(busy=len(running) / self.max_num_seqs, cause=cause)
        done = list(self._step(running))
        if self._in_process:  # it stands still until it is called again
            self.meter.mark(busy=0)
        return done

    def _start(self, ready: Ready, running: dict[str, tuple[Request, int]]) -> Completion | None:
        """Hand a request to vLLM, or say why it cannot be."""
        from vllm.exceptions import VLLMClientError

        request, key = ready.request, str(next(self._keys))
        adapter = self._adapter(request.adapter)  # this may start vLLM anew
        engine = self.llm.llm_engine
        try:
            engine.add_request(key, self.prompt(request, ready.clip), self.params(request), lora_request=adapter)
        except (ValueError, VLLMClientError) as error:
            if ready.clip is not None:  # vLLM has noted the video as handed over, and would not hand it over again
                engine.reset_mm_cache()
            return self._refusal(request, ready.clip, str(error))
        running[key] = request, 0 if ready.clip is None else ready.clip.frames.nbytes
        return None

    def _refusal(self, request: Request, clip: Clip | None, words: str) -> Completion:
        """What is said of a request that vLLM does not take: where it is too long, how long it is."""
        kind = "too_long" if TOO_LARGE in words or any(said in words for said in TOO_LONG) else "engine"
        if kind == "too_long" and TOO_LARGE not in words:
            [row] = self.encoder.encode([Conversation(request.user, request.system, clip)])
            words = str(TooLong(row, self.max_model_len))
        return Completion(request.request_id, error=words, error_kind=kind)

    def _adapter(self, folder: str) -> Any:
        """How vLLM is asked for an adapter, which is loaded now if it is new; raises `UserError`."""
        from vllm.lora.request import LoRARequest

        if not folder:
            return None
        if folder not in self._adapters:
            adapter = adapters.read(folder)
            adapters.fit(adapter, self.model, self._shapes)
            if adapter.rank > self._rank:
                self._make_room(adapter.rank)
            asked = LoRARequest(folder, len(self._adapters) + 1, folder)
            try:
                self.llm.llm_engine.add_lora(asked)
            except Exception as error:  # what goes wrong in another process comes back as a bare Exception
                raise UserError(f"vLLM cannot run {self.model} with the adapter {folder}:", f"  {error}") from None
            self._adapters[folder] = asked
            self.canary.after_adapter(adapter)
        return self._adapters[folder]

    def _make_room(self, rank: int) -> None:
        """Start vLLM once more, for adapters of this rank: how large they may be is decided at its start."""
        enough = next((room for room in RANKS if room >= rank), rank)
        options = {"enable_lora": True, "max_lora_rank": enough}
        said = " ".join(f"--engine-option {name}={str(value).lower()}" for name, value in options.items())
        click.echo(f"vLLM starts again with room for adapters ({said} would have done so at once).", err=True)
        self._stop_vllm()
        self._options = {"max_loras": 2, **self._options, **options}
        self._start_vllm()

    def reload(self, folder: str) -> None:
        """Take other weights of the same model, as a trainer has saved them; what they had computed is forgotten."""
        engine = self.llm.llm_engine
        asked: dict[str, Any] = {"weights_path": folder}
        if self._in_process:  # vLLM (0.32) leaves the head of a CPU's model as it was, unless it is among the tensors
            asked = {"weights_iterator": list(load_model(folder, "cpu").state_dict().items())}
        engine.collective_rpc("reload_weights", kwargs=asked)
        engine.reset_prefix_cache()
        engine.reset_mm_cache()
        engine.reset_encoder_cache()
        self._adapters.clear()
        self._folder, self.model, self.revision = folder, folder, models.revision(folder)
        self.canary.after_weights()

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
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        common: dict[str, Any] = {"detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY}
        if request.choices:
            ids = self.encoder.choice_ids(request.choices)
            return SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=ids, **common)
        if request.json_schema:
            schema = StructuredOutputsParams(json=request.json_schema)
            common["structured_outputs"] = schema
        visual, sampling = self.encoder.visual_ids(), request.sampling
        return SamplingParams(
            max_tokens=sampling.max_new_tokens, temperature=sampling.temperature, top_p=sampling.top_p,
            seed=request.seed, logit_bias=dict.fromkeys(visual, -math.inf) or None,
            logprob_token_ids=visual or None, logprobs=None if visual else 0, **common,
        )  # fmt: skip

    def _step(self, running: dict[str, tuple[Request, int]]) -> Iterator[Completion]:
        """Let every running request go on by a token, and give out what has ended."""
        if not running:
            return
        if not any(key in self._finished for key in running):
            try:
                outputs = self.llm.llm_engine.step()
            except RuntimeError as error:  # out of memory, say, where vLLM runs in this process
                raise EngineDied("vLLM failed while it was working:", f"  {error}", KEPT) from error
            for output in outputs:
                if output.finished:
                    self._finished[output.request_id] = output
        for key in [key for key in running if key in self._finished]:
            request, _ = running.pop(key)
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
        self._stop_vllm()

    def _stop_vllm(self) -> None:
        from vllm import envs
        from vllm.distributed import cleanup_dist_env_and_memory

        _open.discard(self)
        self._adapters.clear()
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


def _without(step: dict[int, Any], token: int, forbidden: list[int]) -> float:
    """Log-probability of a token when the forbidden ones, whose probabilities are in `step`, are impossible."""
    gone = sum(math.exp(step[i].logprob) for i in forbidden)
    return float(step[token].logprob) - math.log1p(-min(gone, 1 - 1e-12))
