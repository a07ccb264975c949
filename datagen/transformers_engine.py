"""The engine that runs anywhere: any transformers video VLM, on the CPU or one GPU.

Frames are decoded in threads ahead of the model. Prompts run in batches of similar kind; for throughput on a GPU
use `vllm_engine.py`, which has the same seam.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from vlm_rlaif.datagen import models
from vlm_rlaif.datagen.decoding import draw
from vlm_rlaif.datagen.encode import Clip, Conversation, Encoder, collate, read_clip
from vlm_rlaif.datagen.engine import Completion, Request
from vlm_rlaif.warehouse.errors import MissingExtra, UserError
from vlm_rlaif.warehouse.video import VideoError

BATCHES_AHEAD = 4
"""Batches whose frames are decoded while the model works; bounds the memory that frames take."""


class TransformersEngine:
    """Answers requests with `generate`, and choices with a single forward."""

    name = "transformers"

    def __init__(
        self, model: str, *, device: str | None = None, batch_size: int = 64,
        decode_threads: int = 2, trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        folder = models.resolve(model)
        self.model, self.revision = model, models.revision(model)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.encoder = Encoder.load(folder, trust_remote_code)
        self.net = load_model(folder, self.device, trust_remote_code)
        self.batch_size, self.decode_threads = batch_size, decode_threads
        eos = self.net.generation_config.eos_token_id or self.encoder.tokenizer.eos_token_id
        self.eos_ids: list[int] = list(eos) if isinstance(eos, list | tuple) else [eos]

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Batches of the same kind in order of arrival; decoding runs ahead."""
        waiting = iter(requests)
        with ThreadPoolExecutor(self.decode_threads) as pool:
            ahead: list[tuple[Request, Future[Clip | None]]] = []
            while True:
                room = self.batch_size * BATCHES_AHEAD - len(ahead)
                for request in itertools.islice(waiting, room):
                    ahead.append((request, pool.submit(_decode, request)))
                if not ahead:
                    return
                kind = _kind(ahead[0][0])
                batch = [entry for entry in ahead if _kind(entry[0]) == kind][: self.batch_size]
                taken = {id(entry) for entry in batch}
                ahead = [entry for entry in ahead if id(entry) not in taken]
                yield from self._answer(batch)

    def _answer(self, batch: list[tuple[Request, Future[Clip | None]]]) -> Iterator[Completion]:
        good: list[tuple[Request, Clip | None]] = []
        for request, future in batch:
            try:
                good.append((request, future.result()))
            except VideoError as error:
                yield Completion(request.request_id, error=str(error), error_kind="video")
        if good:
            run = self._choose if good[0][0].choices else self._continue
            yield from run(good)

    def _inputs(self, batch: list[tuple[Request, Clip | None]]) -> dict[str, torch.Tensor]:
        rows = self.encoder.encode([Conversation(r.user, r.system, clip) for r, clip in batch])
        return collate(rows, self.encoder.pad_id, side="left", device=self.device)

    @torch.no_grad()
    def _choose(self, batch: list[tuple[Request, Clip | None]]) -> Iterator[Completion]:
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

    def _continue(self, batch: list[tuple[Request, Clip | None]]) -> Iterator[Completion]:
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
    """A video-language model in evaluation mode: fp32 on the CPU, its own precision on a GPU."""
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
