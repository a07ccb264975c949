"""A recipe: a YAML file becomes frozen dataclasses. An unknown key is an error that names its neighbour.

Recipes are data. They choose prompts, models, frames and numbers for every stage, and nothing else; the stages
that a recipe leaves out are not run by it. Shipped recipes lie in `recipes/`; a path names one of your own. The
settings of the stages that generate stand in `settings.py` and `judge_settings.py`, and can be had from here.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from vlm_rlaif.warehouse.errors import UserError, nearest
from vlm_rlaif.warehouse.judge_settings import Grading, Judge, Labeling, Panel, Probing, check_names
from vlm_rlaif.warehouse.settings import (
    ARMS,
    LATER,
    Asking,
    Captioning,
    Clips,
    Frames,
    Narrative,
    Pairing,
    Responding,
    Sampling,
    World,
    at_least,
    key_parts,
    one_of,
)

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "ARMS", "LATER", "PPO", "Asking", "Captioning", "Clips", "Evaluation", "FineTuning", "Frames", "Judge",
    "Labeling", "Lora", "Narrative", "Panel", "Probing", "Recipe", "Responding", "Rewarding", "Sampling", "World",
    "at_least", "build", "key_parts", "load", "one_of", "replace_models", "shipped",
]  # fmt: skip

T = TypeVar("T")
S = TypeVar("S", bound="DataclassInstance")
PROMPTS = ("prompt", "context_prompt", "split_prompt", "transcripts")
"""Settings that name a prompt."""
_EXPONENT = re.compile(r"[-+]?\d+(\.\d+)?[eE][-+]?\d+")
"""YAML 1.1 reads `1e-3` as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    rank: int = 16
    alpha: float = 32.0

    def __post_init__(self) -> None:
        at_least(1, rank=self.rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuning:
    """Supervised fine-tuning on the questions that came with reference answers."""

    model: str
    prompt: str
    frames: Frames
    lora: Lora = Lora()
    learning_rate: float = 1e-3
    epochs: int = 2
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs, batch_size=self.batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewarding:
    """Reward model: LoRA and a scalar head over `model`, Bradley-Terry on soft labels."""

    model: str
    prompt: str
    context_prompt: str | None = None
    """With one, the reward model reads the captions as well, as the paper means it."""
    frames: Frames
    use_video: bool = True
    """False: the text-only control, which reads questions and responses without the video."""
    labels: str = "context"
    """Whose labels it learns from: an arm of `label:`, a judge or a panel by its name, or `random` (the control)."""
    lora: Lora = Lora()
    learning_rate: float = 1e-3
    epochs: int = 3
    batch_pairs: int = 32
    micro_batch: int = 32
    """Pairs per forward; gradients accumulate, so this changes memory and nothing else."""
    centering: float = 0.01
    min_strength: float = 0.0
    dataset: str | None = None
    """A version of the data set (`vlm-rlaif dataset`): its preferences, and no others, whatever arm they are of."""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, epochs=self.epochs, batch_pairs=self.batch_pairs, micro_batch=self.micro_batch)
        if self.dataset is not None and self.min_strength > 0:
            raise ValueError("`dataset` names the preferences: `min_strength` cannot leave some of them out")


@dataclass(frozen=True, slots=True, kw_only=True)
class PPO:
    """Proximal policy optimisation against the reward model."""

    model: str
    prompt: str
    frames: Frames
    lora: Lora = Lora()
    iterations: int = 20
    episodes: int = 128
    """Responses that are sampled per iteration."""
    epochs: int = 2
    mini_batches: int = 2
    micro_batch: int = 64
    """Sequences per forward; gradients accumulate, so this changes memory and nothing else."""
    learning_rate: float = 3e-4
    value_learning_rate: float = 1e-3
    kl_coef: float = 0.05
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    """In units of the normalised score."""
    value_coef: float = 0.5
    missing_eos_penalty: float = 1.0
    max_grad_norm: float = 1.0
    sampling: Sampling = Sampling(temperature=1.0)
    seed: int = 0
    save_every: int = 5

    def __post_init__(self) -> None:
        at_least(
            1, iterations=self.iterations, episodes=self.episodes, epochs=self.epochs, mini_batches=self.mini_batches,
            micro_batch=self.micro_batch, save_every=self.save_every,
        )  # fmt: skip
        if (self.sampling.temperature, self.sampling.top_p) != (1.0, 1.0):
            raise ValueError("`sampling` of PPO is at temperature 1 and top_p 1: it learns from what it really says")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    split: str = "test"
    best_of: int = 16
    """Sampled answers per question for the best-of-n control; 0 leaves it out."""
    win_rate: bool = True
    max_questions: int | None = None

    def __post_init__(self) -> None:
        at_least(0, best_of=self.best_of)
        one_of(("train", "val", "test"), split=self.split)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that a run does."""

    name: str
    """As it was given: the name of a shipped recipe, or the path of a file."""
    world: World | None = None
    clip: Clips | None = None
    caption: Captioning | None = None
    context: Narrative | None = None
    ask: Asking | None = None
    respond: Responding | None = None
    rate: Grading | None = None
    pair: Pairing | None = None
    label: Labeling | None = None
    judges: list[Judge] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    probe: Probing | None = None
    sft: FineTuning | None = None
    reward: Rewarding | None = None
    ppo: PPO | None = None
    evaluate: Evaluation | None = None

    def __post_init__(self) -> None:
        check_names(self.judges, self.panels, self.reward.labels if self.reward is not None else None)


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("vlm_rlaif.warehouse") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir())


def load(name: str, model: str | None = None, adapter: str | None = None) -> Recipe:
    """Read a shipped recipe by name or one of your own by path.

    `model` replaces every model in it, `adapter` the adapter of every stage that has one.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"There is no recipe file {name}.", f"Shipped recipes: {', '.join(shipped())}.")
        content = path.read_bytes()
    elif name in shipped():
        content = (resources.files("vlm_rlaif.warehouse") / "recipes" / f"{name}.yaml").read_bytes()
    else:
        raise UserError(
            f"There is no recipe {name!r}.{nearest(name, shipped())}",
            f"Shipped recipes: {', '.join(shipped())}. A file of your own ends in .yaml.",
        )
    try:
        data = yaml.safe_load(content.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8: {error}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not YAML: {error}") from None
    named = {"name": name, **(data or {})} if isinstance(data, dict | None) else data
    recipe = _with_files_beside(build(Recipe, named, name), path.parent)
    recipe = replace_models(recipe, model) if model else recipe
    return replace_adapters(recipe, str(Path(adapter).expanduser().resolve())) if adapter else recipe


def _with_files_beside(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the prompts and adapters that it names relative to itself named by their whole path."""

    def whole(key: str, value: Any) -> Any:
        is_file = key in PROMPTS and value is not None and value.endswith(".md")
        if is_file or (key == "adapter" and value):
            return str((folder / Path(value).expanduser()).resolve())
        return value

    return _edited(recipe, whole)


def _edited(settings: S, change: Callable[[str, Any], Any]) -> S:
    """Settings with `change(name, value)` for every value, on all levels."""

    def edited(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [edited(name, item) for item in value]
        is_settings = dataclasses.is_dataclass(value) and not isinstance(value, type)
        return _edited(value, change) if is_settings else change(name, value)

    found = {each.name: edited(each.name, getattr(settings, each.name)) for each in dataclasses.fields(settings)}
    return dataclasses.replace(settings, **found)


def replace_models(recipe: Recipe, model: str) -> Recipe:
    """The recipe with every stage's model replaced."""
    return _edited(recipe, lambda name, value: model if name == "model" and value is not None else value)


def replace_adapters(recipe: Recipe, adapter: str) -> Recipe:
    """The recipe with an adapter on the model of every stage that may have one; further policies and judges stay as
    they are."""
    changed = {
        stage: dataclasses.replace(settings, adapter=adapter)
        for stage in ("caption", "ask", "respond", "rate", "label")
        if (settings := getattr(recipe, stage)) is not None and settings.model is not None
    }
    return dataclasses.replace(recipe, **changed)


def build(kind: type[T], data: Any, where: str) -> T:
    """A dataclass from parsed YAML; every mistake is reported with its place, all of a level at once."""
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected keys and values, found {data!r}.")
    hints = typing.get_type_hints(kind)
    unknown = [key for key in data if key not in hints]
    missing = [
        f.name
        for f in dataclasses.fields(kind)  # type: ignore[arg-type]
        if f.name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if unknown or missing:
        lines = [f"{where}: unknown key {key!r}.{nearest(str(key), hints)}" for key in unknown]
        raise UserError(*lines, *(f"{where}: the key {key!r} is missing." for key in missing))
    values = {key: _value(hints[key], value, f"{where}: {key}") for key, value in data.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type[Any], hint), value, where)
    if typing.get_origin(hint) is list:
        if not isinstance(value, list):
            raise UserError(f"{where}: expected a list, found {value!r}.")
        return [_value(typing.get_args(hint)[0], item, where) for item in value]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where}: expected {hint.__name__}, found {value!r}.")
    return value
