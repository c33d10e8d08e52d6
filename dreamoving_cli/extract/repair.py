"""What detectors get wrong, set right track by track: flicker, left for right, faces on backs, jumps, gaps.

In this order, each step on what the one before left, smoothing last. Raw detections are kept elsewhere;
nothing here looks at pictures. numpy only.
"""

from dataclasses import dataclass, fields, replace
from fractions import Fraction

import numpy as np

from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.draw import LIMBS, VISIBLE
from dreamoving_cli.extract.smoothing import SMOOTHERS
from dreamoving_cli.extract.swaps import FACE_SURE, away, mend_swaps
from dreamoving_cli.extract.tracking import Track

SHOW, HIDE = 0.35, 0.2  # a hidden point is shown from the first score on, a shown one until the second
JUST_SHOWN = VISIBLE + 0.01
JUMP = 0.35  # of the torso: a joint that leaps this far and back within LEAP frames was never there
LEAP = 2  # frames
BACK = 0.4  # it comes back to within this share of the leap
LONGEST, LONG = 1.6, 80  # a limb longer than this many times its own 80th percentile is not a limb
FILL_S = 0.25  # longest gap that is filled
FACIAL = [kp.NOSE, kp.RIGHT_EYE, kp.LEFT_EYE]


@dataclass(frozen=True)
class Repairs:
    """How often each thing was set right: frames for swaps and back views, points for the others."""

    swapped: int = 0  # frames in which arms or legs were exchanged, left for right
    back_views: int = 0  # frames in which a face was removed from the back of a head
    flickers: int = 0  # points kept or hidden against their score
    outliers: int = 0  # points removed
    filled: int = 0  # points put into gaps

    def __add__(self, other: "Repairs") -> "Repairs":
        return Repairs(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class RepairOptions:
    """Which repairs are made."""

    mend: bool = True  # all but the smoothing
    smoothing: str = "savgol"  # a key of SMOOTHERS, or none
    fill_s: float = FILL_S


def repair(track: Track, fps: Fraction, options: RepairOptions) -> tuple[Track, Repairs]:
    """The track as it should have been seen, and what was done."""
    done = Repairs()
    unit = torso_length(track.points, track.scores)
    points, scores = track.points.copy(), track.scores.copy()
    if options.mend:
        scores, flickers = steady(scores)
        points, scores, swapped = mend_swaps(points, scores, unit)
        scores, backs = hide_faces_behind(points, scores)
        scores, outliers = reject_outliers(points, scores, unit)
        points, scores, filled = fill_gaps(points, scores, max(round(options.fill_s * fps), 0))
        done = Repairs(swapped, backs, flickers, outliers, filled)
    if options.smoothing in SMOOTHERS and len(points) > 1:
        points = SMOOTHERS[options.smoothing](points, scores, float(fps), unit)
    return replace(track, points=points.astype(np.float32), scores=scores.astype(np.float32)), done


def torso_length(points: np.ndarray, scores: np.ndarray) -> float:
    """Median way from neck to hips, pixels; of a portrait, from its shoulders or face. f 134 2, f 134."""
    for a, b, share in (
        (kp.NECK, [kp.RIGHT_HIP, kp.LEFT_HIP], 1.0),
        (kp.RIGHT_SHOULDER, [kp.LEFT_SHOULDER], 1.4),
    ):
        seen = (scores[:, [a, *b]] > VISIBLE).all(1)
        if seen.any():
            lengths = np.linalg.norm(points[seen, a] - points[seen][:, b].mean(1), axis=-1)
            return max(float(np.median(lengths)) * share, 1.0)
    face = points[:, kp.FACE][scores[:, kp.FACE] > VISIBLE]
    return max(float(np.ptp(face[:, 1])), 1.0) * 2 if len(face) else 1.0


def steady(scores: np.ndarray) -> tuple[np.ndarray, int]:
    """Scores by which a shown point stays until it is surely gone, and the reverse. scores: f 134."""
    out, shown = scores.copy(), scores[0] > VISIBLE
    for k in range(1, len(scores)):
        shown = np.where(shown, scores[k] > HIDE, scores[k] > SHOW)
        hidden = np.where(scores[k] > VISIBLE, HIDE, scores[k])
        out[k] = np.where(shown, np.maximum(scores[k], JUST_SHOWN), hidden)
    return out, int(((out > VISIBLE) != (scores > VISIBLE)).sum())


def hide_faces_behind(points: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, int]:
    """No nose, eyes and face where the body faces away and the face is not sure. f 134 2, f 134."""
    shown = scores[:, FACIAL].max(1) > VISIBLE
    sure = scores[:, kp.FACE].mean(1) > FACE_SURE
    behind = away(points, scores) & shown & ~sure
    out = scores.copy()
    out[np.ix_(behind, [*FACIAL, *range(kp.FACE.start, kp.FACE.stop)])] = 0
    return out, int(behind.sum())


def reject_outliers(points: np.ndarray, scores: np.ndarray, unit: float) -> tuple[np.ndarray, int]:
    """Scores without points that leap away and back or end an impossible limb. unit: torso, pixels."""
    out = scores.copy()
    body = slice(0, kp.FEET.stop)
    for length in range(1, LEAP + 1):
        out[:, body][_leaps(points[:, body], np.asarray(out[:, body] > VISIBLE), length, unit)] = 0
    for part in (kp.LEFT_HAND, kp.RIGHT_HAND, kp.FACE):
        shown: np.ndarray = np.asarray((out[:, part] > VISIBLE).any(1))
        middle = points[:, part].mean(1, keepdims=True)
        out[_leaps(middle, shown[:, None], 1, unit)[:, 0], part] = 0
    for a, b in LIMBS:
        shown = np.asarray((out[:, [a, b]] > VISIBLE).all(1))
        if shown.sum() < 5:
            continue
        lengths = np.linalg.norm(points[:, a] - points[:, b], axis=-1)
        out[shown & (lengths > LONGEST * np.percentile(lengths[shown], LONG)), b] = 0
    return out, int(((out > VISIBLE) != (scores > VISIBLE)).sum())


def _leaps(points: np.ndarray, shown: np.ndarray, length: int, unit: float) -> np.ndarray:
    """Which points are far from the way between their places before and after `length` frames. f n 2, f n."""
    found = np.zeros_like(shown)
    frames = len(points)
    if frames < length + 2:
        return found
    before, after = points[: frames - length - 1], points[length + 1 :]
    there = shown[: frames - length - 1] & shown[length + 1 :]
    back = np.linalg.norm(after - before, axis=-1)
    far = there.copy()
    for k in range(1, length + 1):
        share = k / (length + 1)
        inside = points[k : frames - length - 1 + k]
        leap = np.linalg.norm(inside - ((1 - share) * before + share * after), axis=-1)
        far &= shown[k : frames - length - 1 + k] & (leap > JUMP * unit) & (back < BACK * leap)
    for k in range(1, length + 1):
        found[k : frames - length - 1 + k] |= far
    return found


def fill_gaps(points: np.ndarray, scores: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Points absent for at most `longest` frames, put on the straight way between their neighbors in time.

    points: f 134 2; scores: f 134. Filled points have the lower score of the two neighbors.
    """
    out, out_scores = points.copy(), scores.copy()
    shown = scores > VISIBLE
    frames = np.arange(len(scores))[:, None]
    last = np.maximum.accumulate(np.where(shown, frames, -1), axis=0)
    following = np.minimum.accumulate(np.where(shown, frames, len(scores))[::-1], axis=0)[::-1]
    gap = ~shown & (last >= 0) & (following < len(scores)) & (following - last - 1 <= longest)
    f, n = np.nonzero(gap)
    a, b = last[f, n], following[f, n]
    share = ((f - a) / (b - a))[:, None]
    out[f, n] = (1 - share) * points[a, n] + share * points[b, n]
    out_scores[f, n] = np.minimum(scores[a, n], scores[b, n])
    return out, out_scores, len(f)
