"""What the extractors share: the stretch of a video that they look at, sound, memory, work cut off."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from dreamoving_cli.errors import DeviceMemoryError
from dreamoving_cli.media.audio import Audio
from dreamoving_cli.media.video import Clip, open_clip, probe

GIB = 2**30

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stretch:
    """What of a video is looked at; None = as it is."""

    fps: Fraction | None = None
    start_s: Fraction = Fraction(0)
    duration_s: Fraction | None = None
    size: tuple[int, int] | None = None  # height, width

    def open(self, source: Path) -> Clip:
        """This stretch of a video."""
        return open_clip(
            source, fps=self.fps, start_s=self.start_s, duration_s=self.duration_s, size=self.size
        )


def refuse_little_memory(what: str, need: int) -> None:
    """DeviceMemoryError where so many bytes are not free."""
    have = psutil.virtual_memory().available
    if need > have:
        raise DeviceMemoryError(
            f"{what} need about {need / GIB:.1f} GiB, {have / GIB:.1f} are free",
            "Give a shorter --duration, a lower --fps or a smaller --size.",
        )


def sound_of(source: Path, stretch: Stretch, clip: Clip | None) -> Audio | None:
    """The sound of the stretch, exactly as long as its pictures."""
    if clip is None or not probe(source).has_audio:
        return None
    whole = not stretch.start_s and stretch.duration_s is None
    return Audio(source, stretch.start_s, None if whole else clip.num_frames / clip.fps)


def what_is_read(source: Path, clip: Clip) -> dict[str, Any]:
    """All that decides a clip's frames, as plain values: whether unfinished work belongs to it."""
    file = source.stat()
    return {
        "source": [str(source.absolute()), file.st_size, file.st_mtime_ns],
        "stretch": [str(clip.fps), str(clip.start_s), clip.num_frames, clip.height, clip.width],
    }


@contextmanager
def kept_if_interrupted(state: Path) -> Iterator[None]:
    """The file of unfinished work: gone when the block ends well; left, and told of, when it does not."""
    try:
        yield
    except BaseException:  # Ctrl-C too
        if state.is_file():
            logger.warning("not finished; the same command with --resume goes on from %s", state)
        raise
    state.unlink(missing_ok=True)


def say_where(resume: bool, done: int) -> None:
    """Where an extraction that is to be resumed goes on."""
    if resume:
        logger.warning("%s", f"going on after frame {done}" if done else "starting from the beginning")
