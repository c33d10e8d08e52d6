"""Video in: what a file holds (`probe`), and its frames at any rate, start and size (`open_clip`).

Time is exact: rates and times are Fractions, and an output frame is the source frame on display at its time.
Pixels are read when asked for; no clip is ever held whole. Not here: writing (writer.py), sound (audio.py).
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from dreamoving_cli.errors import UsageError
from dreamoving_cli.media.frames import FrameReader, open_frames
from dreamoving_cli.media.images import crop_to_aspect, resize
from dreamoving_cli.media.index import Index, index_file

MAX_DEFAULT_FPS = 30

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds. Size as shown: upright and with square pixels."""

    path: Path
    height: int
    width: int
    fps: Fraction  # the mean rate, if it is variable
    num_frames: int
    duration_s: Fraction
    variable: bool
    has_audio: bool
    metadata: dict[str, str]  # the container's tags, keys in lower case


def probe(path: Path) -> VideoInfo:
    """What a video, GIF or picture holds; InputError for anything else."""
    return describe(index_file(Path(path)))


def describe(index: Index) -> VideoInfo:
    """The public face of an index."""
    return VideoInfo(
        path=index.path,
        height=index.height,
        width=index.width,
        fps=index.fps,
        num_frames=len(index.ticks),
        duration_s=index.duration_s,
        variable=index.variable,
        has_audio=index.has_audio,
        metadata=dict(index.metadata),
    )


class Clip:
    """A stretch of a video as frames; keeps its decoder open, so reading on is cheap."""

    def __init__(
        self, info: VideoInfo, reader: FrameReader, picks: np.ndarray, fps: Fraction, size: tuple[int, int]
    ) -> None:
        self.info = info
        self.path = info.path
        self.fps = fps
        self.num_frames = len(picks)
        self.height, self.width = size
        self.start_s = Fraction(0)
        self._reader = reader
        self._picks = picks  # source frame of each output frame
        self._last: tuple[int, np.ndarray] = (-1, np.empty(0, np.uint8))

    def read(self, frames: Sequence[int]) -> np.ndarray:
        """uint8 f h w c of the given frames (0-based; cheapest in rising order)."""
        out = np.empty((len(frames), self.height, self.width, 3), np.uint8)
        for row, frame in enumerate(frames):
            if not 0 <= frame < self.num_frames:
                raise IndexError(f"frame {frame} of {self.num_frames} in {self.path}")
            out[row] = self._frame(int(self._picks[frame]))
        return out

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """All frames in order, uint8 f h w c, `size` at a time (the last may be shorter)."""
        for start in range(0, self.num_frames, size):
            yield self.read(range(start, min(start + size, self.num_frames)))

    def close(self) -> None:
        """Release the file."""
        self._reader.close()

    def __enter__(self) -> "Clip":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _frame(self, pick: int) -> np.ndarray:
        if pick != self._last[0]:  # a rate above the source's shows frames twice
            image = crop_to_aspect(self._reader.frame(pick), self.height, self.width)
            self._last = (pick, resize(image, self.height, self.width))
        return self._last[1]


def open_clip(
    path: Path,
    *,
    fps: Fraction | None = None,
    start_s: Fraction | int = 0,
    duration_s: Fraction | None = None,
    num_frames: int | None = None,
    size: tuple[int, int] | None = None,
    reader: str = "pyav",
) -> Clip:
    """A stretch of a video at `fps`, cropped at the center and resized to `size`, never stretched.

    size: (height, width). None means the source's own, for every option. `num_frames` is an upper limit.
    """
    index = index_file(Path(path))
    rate = index.fps if fps is None else Fraction(fps)
    start = Fraction(start_s)
    refuse_bad_stretch(index, rate, start, duration_s, num_frames)
    count = frames_in_stretch(index, rate, start, duration_s)
    if num_frames is not None:
        if num_frames > count:
            logger.warning("%s has %d frames, fewer than the %d asked for", path, count, num_frames)
        count = min(count, num_frames)
    picks = pick_frames(index, rate, start, count)
    clip = Clip(describe(index), open_frames(index, reader), picks, rate, size or (index.height, index.width))
    clip.start_s = start
    return clip


def refuse_bad_stretch(
    index: Index, fps: Fraction, start_s: Fraction, duration_s: Fraction | None, num_frames: int | None
) -> None:
    """Negative and empty stretches, and those behind the end."""
    if fps <= 0:
        raise UsageError(f"fps is {fps}", "Choose a rate above 0.")
    if not 0 <= start_s < index.duration_s:
        length_s = float(index.duration_s)
        raise UsageError(
            f"start is {float(start_s):g} s, outside {index.path}",
            f"Choose from 0 to less than {length_s:g} s.",
        )
    if duration_s is not None and duration_s <= 0:
        raise UsageError(f"duration is {float(duration_s):g} s", "Choose more than 0.")
    if num_frames is not None and num_frames < 1:
        raise UsageError(f"frames is {num_frames}", "Choose 1 or more.")


def frames_in_stretch(index: Index, fps: Fraction, start_s: Fraction, duration_s: Fraction | None) -> int:
    """How many frames at `fps` last as long as the stretch, to the nearest frame, at least one."""
    available_s = index.duration_s - start_s
    length_s = available_s if duration_s is None else Fraction(duration_s)
    if length_s - available_s > 1 / fps:
        logger.warning(
            "%s ends %.3f s before the stretch asked for does", index.path, float(length_s - available_s)
        )
    return max(1, math.floor(min(length_s, available_s) * fps + Fraction(1, 2)))


def pick_frames(index: Index, fps: Fraction, start_s: Fraction, count: int) -> np.ndarray:
    """int64 f: the source frame on display at start_s + k / fps, for each k.

    Constant rates go by the ideal grid, which rounded times (Matroska's milliseconds) would break; variable
    ones go by the times themselves, taken as rounded to the nearest tick.
    """
    if not index.variable:
        times = (math.floor((start_s + k / fps) * index.fps) for k in range(count))
        picks = np.fromiter(times, np.int64, count)
    else:
        origin, half = int(index.ticks[0]), Fraction(1, 2)
        shown = (origin + math.floor((start_s + k / fps) / index.tick + half) for k in range(count))
        picks = np.searchsorted(index.ticks, np.fromiter(shown, np.int64, count), side="right") - 1
    return np.clip(picks, 0, len(index.ticks) - 1)


def default_fps(info: VideoInfo) -> Fraction:
    """The source's rate, halved until it is at most 30: models were not trained on more."""
    fps = info.fps
    while fps > MAX_DEFAULT_FPS:
        fps /= 2
    return fps


def fit_size(height: int, width: int, multiple: int, max_pixels: int) -> tuple[int, int]:
    """The (height, width) in multiples that crops this shape least, within `max_pixels` and the source."""
    scale = min(1.0, math.sqrt(max_pixels / (height * width)))
    floors = [int(side * scale + 1e-6) // multiple for side in (height, width)]
    sizes = [
        (h * multiple, w * multiple)
        for h in range(floors[0], floors[0] + 2)
        for w in range(floors[1], floors[1] + 2)
    ]
    fitting = [
        (h, w) for h, w in sizes if min(h, w) > 0 and h * w <= max_pixels and h <= height and w <= width
    ]
    if not fitting:
        raise UsageError(
            f"{width}x{height} leaves less than {multiple} pixels a side within {max_pixels} pixels",
            "Give a larger picture, a larger budget or --size.",
        )
    return max(
        fitting,
        key=lambda size: (
            min(size[0] * width, size[1] * height) / max(size[0] * width, size[1] * height),
            size,
        ),
    )
