"""The engine that runs anywhere: any transformers video VLM, on the CPU or one GPU.

Frames are decoded in threads ahead of the model. Prompts run in batches of similar kind, those with a LoRA adapter
apart; for throughput on a GPU use `vllm_engine.py`, which has the same seam.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch

from vlm_rlaif.datagen import adapters, models
from vlm_rlaif.datagen.engine import Completion, Request
from vlm_rlaif.datagen.engines.canary import Canary
from vlm_rlaif.datagen.engines.clips import Clip
from vlm_rlaif.datagen.engines.decoding import draw
from vlm_rlaif.datagen.engines.encode import Conversation, Encoder, TooLong, collate
from vlm_rlaif.datagen.engines.feed import DECODE_THREADS, Feed, Ready
from vlm_rlaif.datagen.meter import Meter
from vlm_rlaif.warehouse.errors import MissingExtra, UserError

SORTED_BATCHES = 4
"""Requests of this many batches are decoded ahead, and sorted by length: a batch runs as long as its longest."""
FRAME_BYTES = 2**28
"""A batch is full when its frames take this much memory, however few they are."""

Asked = tuple[Request, Clip | None]


class TransformersEngine:
    """Answers requests with `generate`, and choices with a single forward."""

    name = "transformers"
    prefix_cache = False

    def __init__(
        self, model: str, *, device: str | None = None, batch_size: int = 64,
        frame_bytes: int = FRAME_BYTES, decode_threads: int = DECODE_THREADS, trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        folder = models.download(model)
        self.model, self.revision = model, models.revision(model)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.gpus = int(self.device == "cuda")
        self.encoder = Encoder.load(folder, trust_remote_code)
        self.net = load_model(folder, self.device, trust_remote_code)
        self.batch_size, self.frame_bytes, self.decode_threads = batch_size, frame_bytes, decode_threads
        eos = self.net.generation_config.eos_token_id or self.encoder.tokenizer.eos_token_id
        self.eos_ids: list[int] = list(eos) if isinstance(eos, list | tuple) else [eos]
        self.meter = Meter()
        self._limit: int | None = getattr(self.net.config.get_text_config(), "max_position_embeddings", None)
        self._shapes = {name: tuple(weight.shape) for name, weight in self.net.named_parameters()}
        self._peft: Any = None
        """The model with adapters, once one was asked for; its layers are those of `net`."""
        self._adapters: dict[str, str] = {}
        """Folder of an adapter -> its name in the model."""
        rows = self.net.get_input_embeddings().num_embeddings
        self.canary = Canary(self, self.encoder, vocabulary=rows, exact=self.net.dtype == torch.float32)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Batches of the same kind, similar in length; decoding runs ahead."""
        ahead = SORTED_BATCHES * self.batch_size
        with Feed(requests, self.meter, ahead=ahead, threads=self.decode_threads) as feed:
            while batch := feed.take(ahead, at_least=self.batch_size, choose=self._next_batch):
                yield from (ready.refused for ready in batch if ready.refused)
                with self.meter.working():
                    done = self._answer([(ready.request, ready.clip) for ready in batch if not ready.refused])
                yield from done

    def _next_batch(self, ready: list[Ready]) -> list[Ready]:
        """The oldest request, and of its kind those whose prompts come closest to it in length.

        A batch waits for its longest row, and padding is computed like words.
        """
        oldest = ready[0].request
        alike = [each for each in ready if _kind(each.request) == _kind(oldest)]
        alike.sort(key=lambda each: abs(_length(each.request) - _length(oldest)))
        sizes = accumulate((each.clip.frames.nbytes if each.clip else 0 for each in alike), initial=0)
        return [
            each for each, before in zip(alike[: self.batch_size], sizes, strict=False) if before < self.frame_bytes
        ]

    def _answer(self, batch: list[Asked]) -> list[Completion]:
        """A batch that is too much for the memory, or has a request that the model cannot take, is halved."""
        if not batch:
            return []
        run = self._choose if batch[0][0].choices else self._continue
        try:
            with self._wearing(batch[0][0].adapter):
                return list(run(batch))
        except TooLong as error:
            if len(batch) == 1:
                return [Completion(batch[0][0].request_id, error=str(error), error_kind="too_long")]
        except (RuntimeError, ValueError) as error:
            if len(batch) == 1:
                return [Completion(batch[0][0].request_id, error=f"{type(error).__name__}: {error}")]
            if self.device == "cuda":
                torch.cuda.empty_cache()
        middle = len(batch) // 2
        return self._answer(batch[:middle]) + self._answer(batch[middle:])

    def _inputs(self, batch: list[Asked]) -> dict[str, torch.Tensor]:
        rows = self.encoder.encode([Conversation(r.user, r.system, clip) for r, clip in batch])
        for row in rows:
            if self._limit is not None and len(row.ids) >= self._limit:
                raise TooLong(row, self._limit)
        return collate(rows, self.encoder.pad_id, side="left", device=self.device)

    @contextmanager
    def _wearing(self, folder: str) -> Iterator[None]:
        """Run the model with an adapter, or without any as it is; raises `UserError`."""
        if folder and folder not in self._adapters:
            self._load(adapters.read(folder), folder)
        if self._peft is None:
            yield
        elif folder:
            self._peft.set_adapter(self._adapters[folder])
            yield
        else:
            with self._peft.disable_adapter():
                yield

    def _load(self, adapter: adapters.Adapter, folder: str) -> None:
        adapters.fit(adapter, self.model, self._shapes)
        name = f"adapter{len(self._adapters)}"
        # transformers warns about its own use of a deprecated name whenever an adapter is added
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        try:
            from peft import PeftModel

            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self.net, folder, adapter_name=name)
            else:
                self._peft.load_adapter(folder, adapter_name=name)
        except ImportError:
            raise MissingExtra("A LoRA adapter", "models") from None
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"The adapter {folder} cannot be loaded:", f"  {error}") from None
        self.net.eval()
        self._adapters[folder] = name
        self.canary.after_adapter(adapter)

    @torch.no_grad()
    def _choose(self, batch: list[Asked]) -> Iterator[Completion]:
        inputs = self._inputs(batch)
        logprobs = self.net(**inputs, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)
        for i, (request, _) in enumerate(batch):
            ids = self.encoder.choice_ids(request.choices)
            found = dict(zip(request.choices, logprobs[i, ids].tolist(), strict=True))
            best = max(found, key=lambda choice: found[choice])
            yield Completion(
                request.request_id, best, tokens_in=int(inputs["attention_mask"][i].sum()),
                tokens_out=1, logprob=found[best], choice_logprobs=found,
            )  # fmt: skip

    def _continue(self, batch: list[Asked]) -> Iterator[Completion]:
        inputs = self._inputs(batch)
        drawn = draw(
            self.net, inputs, batch[0][0].sampling, [request.seed for request, _ in batch],
            eos_ids=self.eos_ids, pad_id=self.encoder.pad_id, forbidden=self.encoder.visual_ids(),
        )  # fmt: skip
        texts = self.encoder.tokenizer.batch_decode(drawn.tokens, skip_special_tokens=True)
        for i, (request, _) in enumerate(batch):
            yield Completion(
                request.request_id, texts[i].strip(),
                finish="stop" if drawn.ended[i] else "length",
                tokens_in=int(inputs["attention_mask"][i].sum()), tokens_out=len(drawn.tokens[i]),
                logprob=sum(drawn.logprobs[i]),
            )  # fmt: skip

    def close(self) -> None:
        """Free the model's memory."""
        del self.net
        if self.device == "cuda":
            torch.cuda.empty_cache()


def load_model(folder: str, device: str, trust_remote_code: bool = False) -> Any:
    """A video-language model in evaluation mode: fp32 on the CPU, its own precision on a GPU.

    On a CPU torch is held to one thread, unless OMP_NUM_THREADS says otherwise: more were slower, and erratic, on
    small models. A model of billions of parameters wants more.
    """
    if device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        from transformers import AutoModelForImageTextToText
        from transformers.utils import logging
    except ImportError:
        raise MissingExtra("Running a model", "models") from None
    logging.disable_progress_bar()
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype="auto" if device == "cuda" else torch.float32,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        raise UserError(f"{folder} cannot be loaded as a video-language model:", f"  {error}") from None
    return model.to(device).eval()


def parameter_shapes(folder: str, trust_remote_code: bool = False) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a model's parameters as transformers names them, without loading its weights."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, OSError) as error:
        raise UserError(f"{folder} cannot be loaded as a video-language model:", f"  {error}") from None
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def _length(request: Request) -> int:
    return len(request.system) + len(request.user)


def _kind(request: Request) -> tuple[object, ...]:
    """Requests that may share a batch."""
    frames = request.video.frames if request.video else None
    return request.choices, request.sampling, frames, request.adapter
