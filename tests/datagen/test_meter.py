"""The meter: every second has a cause, and the largest loss has a name."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.datagen.meter import CAUSES, ENGINE_BOUND, Meter


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


STEPS = st.tuples(st.floats(0, 1), st.sampled_from(CAUSES), st.floats(0, 100))
"""(share of the slots that work from now on, what the others wait for, how many seconds)."""


@given(steps=st.lists(STEPS, max_size=30))
def test_the_seconds_of_all_causes_are_the_time_that_passed(steps: list[tuple[float, str, float]]) -> None:
    clock = Clock()
    meter = Meter(clock)
    wanted = dict.fromkeys(CAUSES, 0.0)
    for busy, cause, seconds in steps:
        meter.mark(busy=busy, cause=cause)
        clock.now += seconds
        wanted["engine"] += busy * seconds
        wanted[cause] += (1 - busy) * seconds
    assert meter.seconds() == pytest.approx(wanted)
    assert sum(meter.seconds().values()) == pytest.approx(clock.now)


@given(steps=st.lists(STEPS, min_size=1, max_size=30))
def test_a_stream_is_bound_by_its_engine_or_by_what_it_waited_for_most(
    steps: list[tuple[float, str, float]],
) -> None:
    clock = Clock()
    meter = Meter(clock)
    for busy, cause, seconds in steps:
        meter.mark(busy=busy, cause=cause)
        clock.now += seconds
    seconds_by, bound = meter.seconds(), meter.bound_by()
    if not clock.now:
        assert bound == ""
    elif bound == "engine":
        assert seconds_by["engine"] >= ENGINE_BOUND * sum(seconds_by.values())
    else:
        assert seconds_by[bound] == max(seconds_by[cause] for cause in CAUSES[1:]) > 0


def test_shares_beyond_all_or_nothing_are_held_to_it() -> None:
    clock = Clock()
    meter = Meter(clock)
    for busy in (1.7, -0.5):
        meter.mark(busy=busy)
        clock.now += 1
    assert meter.seconds() == {"engine": 1.0, "decode": 0.0, "prompt": 1.0, "warehouse": 0.0}


def test_blocks_stand_in_each_other_and_leave_things_as_they_were() -> None:
    clock = Clock()
    meter = Meter(clock)
    with meter.waiting_for("warehouse"):
        clock.now += 1
        with meter.waiting_for("decode"):
            clock.now += 2
        clock.now += 4
        with meter.working():
            clock.now += 8
    clock.now += 16
    assert meter.seconds() == {"engine": 8.0, "decode": 2.0, "prompt": 16.0, "warehouse": 5.0}


def test_a_meter_begins_anew() -> None:
    clock = Clock()
    meter = Meter(clock)
    meter.mark(busy=1.0, cause="decode")
    clock.now += 3
    meter.reset()
    assert meter.bound_by() == "" and sum(meter.seconds().values()) == 0
    clock.now += 1
    assert meter.bound_by() == "prompt"


def test_threads_may_share_a_meter() -> None:
    meter = Meter()

    def work() -> None:
        for number in range(2000):
            meter.mark(busy=number % 2, cause=CAUSES[number % 4])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(seconds >= 0 for seconds in meter.seconds().values())
