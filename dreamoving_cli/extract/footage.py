"""What the extractors share: the stretch of a video that is looked at, and its sound."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from dreamoving_cli.media.audio import Audio
from dreamoving_cli.media.video import Clip, open_clip, probe


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


def sound_of(source: Path, stretch: Stretch, clip: Clip | None) -> Audio | None:
    """The sound of the stretch, exactly as long as its pictures."""
    if clip is None or not probe(source).has_audio:
        return None
    whole = not stretch.start_s and stretch.duration_s is None
    return Audio(source, stretch.start_s, None if whole else clip.num_frames / clip.fps)
