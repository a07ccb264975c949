"""The feed: frames are decoded ahead within a bound of memory and shared, and nobody waits for a slow video."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_rlaif.datagen.engine import Halted, Request, VideoPart
from vlm_rlaif.datagen.engines.clips import Clip
from vlm_rlaif.datagen.engines.feed import Feed, Ready
from vlm_rlaif.datagen.meter import Meter
from vlm_rlaif.warehouse.config import Frames
from vlm_rlaif.warehouse.media.video import VideoError

FRAMES = Frames(count=1)
Decode = Callable[[VideoPart], Clip]


def video(name: object) -> VideoPart:
    return VideoPart(Path(str(name)), FRAMES)


def about(number: int, part: VideoPart | None) -> Request:
    return Request(f"r{number}", "words", video=part)


def clip_of(size: int) -> Clip:
    return Clip(np.zeros((1, 1, size, 1), dtype=np.uint8), (0.0,))


def by_size(part: VideoPart) -> Clip:
    """The name of a video is its size in bytes; `bad` cannot be read."""
    name = part.path.name.split("-")[0]
    if name == "bad":
        raise VideoError("It is no video.")
    return clip_of(int(name))


def drain(feed: Feed, most: int = 1000, at_least: int = 1) -> list[list[Ready]]:
    """Everything, as it was taken."""
    taken = []
    while batch := feed.take(most, at_least=at_least):
        taken.append(batch)
    return taken


def ids(batches: list[list[Ready]]) -> list[str]:
    return [ready.request.request_id for batch in batches for ready in batch]


def slow_twin(requests: list[Request], decode: Decode) -> dict[str, int | str]:
    """What every request comes with: one after the other, nothing ahead, nothing shared."""
    found: dict[str, int | str] = {}
    for request in requests:
        try:
            found[request.request_id] = decode(request.video).frames.nbytes if request.video else 0
        except VideoError as error:
            found[request.request_id] = str(error)
    return found


def outcome(ready: Ready) -> int | str:
    if ready.refused:
        assert ready.refused.request_id == ready.request.request_id and ready.refused.error_kind == "video"
        return ready.refused.error
    return ready.clip.frames.nbytes if ready.clip else 0


NAMES = st.none() | st.sampled_from(["bad", "1", "10", "10-b", "100", "1000"])


@settings(max_examples=150)
@given(
    names=st.lists(NAMES, max_size=40), ahead=st.integers(1, 12), threads=st.integers(1, 4),
    most_bytes=st.integers(0, 2500), most=st.integers(1, 8), at_least=st.integers(1, 8), whole=st.booleans(),
)  # fmt: skip
def test_every_request_comes_once_with_its_own_frames_as_in_the_slow_twin(
    names: list[str | None], ahead: int, threads: int, most_bytes: int, most: int, at_least: int, whole: bool
) -> None:
    requests = [about(number, video(name) if name else None) for number, name in enumerate(names)]

    def backwards(ready: list[Ready]) -> list[Ready]:
        return ready[::-1][:most]

    found: dict[str, int | str] = {}
    with Feed(requests, Meter(), ahead=ahead, threads=threads, most_bytes=most_bytes, decode=by_size) as feed:
        while batch := feed.take(most, at_least=at_least, choose=None if whole else backwards):
            assert len(batch) <= most
            found |= {ready.request.request_id: outcome(ready) for ready in batch}
        assert feed.ended and len(feed) == 0 == feed.decoding
    assert found == slow_twin(requests, by_size)


@settings(max_examples=100)
@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=40), threads=st.integers(1, 4),
    most_bytes=st.integers(1, 1000),
)  # fmt: skip
def test_frames_that_wait_never_take_more_memory_than_was_given(
    sizes: list[int], threads: int, most_bytes: int
) -> None:
    """Beyond it may go: one clip alone, and what the threads decode when clips become larger than those before."""
    requests = [about(number, video(f"{size}-{number}")) for number, size in enumerate(sizes)]
    held, peak, lock = 0, 0, threading.Lock()

    def decode(part: VideoPart) -> Clip:
        nonlocal held, peak
        clip = by_size(part)
        with lock:
            held += clip.frames.nbytes
            peak = max(peak, held)
        return clip

    with Feed(requests, Meter(), threads=threads, most_bytes=most_bytes, decode=decode) as feed:
        while batch := feed.take(1, at_least=1):
            with lock:
                held -= sum(ready.clip.frames.nbytes for ready in batch if ready.clip)
    largest = max(sizes)
    assert peak <= max(most_bytes, largest) + threads * largest
    if len(set(sizes)) == 1 and threads == 1:
        assert peak <= max(most_bytes, largest)


def test_requests_that_are_ready_leave_in_their_order() -> None:
    requests = [about(number, video(f"1-{number}")) for number in range(20)]
    with Feed(requests, Meter(), threads=1, decode=by_size) as feed:
        assert ids(drain(feed, most=20, at_least=20)) == [f"r{number}" for number in range(20)]


def test_a_slow_video_holds_nobody_up() -> None:
    go = threading.Event()

    def decode(part: VideoPart) -> Clip:
        if part.path.name == "slow":
            assert go.wait(10)
        return clip_of(1)

    requests = [about(0, video("slow")), *(about(number, video(number)) for number in range(1, 10)), about(10, None)]
    with Feed(requests, Meter(), threads=2, decode=decode) as feed:
        first = feed.take(100, at_least=10)
        assert sorted(ids([first])) == sorted(f"r{number}" for number in range(1, 11))
        assert feed.take(100) == [] and len(feed) == 1 == feed.decoding
        go.set()
        assert ids(drain(feed)) == ["r0"]


def test_requests_about_the_same_part_share_its_frames_also_where_others_stand_between() -> None:
    decoded: Counter[VideoPart] = Counter()

    def decode(part: VideoPart) -> Clip:
        decoded[part] += 1
        return clip_of(100)

    requests = [about(number, video("ab"[number % 2])) for number in range(50)]
    with Feed(requests, Meter(), ahead=50, most_bytes=100, decode=decode) as feed:
        batches = drain(feed, at_least=25)
    assert decoded == {video("a"): 1, video("b"): 1}
    clips = {id(ready.clip) for batch in batches for ready in batch}
    assert len(clips) == 2


def test_shared_frames_are_kept_until_the_last_request_has_them() -> None:
    requests = [about(number, video("a")) for number in range(3)] + [about(3, video("b"))]
    with Feed(requests, Meter(), threads=1, most_bytes=1, decode=lambda part: clip_of(1)) as feed:
        for left in (True, True, False):
            assert [ready.clip is not None for ready in feed.take(1, at_least=1)] == [True]
            assert (video("a") in feed._frames) is left
        assert ids(drain(feed)) == ["r3"]


def test_no_thread_is_started_for_text_alone() -> None:
    before = set(threading.enumerate())
    with Feed([about(n, None) for n in range(5)], Meter(), threads=8) as feed:
        assert len(feed.take(10, at_least=5)) == 5
        assert set(threading.enumerate()) <= before


def test_no_more_is_pulled_than_may_wait() -> None:
    pulled = []

    def source() -> Iterator[Request]:
        for number in range(1000):
            pulled.append(number)
            yield about(number, None)

    with Feed(source(), Meter(), ahead=10) as feed:
        feed.take(4)
        assert len(pulled) == 10 and len(feed) == 6
        feed.take(4)
        assert len(pulled) == 14 and not feed.ended


def test_the_end_is_known_when_the_source_says_so_and_not_before() -> None:
    with Feed([about(n, None) for n in range(3)], Meter(), ahead=3) as feed:
        assert len(feed.take(1)) == 1 and not feed.ended
        assert len(feed.take(1)) == 1 and feed.ended and len(feed) == 1
        assert len(feed.take(1)) == 1 and len(feed) == 0
        assert feed.take(1, at_least=1) == []


def test_a_video_that_cannot_be_read_is_refused_for_each_request_and_others_go_on() -> None:
    requests = [about(0, video("bad")), about(1, video("7")), about(2, video("bad"))]
    with Feed(requests, Meter(), decode=by_size) as feed:
        found = {ready.request.request_id: outcome(ready) for batch in drain(feed) for ready in batch}
    assert found == {"r0": "It is no video.", "r1": 7, "r2": "It is no video."}


def test_a_bug_in_the_decoder_is_raised_where_the_requests_are_taken() -> None:
    def decode(part: VideoPart) -> Clip:
        raise ZeroDivisionError("a bug")

    with Feed([about(0, video("a"))], Meter(), decode=decode) as feed, pytest.raises(ZeroDivisionError):
        feed.take(1, at_least=1)


def test_what_the_source_raises_arrives() -> None:
    def source() -> Iterator[Request]:
        yield about(0, None)
        raise RuntimeError("no prompt")

    with Feed(source(), Meter()) as feed, pytest.raises(RuntimeError, match="no prompt"):
        feed.take(1)


def test_a_feed_whose_job_is_to_stop_gives_up_what_has_not_begun() -> None:
    def source() -> Iterator[Request]:
        yield from (about(i, video(i)) for i in range(6))
        raise Halted

    with Feed(source(), Meter(), decode=lambda part: clip_of(1)) as feed:
        assert feed.take(10, at_least=10) == []
        assert feed.ended and len(feed) == 0
    with Feed(source(), Meter(), ahead=4, decode=lambda part: clip_of(1)) as feed:
        assert len(feed.take(3, at_least=3)) == 3
        assert feed.take(3) == [] and feed.ended


def test_a_feed_that_is_left_early_ends_its_threads_and_decodes_no_more() -> None:
    before, decoded = set(threading.enumerate()), []

    def decode(part: VideoPart) -> Clip:
        decoded.append(part)
        time.sleep(0.01)
        return clip_of(1)

    with Feed([about(n, video(n)) for n in range(100)], Meter(), threads=3, decode=decode) as feed:
        feed.take(1, at_least=1)
    seen = len(decoded)
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.005)
    assert set(threading.enumerate()) <= before
    assert len(decoded) <= seen + 3


def test_a_feed_waits_for_at_least_as_many_as_it_is_asked_for_where_they_can_come() -> None:
    requests = [about(n, video(f"10-{n}")) for n in range(10)]
    with Feed(requests, Meter(), decode=by_size) as feed:
        assert len(feed.take(6, at_least=6)) == 6
        assert len(feed.take(6, at_least=6)) == 4  # no more will come
    with Feed(requests, Meter(), most_bytes=30, decode=by_size) as feed:
        assert [len(batch) for batch in drain(feed, at_least=6)] == [3, 3, 3, 1]  # no more fit in memory


def test_time_that_is_spent_waiting_for_frames_counts_as_decode() -> None:
    def decode(part: VideoPart) -> Clip:
        time.sleep(0.02)
        return clip_of(1)

    meter = Meter()
    with Feed([about(n, video(n)) for n in range(5)], meter, threads=1, decode=decode) as feed:
        drain(feed)
    assert meter.seconds()["decode"] >= 0.08 and meter.bound_by() == "decode"
