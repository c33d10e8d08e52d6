"""Captions of photos and videos, from a file to words: read this first.

Every chosen frame is described on its own, then what most frames agree on is the clip's caption.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamoving_cli.caption.files import Partial
from dreamoving_cli.caption.grounding import phrases, plain
from dreamoving_cli.caption.models import Chosen, load_chosen
from dreamoving_cli.caption.sources import Moment, Picks, moments, pictures
from dreamoving_cli.caption.words import merge

if TYPE_CHECKING:
    from dreamoving_cli.models.minigpt.model import Captioner

PROMPT = "[grounding] describe this frame in a detailed manner"  # the paper's
BATCH = {True: 8, False: 2}  # frames described at once, by the miniature and others

OnFrame = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Request:
    """What is asked of each frame."""

    prompt: str = PROMPT
    picks: Picks = field(default_factory=Picks)
    boxes: bool = True  # keep the marks of grounded words
    seed: int | None = None  # None: greedy
    start_s: Fraction = Fraction(0)
    duration_s: Fraction | None = None


@dataclass(frozen=True)
class FrameWords:
    """One frame's caption."""

    frame: int
    time_s: float
    caption: str
    phrases: list[dict[str, Any]]  # words, boxes in percent: x0 y0 x1 y1


@dataclass(frozen=True)
class ClipWords:
    """One input's caption, and those of its frames."""

    file: str
    model: str
    prompt: str
    caption: str
    frames: list[FrameWords]


class Describer:
    """A captioner that is loaded when the first frame needs it."""

    def __init__(self, chosen: Chosen, request: Request, partial: Partial | None = None) -> None:
        self.chosen, self.request = chosen, request
        self.partial = partial or Partial(None)

    @cached_property
    def captioner(self) -> "Captioner":
        return load_chosen(self.chosen)

    def describe(self, path: Path, on_frame: OnFrame = lambda done, total: None) -> ClipWords:
        """The caption of one photo or video."""
        request = self.request
        wanted = moments(path, request.picks, request.start_s, request.duration_s)
        keys = [self.key(path, moment) for moment in wanted]
        missing = [i for i, key in enumerate(keys) if key not in self.partial.answers]
        done = len(wanted) - len(missing)
        on_frame(done, len(wanted))
        for group, shown in self.batches(path, [wanted[i] for i in missing]):
            for moment, answer in zip(group, self.answers(shown, group), strict=True):
                self.partial.keep(self.key(path, moment), answer)
            done += len(group)
            on_frame(done, len(wanted))
        answers = [self.partial.answers[key] for key in keys]
        caption = merge([plain(answer) for answer in answers])
        frames = [self.frame_words(*pair) for pair in zip(wanted, answers, strict=True)]
        return ClipWords(str(path), self.chosen.name, request.prompt, caption, frames)

    def batches(self, path: Path, wanted: Sequence[Moment]) -> Any:
        """(moments, pictures) some at a time; where words are drawn, one: batches must change nothing."""
        size = 1 if self.request.seed is not None else BATCH[self.chosen.is_mini]
        shown = pictures(path, wanted)
        for start in range(0, len(wanted), size):
            group = wanted[start : start + size]
            yield group, [next(shown) for _ in group]

    def answers(self, shown: list[np.ndarray], group: Sequence[Moment]) -> list[str]:
        """The captioner's own words."""
        import torch

        from dreamoving_cli.device import memory_errors

        generator = None
        if self.request.seed is not None:
            digest = hashlib.sha256(f"{self.request.seed} {group[0].frame}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        with memory_errors():
            return self.captioner.describe(shown, self.request.prompt, generator)

    def key(self, path: Path, moment: Moment) -> str:
        """What an answer depends on."""
        stat = path.stat()
        parts = [str(path.absolute()), stat.st_size, stat.st_mtime_ns, moment.frame, self.request.prompt]
        parts += [self.request.seed, self.chosen.name, str(self.chosen.source), str(self.chosen.home)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def frame_words(self, moment: Moment, answer: str) -> FrameWords:
        found = [
            {"words": phrase.words, "boxes": [list(box) for box in phrase.boxes]}
            for phrase in phrases(answer)
        ]
        words = answer if self.request.boxes else plain(answer)
        return FrameWords(moment.frame, round(float(moment.time_s), 3), words, found)


def as_table(words: ClipWords) -> dict[str, Any]:
    """As plain values."""
    return asdict(words)


def preview(path: Path, words: ClipWords) -> np.ndarray:
    """The frames with their boxes, side by side: uint8 h w c."""
    from dreamoving_cli.media.images import contact_sheet

    wanted = [Moment(frame.frame, Fraction(0)) for frame in words.frames]
    drawn = [
        with_boxes(picture, frame)
        for picture, frame in zip(pictures(path, wanted), words.frames, strict=True)
    ]
    return contact_sheet(drawn, min(len(drawn), 4), [f"{frame.time_s:g} s" for frame in words.frames])


def with_boxes(picture: np.ndarray, frame: FrameWords) -> np.ndarray:
    """A frame with its phrases' boxes and words drawn in."""
    from PIL import Image, ImageDraw

    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    line = max(round(max(canvas.size) / 200), 1)
    for i, phrase in enumerate(frame.phrases):
        color = COLORS[i % len(COLORS)]
        for box in phrase["boxes"]:
            x0, y0, x1, y1 = (number / 100 * canvas.size[j % 2] for j, number in enumerate(box))
            pen.rectangle([min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)], outline=color, width=line)
            at, size = (x0 + line, y1 - 6 * line - 6), 5 * line + 4
            pen.text(at, phrase["words"], color, stroke_width=1, stroke_fill="black", font_size=size)
    return np.asarray(canvas)


COLORS = ("#ff4040", "#40c040", "#4080ff", "#ffc020", "#ff60ff", "#20d0d0")
