"""One base model, several LoRA adapters, scalar heads: how policy, value, reward and reference share weights.

Only the language model gets adapters; the vision tower stays as it is. Adapters are switched by `activate`, which
also says which one may learn: PEFT's own switching silently freezes and un-freezes others.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from vlm_rlaif.datagen import models
from vlm_rlaif.datagen.engines.encode import Encoder
from vlm_rlaif.datagen.engines.transformers_engine import load_model
from vlm_rlaif.train.data import Batch
from vlm_rlaif.train.reward_math import head_init_std
from vlm_rlaif.warehouse.config import Lora
from vlm_rlaif.warehouse.errors import UserError

TARGETS = r".*(language_model|text_model).*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""The linear layers of the language model, whatever its class calls it; vision towers have neither name."""
ADAPTER, HEAD, CARD = "adapter_model.safetensors", "head.safetensors", "vlm_rlaif.json"
BEFORE = "adapter.safetensors"
"""What the adapter's file was called before it had the name that peft, vLLM and `--adapter` look for."""


class Backbone:
    """A video-language model with named adapters. Without an active one it is the checkpoint it started from."""

    def __init__(self, model: str, device: str | None = None) -> None:
        folder = models.download(model)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.revision, self.device = model, models.revision(model), device
        self.encoder = Encoder.load(folder)
        self.base = load_model(folder, device)
        self.peft: PeftModel | None = None
        for parameter in self.base.parameters():
            parameter.requires_grad_(False)

    @property
    def hidden_size(self) -> int:
        return int(self.base.config.get_text_config().hidden_size)

    @property
    def eos_id(self) -> int:
        """The token that ends a response, appended in training and in scoring alike."""
        return int(self.encoder.tokenizer.eos_token_id)

    def add_adapter(self, name: str, lora: Lora) -> None:
        """A new adapter that changes nothing yet."""
        # transformers warns about its own use of a deprecated name whenever an adapter is added
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=TARGETS)
        if self.peft is None:
            try:
                self.peft = get_peft_model(self.base, config, adapter_name=name)
            except ValueError as error:
                raise UserError(f"No LoRA adapter fits {self.model}: {error}") from None
            self.base.eval()
        else:
            self.peft.add_adapter(name, config)

    def adapter_weights(self, name: str) -> dict[str, torch.Tensor]:
        """The adapter's tensors, detached, by names without the adapter's own."""
        return {
            key: tensor.detach().clone()
            for key, tensor in get_peft_model_state_dict(self.peft, adapter_name=name).items()
        }

    def load_adapter_weights(self, name: str, weights: dict[str, torch.Tensor]) -> None:
        """Fill an adapter of the same shape; anything missing or left over is an error."""
        own = set(self.adapter_weights(name))
        if own != set(weights):
            raise UserError(f"The adapter does not fit this base model: {len(own ^ set(weights))} tensors differ.")
        set_peft_model_state_dict(self.peft, weights, adapter_name=name)

    def parameters_of(self, name: str) -> list[nn.Parameter]:
        """The adapter's parameters, whether they may learn at the moment or not."""
        return [p for n, p in self.base.named_parameters() if f".{name}." in n]

    @contextmanager
    def activate(self, name: str | None, *, learn: bool = False) -> Iterator[None]:
        """Run the base with one adapter (None = as it started). Backward must happen inside."""
        try:
            if self.peft is None:
                yield
            elif name is None:
                with self.peft.disable_adapter():
                    yield
            else:
                self.peft.set_adapter(name)
                self._may_learn(name if learn else None)
                yield
        finally:
            self._may_learn(None)

    def _may_learn(self, name: str | None) -> None:
        for n, parameter in self.base.named_parameters():
            parameter.requires_grad_(name is not None and f".{name}." in n)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Last hidden states (B, T, H)."""
        states: torch.Tensor = self.base.model(**batch.inputs()).last_hidden_state
        return states

    def response_logits(self, batch: Batch, forbidden: list[int]) -> torch.Tensor:
        """Logits (N, V) that predict the N response tokens of the batch, row by row.

        The (B, T, V) tensor is never made. `forbidden` tokens are impossible, as they are in sampling.
        """
        states = self.hidden(batch)[:, :-1][batch.target[:, 1:]]
        logits: torch.Tensor = self.base.lm_head(states).float()
        logits[:, forbidden] = -torch.inf
        return logits


def scalar_head(hidden_size: int, *, zero: bool = False) -> nn.Linear:
    """hidden -> one number; small random weights, or zeros for a critic that starts by expecting nothing."""
    head = nn.Linear(hidden_size, 1)
    nn.init.zeros_(head.bias)
    if zero:
        nn.init.zeros_(head.weight)
    else:
        nn.init.normal_(head.weight, std=head_init_std(hidden_size))
    return head


def save_adapter(folder: Path, backbone: Backbone, name: str, head: nn.Linear | None, card: dict[str, Any]) -> None:
    """Adapter (in peft's format), head and a card that says what they belong to. The card is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    assert backbone.peft is not None
    config = copy(backbone.peft.peft_config[name])
    config.base_model_name_or_path, config.inference_mode = backbone.model, True
    config.save_pretrained(folder)
    save_file(backbone.adapter_weights(name), folder / ADAPTER, metadata={"format": "pt"})
    if head is not None:
        save_file({k: v.detach().clone() for k, v in head.state_dict().items()}, folder / HEAD)
    full = {"base": backbone.model, "base_revision": backbone.revision, **card}
    (folder / CARD).write_text(json.dumps(full, indent=1), encoding="utf-8")


def export(folder: Path, backbone: Backbone, name: str) -> None:
    """A plain checkpoint with the adapter merged in, for any engine. The backbone itself stays untouched."""
    scale = {n: m.scaling[name] for n, m in backbone.base.named_modules() if hasattr(m, "lora_A")}
    weights = dict(backbone.base.state_dict())
    plain: dict[str, torch.Tensor] = {}
    for key, tensor in weights.items():
        if ".lora_" in key:
            continue
        module = key.removesuffix(".base_layer.weight")
        if module != key:
            a, b = (weights[f"{module}.lora_{side}.{name}.weight"].float() for side in "AB")
            tensor = (tensor.float() + scale[module] * (b @ a)).to(tensor.dtype)
        plain[key.replace(".base_layer.", ".")] = tensor.detach().clone()
    fresh = load_model(models.download(backbone.model), "cpu")
    missing = fresh.load_state_dict(plain, strict=False)
    if missing.unexpected_keys:
        raise RuntimeError(f"export would drop {missing.unexpected_keys[:3]}")
    fresh.save_pretrained(folder)
    backbone.encoder.processor.save_pretrained(folder)


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a checkpoint that `save_adapter` wrote."""
    if not (folder / CARD).is_file():
        raise UserError(f"{folder} is not a trained checkpoint: it has no {CARD}.")
    card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
    return card


def load_adapter(folder: Path, backbone: Backbone, name: str) -> dict[str, Any]:
    """Put a saved adapter on its base under a name; refuses any other base. Returns its card."""
    card = read_card(folder)
    if card["base_revision"] != backbone.revision:
        raise UserError(
            f"{folder} was trained on {card['base']} ({card['base_revision']}),",
            f"not on {backbone.model} ({backbone.revision}).",
        )
    backbone.add_adapter(name, Lora(**card["lora"]))
    file = folder / (ADAPTER if (folder / ADAPTER).is_file() else BEFORE)
    backbone.load_adapter_weights(name, load_file(file))
    return card


def load_head(folder: Path, hidden_size: int) -> nn.Linear:
    """The saved head; a missing one is an error, never a random head."""
    if not (folder / HEAD).is_file():
        raise UserError(f"{folder} has no {HEAD}: it is not a reward model.")
    head = scalar_head(hidden_size)
    head.load_state_dict(load_file(folder / HEAD))
    return head
