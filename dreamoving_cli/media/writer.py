"""Video out: batches of frames to a file, pictures tagged and converted as BT.709, sound beside them.

The file appears whole or not at all; only one batch of frames is in memory. Not here: reading (video.py).
"""

import logging
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from PIL import Image

from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.media.audio import Audio, Track, add_track
from dreamoving_cli.media.whole import check_output, part_folder
from dreamoving_cli.whole import part_file, writing

__all__ = ["CODECS", "Audio", "check_output", "output_path", "write_video"]

BT709 = 1  # the number of this matrix, these primaries and this curve in every video standard
PRECISE = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
MAX_TIMESCALE = 20_000_000  # units a second; a day still fits into the 64 bits of an mp4
GIF_MAX_FPS = 50  # players slow down anything quicker
GIF_CLOCK = 100  # a GIF counts in hundredths of a second

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Codec:
    """How one codec is written; `quality` is its own number (constant rate factor; profile for prores)."""

    encoder: str
    pixels: str  # FFmpeg's name of the pixel format
    suffixes: tuple[str, ...]  # containers that hold it; the first is the usual one
    quality: int = 0
    best: int = 0  # the number of the best quality
    worst: int = 0
    even: bool = True  # sides must be even
    knob: str = "crf"
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """All that a sink needs to know."""

    path: Path  # the final one, for messages
    part: Path  # the one to write to
    codec: str
    fps: Fraction
    quality: int
    audio: Audio | None
    metadata: dict[str, str]


class Sink(Protocol):
    """An open output."""

    def write(self, frames: np.ndarray) -> None:
        """Append uint8 f h w c."""

    def finish(self) -> None:
        """Write what is still inside the encoder, and the end of the file."""

    def abandon(self) -> None:
        """Release everything; the file will be deleted."""


def write_video(
    path: Path,
    batches: Iterable[np.ndarray],
    fps: Fraction,
    *,
    audio: Audio | None = None,
    codec: str | None = None,
    quality: int | None = None,
    overwrite: bool = False,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write batches of uint8 f h w c at exactly `fps`; return where they are (a folder for PNG).

    Whatever goes wrong, also in `batches`, leaves nothing behind. quality: see CODECS.
    """
    name = codec_of(Path(path), codec)
    path = output_path(Path(path), codec)
    level = checked_quality(name, quality)
    check_output(path, overwrite)
    with (part_folder if name == "png" else part_file)(path) as part:
        job = Job(path, part, name, Fraction(fps), level, audio, metadata or {})
        frames = (batch for batch in batches if len(batch))
        first = next(frames, None)
        if first is None:
            raise InputError(f"there are 0 frames to write to {path}", "Give a video with frames in it.")
        with open_sink(job, first) as sink:
            for batch in chain([first], frames):
                with writing(path):
                    sink.write(batch)
            with writing(path):
                sink.finish()
    return path


def codec_of(path: Path, codec: str | None = None) -> str:
    """The codec by name, else by the extension of the output; UsageError if the two do not fit."""
    suffix = path.suffix.lower()
    if codec is None:
        codec = next((n for n, c in CODECS.items() if suffix == c.suffixes[0]), None) or EXTENSIONS.get(
            suffix
        )
    if codec is None:
        known = sorted({s for c in CODECS.values() for s in c.suffixes if s})
        raise UsageError(
            f"'{suffix}' is not a video format, in {path}", f"End the name in {', '.join(known)}."
        )
    if codec not in CODECS:
        raise UsageError(f"'{codec}' is not a codec", f"Choose one of {', '.join(CODECS)}.")
    if suffix not in CODECS[codec].suffixes:
        fitting = " or ".join(s or "no extension (a folder)" for s in CODECS[codec].suffixes)
        raise UsageError(f"{codec} does not fit into {path.name}", f"End the name in {fitting}.")
    return codec


def output_path(path: Path, codec: str | None = None) -> Path:
    """Where a video goes: pictures go to a folder, named without `.png`."""
    return path.with_suffix("") if codec_of(path, codec) == "png" else path


def checked_quality(codec: str, quality: int | None) -> int:
    """The codec's quality number, its default when not given."""
    spec = CODECS[codec]
    if quality is None:
        return spec.quality
    low, high = sorted((spec.best, spec.worst))
    if not low <= quality <= high:
        raise UsageError(
            f"quality of {codec} is {quality}", f"Choose {spec.best} (best) to {spec.worst} (smallest)."
        )
    return quality


@contextmanager
def open_sink(job: Job, frames: np.ndarray) -> Iterator[Sink]:
    """The sink for a job whose pictures are like `frames`, f h w c; abandoned if anything goes wrong."""
    kind: Any = {"png": PictureSink, "gif": GifSink}.get(job.codec, VideoSink)
    if job.audio is not None and kind is not VideoSink:
        logger.warning("%s holds no sound", job.path)
    with writing(job.path):
        sink: Sink = kind(job, frames.shape[1], frames.shape[2])
    try:
        yield sink
    except BaseException:  # an interrupt too: the encoder must let go of the file
        sink.abandon()
        raise


class VideoSink:
    """One picture track and, if asked for, one sound track through FFmpeg."""

    def __init__(self, job: Job, height: int, width: int) -> None:
        self._job = job
        spec = CODECS[job.codec]
        self._pad = (height % 2, width % 2) if spec.even else (0, 0)
        if any(self._pad):
            logger.warning(
                "%s takes even sizes only: %dx%d is padded to %dx%d by repeating the edge",
                job.codec, width, height, width + self._pad[1], height + self._pad[0],
            )  # fmt: skip
        os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints its settings otherwise
        mov = job.part.suffix.lower() in (".mp4", ".m4v", ".mov")
        flags = {"movflags": "+faststart+use_metadata_tags"} if mov else {}  # tags of our own survive
        self._container = av.open(str(job.part.absolute()), "w", options=flags)
        self._track: Track | None = None
        try:
            self._container.metadata.update(job.metadata)
            self._stream = self._add_stream(spec, height + self._pad[0], width + self._pad[1])
            if job.audio is not None:
                self._track = add_track(job.audio, self._container, job.part.suffix.lower())
            if mov:
                self._container.options["movie_timescale"] = str(movie_timescale(job.fps, self._track))
        except BaseException:
            self.abandon()
            raise
        self._count = 0

    def _add_stream(self, spec: Codec, height: int, width: int) -> Any:
        options = {**spec.options, spec.knob: str(self._job.quality)}
        stream: Any = self._container.add_stream(spec.encoder, rate=self._job.fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, spec.pixels
        context = stream.codec_context
        context.time_base = 1 / self._job.fps
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = int(ColorRange.MPEG)
        if self._job.codec == "hevc":
            context.codec_tag = "hvc1"  # the only one that Apple's players accept
        return stream

    def write(self, frames: np.ndarray) -> None:
        """Encode f h w c, with the sound up to the same time."""
        for image in frames:
            self._container.mux(self._stream.encode(self._frame(image)))
        self._mux_sound(last=False)

    def _frame(self, image: np.ndarray) -> av.VideoFrame:
        if any(self._pad):
            image = np.pad(image, ((0, self._pad[0]), (0, self._pad[1]), (0, 0)), mode="edge")
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = rgb.reformat(
            format=CODECS[self._job.codec].pixels,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=PRECISE,
        )
        frame.color_primaries, frame.color_trc = int(ColorPrimaries.BT709), int(ColorTrc.BT709)
        frame.time_base, frame.pts, frame.duration = 1 / self._job.fps, self._count, 1
        self._count += 1
        return frame

    def _mux_sound(self, last: bool) -> None:
        if self._track is not None:
            for packet in self._track.packets(self._count / self._job.fps, last):
                self._container.mux(packet)

    def finish(self) -> None:
        """Flush both encoders, write the index, close."""
        self._container.mux(self._stream.encode(None))
        self._mux_sound(last=True)
        if self._track is not None:
            self._track.close()
        self._container.close()

    def abandon(self) -> None:
        """Close what can be closed."""
        if self._track is not None:
            self._track.close()
        with suppress(OSError, ValueError, av.error.FFmpegError):
            self._container.close()


def movie_timescale(fps: Fraction, track: Track | None) -> int:
    """Units a second in which an mp4 counts lengths; with FFmpeg's 1000, tracks end rounded to 1 ms."""
    rate = track.rate if track is not None else 1
    exact = math.lcm(fps.numerator, rate)
    return exact if 1000 <= exact <= MAX_TIMESCALE else max(rate, 90_000)


class GifSink:
    """A GIF with a palette of its own for each picture, so that nothing has to be held back."""

    def __init__(self, job: Job, height: int, width: int) -> None:
        if job.fps > GIF_MAX_FPS:
            raise UsageError(
                f"{job.path} would have {float(job.fps):g} frames/s",
                f"A GIF plays at {GIF_MAX_FPS} at most: use mp4.",
            )
        if GIF_CLOCK % job.fps.numerator or job.fps.denominator != 1:
            logger.warning("a GIF counts in 1/100 s: %s frames/s are exact on average only", job.fps)
        self._fps = job.fps
        self._container = av.open(str(job.part.absolute()), "w", format="gif")
        self._stream: Any = self._container.add_stream("gif", rate=job.fps)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "pal8"
        self._stream.codec_context.time_base = Fraction(1, GIF_CLOCK)
        self._graph = palette_graph(height, width)
        self._count = 0

    def write(self, frames: np.ndarray) -> None:
        """Append f h w c."""
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.time_base, frame.pts = (
                Fraction(1, GIF_CLOCK),
                math.floor(self._count * GIF_CLOCK / self._fps),
            )
            self._count += 1
            self._graph.push(frame)
            self._drain()

    def _drain(self) -> None:
        with suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                frame: Any = self._graph.pull()
                self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Write the last picture and the trailer."""
        self._graph.push(None)
        self._drain()
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abandon(self) -> None:
        """Close what can be closed."""
        with suppress(OSError, ValueError, av.error.FFmpegError):
            self._container.close()


def palette_graph(height: int, width: int) -> av.filter.Graph:
    """RGB in, 256 colors out, picture by picture."""
    graph = av.filter.Graph()
    rgb = av.VideoFormat("rgb24", width, height)
    source = graph.add_buffer(width=width, height=height, format=rgb, time_base=Fraction(1, GIF_CLOCK))
    split = graph.add("split")
    palette = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
    use = graph.add("paletteuse", "new=1:dither=bayer:bayer_scale=4")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph


class PictureSink:
    """A folder of numbered PNG files."""

    def __init__(self, job: Job, height: int, width: int) -> None:
        self._part = job.part
        self._count = 0

    def write(self, frames: np.ndarray) -> None:
        """One file a picture, numbered from 0."""
        for image in frames:
            Image.fromarray(image).save(self._part / f"{self._count:06d}.png", compress_level=4)
            self._count += 1

    def finish(self) -> None:
        """Every file is already closed."""

    def abandon(self) -> None:
        """Every file is already closed."""


EXTENSIONS = {".m4v": "h264", ".mkv": "h264", ".png": "png"}  # beside each codec's usual extension
MOVS = (".mp4", ".mov", ".m4v", ".mkv")
CODECS = {
    "h264": Codec("libx264", "yuv420p", MOVS, 18, 0, 51, options={"preset": "medium"}),
    "hevc": Codec("libx265", "yuv420p", MOVS, 20, 0, 51, options={"x265-params": "log-level=error"}),
    "av1": Codec("libsvtav1", "yuv420p", (".mp4", ".mkv", ".webm"), 30, 0, 63, options={"preset": "8"}),
    "vp9": Codec(
        "libvpx-vp9", "yuv420p", (".webm", ".mkv", ".mp4"), 28, 0, 63, even=False,
        options={"b": "0", "row-mt": "1", "cpu-used": "4"},
    ),
    "prores": Codec(
        "prores_ks", "yuv422p10le", (".mov", ".mkv"), 3, 3, 0, knob="profile", options={"vendor": "apl0"},
    ),
    "gif": Codec("gif", "pal8", (".gif",), even=False),
    "png": Codec("png", "rgb24", ("", ".png"), even=False),
}  # fmt: skip
