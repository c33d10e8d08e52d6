"""What is captioned: a photo, frames of a video, or many of both; which frames, and how they are read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.media.images import read_image
from dreamoving_cli.media.suffixes import PICTURES, VIDEOS, files_of
from dreamoving_cli.media.video import open_clip

DEFAULT_FRAMES = 4
MOST_FRAMES = 100_000


@dataclass(frozen=True)
class Moment:
    """One frame of an input."""

    frame: int
    time_s: Fraction


@dataclass(frozen=True)
class Picks:
    """Which frames of a video: one every so many seconds, or so many at even distances."""

    every_s: Fraction | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if self.every_s is not None and self.count is not None:
            raise UsageError(
                f"every is {float(self.every_s):g} s and frames {self.count}", "Give one of them."
            )
        if self.every_s is not None and self.every_s <= 0:
            raise UsageError(f"every is {float(self.every_s):g} s", "Give more than 0 seconds.")
        if self.count is not None and not 1 <= self.count <= MOST_FRAMES:
            raise UsageError(f"frames is {self.count}", f"Give 1 to {MOST_FRAMES}.")

    def of(self, num_frames: int, fps: Fraction) -> list[int]:
        """The chosen frames, rising, each once."""
        if self.every_s is None:
            count = min(self.count or DEFAULT_FRAMES, num_frames)
            return [(2 * i + 1) * num_frames // (2 * count) for i in range(count)]
        step = self.every_s * fps
        count = int((num_frames - 1) // step) + 1
        return sorted({int(i * step) for i in range(count)})


def inputs(source: str) -> list[Path]:
    """The files that IN names: one, those of a folder, or of a pattern; sorted."""
    found = files_of(source, VIDEOS | PICTURES)
    if found is None:
        return [Path(source)]
    if not found:
        raise InputError(f"no picture or video is in '{source}'", "Check the folder or the pattern.")
    return found


def moments(
    path: Path, picks: Picks, start_s: Fraction = Fraction(0), duration_s: Fraction | None = None
) -> list[Moment]:
    """The frames of a file's stretch that are captioned; of a photo the one that it is."""
    if is_picture(path):
        if not path.is_file():
            raise InputError(f"{path} does not exist or is not a file", "Check the path.")
        return [Moment(0, Fraction(0))]
    with open_clip(path, start_s=start_s, duration_s=duration_s) as clip:
        first = int(start_s * clip.fps)
        return [
            Moment(first + frame, (first + frame) / clip.fps) for frame in picks.of(clip.num_frames, clip.fps)
        ]


def pictures(path: Path, wanted: Sequence[Moment]) -> Iterator[np.ndarray]:
    """The frames, uint8 h w c, one at a time."""
    if is_picture(path):
        yield read_image(path)
        return
    with open_clip(path) as clip:
        for moment in wanted:
            yield clip.read([min(moment.frame, clip.num_frames - 1)])[0]


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES
