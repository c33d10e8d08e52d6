"""One video, looked through once: its transitions, the clips between them, and which of these are no use."""

from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from dreamoving_cli.dataset.looks import blur, movement, thumbnail
from dreamoving_cli.dataset.rules import Drop, Rules
from dreamoving_cli.dataset.shots import Span, black_spans, clips_in, gradual_spans, histogram, shots
from dreamoving_cli.extract.cuts import with_cuts
from dreamoving_cli.extract.draw import VISIBLE
from dreamoving_cli.media.video import Clip, default_fps, open_clip, probe

BATCH = 8
LAG_S = Fraction(1, 4)  # between two frames whose change is movement
BLUR_EVERY_S = Fraction(1, 2)
LOOKS_FOR_PEOPLE = 6  # frames of a clip in which a person is looked for before its poses are found
FEW = 0.5  # share of these frames below which nobody is there
POINTS = 4  # of a person must show, at least


@dataclass(frozen=True)
class Stretch:
    """A part of a video that was asked for by name, with its caption."""

    start_s: Fraction
    end_s: Fraction | None
    caption: str = ""


@dataclass(frozen=True)
class Candidate:
    """A stretch without transitions, and what was measured in it."""

    start: int  # frame at `fps`
    frames: int
    fps: str
    movement: float
    blur: float
    person: float  # share of the looked-at frames that show anyone
    caption: str = ""
    reason: str = ""  # "" = a clip can be made of it
    detail: str = ""

    @property
    def start_s(self) -> Fraction:
        return self.start / Fraction(self.fps)

    @property
    def duration_s(self) -> Fraction:
        return self.frames / Fraction(self.fps)

    def told(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Seen:
    """What one look through a video gives, frame by frame."""

    cuts: list[int]
    histograms: np.ndarray  # f 64
    brightness: np.ndarray  # f
    movement: np.ndarray  # f, against LAG_S before
    blur: dict[int, float]  # frame -> blur, twice a second


def survey(path: Path, rules: Rules, listed: tuple[Stretch, ...] = ()) -> list[Candidate]:
    """Every stretch of a video that could be a clip, in order, with what speaks against it."""
    fps = rules.fps or default_fps(probe(path))
    with open_clip(path, fps=fps) as clip:
        seen = look_through(clip)
        spans = black_spans(seen.brightness) + gradual_spans(seen.histograms, seen.cuts, fps)
        free = shots(clip.num_frames, seen.cuts, spans)
        found = from_list(listed, free, clip) if listed else cut_up(free, fps, rules)
        return [judge(candidate, seen, clip, rules) for candidate in found]


def look_through(clip: Clip) -> Seen:
    """Decode the video once."""
    lag, every = max(round(LAG_S * clip.fps), 1), max(round(BLUR_EVERY_S * clip.fps), 1)
    cuts: list[int] = []
    histograms, brightness, moved, blurs = [], [], [], {}
    small: list[np.ndarray] = []
    frames = (frame for batch in clip.batches(BATCH) for frame in batch)
    for k, (frame, cut) in enumerate(with_cuts(frames, clip.fps)):
        cuts += [k] if cut else []
        small = [*small[-lag:], thumbnail(frame)]
        histograms.append(histogram(small[-1]))
        brightness.append(float(small[-1].mean()))
        moved.append(movement(small[0], small[-1]) if len(small) > lag else 0.0)
        if k % every == 0:
            blurs[k] = blur(frame)
    return Seen(cuts, np.stack(histograms), np.array(brightness), np.array(moved), blurs)


def cut_up(free: list[Span], fps: Fraction, rules: Rules) -> list[Candidate]:
    """Clips of the wanted length; what is too short for one is told."""
    found = []
    for a, b in free:
        clips = list(clips_in((a, b), fps, rules.min_s, rules.max_s))
        found += [blank(span, fps) for span in clips]
        if not clips:
            short = f"{float((b - a) / fps):.1f} s between transitions"
            found.append(replace(blank((a, b), fps), reason="short", detail=short))
    return found


def from_list(listed: tuple[Stretch, ...], free: list[Span], clip: Clip) -> list[Candidate]:
    """The stretches that were asked for; one that a transition runs through is no use."""
    found = []
    for stretch in listed:
        start = round(stretch.start_s * clip.fps)
        end = clip.num_frames
        if stretch.end_s is not None:
            end = min(round(stretch.end_s * clip.fps), end)
        candidate = replace(blank((start, max(end, start)), clip.fps), caption=stretch.caption)
        if start >= end:
            candidate = replace(candidate, reason="outside", detail="it lies behind the end of the video")
        elif not any(a <= start and end <= b for a, b in free):
            candidate = replace(candidate, reason="transition", detail="a transition lies within it")
        found.append(candidate)
    return found


def blank(span: Span, fps: Fraction) -> Candidate:
    """A candidate that nobody has looked at."""
    return Candidate(span[0], span[1] - span[0], str(fps), 0.0, 0.0, 0.0)


def judge(candidate: Candidate, seen: Seen, clip: Clip, rules: Rules) -> Candidate:
    """The candidate with its measures, and the reason if it is dropped."""
    if candidate.reason:
        return candidate
    span = range(candidate.start, candidate.start + candidate.frames)
    lag = max(round(LAG_S * clip.fps), 1)
    moved = float(np.median(seen.movement[min(span.start + lag, span.stop - 1) : span.stop]))
    blurs = [value for k, value in seen.blur.items() if k in span]
    soft = float(np.median(blurs)) if blurs else blur(clip.read([span.start])[0])
    measured = replace(candidate, movement=round(moved, 2), blur=round(soft, 3))
    if moved < rules.static:
        drop = Drop("static", f"movement {moved:.1f}, at least {rules.static:g}")
    elif soft > rules.blur:
        drop = Drop("blurred", f"blur {soft:.2f}, at most {rules.blur:g}")
    elif rules.keep_people_less:
        drop = Drop("")
    else:
        measured = replace(measured, person=person_share(clip, span))
        few = measured.person < FEW
        drop = Drop("no person" if few else "", f"in {measured.person:.0%} of the frames looked at")
    return replace(measured, reason=drop.reason, detail=drop.detail if drop.reason else "")


def person_share(clip: Clip, span: range) -> float:
    """In which share of a few spread frames the light detector sees anyone."""
    from dreamoving_cli.extract.light import LightDetector  # its runtime takes a while to load

    detector = LightDetector()  # a face alone counts too
    picks = np.linspace(span.start, span.stop - 1, LOOKS_FOR_PEOPLE).round().astype(int).tolist()
    found = 0
    for frame in sorted(set(picks)):
        detector.forget()
        [(_, scores)] = detector(clip.read([frame]))
        found += int(len(scores) > 0 and bool((scores[0] > VISIBLE).sum() >= POINTS))
    return found / len(set(picks))
