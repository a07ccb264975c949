"""Video files that decoders get wrong, and damaged ones, made with ffmpeg.

    python tests/odd_videos.py FOLDER

Every frame carries its number, so that whoever reads it knows which frame it is: along the bottom a white square, a
black one, and seven bits, lowest first. The rest of the picture moves. Frame n of `source.mp4` is on display from
n / 25 s on. Files in codecs that this ffmpeg cannot write are left out.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import numpy as np

from vlm_rlaif.warehouse.media.frames import Pixels, upright

FPS = 25
FRAMES = 125
SQUARE = 32
BITS = 7
HEIGHT, WIDTH = 192, SQUARE * (BITS + 2)
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "22", "-pix_fmt", "yuv420p", "-bf", "2", "-threads", "1")
ONE_KEYFRAME = ("-g", "9999", "-keyint_min", "9999", "-sc_threshold", "0")
CODECS = {
    "hevc_10_bit.mp4": ("libx265", "-pix_fmt", "yuv420p10le", "-preset", "fast", "-x265-params", "log-level=0"),
    "vp9.webm": ("libvpx-vp9", "-pix_fmt", "yuv420p", "-cpu-used", "8", "-deadline", "realtime"),
    "av1.mp4": ("libaom-av1", "-pix_fmt", "yuv420p", "-cpu-used", "8", "-usage", "realtime"),
    "mpeg4.avi": ("mpeg4", "-bf", "2", "-q:v", "3"),
    "mpeg2.mpg": ("mpeg2video", "-bf", "2", "-q:v", "3"),
}

INTACT = {
    "source.mp4": "125 frames, 25 a second, a keyframe every second, the index first",
    "long_gop.mp4": "one keyframe",
    "open_gop.mp4": "frames that stand before their keyframe",
    "one_frame.mp4": "one frame",
    "unequal_times.mp4": "60 frames at 25 a second, then every sixth",
    "slow_then_fast.mp4": "30 frames at 5 a second, then 95 at 25",
    "mpegts.ts": "no index, and its clock starts after zero",
    "edit_list.mp4": "2 s from 1.3 s on: the file holds frames that are never shown",
    "late.mp4": "the picture begins after 1.5 s",
    "fragmented.mp4": "no index at the front",
    "with_a_cover.mkv": "a picture beside the video",
    "live.mkv": "written without looking back: no duration, no index",
    "rotated.mp4": "a display matrix of a quarter turn",
    **dict.fromkeys(CODECS, "50 frames in another codec"),
}
DAMAGED = {
    "truncated.mp4": "the index is whole, half of the frames is gone",
    "bit_rot.mp4": "8 bits changed inside the frames",
    "joined_late.ts": "the first packets belong to a frame that is not there",
}
UNREADABLE = {
    "audio_only.mp4": "no video stream",
    "sound_with_a_cover.mp4": "no video stream",
    "zero_byte.mp4": "Invalid data",
    "garbage.mp4": "Invalid data",
    "no_index.mp4": "Invalid data",
    "playlist.mp4": "a kind of file that is not read",
}
"""With what is said about them."""


def picture(number: int) -> Pixels:
    """(HEIGHT, WIDTH, 3): a pattern that moves with the number, above the squares that say it."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    made = np.stack([(x + 3 * number) % 256, (x * y // 64 + number) % 256, (2 * y - 5 * number) % 256], axis=2)
    squares = [1, 0, *(number >> bit & 1 for bit in range(BITS))]
    made[-SQUARE:] = 255 * np.repeat(squares, SQUARE)[None, :, None]
    return made.astype(np.uint8)


def number(frame: Pixels) -> int:
    """The number that an upright frame carries; -1 where it cannot be read."""
    if frame.shape != (HEIGHT, WIDTH, 3):
        return -1
    middle = frame[-SQUARE // 2, SQUARE // 2 :: SQUARE].mean(axis=1)
    white, black, *bits = middle > 128
    return sum(int(bit) << place for place, bit in enumerate(bits)) if white and not black else -1


def decode_all(path: Path) -> tuple[list[float], list[Pixels]]:
    """The slow, obvious way: (seconds since the first frame, upright picture) of every frame in turn."""
    times_s, pictures = [], []
    with av.open(str(path)) as box:
        stream = box.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in box.decode(stream):
            assert frame.time is not None
            times_s.append(frame.time)
            pictures.append(upright(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8), frame.rotation))
    return [time_s - times_s[0] for time_s in times_s], pictures


def numbers(name: str, pictures: Iterable[Pixels]) -> list[int]:
    """What the pictures carry; a file that asks to be turned was drawn without the turn."""
    return [number(np.rot90(picture, -1) if name == "rotated.mp4" else picture) for picture in pictures]


def make(folder: Path) -> None:
    """Write the files."""
    folder.mkdir(parents=True, exist_ok=True)
    _intact(folder)
    _other_codecs(folder)
    _damaged(folder)
    _unreadable(folder)
    for name in ("cover.png", "index_last.mp4"):  # parts of others
        (folder / name).unlink()


def _intact(folder: Path) -> None:
    source = folder / "source.mp4"
    _encode(source, *X264, "-g", "25", "-movflags", "+faststart")
    _encode(folder / "long_gop.mp4", *X264, *ONE_KEYFRAME)
    _encode(folder / "open_gop.mp4", *X264, "-g", "25", "-x264-params", "open-gop=1")
    _encode(folder / "one_frame.mp4", *X264, frames=1)
    unequal = "select='lt(n,60)+not(mod(n,6))'"
    _encode(folder / "unequal_times.mp4", *X264, "-vf", unequal, "-fps_mode", "vfr")
    slow = "setpts='round(if(lt(N,30),N*5,120+N)/25/TB)'"
    _encode(folder / "slow_then_fast.mp4", *X264, "-vf", slow, "-fps_mode", "vfr")
    _copy(source, folder / "mpegts.ts")
    _copy(folder / "long_gop.mp4", folder / "edit_list.mp4", "-t", "2", before=("-ss", "1.3"))
    _copy(source, folder / "late.mp4", before=("-itsoffset", "1.5"))
    _copy(source, folder / "fragmented.mp4", "-movflags", "frag_keyframe+empty_moov")
    _rotated(source, folder / "rotated.mp4")
    ffmpeg("-i", str(folder / "one_frame.mp4"), "-frames:v", "1", str(folder / "cover.png"))
    cover = ("-attach", str(folder / "cover.png"), "-metadata:s:1", "mimetype=image/png")
    _copy(source, folder / "with_a_cover.mkv", *cover)
    (folder / "live.mkv").write_bytes(ffmpeg("-i", str(source), "-c", "copy", "-f", "matroska", "-"))


def _other_codecs(folder: Path) -> None:
    known = ffmpeg("-encoders").decode()
    for name, (encoder, *options) in CODECS.items():
        if f" {encoder} " in known:
            _encode(folder / name, "-c:v", encoder, *options, frames=50)


def _encode(path: Path, *options: str, frames: int = FRAMES) -> None:
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", str(FPS), "-i", "-")
    ffmpeg(*raw, *options, str(path), stdin=b"".join(picture(n).tobytes() for n in range(frames)))


def _copy(source: Path, path: Path, *options: str, before: Sequence[str] = ()) -> None:
    ffmpeg(*before, "-i", str(source), "-c", "copy", *options, str(path))


def _rotated(source: Path, path: Path) -> None:
    """A display matrix of a quarter turn, as phones write it; older ffmpegs have another word for it."""
    try:
        _copy(source, path, before=("-display_rotation", "90"))
    except RuntimeError:
        _copy(source, path, "-metadata:s:v:0", "rotate=90")


def _damaged(folder: Path) -> None:
    whole = (folder / "source.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    rotten, dice = bytearray(whole), random.Random(1)
    for _ in range(8):
        rotten[dice.randrange(len(whole) // 5, len(whole))] ^= 1 << dice.randrange(8)
    (folder / "bit_rot.mp4").write_bytes(rotten)
    (folder / "joined_late.ts").write_bytes((folder / "mpegts.ts").read_bytes()[188 * 300 :])


def _unreadable(folder: Path) -> None:
    sound = ("-f", "lavfi", "-i", "sine=frequency=440:duration=2")
    ffmpeg(*sound, "-c:a", "aac", str(folder / "audio_only.mp4"))
    cover = ("-i", str(folder / "cover.png"), "-map", "0", "-map", "1", "-c:v", "copy")
    ffmpeg(*sound, *cover, "-disposition:v", "attached_pic", str(folder / "sound_with_a_cover.mp4"))
    _copy(folder / "source.mp4", folder / "index_last.mp4")
    whole = (folder / "index_last.mp4").read_bytes()
    (folder / "no_index.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "zero_byte.mp4").write_bytes(b"")
    (folder / "garbage.mp4").write_bytes(random.Random(1).randbytes(65536))
    (folder / "playlist.mp4").write_text("ffconcat version 1.0\nfile source.mp4\n")


def ffmpeg(*arguments: str, stdin: bytes | None = None) -> bytes:
    done = subprocess.run(["ffmpeg", "-v", "error", "-y", *arguments], input=stdin or b"", capture_output=True)
    if done.returncode:
        raise RuntimeError(f"ffmpeg {' '.join(arguments)}: {done.stderr.decode(errors='replace')}")
    return done.stdout


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/odd_videos.py FOLDER")
    if not shutil.which("ffmpeg"):
        sys.exit("There is no ffmpeg here (Debian, Ubuntu: apt-get install ffmpeg).")
    folder = Path(sys.argv[1])
    make(folder)
    for state, names in {"intact": INTACT, "damaged": DAMAGED, "unreadable": UNREADABLE}.items():
        for name, what in names.items():
            size = (folder / name).stat().st_size if (folder / name).exists() else "not made"
            print(f"{state:10}  {name:24} {size:>8}  {what}")


if __name__ == "__main__":
    main()
