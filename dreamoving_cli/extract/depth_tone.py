"""From distances to depth pictures, as the official extractor does it, but over a whole clip at once.

ControlNets know depth as: the nearest 2 % of all pixels white, the farthest 15 % black, straight between.
Frame by frame those limits would jump and the picture flicker; here they are exact percentiles of the clip.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dreamoving_cli.errors import InputError

NEAREST, FARTHEST = 0.02, 0.85  # shares of the clip's pixels
HALF = 16  # bits of a number that are looked at in one pass
SIGN = np.uint32(1 << 31)

Blocks = Callable[[], Iterable[np.ndarray]]  # all distances, float32, again at each call


@dataclass(frozen=True)
class Limits:
    """The distances that become white and black."""

    near: float
    far: float

    def nearness(self, distances: np.ndarray) -> np.ndarray:
        """1 at `near` and before, 0 at `far` and behind; a clip of one distance has no shape and is all 0."""
        span = np.float32(self.far - self.near)
        if span < np.finfo(np.float32).tiny:
            return np.zeros_like(distances)
        with np.errstate(over="ignore"):  # far beyond the limits is as good as at them
            return np.asarray(np.clip(1 - (distances - np.float32(self.near)) / span, 0, 1))


def limits_of(blocks: Blocks) -> Limits:
    """The limits of a clip, in memory that does not grow with it."""
    near, far = quantiles(blocks, (NEAREST, FARTHEST))
    return Limits(near, far)


def as_8_bit(nearness: np.ndarray) -> np.ndarray:
    """0..1 as uint8, cut off as the official code does."""
    return (nearness * 255).astype(np.uint8)


def as_16_bit(nearness: np.ndarray) -> np.ndarray:
    """0..1 as uint16."""
    return np.asarray(np.round(nearness * 65535)).astype(np.uint16)


def quantiles(blocks: Blocks, shares: Sequence[float]) -> list[float]:
    """As numpy's, with straight lines between neighbors, over numbers that need not fit into memory."""
    count = sum(block.size for block in blocks())
    if not count:
        raise InputError("there are 0 frames to look at", "Give a video with frames in it.")
    places = [share * (count - 1) for share in shares]
    ranks = sorted({min(int(place) + k, count - 1) for place in places for k in (0, 1)})
    value = dict(zip(ranks, in_order(blocks, ranks), strict=True))
    found = []
    for place in places:
        low = int(place)
        high = min(low + 1, count - 1)
        found.append(float(value[low] + (place - low) * (value[high] - value[low])))
    return found


def in_order(blocks: Blocks, ranks: Sequence[int]) -> list[float]:
    """The numbers at these places of the sorted whole, exactly: two passes, each over half of the bits."""
    coarse = np.zeros(1 << HALF, np.int64)
    for block in blocks():
        coarse += np.bincount(sortable(block) >> HALF, minlength=1 << HALF)
    ends = np.cumsum(coarse)
    upper = [int(np.searchsorted(ends, rank, side="right")) for rank in ranks]
    fine = {half: np.zeros(1 << HALF, np.int64) for half in upper}
    for block in blocks():
        bits = sortable(block)
        for half, counts in fine.items():
            inside = bits[bits >> HALF == half] & ((1 << HALF) - 1)
            counts += np.bincount(inside, minlength=1 << HALF)
    found = []
    for rank, half in zip(ranks, upper, strict=True):
        lower = np.searchsorted(np.cumsum(fine[half]), rank - before(ends, half), side="right")
        found.append(number((half << HALF) + int(lower)))
    return found


def before(ends: np.ndarray, half: int) -> int:
    """How many numbers are below those with this upper half."""
    return int(ends[half - 1]) if half else 0


def sortable(values: np.ndarray) -> np.ndarray:
    """float32 as uint32 that sort alike."""
    bits = np.ascontiguousarray(values, np.float32).ravel().view(np.uint32)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def number(bits: int) -> float:
    """The float32 that `sortable` turned into these bits."""
    value = np.uint32(bits)
    return float(np.asarray(value ^ SIGN if value & SIGN else ~value, np.uint32).view(np.float32))


def steadied(read: Callable[[int], np.ndarray], frame: int, shot: tuple[int, int], step: float) -> np.ndarray:
    """One frame averaged over its neighbors in time, pixel by pixel, as far as they say much the same.

    What moves keeps its edge: a neighbor that is `step` off counts for little. read: frame -> float32 h w;
    shot: its first frame and the one after its last.
    """
    middle = read(frame)
    total, weight = middle.astype(np.float32).copy(), np.ones_like(middle, np.float32)
    for k in neighbors(frame, shot):
        other = read(k)
        near = np.exp(-0.5 * ((other - middle) / np.float32(step)) ** 2 - 0.5 * ((k - frame) / SPREAD) ** 2)
        total += near * other
        weight += near
    return total / weight


REACH, SPREAD = 2, 1.5  # frames to each side, and how they are weighed


def neighbors(frame: int, shot: tuple[int, int]) -> Iterator[int]:
    """The frames about this one, within its shot."""
    first, end = shot
    yield from (k for k in range(max(frame - REACH, first), min(frame + REACH + 1, end)) if k != frame)
