"""A whole job says in its run what held it up: a slow engine, slow frames, slow prompts or a slow warehouse."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from vlm_rlaif.datagen.engine import Completion, Request, ScriptedEngine, VideoPart
from vlm_rlaif.datagen.engines.clips import Clip
from vlm_rlaif.datagen.engines.feed import Feed
from vlm_rlaif.datagen.job import run_stage
from vlm_rlaif.warehouse.runs import Outcome
from vlm_rlaif.warehouse.store import Warehouse

SLOW_S = 0.02
ENGINE_S = 0.3
"""Long enough that a busy machine is no tenth of it."""


class SlotEngine(ScriptedEngine):
    """Has two slots that are filled from a feed; every request takes a while in its slot."""

    def __init__(self, *, decode_s: float = 0.0, answer_s: float = 0.0) -> None:
        super().__init__(lambda request: "3")
        self.decode_s, self.answer_s = decode_s, answer_s

    def decode(self, part: VideoPart) -> Clip:
        time.sleep(self.decode_s)
        return Clip(np.zeros((1, 1, 1, 3), np.uint8), (0.0,))

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        with Feed(requests, self.meter, threads=1, decode=self.decode) as feed:
            while batch := feed.take(2, at_least=2):
                self.meter.mark(busy=len(batch) / 2)
                time.sleep(self.answer_s)
                self.meter.mark(busy=0)
                for ready in batch:
                    yield self._answer(ready.request)


def bound_by(warehouse: Warehouse, outcome: Outcome) -> str:
    (row,) = warehouse.rows("SELECT bound_by FROM runs")
    assert row["bound_by"] == outcome.bound_by
    return outcome.bound_by


def test_a_slow_engine(asked: Warehouse, counting: Any) -> None:
    outcome = run_stage(asked, counting(), lambda: SlotEngine(answer_s=ENGINE_S))
    assert bound_by(asked, outcome) == "engine"


def test_a_slow_decode(asked: Warehouse, counting: Any) -> None:
    outcome = run_stage(asked, counting(), lambda: SlotEngine(decode_s=2 * SLOW_S))
    assert bound_by(asked, outcome) == "decode"


def test_a_decode_that_is_hidden_behind_the_engine(asked: Warehouse, counting: Any) -> None:
    outcome = run_stage(asked, counting(), lambda: SlotEngine(decode_s=SLOW_S / 4, answer_s=ENGINE_S))
    assert bound_by(asked, outcome) == "engine"


def test_slow_prompts(asked: Warehouse, counting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = counting
    quick = stage.request

    def slow(self: Any, warehouse: Warehouse, row: Any) -> Request:
        time.sleep(SLOW_S)
        request: Request = quick(self, warehouse, row)
        return request

    monkeypatch.setattr(stage, "request", slow)
    assert bound_by(asked, run_stage(asked, stage(), SlotEngine)) == "prompt"


def test_a_slow_warehouse(asked: Warehouse, counting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = counting
    quick = stage.parse

    def slow(self: Any, row: Any, completion: Completion, run_id: str) -> Any:
        time.sleep(SLOW_S)
        return quick(self, row, completion, run_id)

    monkeypatch.setattr(stage, "parse", slow)
    assert bound_by(asked, run_stage(asked, stage(), SlotEngine)) == "warehouse"


def test_the_scripted_engine_counts_its_own_time(asked: Warehouse, counting: Any) -> None:
    def slow(request: Request) -> str:
        time.sleep(ENGINE_S / 2)
        return "3"

    assert bound_by(asked, run_stage(asked, counting(), lambda: ScriptedEngine(slow))) == "engine"


def test_a_second_job_of_an_engine_is_measured_by_itself(asked: Warehouse, counting: Any) -> None:
    engine = SlotEngine(decode_s=2 * SLOW_S)
    assert run_stage(asked, counting(), lambda: engine, limit=3).bound_by == "decode"
    engine.decode_s, engine.answer_s = 0.0, ENGINE_S
    assert run_stage(asked, counting(), lambda: engine).bound_by == "engine"
