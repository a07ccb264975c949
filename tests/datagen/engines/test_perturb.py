"""Spoilt videos: the order in which frames are shown, and that engines are really given it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.datagen.engine import VideoPart
from vlm_rlaif.datagen.engines.clips import Clip, read_clip
from vlm_rlaif.datagen.engines.perturb import order
from vlm_rlaif.warehouse.config import Frames, key_parts
from vlm_rlaif.warehouse.media.frame_cache import FrameCache
from vlm_rlaif.warehouse.media.video import content_id
from vlm_rlaif.warehouse.settings import REORDERED_FRAMES


@given(st.integers(2, 60), st.sampled_from(REORDERED_FRAMES), st.text(max_size=8))
def test_no_perturbation_leaves_the_frames_as_they_were(count: int, kind: str, key: str) -> None:
    shown = order(count, kind, key)
    assert shown != list(range(count))
    assert len(set(shown)) == len(shown) and set(shown) <= set(range(count))
    assert shown == order(count, kind, key)


@given(st.integers(2, 60), st.text(max_size=8))
def test_what_is_dropped_lies_in_a_row(count: int, key: str) -> None:
    shown = order(count, "dropped", key)
    missing = sorted(set(range(count)) - set(shown))
    assert len(missing) == max(1, count // 3)
    assert missing == list(range(missing[0], missing[-1] + 1)) and shown == sorted(shown)


def test_videos_are_shuffled_each_in_an_order_of_its_own() -> None:
    assert len({tuple(order(8, "shuffled", f"video {n}")) for n in range(50)}) > 45


def part(folder: Path, **frames: object) -> VideoPart:
    return VideoPart(folder / "0.mp4", Frames(count=6, size=32, **frames))  # type: ignore[arg-type]


def seen(clip: Clip, like: Clip) -> list[int]:
    """Which frames of one clip another one shows."""
    return [next(i for i, frame in enumerate(like.frames) if np.array_equal(frame, f)) for f in clip.frames]


@pytest.mark.parametrize("kind", REORDERED_FRAMES)
def test_an_engine_is_given_the_frames_in_their_new_order(shapes_folder: Path, kind: str) -> None:
    plain, spoilt = read_clip(part(shapes_folder)), read_clip(part(shapes_folder, perturb=kind))
    expected = order(6, kind, "0.mp4 None 0")
    assert seen(spoilt, plain) == expected
    assert set(spoilt.times_s) == {plain.times_s[frame] for frame in expected}
    assert all(one < other for one, other in itertools.pairwise(spoilt.times_s))


def test_a_blank_video_is_grey_and_tells_the_same_times(shapes_folder: Path) -> None:
    plain, blank = read_clip(part(shapes_folder)), read_clip(part(shapes_folder, perturb="blank"))
    assert blank.times_s == plain.times_s and blank.frames.shape == plain.frames.shape
    assert np.unique(blank.frames).tolist() == [127]
    assert Frames(count=1, perturb="blank").count == 1


def test_repeated_frames_stay_together(shapes_folder: Path) -> None:
    plain = read_clip(part(shapes_folder))
    spoilt = read_clip(part(shapes_folder, repeat=2, perturb="reversed"))
    assert seen(spoilt, plain) == [5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0]


def test_another_seed_is_another_order(shapes_folder: Path) -> None:
    clips = [read_clip(part(shapes_folder, perturb="shuffled", perturb_seed=seed)) for seed in (0, 1)]
    assert not np.array_equal(clips[0].frames, clips[1].frames)


def test_the_frame_cache_holds_the_frames_as_they_are(shapes_folder: Path, tmp_path: Path) -> None:
    path = shapes_folder / "0.mp4"
    video_id = content_id(path)
    kept = VideoPart(path, Frames(count=6, size=32, perturb="reversed"), video_id=video_id, cache=tmp_path)
    spoilt, plain = read_clip(kept), read_clip(part(shapes_folder))
    assert np.array_equal(FrameCache(tmp_path).sample(path, video_id, 6, size=32).frames, plain.frames)
    assert seen(spoilt, plain) == [5, 4, 3, 2, 1, 0]


def test_frames_that_are_not_spoilt_have_the_keys_that_they_had() -> None:
    assert key_parts(Frames(count=3)) == {"count": 3, "size": None, "repeat": 1}
    assert key_parts(Frames(count=3, perturb="reversed"))["perturb"] == "reversed"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"perturb": "backwards"}, "reversed"), ({"perturb": "reversed", "count": 1}, "at least 2"),
        ({"perturb_seed": 1}, "without"), ({"perturb": "other_video"}, "is one of"),
    ],
)  # fmt: skip
def test_frames_that_cannot_be_spoilt_so_are_a_mistake(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Frames(**{"count": 4, **settings})  # type: ignore[arg-type]
