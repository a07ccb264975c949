"""Opening a video file: what may be opened, its video stream, and that stream's packets.

Only regular files are opened, only containers that hold their own video, and never for longer than a deadline.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from vlm_rlaif.warehouse.media.frames import VideoError

STALLED_S = 10.0
"""Longest wait for the file to be opened, or for one packet."""
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,ogg,gif,asf,h264,hevc,m4v,ivf,obu,mxf,nut,rm,wtv,dv,vc1,vvc"
"""Playlists are not read: they name other files, and addresses in the network."""
OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
LARGEST_FRAME = 2**26
"""Pixels; 8K fits. A header of a few bytes can promise a frame that no memory holds."""
KINDS = {
    stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device", stat.S_ISBLK: "a device",
}  # fmt: skip


def require_regular(path: Path) -> os.stat_result:
    """The file's status; an OSError when it is none: a pipe or a device may never end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        what = next((name for is_kind, name in KINDS.items() if is_kind(found.st_mode)), "something else")
        raise OSError(None, f"it is {what}, not a file")
    return found


@contextmanager
def open_box(path: Path, deadline: float) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A file and its video. Raises `VideoError` about anything that is wrong with it, later too."""
    wait_s: Any = (max(0.1, min(STALLED_S, deadline - time.monotonic())),) * 2
    try:
        require_regular(path)
        # An absolute path, because a name may look like a protocol; and a title need not be UTF-8.
        with av.open(
            os.path.abspath(path), container_options=OPTIONS, timeout=wait_s, metadata_errors="replace"
        ) as box:  # fmt: skip
            streams = [stream for stream in box.streams.video if not stream.disposition & Disposition.attached_pic]
            if not streams:
                raise VideoError(f"{path}: there is no video stream in it.")
            yield box, streams[0]
    except av.error.ExitError:
        raise late(path) from None
    except (av.error.FFmpegError, OSError) as error:
        unknown = "it is a kind of file that is not read." if error.errno == errno.EINVAL else ""
        raise VideoError(f"{path}: {unknown or error.strerror or error}") from error


def packets_of(box: InputContainer, stream: VideoStream, path: Path, deadline: float) -> Iterator[av.Packet[Any]]:
    """What the file holds of a stream, in its order. PyAV stumbles over streams that begin later in the file."""
    packets = box.demux()
    while True:
        if time.monotonic() > deadline:
            raise late(path)
        try:
            packet = next(packets)
        except StopIteration:
            return
        except IndexError:
            packets = box.demux()
            continue
        if packet.stream.index == stream.index:
            yield packet


def late(path: Path) -> VideoError:
    """What is said about a file that is not done in time."""
    return VideoError(f"{path}: reading it took longer than it may.")


def decoder_of(stream: VideoStream, path: Path) -> VideoCodecContext:
    """The stream's decoder, which refuses frames that are too big."""
    decoder: VideoCodecContext | None = stream.codec_context
    if decoder is None:
        raise VideoError(f"{path}: nothing here decodes its video.")
    if decoder.width * decoder.height > LARGEST_FRAME:
        raise VideoError(f"{path}: frames of {decoder.width} x {decoder.height} pixels are not read.")
    decoder.options = {"max_pixels": str(LARGEST_FRAME)}  # also when they grow on the way
    return decoder
