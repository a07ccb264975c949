"""One tiny prompt that tells whether a model, or an adapter on it, is what it should be, before the work begins.

A broken download, a quantisation that overflows, an adapter whose tensors have the wrong names: all of them load, and
then answer nonsense. A canary is asked when a model has loaded, and after every change of its weights or adapter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import click

from vlm_rlaif.datagen.adapters import Adapter, is_trained
from vlm_rlaif.datagen.engine import Engine, Request
from vlm_rlaif.datagen.engines.encode import Conversation, Encoder
from vlm_rlaif.warehouse.errors import UserError

WORDS = "which is better ? A or B ?"
LABELS = ("A", "B", "C", "a", "b", "c", "0", "1")
"""Those that are one token of the model are compared."""
NOISE = {True: 1e-3, False: 0.1}
"""How far equal log-probabilities lie apart: in exact arithmetic, and in that of graphics cards."""


class Canary:
    """Knows what the model says by itself; raises `UserError` when something has gone wrong."""

    def __init__(self, engine: Engine, encoder: Encoder, *, vocabulary: int, exact: bool) -> None:
        """`vocabulary` is how many tokens the model has embeddings of; `exact`: its arithmetic repeats itself."""
        self._engine, self._noise = engine, NOISE[exact]
        self._labels = _labels(engine.model, encoder, vocabulary)
        self._alone = self._sing("")

    def after_weights(self) -> None:
        """The engine has new weights: what it says by itself is something else from now on."""
        self._alone = self._sing("")

    def after_adapter(self, adapter: Adapter) -> None:
        """An adapter was loaded: it must change what is said, and only where it is asked for."""
        worn = self._sing(str(adapter.folder))
        if worn == self._alone and is_trained(adapter):
            raise UserError(
                f"The adapter {adapter.folder} changes nothing on {self._engine.model}, although it was trained:",
                f"  the engine {self._engine.name} did not find the layers that its tensors name.",
            )
        if worn == self._alone:
            click.echo(f"Warning: the adapter {adapter.folder} was never trained: it changes nothing.", err=True)
            return
        again = self._sing("")
        if _distance(again, self._alone) > self._noise:
            raise UserError(
                f"The adapter {adapter.folder} also changes requests that do not ask for it, by"
                f" {_distance(again, self._alone):.3g} in log-probability: the engine {self._engine.name} cannot be"
                " trusted with it."
            )

    def _sing(self, adapter: str) -> Mapping[str, float]:
        """Log-probabilities of the labels."""
        [said] = self._engine.generate([Request("canary", WORDS, choices=self._labels, adapter=adapter)])
        whom = f"{self._engine.model} with {adapter}" if adapter else self._engine.model
        if said.error:
            raise UserError(f"{whom} cannot answer a first, tiny prompt:", f"  {said.error}")
        if not all(math.isfinite(value) for value in said.choice_logprobs.values()):
            raise UserError(
                f"{whom} computes no numbers (its log-probabilities are {list(said.choice_logprobs.values())[:3]}).",
                "Its weights are damaged, or overflow in this precision: fetch them again, or try another dtype.",
            )
        return said.choice_logprobs


def _labels(model: str, encoder: Encoder, vocabulary: int) -> tuple[str, ...]:
    """The labels to compare. The tokenizer and its template have to go with the model."""
    rendered = encoder.prompt(Conversation(WORDS))
    if WORDS not in rendered or rendered.rstrip().endswith(WORDS):
        raise UserError(f"The chat template of {model} loses the user's words, or opens no turn for the answer.")
    ids = encoder.tokenizer.encode(rendered, add_special_tokens=False)
    if max(ids) >= vocabulary:
        raise UserError(
            f"The tokenizer of {model} does not go with its weights: token {max(ids)} of {vocabulary}.",
            "Both have to come from one download.",
        )
    found = tuple(label for label in LABELS if len(encoder.tokenizer.encode(label, add_special_tokens=False)) == 1)
    if not found:
        raise UserError(f"The tokenizer of {model} has no token for any of {', '.join(LABELS)}.")
    return found


def _distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    return max(abs(one[label] - other[label]) for label in one)
