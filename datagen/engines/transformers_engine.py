"""The engine that runs anywhere: any transformers video VLM, on the CPU or one GPU.

Frames are decoded in threads ahead of the model. Prompts run in batches of similar kind; for throughput on a GPU
use `vllm_engine.py`, which has the same seam.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from vlm_rlaif.datagen import models
from vlm_rlaif.datagen.engine import Completion, Request
from vlm_rlaif.datagen.engines.decoding import draw
from vlm_rlaif.datagen.engines.encode import Clip, Conversation, Encoder, collate, read_clip
from vlm_rlaif.warehouse.errors import MissingExtra, UserError
from vlm_rlaif.warehouse.media.video import VideoError

FIRST_AHEAD = 16
"""Requests whose frames are decoded ahead before anything is known of their size."""
BATCHES_AHEAD = 2
"""Batches, of the size of the last one, that are decoded while the model works; bounds the memory of frames."""
FRAME_BYTES = 2**28
"""A batch is full when its frames take this much memory, however few they are."""

Asked = tuple[Request, Clip | None]


class TransformersEngine:
    """Answers requests with `generate`, and choices with a single forward."""

    name = "transformers"

    def __init__(
        self, model: str, *, device: str | None = None, batch_size: int = 64,
        frame_bytes: int = FRAME_BYTES, decode_threads: int = 2, trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        folder = models.download(model)
        self.model, self.revision = model, models.revision(model)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.encoder = Encoder.load(folder, trust_remote_code)
        self.net = load_model(folder, self.device, trust_remote_code)
        self.batch_size, self.frame_bytes, self.decode_threads = batch_size, frame_bytes, decode_threads
        eos = self.net.generation_config.eos_token_id or self.encoder.tokenizer.eos_token_id
        self.eos_ids: list[int] = list(eos) if isinstance(eos, list | tuple) else [eos]

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Batches of the same kind in order of arrival; decoding runs ahead."""
        waiting, room = iter(requests), FIRST_AHEAD
        with ThreadPoolExecutor(self.decode_threads) as pool:
            ahead: list[tuple[Request, Future[Clip | None]]] = []
            while True:
                for request in itertools.islice(waiting, max(0, room - len(ahead))):
                    ahead.append((request, pool.submit(_decode, request)))
                if not ahead:
                    return
                batch, refused, ahead = self._next_batch(ahead)
                yield from refused
                yield from self._answer(batch)
                room = BATCHES_AHEAD * max(1, len(batch))

    def _next_batch(
        self, ahead: list[tuple[Request, Future[Clip | None]]]
    ) -> tuple[list[Asked], list[Completion], list[tuple[Request, Future[Clip | None]]]]:
        """What goes to the model next, what has no frames, and what is left."""
        kind, size = _kind(ahead[0][0]), 0
        batch: list[Asked] = []
        refused, left = [], []
        for request, future in ahead:
            if _kind(request) != kind or len(batch) == self.batch_size or size >= self.frame_bytes:
                left.append((request, future))
                continue
            try:
                clip = future.result()
            except VideoError as error:
                refused.append(Completion(request.request_id, error=str(error), error_kind="video"))
                continue
            batch.append((request, clip))
            size += clip.frames.nbytes if clip else 0
        return batch, refused, left

    def _answer(self, batch: list[Asked]) -> list[Completion]:
        """A batch that is too much for the memory, or has a request that the model cannot take, is halved."""
        if not batch:
            return []
        run = self._choose if batch[0][0].choices else self._continue
        try:
            return list(run(batch))
        except (RuntimeError, ValueError) as error:
            if len(batch) == 1:
                return [Completion(batch[0][0].request_id, error=f"{type(error).__name__}: {error}")]
            if self.device == "cuda":
                torch.cuda.empty_cache()
        middle = len(batch) // 2
        return self._answer(batch[:middle]) + self._answer(batch[middle:])

    def _inputs(self, batch: list[Asked]) -> dict[str, torch.Tensor]:
        rows = self.encoder.encode([Conversation(r.user, r.system, clip) for r, clip in batch])
        return collate(rows, self.encoder.pad_id, side="left", device=self.device)

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


def _kind(request: Request) -> tuple[object, ...]:
    """Requests that may share a batch."""
    frames = request.video.frames if request.video else None
    return request.choices, request.sampling, frames


def _decode(request: Request) -> Clip | None:
    return read_clip(request.video) if request.video else None
