"""When each frame of a file is shown: its packets scanned once, without decoding them.

Every reader works from this one list of times, so all of them agree on what frame i is.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from dreamoving_cli.errors import InputError
from dreamoving_cli.media.images import one_line, read_image, refuse_tiny
from dreamoving_cli.media.suffixes import PICTURES

logger = logging.getLogger(__name__)

STILL_FPS = Fraction(25)
STANDARD_FPS = tuple(
    sorted(
        [Fraction(n) for n in range(1, 241)] + [Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120, 240)]
    )
)
NOT_FOOTAGE = {
    "tty",
    "concat",
    "hls",
    "dash",
    "bin",
    "xbin",
    "adf",
    "idf",
    "ansi",
}  # text, or links to other files
COUNTED = {"avi", "mpeg"}  # AVI has times in the order of storage, MPEG-PS other ones after a seek
HDR_CURVES = {16, 18}  # PQ and HLG
CLAIMS_DURATION = ("mov", "matroska")  # containers whose announced length is written, not estimated
CONVERT = "Convert it to an mp4 first."


@dataclass(frozen=True)
class Index:
    """The frames of one file and how to show them. `ticks` are in units of `tick` seconds, rising."""

    path: Path
    ticks: np.ndarray  # int64, one per frame, the file's own clock
    tick: Fraction
    keyframes: np.ndarray  # frame numbers at which decoding can start, rising, the first is 0
    fps: Fraction
    variable: bool
    duration_s: Fraction
    height: int  # as shown: upright, square pixels
    width: int
    quarter_turns: int  # counterclockwise, to be applied to decoded frames
    counted: bool  # the file has no usable times: frame i is the i-th that comes out of the decoder
    still: bool
    alpha: bool
    has_audio: bool
    metadata: dict[str, str]

    @property
    def origin_s(self) -> Fraction:
        """The first frame's time on the file's clock, which its audio shares."""
        return int(self.ticks[0]) * self.tick


@dataclass(frozen=True)
class Packets:
    """What the packets say: times of shown frames, which are keyframes, where the last one ends."""

    ticks: np.ndarray
    keyframes: np.ndarray
    end: int
    counted: bool


def index_file(path: Path) -> Index:
    """The index of a video, GIF or picture; InputError when it is none, is cut off or is empty."""
    path = Path(path)
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path} does not exist", "Check the path.") from error
    if not path.is_file():
        raise InputError(f"{path} is a folder, not a video", "Give one video file.")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} may not be read by this user", "Change its permissions.")
    return cached_index(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def cached_index(path: Path, mtime_ns: int, size_bytes: int) -> Index:
    """Scan a file once per content; training opens the same clips over and over."""
    if size_bytes == 0:
        raise InputError(f"{path} is empty (0 bytes)", "Give a video file.")
    return index_still(path) if path.suffix.lower() in PICTURES else index_video(path, size_bytes)


def index_still(path: Path) -> Index:
    """A picture is a video of one frame."""
    height, width = read_image(path).shape[:2]
    return Index(
        path=path,
        ticks=np.zeros(1, np.int64),
        tick=1 / STILL_FPS,
        keyframes=np.zeros(1, np.int64),
        fps=STILL_FPS,
        variable=False,
        duration_s=1 / STILL_FPS,
        height=height,
        width=width,
        quarter_turns=0,
        counted=True,
        still=True,
        alpha=False,
        has_audio=False,
        metadata={},
    )


def index_video(path: Path, size_bytes: int) -> Index:
    """Open, scan the packets, decode one frame."""
    refuse_cut_off(path, size_bytes)
    with open_container(path) as container:
        stream = video_stream(container, path)
        packets = scan_packets(container, stream, path)
        frame = first_frame(path)
        tick = Fraction(1) if stream.time_base is None else stream.time_base
        if packets.counted:
            tick = 1 / (stream.average_rate or STILL_FPS)
        fps, variable = frame_rate(packets.ticks, tick, [stream.guessed_rate, stream.average_rate])
        num_frames = len(packets.ticks)
        turns = round(frame.rotation / 90) % 4
        height, width = shown_size(frame, stream, turns)
        if frame.color_trc in HDR_CURVES:
            logger.warning("%s is HDR: it is read without tone mapping, so its colors look pale", path)
        refuse_tiny(path, height, width)
        return Index(
            path=path,
            ticks=packets.ticks,
            tick=tick,
            keyframes=packets.keyframes,
            fps=fps,
            variable=variable,
            duration_s=(packets.end - int(packets.ticks[0])) * tick if variable else num_frames / fps,
            height=height,
            width=width,
            quarter_turns=turns,
            counted=packets.counted,
            still=False,
            alpha=has_alpha(frame),
            has_audio=bool(container.streams.audio),
            metadata={key.lower(): value for key, value in container.metadata.items()},  # mkv shouts its keys
        )


def open_container(path: Path) -> InputContainer:
    """The file opened for demuxing; it may refer to no other file and no network.

    Absolute, because FFmpeg takes `a:b.mp4` for a protocol.
    """
    try:
        container = av.open(str(path.absolute()), options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a video that can be read ({one_line(error)})",
            "Check that it plays, or convert it to an mp4.",
        ) from error
    if NOT_FOOTAGE & set(container.format.name.split(",")):
        container.close()
        raise InputError(f"{path} is text, not a video", "Give a video file.")
    return container


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The video track that players show; the cover picture of a song is none."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    raise InputError(f"{path} holds no video track", "Give a video file.")


def refuse_cut_off(path: Path, size_bytes: int) -> None:
    """An mp4 is a row of boxes, each led by its length; one that passes the file's end never arrived."""
    with path.open("rb") as file:
        at = 0
        while at + 16 <= size_bytes:
            file.seek(at)
            head = file.read(16)
            kind, length = head[4:8], int.from_bytes(head[:4], "big")
            if at == 0 and kind != b"ftyp":
                return  # another container
            if length == 1:  # a 64-bit length follows
                length = int.from_bytes(head[8:], "big")
            if length < 8:  # 0 is "to the end"; less than its own head is no box
                return
            at += length
            if at > size_bytes and kind in (b"mdat", b"moov"):
                raise InputError(
                    f"{path} is cut off: it should have {at} bytes or more and has {size_bytes}",
                    "Download it again.",
                )


def scan_packets(container: InputContainer, stream: VideoStream, path: Path) -> Packets:
    """Times of all frames that are shown, from the packets of the whole file."""
    ticks: list[int | None] = []
    keys: list[bool] = []
    end, last_s = 0, Fraction(0)
    try:
        for packet in container.demux():
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None:
                last_s = max(last_s, (stamp + (packet.duration or 0)) * packet.time_base)
            if packet.stream_index != stream.index or not packet.size or packet.is_discard:
                continue
            ticks.append(packet.pts)
            keys.append(packet.is_keyframe)
            if packet.pts is not None:
                end = max(end, packet.pts + (packet.duration or 0))
    except av.error.FFmpegError as error:
        raise InputError(f"{path} is damaged ({one_line(error)})", CONVERT) from error
    if not ticks:
        raise InputError(f"{path} has 0 frames", "Give a video with pictures in it.")
    refuse_short(container, path, last_s)
    known = [t for t in ticks if t is not None]
    if len(set(known)) < len(ticks) or container.format.name in COUNTED:  # times missing, twice or guessed
        return counted_packets(path)
    order = np.argsort(np.array(known, np.int64), kind="stable")
    keyframes = np.flatnonzero(np.array(keys)[order])
    if not len(keyframes) or keyframes[0] != 0:
        keyframes = np.concatenate([[0], keyframes])
    return Packets(np.array(known, np.int64)[order], keyframes, end, counted=False)


def refuse_short(container: InputContainer, path: Path, last_s: Fraction) -> None:
    """Data that stops long before the length in the header is a broken download."""
    if container.duration is None or not container.format.name.startswith(CLAIMS_DURATION):
        return
    start_s = Fraction(container.start_time or 0, av.time_base)
    announced_s = Fraction(container.duration, av.time_base)
    missing_s = announced_s + start_s - last_s
    if missing_s > max(Fraction(1), announced_s / 20):
        raise InputError(
            f"{path} is cut off: {float(missing_s):.2f} s of {float(announced_s):.2f} s are missing",
            "Download it again.",
        )


def counted_packets(path: Path) -> Packets:
    """Frames without times, counted by decoding them all once."""
    with open_container(path) as container:
        try:
            num_frames = sum(1 for _ in container.decode(video_stream(container, path)))
        except av.error.FFmpegError as error:
            raise InputError(f"{path} is damaged ({one_line(error)})", CONVERT) from error
    if not num_frames:
        raise InputError(f"{path} has 0 frames", "Give a video with pictures in it.")
    return Packets(np.arange(num_frames, dtype=np.int64), np.zeros(1, np.int64), num_frames, counted=True)


def first_frame(path: Path) -> VideoFrame:
    """The first picture, which alone knows its rotation and true size."""
    with open_container(path) as container:
        try:
            frame = next(iter(container.decode(video_stream(container, path))), None)
        except av.error.FFmpegError as error:
            raise InputError(f"{path} cannot be decoded ({one_line(error)})", CONVERT) from error
    if frame is None:
        raise InputError(f"{path} has 0 frames", "Give a video with pictures in it.")
    return frame


def has_alpha(frame: VideoFrame) -> bool:
    """Whether the frame's pixels carry transparency."""
    return frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components)


def shown_size(frame: VideoFrame, stream: VideoStream, quarter_turns: int) -> tuple[int, int]:
    """(height, width) with square pixels, upright; pixels that are not square change the width."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    height, width = frame.height, max(1, round(frame.width * aspect)) if aspect > 0 else frame.width
    return (width, height) if quarter_turns % 2 else (height, width)


def frame_rate(
    ticks: np.ndarray, tick: Fraction, claimed: Sequence[Fraction | None]
) -> tuple[Fraction, bool]:
    """(fps, variable): the rate that explains every time to within its rounding, else the mean rate."""
    claims = [c for c in claimed if c]
    if len(ticks) < 2:
        return (claims[0] if claims else STILL_FPS), False
    mean = (len(ticks) - 1) / (int(ticks[-1] - ticks[0]) * tick)
    standard = sorted(STANDARD_FPS, key=lambda fps: abs(fps - mean))[:4]
    for fps in [*(c for c in claims if c in STANDARD_FPS), *standard, *claims, mean.limit_denominator(1001)]:
        if explains(fps, ticks, tick):
            return fps, False
    near = standard[0]
    return (near if abs(near - mean) < mean / 50 else mean.limit_denominator(1001)), True


def explains(fps: Fraction, ticks: np.ndarray, tick: Fraction) -> bool:
    """Whether a constant `fps` puts every frame within one tick of its time."""
    ideal = np.arange(len(ticks)) * float(1 / (fps * tick))
    return bool(np.abs(ticks - ticks[0] - ideal).max() <= 1.001)
