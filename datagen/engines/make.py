"""Which engine runs a model: `auto` is vLLM where it is installed beside a GPU, else transformers."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from shutil import which

from vlm_rlaif.datagen.engine import Engine
from vlm_rlaif.warehouse.errors import MissingExtra

ENGINES = ("auto", "transformers", "vllm")


def choose(name: str) -> str:
    """Resolve `auto`."""
    if name != "auto":
        return name
    return "vllm" if find_spec("vllm") and which("nvidia-smi") else "transformers"


def make(name: str, model: str) -> Engine:
    """Load a model into an engine. Heavy: nothing before this imports torch."""
    if choose(name) == "vllm":
        if find_spec("vllm") is None:
            raise MissingExtra("The vLLM engine", "vllm")
        from vlm_rlaif.datagen.engines.vllm_engine import VLLMEngine

        return VLLMEngine(model)
    if find_spec("transformers") is None or find_spec("torch") is None:
        raise MissingExtra("The transformers engine", "models")
    from vlm_rlaif.datagen.engines.transformers_engine import TransformersEngine

    return TransformersEngine(model)


class Engines:
    """Engines by model, each loaded once and shared by the stages that ask for the same model."""

    def __init__(self, name: str = "auto") -> None:
        self._name = name
        self._loaded: dict[str, Engine] = {}

    def of(self, model: str) -> Callable[[], Engine]:
        """A promise of the engine: the model loads when it is first called."""

        def load() -> Engine:
            if model not in self._loaded:
                if choose(self._name) == "vllm":  # one engine takes the whole GPU
                    self.close()
                self._loaded[model] = make(self._name, model)
            return self._loaded[model]

        return load

    def close(self) -> None:
        for engine in self._loaded.values():
            engine.close()
        self._loaded.clear()
