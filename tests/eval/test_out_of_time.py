"""`run --max-hours`: stops between stages or within one, trains nothing, ends well, and goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlm_rlaif.datagen import portion
from vlm_rlaif.datagen.engine import Engine, Request, ScriptedEngine
from vlm_rlaif.datagen.engines import make as making
from vlm_rlaif.datagen.portion import Portion
from vlm_rlaif.eval.conductor import Journey, OutOfTime
from vlm_rlaif.warehouse.store import Warehouse

Clock = Callable[[float], None]


def answer(request: Request) -> str | dict[str, float]:
    if request.choices:
        return {"A": 0.6, "B": 0.3, "C": 0.1}
    return "Why ?" if request.video is None else f"{request.user} {request.seed} {request.video.start_s}"


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What a clock shows that stands still unless a test turns it."""
    shown = [0.0]
    monkeypatch.setattr(portion, "time", SimpleNamespace(monotonic=lambda: 3600 * shown[0]))
    return shown


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, hours: list[float]) -> list[str]:
    """Models that were loaded. Scripted engines take their place, which need a quarter of an hour for a row."""
    models: list[str] = []

    def slowly(request: Request) -> str | dict[str, float]:
        hours[0] += 0.25
        return answer(request)

    def load(settings: Any, model: str) -> Engine:
        models.append(model)
        return ScriptedEngine(slowly)

    monkeypatch.setattr(making, "make", load)
    return models


def counts(warehouse: Warehouse) -> dict[str, int]:
    tables = ("clips", "captions", "contexts", "responses", "pairs", "labels")
    return {table: warehouse.value(f"SELECT count(*) FROM {table}") for table in tables}


def test_without_any_time_no_model_is_loaded(
    asked: Warehouse, recipe_file: Path, command: Any, loaded: list[str]
) -> None:
    said = command("run", asked.path, recipe_file, "--max-hours", 0)
    assert said.code == 0, said.err
    assert said.out.splitlines()[-2:] == [
        "  caption: 0 rows written, 6 left to do",
        "Stopped after 0.0 hours. The same command continues from here.",
    ]
    assert loaded == [] and counts(asked)["captions"] == 0


def test_the_same_command_goes_on_until_everything_is_there(
    asked: Warehouse, recipe_file: Path, command: Any, loaded: list[str], hours: list[float]
) -> None:
    """6 captions, 12 responses and 24 labels are 42 rows: 8 in two hours."""
    done, stopped = [], True
    while stopped:
        hours[0] = 0.0
        said = command("run", asked.path, recipe_file, "--max-hours", 2)
        assert said.code == 0, said.err
        stopped = "Stopped" in said.out
        now = counts(asked)
        done.append(now["captions"] + now["responses"] + now["labels"])
    assert done == [8, 16, 24, 32, 40, 42]
    assert counts(asked) == {"clips": 6, "captions": 6, "contexts": 3, "responses": 12, "pairs": 6, "labels": 24}


def test_nothing_is_trained_when_the_time_is_over(hours: list[float]) -> None:
    def never() -> Any:
        raise AssertionError("There is no time for training.")

    journey = Journey(Portion(max_hours=2))
    hours[0] = 2.0
    with pytest.raises(OutOfTime):
        journey.train("rm", never)
    trained = SimpleNamespace(where="there")
    assert Journey(Portion(max_hours=3)).train("rm", lambda: trained) is trained  # type: ignore[arg-type,return-value]
