"""How fast frames are taken, held against decord, and how many of them are wrong.

    python benchmarks/decode.py [--json] [--clips FOLDER_OF_MP4_FILES] [--threads 1] [--repetitions 3]

Both take the same 8, 32 and 50 uniform frames, as RGB at full size, of the same intact clips: four that ffmpeg makes
here, and those of a folder. They take turns, with the same number of decoder threads, opening the file included. A
time is the processor time of the process, the best of all repetitions: with one thread that is the time it takes when
nobody else is busy. `decode_ratio_N` is decord's time over ours, the geometric mean over the clips; `low` and `high`
are the worst and the best clip. `decode_wall_ratio_N` is the same by the clock on the wall.

`wrong_frames` counts frames that do not carry the number they should, on the odd files of `tests/odd_videos.py`, at
8, 32 and 50 uniform frames. `decord_wrong_frames` is the same of decord when nobody checks it; files that it refuses
are left out of its count.

Needs ffmpeg, and decord (pip install decord).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import decord
import numpy as np

from vlm_rlaif.warehouse.media.frames import Pixels, centres
from vlm_rlaif.warehouse.media.video import sample

COUNTS = (8, 32, 50)
ODD_VIDEOS = Path(__file__).parents[1] / "tests" / "odd_videos.py"
CLIPS = {
    "640x272_10s.mp4": ("640x272", 25, 10, ()),
    "640x360_one_keyframe.mp4": ("640x360", 30, 10, ("-g", "300", "-keyint_min", "300", "-sc_threshold", "0")),
    "1280x720_5s.mp4": ("1280x720", 25, 5, ()),
    "1280x720_60s.mp4": ("1280x720", 30, 60, ()),
}
"""Name -> size, frames a second, seconds, further options of the encoder."""

Figure = dict[str, Any]


def make_clips(folder: Path) -> None:
    """Moving patterns with noise on them, so that the files are as big as those of a camera."""
    for name, (size, rate, seconds, options) in CLIPS.items():
        pattern = ("-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}:duration={seconds}")
        x264 = ("-vf", "noise=alls=8:allf=t", "-c:v", "libx264", "-preset", "fast", "-pix_fmt", "yuv420p", *options)
        subprocess.run(["ffmpeg", "-v", "error", "-y", *pattern, *x264, str(folder / name)], check=True)


def with_decord(path: Path, count: int, threads: int) -> Pixels:
    reader = decord.VideoReader(str(path), num_threads=threads)
    places = [int(place + 1e-6) for place in centres(0, len(reader), count)]
    frames: Pixels = reader.get_batch(places).asnumpy()
    return frames


def with_ours(path: Path, count: int, threads: int) -> Pixels:
    return sample(path, count, threads=threads).frames


def seconds_of(read: Callable[[Path, int, int], Pixels], path: Path, count: int, threads: int) -> tuple[float, float]:
    """(processor, wall) seconds of one reading."""
    wall, processor = time.perf_counter(), time.process_time()
    read(path, count, threads)
    return time.process_time() - processor, time.perf_counter() - wall


def compare(path: Path, count: int, threads: int, repetitions: int) -> dict[str, Any]:
    """One clip at one number of frames: the best of several readings, taken in turns."""
    if not (with_ours(path, count, threads) == with_decord(path, count, threads)).all():
        raise SystemExit(f"{path.name}: the two do not take the same {count} frames, so their times say nothing.")
    ours: list[Any] = []
    theirs: list[Any] = []
    for repetition in range(repetitions):
        turns = [(ours, with_ours), (theirs, with_decord)]
        for times, read in turns if repetition % 2 else reversed(turns):
            times.append(seconds_of(read, path, count, threads))
    (our_s, our_wall_s), (their_s, their_wall_s) = (np.min(times, axis=0).tolist() for times in (ours, theirs))
    return {
        "clip": path.name, "frames": count, "our_ms": 1000 * our_s, "decord_ms": 1000 * their_s,
        "ratio": their_s / our_s, "wall_ratio": their_wall_s / our_wall_s,
    }  # fmt: skip


def ratios(clips: list[Path], threads: int, repetitions: int) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    rows = [compare(clip, count, threads, repetitions) for clip in clips for count in COUNTS]
    figures = {}
    for name, kind in (("decode_ratio", "ratio"), ("decode_wall_ratio", "wall_ratio")):
        for count in COUNTS:
            found = [row[kind] for row in rows if row["frames"] == count]
            mean = math.exp(sum(map(math.log, found)) / len(found))
            figures[f"{name}_{count}"] = figure(mean, min(found), max(found), len(found), "decord's time / ours")
    return figures, rows


def wrong_frames(folder: Path) -> dict[str, Figure]:
    """Frames of the odd, intact files whose number is not that of the frame on display, or asked for by its place."""
    spec = importlib.util.spec_from_file_location("odd_videos", ODD_VIDEOS)
    assert spec and spec.loader
    odd: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(odd)
    odd.make(folder)
    ours: list[Any] = []
    theirs: list[Any] = []
    for name in odd.INTACT:
        if not (folder / name).exists():
            continue
        times_s, pictures = odd.decode_all(folder / name)
        truth = odd.numbers(name, pictures)
        for count in COUNTS:
            taken = sample(folder / name, count)
            places = np.searchsorted(times_s, np.asarray(centres(0, taken.span_s, count)) + 1e-6, side="right") - 1
            found = odd.numbers(name, taken.frames)
            ours += [number != truth[place] for number, place in zip(found, places, strict=True)]
            theirs += decord_wrong(odd, folder / name, count, truth)
    return {
        "wrong_frames": figure(sum(ours), sum(ours), sum(ours), len(ours), "frames"),
        "decord_wrong_frames": figure(sum(theirs), sum(theirs), sum(theirs), len(theirs), "frames"),
    }


def decord_wrong(odd: Any, path: Path, count: int, truth: list[int]) -> list[bool]:
    """Of each frame that decord returns, whether it is another one than was asked for."""
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        places = [int(place + 1e-6) for place in centres(0, len(reader), count)]
        found = odd.numbers(path.name, reader.get_batch(places).asnumpy())
    except (decord.DECORDError, RuntimeError):
        return []
    return [place >= len(truth) or number != truth[place] for number, place in zip(found, places, strict=True)]


def figure(value: float, low: float, high: float, n: int, unit: str) -> Figure:
    return {"value": value, "low": low, "high": high, "n": n, "unit": unit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--clips", type=Path, help="a folder of further intact clips (*.mp4)")
    parser.add_argument("--threads", type=int, default=1, help="decoder threads of both")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    if not shutil.which("ffmpeg"):
        raise SystemExit("There is no ffmpeg here (Debian, Ubuntu: apt-get install ffmpeg).")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_clips(folder)
        clips = sorted(folder.glob("*.mp4")) + sorted(options.clips.glob("*.mp4") if options.clips else [])
        figures, rows = ratios(clips, options.threads, options.repetitions)
        figures |= wrong_frames(folder / "odd")
    conditions = {
        "threads": options.threads, "repetitions": options.repetitions, "cores": os.cpu_count(),
        "load": os.getloadavg()[0], "decord": decord.__version__,
    }  # fmt: skip
    if options.json:
        print(json.dumps({**figures, "conditions": conditions, "clips": rows}, indent=1))
        return
    for row in rows:
        times = "ours {our_ms:7.0f} ms  decord {decord_ms:7.0f} ms  {ratio:.2f}".format(**row)
        print(f"{row['clip']:28} {row['frames']:3} frames  {times}")
    for name, found in figures.items():
        print(f"{name:20} {found['value']:.3g} ({found['low']:.3g} to {found['high']:.3g}, n = {found['n']})")
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))


if __name__ == "__main__":
    main()
