"""Which engine runs a model, and what is said about options that it does not have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm_rlaif.datagen.cli import engine_settings
from vlm_rlaif.datagen.engine import Engine, ScriptedEngine
from vlm_rlaif.datagen.engines import make as making
from vlm_rlaif.datagen.engines.make import Engines, EngineSettings, make
from vlm_rlaif.warehouse.errors import MissingExtra, UserError
from vlm_rlaif.warehouse.store import Warehouse


class Optional(ScriptedEngine):
    """Has options of its own, and passes none on."""

    def __init__(self, model: str, *, batch_size: int = 8, share: float = 0.5, device: str | None = None) -> None:
        super().__init__(lambda request: "")
        self.given: dict[str, Any] = {"batch_size": batch_size, "share": share, "device": device}


class Passing(Optional):
    def __init__(self, model: str, *, batch_size: int = 8, **passed: Any) -> None:
        super().__init__(model, batch_size=batch_size)
        self.given |= passed


Build = Callable[..., Any]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds an engine that takes the place of the one that runs anywhere."""

    def built(engine: type[Engine], **options: Any) -> Any:
        monkeypatch.setattr("vlm_rlaif.datagen.engines.transformers_engine.TransformersEngine", engine)
        return make(EngineSettings("transformers", options=options), "some/model")

    pytest.importorskip("torch")
    return built


def settings(
    *pairs: str, name: str = "auto", servers: tuple[str, ...] = (), workers: int | None = None
) -> EngineSettings:
    return engine_settings(name, servers, workers, pairs)


def test_options_are_read_as_yaml() -> None:
    pairs = (
        "tensor_parallel_size=2",
        "enforce_eager=true",
        "quantization=fp8",
        "share=0.5",
        "limits={video: 1}",
        "x=",
    )
    assert settings(*pairs).options == {
        "tensor_parallel_size": 2, "enforce_eager": True, "quantization": "fp8", "share": 0.5, "limits": {"video": 1},
        "x": None,
    }  # fmt: skip
    assert settings("a=b=c").options == {"a": "b=c"}


@pytest.mark.parametrize("pair", ["batch_size", "=2", "batch size=2", "batch-size=2", "x=[1", "x={a"])
def test_an_option_that_is_no_pair_is_refused(pair: str) -> None:
    with pytest.raises(UserError, match="write NAME=VALUE"):
        settings(pair)


def test_options_reach_the_engine(build: Build) -> None:
    assert build(Optional, batch_size=2, share=1, device="cpu").given == {
        "batch_size": 2,
        "share": 1,
        "device": "cpu",
    }
    assert build(Passing, batch_size=2, tensor_parallel_size=2).given["tensor_parallel_size"] == 2


def test_an_unknown_option_names_the_nearest_and_all_there_are(build: Build) -> None:
    with pytest.raises(UserError, match="has no option 'batchsize'") as raised:
        build(Optional, batchsize=2)
    assert "Did you mean 'batch_size'?" in str(raised.value)
    assert "Its options: batch_size, share, device." in str(raised.value)
    with pytest.raises(UserError, match="has no option 'model'"):
        build(Optional, model="another")


@pytest.mark.parametrize(("option", "value"), [("batch_size", "many"), ("share", "all"), ("batch_size", 0.5)])
def test_an_option_of_the_wrong_kind_is_said(build: Build, option: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"The option {option} .* not {value!r}"):
        build(Optional, **{option: value})


def test_a_mistake_inside_of_an_engine_keeps_its_traceback(build: Build) -> None:
    class Broken(Optional):
        def __init__(self, model: str, *, batch_size: int = 8) -> None:
            dict(unexpected_keyword_argument=batch_size, **{"unexpected_keyword_argument": 1})

    with pytest.raises(TypeError):
        build(Broken, batch_size=2)


def test_addresses_choose_the_server_engine() -> None:
    assert settings(servers=("http://h/v1",)).chosen == "server"
    assert settings(servers=("http://h/v1",), name="server").servers == ("http://h/v1",)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "vllm", "servers": ("http://h/v1",)}, "--server and --engine vllm do not go together"),
        ({"name": "server"}, "--engine server needs an address"),
        ({"name": "vllm", "workers": 2}, "--workers are those of --engine ray"),
    ],
)
def test_engines_and_options_that_do_not_go_together_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(**given)


@pytest.mark.parametrize(
    ("installed", "card", "chosen"),
    [(True, True, "vllm"), (True, False, "transformers"), (False, True, "transformers")],
)
def test_auto_is_vllm_where_it_is_installed_beside_a_gpu(
    monkeypatch: pytest.MonkeyPatch, installed: bool, card: bool, chosen: str
) -> None:
    monkeypatch.setattr(making, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(making, "which", lambda name: "/usr/bin/nvidia-smi" if card else None)
    assert EngineSettings().chosen == chosen
    assert EngineSettings("ray").chosen == "ray"


@pytest.mark.parametrize(("name", "extra"), [("vllm", "vllm"), ("ray", "ray"), ("transformers", "models")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    monkeypatch.setattr(making, "find_spec", lambda package: None)
    with pytest.raises(MissingExtra, match=rf"vlm-rlaif\[{extra}\]"):
        make(EngineSettings(name), "some/model")


def test_a_model_is_loaded_once_and_only_when_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(settings: EngineSettings, model: str) -> Engine:
        loaded.append(model)
        return Optional(model)

    monkeypatch.setattr(making, "make", load)
    engines = Engines(EngineSettings("transformers"))
    first, second = engines.of("a"), engines.of("b")
    assert loaded == []
    assert first() is first() is engines.of("a")() and second() is not first()
    assert loaded == ["a", "b"]


def test_an_engine_that_takes_all_cards_is_closed_before_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Closing(Optional):
        def close(self) -> None:
            events.append("closed")

    def load(settings: EngineSettings, model: str) -> Engine:
        events.append(f"loaded {model}")
        return Closing(model)

    monkeypatch.setattr(making, "make", load)
    engines = Engines(EngineSettings("vllm"))
    engines.of("a")(), engines.of("b")()
    engines.close()
    assert events == ["loaded a", "closed", "loaded b", "closed"]


def test_a_mistake_in_the_options_is_one_of_the_user_on_the_command_line(
    asked: Warehouse, recipe_file: Path, command: Any
) -> None:
    respond = ("datagen", "respond", asked.path, "--recipe", recipe_file)
    for arguments, words in (
        (("--engine-option", "batch_size"), "write NAME=VALUE"),
        (("--engine", "transformers", "--server", "http://h/v1"), "do not go together"),
        (("--shard", "3/2"), "give a part and how many there are"),
        (("--show", "2"), "--show K prints prompts of a --dry-run"),
        (("--calibrate", "2", "--dry-run"), "neither --dry-run nor --limit"),
        (("--calibrate", "2", "--limit", "5"), "neither --dry-run nor --limit"),
    ):
        said = command(*respond, *arguments)
        assert said.code == 2 and words in said.err and "Traceback" not in said.err
