"""Prompts that change while a video goes on: lines that say from when their words hold.

    @0s a person is dancing, on a beach
    @2.5s a person is dancing, on a beach at night
    @96f a person is dancing, in a street

Seconds or frames of the driving video, as `dreamoving caption` counts them; the first holds from the
beginning. A prompt without such lines holds throughout. Not here: files of prompts (caption/files.py).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from dreamoving_cli.errors import UsageError

FROM = re.compile(r"^@(?:(?P<frame>\d+)f|(?P<time>\d+(?:\.\d+)?)s)(?:[ \t]+|$)")
MOST = 200  # different prompts of one render: their keys are held all at once


@dataclass(frozen=True)
class From:
    """Words, and from when they hold: a frame of the driving video, or seconds in it."""

    words: str
    time_s: Fraction = Fraction(0)
    frame: int | None = None

    def start_s(self, source_fps: Fraction) -> Fraction:
        """Seconds in the driving video."""
        return self.time_s if self.frame is None else self.frame / source_fps

    def __str__(self) -> str:
        at = f"{float(self.time_s):.12g}s" if self.frame is None else f"{self.frame}f"
        return f"@{at} {self.words}"


@dataclass(frozen=True)
class FrameTexts:
    """The texts of a render, and which of them each of its frames has; no frames: all have the only one."""

    texts: tuple[str, ...]
    frames: tuple[int, ...] = ()


def read(prompt: str) -> list[From]:
    """The parts of a prompt that changes; none where it does not."""
    if not any(FROM.match(line) for line in prompt.splitlines()):
        return []
    parts: list[From] = []
    for line in filter(None, map(str.strip, prompt.splitlines())):
        if found := FROM.match(line):
            frame = int(found["frame"]) if found["frame"] else None
            parts.append(From(line[found.end() :], Fraction(found["time"] or 0), frame))
        elif parts:
            parts[-1] = replace(parts[-1], words=f"{parts[-1].words} {line}".strip())
        else:
            raise UsageError(
                f"the prompt begins with '{line}' and changes later",
                "Say from when each part holds, the first with @0s.",
            )
    return parts


def checked(prompt: str) -> str:
    """The same prompt, if it can be read."""
    parts = read(prompt)
    times = {(part.frame, part.time_s) for part in parts}
    if len(times) < len(parts):
        raise UsageError(
            "two parts of the prompt hold from the same time on", "Give each @ line its own time."
        )
    if len({part.words for part in parts}) > MOST:
        raise UsageError(f"the prompt has more than {MOST} different parts", "Give fewer.")
    return prompt


def written(parts: Sequence[From]) -> str:
    """The prompt of these parts; one that does not change where all say the same."""
    kept = [part for i, part in enumerate(parts) if i == 0 or part.words != parts[i - 1].words]
    return kept[0].words if len(kept) == 1 else "\n".join(map(str, kept))


def of_frames(
    prompt: str, start_s: Fraction, rates: tuple[Fraction, Fraction], num_frames: int
) -> FrameTexts:
    """Which words each frame of a render has; rates: of the driving video and of the render."""
    source_fps, fps = rates
    parts = sorted(read(prompt), key=lambda part: part.start_s(source_fps))
    if not parts:
        return FrameTexts((prompt,))
    texts: dict[str, int] = {}
    frames = []
    for frame in range(num_frames):
        now = start_s + frame / fps
        part = next((part for part in reversed(parts) if part.start_s(source_fps) <= now), parts[0])
        frames.append(texts.setdefault(part.words, len(texts)))
    return FrameTexts(tuple(texts), tuple(frames) if len(texts) > 1 else ())
