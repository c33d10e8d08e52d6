"""Where a video may be cut into clips: between transitions, never across one. Numbers only, no pixels.

A hard cut is a frame number; a fade or a dissolve is a span of frames that belongs to no clip.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor

import numpy as np

Span = tuple[int, int]  # first frame, frame after the last

DISSOLVE = 0.5  # share of the pixels whose color changes within a second
BLACK = 14.0  # mean brightness, of 255, below which a frame shows nothing


def histogram(thumbnail: np.ndarray) -> np.ndarray:
    """Shares of 64 colors in a small picture, uint8 h w 3."""
    cells = (thumbnail >> 6).reshape(-1, 3).astype(np.int64) @ (16, 4, 1)
    return np.asarray(np.bincount(cells, minlength=64) / len(cells), np.float32)


def gradual_spans(histograms: np.ndarray, cuts: Sequence[int], fps: Fraction) -> list[Span]:
    """Dissolves: the colors half a second before and after a frame differ, and no hard cut explains it.

    histograms: f 64.
    """
    frames, half = len(histograms), max(round(fps / 2), 1)
    if frames <= 2 * half:
        return []
    apart = 0.5 * np.abs(histograms[2 * half :] - histograms[: -2 * half]).sum(1)
    changed = apart > DISSOLVE
    for cut in cuts:
        changed[max(cut - 2 * half, 0) : cut + 1] = False
    return [(a, b + 2 * half) for a, b in runs(changed)]


def black_spans(brightness: np.ndarray) -> list[Span]:
    """Frames that show nothing; brightness: f, of 255."""
    return runs(brightness < BLACK)


def runs(mask: np.ndarray) -> list[Span]:
    """Where a mask f is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def shots(num_frames: int, cuts: Sequence[int], spans: Sequence[Span]) -> list[Span]:
    """The stretches without any transition."""
    shown = np.ones(num_frames, bool)
    for a, b in spans:
        shown[max(a, 0) : b] = False
    borders = sorted({0, num_frames, *(c for c in cuts if 0 < c < num_frames)})
    return [(start + a, start + b) for start, end in pairwise(borders) for a, b in runs(shown[start:end])]


def clips_in(shot: Span, fps: Fraction, min_s: Fraction, max_s: Fraction) -> Iterator[Span]:
    """As many clips of min_s to max_s as a shot holds, equally long, none overlapping."""
    start, end = shot
    least, most = ceil(min_s * fps), max(floor(max_s * fps), ceil(min_s * fps))
    frames = end - start
    count = ceil(frames / most)
    if frames < least:
        return
    if frames // count < least:  # fewer, each as long as may be; the rest is left over
        count = frames // least
    length = min(frames // count, most)
    rest = frames - count * length
    for i in range(count):
        first = start + i * length + rest * i // max(count, 1)
        yield first, first + length
