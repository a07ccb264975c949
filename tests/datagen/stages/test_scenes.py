"""Clips that begin at scene cuts: where they are found, how short scenes are joined, what cannot be read."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_rlaif.datagen.portion import Shard
from vlm_rlaif.datagen.stages.clip import clip, method_name
from vlm_rlaif.datagen.stages.scenes import clip_scenes, scenes
from vlm_rlaif.eval.overview_learning import overview
from vlm_rlaif.warehouse.config import Clips, load
from vlm_rlaif.warehouse.errors import UserError
from vlm_rlaif.warehouse.intake.add import add_videos
from vlm_rlaif.warehouse.media.frames import VideoError
from vlm_rlaif.warehouse.media.scenes import cuts
from vlm_rlaif.warehouse.settings import Scenes
from vlm_rlaif.warehouse.store import Warehouse

SCENES = Clips(scenes=Scenes(threshold=0.2, min_s=0.5))


def film(path: Path, colours: list[tuple[int, int, int]], scene_s: float = 1.0, size: int = 64) -> Path:
    """A video with a hard cut to the next colour every `scene_s`, and a square that moves all the time."""
    with av.open(str(path), "w") as box:
        stream: Any = box.add_stream("libx264", rate=10)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(round(len(colours) * scene_s * 10)):
            picture = np.full((size, size, 3), colours[int(number / (10 * scene_s))], np.uint8)
            left = number % (size // 2)
            picture[10:20, left : left + 10] = 255
            box.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        box.mux(stream.encode())
    return path


BRIGHT_AND_DARK = [(20, 20, 20), (220, 220, 220), (20, 20, 20), (200, 40, 40)]


def test_cuts_are_found_where_they_are(tmp_path: Path) -> None:
    assert cuts(film(tmp_path / "a.mp4", BRIGHT_AND_DARK), threshold=0.2) == pytest.approx([1.0, 2.0, 3.0])
    assert cuts(film(tmp_path / "b.mp4", [(90, 90, 90)] * 3), threshold=0.2) == []


def test_a_cut_between_colours_of_the_same_brightness_is_one(tmp_path: Path) -> None:
    red_and_green = [(219, 0, 0), (0, 112, 0)]
    assert cuts(film(tmp_path / "a.mp4", red_and_green), threshold=0.1) == pytest.approx([1.0])


def test_scenes_of_the_shapes_world_are_two_seconds_long(shapes_folder: Path) -> None:
    """Small shapes on black change little at a cut; those that blink change as much without one."""
    found = {file.name: cuts(file, threshold=0.05) for file in sorted(shapes_folder.glob("*.mp4"))}
    assert all(2.0 in cut for cut in found.values()) and found["0.mp4"] == [2.0, 4.0]


def test_a_folder_of_frames_has_cuts_too(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    for number, level in enumerate((20, 20, 220, 220, 20)):
        pillow.fromarray(np.full((32, 32, 3), level, np.uint8)).save(tmp_path / f"{number}.png")
    assert cuts(tmp_path, threshold=0.2) == [2.0, 4.0]


def test_what_is_no_video_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    for path in (tmp_path / "a.mp4", tmp_path / "none.mp4"):
        with pytest.raises(VideoError, match=path.name):
            cuts(path, threshold=0.2)


times = st.floats(0.01, 100)


@given(times, st.lists(times, max_size=60), st.floats(0.1, 5), st.integers(1, 8))
def test_scenes_cover_the_video_and_keep_their_bounds(
    duration_s: float, found: list[float], min_s: float, most: int
) -> None:
    cuts_s = sorted(cut for cut in found if cut < duration_s)
    parts = scenes(duration_s, cuts_s, Scenes(min_s=min_s, most=most))
    assert parts[0][0] == 0.0 and parts[-1][1] == duration_s
    assert all(one[1] == other[0] for one, other in itertools.pairwise(parts))
    assert len(parts) <= most and {start for start, _ in parts[1:]} <= set(cuts_s)
    assert len(parts) == 1 or min(end - start for start, end in parts) >= min_s - 1e-9


@given(st.lists(st.integers(1, 99), max_size=6, unique=True), st.integers(1, 40))
def test_no_other_choice_of_cuts_makes_more_scenes(cuts_s: list[int], min_s: int) -> None:
    """The slow twin tries all of them."""
    found = [0, *sorted(cuts_s), 100]
    allowed = [
        chosen for size in range(len(cuts_s) + 1) for chosen in itertools.combinations(sorted(cuts_s), size)
        if not chosen or all(b - a >= min_s for a, b in itertools.pairwise([0, *chosen, 100]))
    ]  # fmt: skip
    most = 1 + max(map(len, allowed))
    assert len(scenes(100.0, list(map(float, found[1:-1])), Scenes(min_s=min_s))) == most


def test_of_too_many_scenes_the_longest_are_kept() -> None:
    cuts_s = [1.0, 2.0, 2.5, 6.0, 9.0]
    assert scenes(12.0, cuts_s, Scenes(min_s=0.5, most=3)) == [(0.0, 6.0), (6.0, 9.0), (9.0, 12.0)]


def test_clips_begin_at_cuts_once(warehouse: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    film(tmp_path / "mine" / "a.mp4", BRIGHT_AND_DARK)
    film(tmp_path / "mine" / "still.mp4", [(90, 90, 90)] * 2)
    add_videos(warehouse, tmp_path / "mine")
    assert clip(warehouse, SCENES).written == 5
    assert clip(warehouse, SCENES).run_id is None
    rows = warehouse.rows("SELECT uri, start_s, end_s, method FROM clips JOIN videos USING (video_id) ORDER BY ALL")
    assert [(row["start_s"], row["end_s"]) for row in rows] == [(0, 1), (1, 2), (2, 3), (3, 4), (0, 2)]
    assert {row["method"] for row in rows} == {"scenes:0.2:0.5:20"}
    assert warehouse.value("SELECT status FROM runs WHERE stage = 'clip'") == "done"


def test_a_video_that_cannot_be_read_is_told_and_holds_nobody_up(
    warehouse: Warehouse, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    for name, scene_s in (("a", 1.0), ("gone", 0.8), ("other", 0.6)):
        film(tmp_path / "mine" / f"{name}.mp4", BRIGHT_AND_DARK, scene_s)
    add_videos(warehouse, tmp_path / "mine")
    (tmp_path / "mine" / "gone.mp4").unlink()
    shutil.copy(tmp_path / "mine" / "a.mp4", tmp_path / "mine" / "other.mp4")
    outcome = clip(warehouse, SCENES)
    assert (outcome.written, outcome.failed) == (4, 2)
    assert str(outcome) == "clip: 4 rows written, 2 videos could not be read"
    said = capsys.readouterr().err
    assert "gone.mp4: No such file" in said and "other.mp4: its bytes are not those that were added." in said
    assert clip(warehouse, SCENES).failed == 2, "they are tried again"
    assert warehouse.value("SELECT count(*) FROM runs WHERE stage = 'clip'") == 1


def test_what_was_found_before_an_interruption_is_kept(asked: Warehouse) -> None:
    last = asked.value("SELECT max(video_id) FROM videos")

    def find(path: Path, video_id: str, duration_s: float) -> list[float]:
        if video_id == last:
            raise KeyboardInterrupt
        return [2.0]

    with pytest.raises(KeyboardInterrupt):
        clip_scenes(asked, Scenes(), "m", find)
    assert asked.value("SELECT count(*) FROM clips") == 4
    assert asked.value("SELECT status FROM runs") == "interrupted"
    assert clip_scenes(asked, Scenes(), "m", lambda path, video_id, duration_s: [2.0]).written == 2


def test_shards_find_the_cuts_of_their_own_videos(asked: Warehouse) -> None:
    seen: list[str] = []

    def find(path: Path, video_id: str, duration_s: float) -> list[float]:
        seen.append(video_id)
        return []

    shards = [clip_scenes(asked, Scenes(), "m", find, Shard(part, 2)).written for part in (1, 2)]
    assert sum(shards) == len(seen) == len(set(seen)) == 3


def test_the_settings_are_in_the_method() -> None:
    assert method_name(Clips(scenes=Scenes())) == "scenes:0.3:1.0:20"
    with pytest.raises(UserError, match="either `parts`, `seconds` or `scenes`"):
        method_name(Clips(parts=3, scenes=Scenes()))


@pytest.mark.parametrize("wrong", ["threshold: 1", "threshold: 0", "min_s: 0", "most: 0", "treshold: 0.3"])
def test_wrong_settings_are_refused(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "r.yaml").write_text(f"clip: {{scenes: {{{wrong}}}}}")
    with pytest.raises(UserError, match="clip: scenes: "):
        load(str(tmp_path / "r.yaml"))


def test_a_plan_cannot_know_how_many_scenes_there_are(asked: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("clip: {scenes: {}}")
    line = {line.stage: line for line in overview(asked, load(str(tmp_path / "r.yaml")))}["clip"]
    assert (line.pending, line.later, line.bound, line.note) == (0, 3, "about", "one clip per video, or more")
