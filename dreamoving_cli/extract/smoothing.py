"""Joints over time made calm, without lag: three ways, one entry of SMOOTHERS each; numpy only.

All look at both sides of a frame, so nothing comes later than it was, and none looks at absent points.
"""

from collections.abc import Callable

import numpy as np

GAUSSIAN_S = 0.02  # standard deviation; half a frame at 25 frames/s, so motion stays
FIT_S = 0.06  # standard deviation of the weights of a local fit
FIT_DEGREE = 2  # of the local polynomial: position, speed and acceleration stay
CUTOFF_HZ, CUTOFF_PER_SPEED = 2.0, 6.0  # One-Euro: of a resting joint, and what a speed of 1 torso/s adds
SPEED_CUTOFF_HZ = 1.0  # of the speed itself


def smooth(points: np.ndarray, scores: np.ndarray, sigma: float) -> np.ndarray:
    """Each point averaged over neighboring frames (Gaussian, sigma in frames) in which it is seen.

    points: f ... n 2; scores: f ... n. Centered, so nothing lags behind; absent points are left as they are.
    """
    seen = (scores > 0).astype(np.float64)[..., None]
    radius = min(round(3 * sigma), len(points) - 1)  # 0 where sigma is too small to reach a neighbor
    total, weight = points * seen, seen.copy()
    for step in range(1, radius + 1):
        share = np.exp(-0.5 * (step / sigma) ** 2)
        for target, source in ((np.s_[step:], np.s_[:-step]), (np.s_[:-step], np.s_[step:])):
            total[target] += share * (points * seen)[source]
            weight[target] += share * seen[source]
    averaged = total / np.maximum(weight, 1e-9)
    return np.where(seen > 0, averaged, points).astype(np.float32)


def gaussian(points: np.ndarray, scores: np.ndarray, fps: float, unit: float) -> np.ndarray:
    """A short weighted mean. points: f n 2; scores: f n; unit: length of the torso (not used)."""
    return smooth(points, scores, GAUSSIAN_S * fps)


def local_fit(points: np.ndarray, scores: np.ndarray, fps: float, unit: float) -> np.ndarray:
    """A parabola fitted about each frame (Savitzky-Golay with weights, over gaps too). f n 2, f n."""
    sigma = max(FIT_S * fps, 0.8)
    radius = min(max(round(2 * sigma), 2), len(points) - 1)
    seen = (scores > 0).astype(np.float64)
    steps = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    moments = np.zeros((2 * FIT_DEGREE + 1, *seen.shape))
    sums = np.zeros((FIT_DEGREE + 1, *points.shape))
    # About the first place of each point, so that large coordinates cost no digits.
    origin = points[:1].astype(np.float64)
    for step, weight in zip(steps, weights, strict=True):
        here, there = _shifted(len(points), int(step))
        share = weight * seen[there]
        for power in range(2 * FIT_DEGREE + 1):
            moments[power][here] += share * float(step) ** power
        for power in range(FIT_DEGREE + 1):
            sums[power][here] += (share * float(step) ** power)[..., None] * (points[there] - origin)
    return np.where(seen[..., None] > 0, _solved(moments, sums) + origin, points).astype(np.float32)


def _shifted(length: int, step: int) -> tuple[slice, slice]:
    """The frames that have a neighbor `step` frames away, and these neighbors."""
    if step >= 0:
        return slice(0, length - step), slice(step, length)
    return slice(-step, length), slice(0, length + step)


def _solved(moments: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """The polynomials' values at their own frames. moments: 5 f n; sums: 3 f n 2."""
    rows = [[moments[i + j] for j in range(FIT_DEGREE + 1)] for i in range(FIT_DEGREE + 1)]
    matrix = np.stack([np.stack(row, -1) for row in rows], -2)  # f n 3 3
    # Where too few frames are seen to tell speed and acceleration, these are taken as nothing.
    ridge = np.diag([1e-9, 1e-3, 1e-2])
    coefficients = np.linalg.solve(matrix + ridge, sums.transpose(1, 2, 0, 3))  # f n 3 2
    return np.asarray(coefficients[..., 0, :])


def one_euro(points: np.ndarray, scores: np.ndarray, fps: float, unit: float) -> np.ndarray:
    """The One-Euro filter (Casiez 2012), once forward and once backward, so that the lags cancel.

    points: f n 2; scores: f n; unit: length of the torso in pixels, in which speeds are told.
    """
    forward = _one_euro(points / unit, scores > 0, fps)
    backward = _one_euro(points[::-1] / unit, scores[::-1] > 0, fps)[::-1]
    mean = (forward + backward) / 2 * unit
    return np.where(scores[..., None] > 0, mean, points).astype(np.float32)


def _one_euro(points: np.ndarray, seen: np.ndarray, fps: float) -> np.ndarray:
    """Still joints are averaged long, quick ones hardly. points: f n 2 in torsos; seen: f n."""
    out = points.astype(np.float64).copy()
    value, speed = out[0].copy(), np.zeros_like(out[0])
    known = seen[0].copy()
    for k in range(1, len(out)):
        moved = (out[k] - value) * fps
        speed_share = _share(np.full(moved.shape[:1], SPEED_CUTOFF_HZ), fps)[:, None]
        faster = speed + speed_share * (moved - speed)
        share = _share(CUTOFF_HZ + CUTOFF_PER_SPEED * np.linalg.norm(faster, axis=-1), fps)[:, None]
        follows = (seen[k] & known)[:, None]
        begins = (seen[k] & ~known)[:, None]
        speed = np.where(follows, faster, np.where(begins, 0, speed))
        value = np.where(follows, value + share * (out[k] - value), np.where(begins, out[k], value))
        known |= seen[k]
        out[k] = value
    return out


def _share(cutoff_hz: np.ndarray, fps: float) -> np.ndarray:
    """How much of a new value a low-pass of this cutoff takes on in one frame."""
    return np.asarray(1 / (1 + fps / (2 * np.pi * cutoff_hz)))


Smoother = Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]
SMOOTHERS: dict[str, Smoother] = {"savgol": local_fit, "gaussian": gaussian, "one-euro": one_euro}
