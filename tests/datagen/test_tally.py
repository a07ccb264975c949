"""The words beside the progress bar, and when a prefix cache is worth a warning."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlm_rlaif.datagen.engine import Completion, Request, VideoPart
from vlm_rlaif.datagen.meter import Meter
from vlm_rlaif.datagen.tally import Tally
from vlm_rlaif.warehouse.config import Frames


def about(name: str, **more: Any) -> Request:
    return Request("r", "words", video=VideoPart(Path(name), Frames(count=1)) if name else None, **more)


def tally_of(*requests: Request, cached: int = 0, tokens_in: int = 100) -> Tally:
    tally = Tally(Meter())
    for request in requests:
        tally.begin(request)
        tally.count(Completion("r", tokens_in=tokens_in, cached_tokens=cached))
    return tally


def test_it_says_how_fast_it_goes_and_what_holds_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = Tally(Meter(), rows=32, failed=1234, tokens_in=41_000, tokens_out=2_100, cached_tokens=25_830)
    monkeypatch.setattr("vlm_rlaif.datagen.tally.time", SimpleNamespace(monotonic=lambda: tally.started + 10))
    said = "3.2 rows/s, bound by prompt, 1,234 failed, 4.1k tok/s in, 210 out, 63% cached"
    assert str(tally) == said
    assert str(Tally(tally.meter, tally.started, rows=5)) == "0.5 rows/s, bound by prompt"


def test_a_tally_can_be_read_before_anything_came_back() -> None:
    tally = Tally(Meter())
    assert tally.hit_rate == 0 and not tally.misses_its_cache() and "rows/s" in str(tally)


@pytest.mark.parametrize(
    ("requests", "repeats"),
    [
        ([about("a"), about("a"), about("b"), about("a"), about("a")], 2),
        ([about(""), about("")], 0),  # no video: what they share may be short
        ([about("a", system="x"), about("a", system="y")], 0),
        ([about("a", adapter="x"), about("a", adapter="y")], 0),
    ],
)
def test_requests_that_begin_like_the_one_before_are_counted(requests: list[Request], repeats: int) -> None:
    assert tally_of(*requests).repeats == repeats


def test_a_cache_that_misses_although_prompts_repeat_is_noticed() -> None:
    same, different = [about("a")] * 4, [about(name) for name in "abcd"]
    assert tally_of(*same).misses_its_cache()
    assert "0% of the prompt tokens" in tally_of(*same).words_about_cache()
    assert "75% of the requests" in tally_of(*same).words_about_cache()
    assert not tally_of(*same, cached=60).misses_its_cache()
    assert not tally_of(*different).misses_its_cache()
    assert not tally_of(*same, tokens_in=0).misses_its_cache(), "an engine that counts no tokens"
