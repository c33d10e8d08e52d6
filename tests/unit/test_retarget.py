"""Fitting a dance to another body and framing."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.draw import VISIBLE
from dreamoving_cli.extract.keypoints import Poses
from dreamoving_cli.extract.retarget import ANKLES, extent, fit_poses, measure_lengths
from tests.unit.test_repair import dancer

HEIGHT, WIDTH = 640, 480


def as_poses(points: np.ndarray, scores: np.ndarray) -> Poses:
    return Poses(Fraction(25), HEIGHT, WIDTH, points[:, None].astype(np.float32), scores[:, None].copy())


def dance(frames: int = 40) -> Poses:
    """Someone who sways, lifts an arm, and jumps once."""
    points, scores = dancer(frames)
    lift = np.clip(np.sin(np.arange(frames) / 5), 0, 1)[:, None]
    arm = [kp.LEFT_WRIST, *range(92, 113)]
    points[:, arm] += lift[:, None] * [0, -60]
    points[20:24, :, 1] -= 25
    return as_poses(points, scores)


def standing(scale: float = 1.0, legs: float = 1.0, at: tuple[float, float] = (240.0, 300.0)) -> Poses:
    """A picture of someone with other proportions."""
    points, scores = dancer(1)
    points = points - [200, 200]
    low = [kp.RIGHT_KNEE, kp.RIGHT_ANKLE, kp.LEFT_KNEE, kp.LEFT_ANKLE, *range(18, 24)]
    points[:, low, 1] = 30 + (points[:, low, 1] - 30) * legs
    return as_poses(points * scale + at, scores)


def test_source_changes_nothing() -> None:
    poses = dance()
    fitted, verdict = fit_poses(poses, "source")
    assert fitted is poses
    assert verdict.fits


def test_center_fills_the_picture_and_keeps_the_shape() -> None:
    poses = dance()
    fitted, verdict = fit_poses(poses, "center")
    low, high = extent(fitted)
    assert low.min() > 0
    assert high[0] < WIDTH
    assert high[1] < HEIGHT
    assert high[1] - low[1] > 0.9 * HEIGHT
    before, after = (p.points[:, 0, 1:14] - p.points[:1, 0, :1] for p in (poses, fitted))
    ratio = np.linalg.norm(after) / np.linalg.norm(before)
    np.testing.assert_allclose(after, before * ratio, atol=0.01)
    assert "scaled to" in verdict.reasons[0]


def test_limbs_take_the_other_body_s_lengths() -> None:
    fitted, verdict = fit_poses(dance(), "person", standing(0.8, legs=1.25))
    ours, theirs = measure_lengths(fitted), measure_lengths(standing(0.8, legs=1.25))
    assert verdict.fits
    assert verdict.reasons == ()
    assert ours.torso == pytest.approx(theirs.torso, rel=0.01)
    for name, (left, right) in ours.limbs.items():
        if name == "forearm":  # the lifted arm is shorter in the picture
            continue
        assert left == pytest.approx(theirs.limbs[name][0], rel=0.03)
        assert right == pytest.approx(theirs.limbs[name][1], rel=0.03)


def test_feet_stay_on_the_ground() -> None:
    """The lower foot moves as in the dance, times the legs' ratio: the floor stays the floor."""
    poses = dance()
    fitted, _ = fit_poses(poses, "person", standing(0.8, legs=1.25))
    before, after = (p.points[:, 0, ANKLES, 1].max(1) for p in (poses, fitted))
    still = [k for k in range(40) if not 20 <= k < 24]
    assert np.ptp(before[still]) < 0.01
    assert np.ptp(after[still]) < 0.5
    assert after[21] < after[0] - 20  # and a jump a jump


def test_the_person_stands_where_the_other_one_does() -> None:
    target = standing(0.9, at=(300.0, 320.0))
    fitted, _ = fit_poses(dance(), "person", target)
    ground = target.points[0, 0, ANKLES, 1].max()
    assert np.median(fitted.points[:, 0, ANKLES, 1].max(1)) == pytest.approx(ground, abs=2)
    assert np.median(fitted.points[:, 0, kp.NECK, 0]) == pytest.approx(300, abs=2)


def test_raised_arms_stay_in_the_picture() -> None:
    fitted, verdict = fit_poses(dance(), "person", standing(3.4, at=(240.0, 260.0)))
    assert any("shrunk" in reason for reason in verdict.reasons)
    low, high = extent(fitted)
    assert low.min() >= 0
    assert (high <= [WIDTH, HEIGHT]).all()


def test_what_is_hidden_is_said() -> None:
    target = standing()
    target.scores[0, 0, [kp.RIGHT_ELBOW, kp.RIGHT_WRIST]] = 0
    _, verdict = fit_poses(dance(), "person", target)
    assert "right upper arm hidden in the reference: ratio taken from the left" in verdict.reasons
    target.scores[0, 0, [kp.LEFT_ELBOW, kp.LEFT_WRIST]] = 0
    _, verdict = fit_poses(dance(), "person", target)
    assert "both forearms hidden in the reference: ratio taken from the torso" in verdict.reasons


def test_odd_proportions_are_not_believed() -> None:
    target = standing()
    target.points[0, 0, [kp.LEFT_WRIST, kp.RIGHT_WRIST]] += [0, 150]
    _, verdict = fit_poses(dance(), "person", target)
    assert any("the forearm would become" in reason for reason in verdict.reasons)


def test_hidden_joints_stay_hidden_and_hang_together() -> None:
    poses = dance()
    poses.scores[5:9, 0, [kp.LEFT_ELBOW]] = 0
    fitted, _ = fit_poses(poses, "person", standing(0.8))
    assert not (fitted.scores[5:9, 0, kp.LEFT_ELBOW] > VISIBLE).any()
    steps = np.linalg.norm(np.diff(fitted.points[:, 0, kp.LEFT_WRIST], axis=0), axis=-1)
    assert steps.max() < 40


def test_one_frame_does_not_decide() -> None:
    """Lengths are medians: a single broken frame changes nothing."""
    poses = dance()
    broken = replace(poses, points=poses.points.copy())
    broken.points[7, 0, kp.LEFT_KNEE] += 80
    a, b = (fit_poses(p, "person", standing())[0].points[0] for p in (poses, broken))
    np.testing.assert_allclose(a, b, atol=1.5)


def test_what_cannot_be_fitted_is_refused() -> None:
    portrait = standing()
    portrait.scores[:, :, [kp.LEFT_HIP, kp.RIGHT_HIP]] = 0
    with pytest.raises(InputError, match="the picture's torso is not seen"):
        fit_poses(dance(), "person", portrait)
    two = dance()
    two = replace(two, points=two.points.repeat(2, 1), scores=two.scores.repeat(2, 1))
    with pytest.raises(UsageError, match="cannot fit several"):
        fit_poses(two, "person", standing())
    with pytest.raises(UsageError, match="fit is 'wide'"):
        fit_poses(dance(), "wide")
