"""Fitting a dance to another body and framing."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.draw import VISIBLE
from dreamoving_cli.extract.keypoints import Poses
from dreamoving_cli.extract.retarget import (
    ANKLES,
    PORTRAIT,
    extent,
    fit_poses,
    measure_lengths,
    size_and_place,
)
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
    hands = dance()
    hands.scores[:, :, : kp.FACE.stop] = 0
    with pytest.raises(InputError, match="neither torso nor shoulders nor face"):
        fit_poses(hands, "person", standing())
    with pytest.raises(UsageError, match="fit is 'wide'"):
        fit_poses(dance(), "wide")


def pair(frames: int = 40) -> Poses:
    """A dancer, and a smaller one to the right, with narrow shoulders, who comes a little nearer."""
    one = dance(frames)
    other = replace(one, points=one.points.copy())
    for shoulder in (kp.LEFT_SHOULDER, kp.RIGHT_SHOULDER):
        other.points[:, :, shoulder] = 0.7 * other.points[:, :, shoulder] + 0.3 * other.points[:, :, kp.NECK]
    away = np.linspace(110, 90, frames, dtype=np.float32)[:, None, None, None] * [1, 0]
    points = np.concatenate([one.points, 0.6 * other.points + [0, 100] + away], 1).astype(np.float32)
    return replace(one, points=points, scores=one.scores.repeat(2, 1))


def alone(poses: Poses, p: int) -> Poses:
    return replace(poses, points=poses.points[:, [p]], scores=poses.scores[:, [p]], ids=None)


def feet(poses: Poses) -> np.ndarray:
    """Where everyone stands, f p 2: the neck's column, the lower foot's row."""
    return np.stack([poses.points[..., kp.NECK, 0], poses.points[:, :, ANKLES, 1].max(2)], -1)


@pytest.mark.parametrize("fit", ["center", "person"])
def test_several_move_as_one_group(fit: str) -> None:
    """Sizes and places against each other stay in every frame, times one constant."""
    poses = pair()
    fitted, verdict = fit_poses(poses, fit, standing(0.8, legs=1.25))
    assert verdict.fits
    before, after = (measure_lengths(alone(poses, p)).torso for p in (0, 1))
    new, other = (measure_lengths(alone(fitted, p)).torso for p in (0, 1))
    assert other / new == pytest.approx(after / before, rel=0.01)
    still = [k for k in range(40) if not 20 <= k < 24]  # they jump
    apart, wanted = (np.diff(feet(p)[still], axis=1)[:, 0] for p in (fitted, poses))
    factor = apart[0, 0] / wanted[0, 0]
    np.testing.assert_allclose(apart, wanted * factor, atol=0.6)
    low, high = extent(fitted)
    assert low.min() >= 0
    assert (high <= [WIDTH, HEIGHT]).all()


def test_each_of_several_gets_the_other_body() -> None:
    body = standing(0.4, legs=1.25)
    fitted, verdict = fit_poses(pair(), "person", body)
    assert not any("shrunk" in reason for reason in verdict.reasons)
    theirs = measure_lengths(body)
    assert measure_lengths(alone(fitted, 0)).torso == pytest.approx(theirs.torso, rel=0.01)
    for p in (0, 1):
        ours = measure_lengths(alone(fitted, p))
        for name in ("shoulder", "upper arm", "shin"):
            ratio = theirs.limbs[name][1] / theirs.torso
            assert ours.limbs[name][1] / ours.torso == pytest.approx(ratio, rel=0.03)
    alone_fitted = fit_poses(alone(pair(), 0), "person", body)[0]
    apart = fitted.points[:, 0] - alone_fitted.points[:, 0]  # the first is as if alone, but for the frame
    assert np.ptp(apart, axis=(0, 1)).max() < 0.01


def test_what_is_guessed_is_told_of_whom() -> None:
    poses = pair()
    poses.scores[:, 1, kp.NECK] = 0
    target = standing(0.4)
    target.scores[0, 0, [kp.RIGHT_ELBOW, kp.RIGHT_WRIST]] = 0
    fitted, verdict = fit_poses(poses, "person", target)
    assert "dancer 2: the torso is not seen: all lengths take the group's ratio" in verdict.reasons
    assert "dancer 1: right forearm hidden in the reference: ratio taken from the left" in verdict.reasons
    factor = np.diff(fitted.points[0, :, kp.RIGHT_ANKLE, 0]) / np.diff(poses.points[0, :, kp.RIGHT_ANKLE, 0])
    grown = (
        measure_lengths(alone(fitted, 1)).limbs["shin"][0] / measure_lengths(alone(poses, 1)).limbs["shin"][0]
    )
    assert factor == pytest.approx(grown, rel=0.1)
    poses = pair()
    fitted, verdict = fit_poses(poses, "person", target)
    assert "right forearm hidden in the reference: ratio taken from the left" in verdict.reasons


@pytest.mark.parametrize("part", ["shoulders", "face"])
def test_a_portrait_is_scaled_by_what_both_show(part: str) -> None:
    portrait, body = dance(), standing(0.9, at=(250.0, 330.0))
    portrait.scores[:, :, [kp.LEFT_HIP, kp.RIGHT_HIP]] = 0
    if part == "face":
        portrait.scores[:, :, kp.RIGHT_SHOULDER] = 0
    fitted, verdict = fit_poses(portrait, "person", body)
    assert f"the torso is not seen: all is scaled to 90%, by the {part}" in verdict.reasons
    size, middle = size_and_place(fitted, PORTRAIT[part])
    wanted, at = size_and_place(body, PORTRAIT[part])
    assert size == pytest.approx(wanted, rel=0.02)
    np.testing.assert_allclose(middle, at, atol=2)


def test_dancers_are_told_apart_by_number_not_by_place() -> None:
    """Halfway both exchange their places in the file: nothing else changes."""
    poses = pair()
    order = np.where(np.arange(40)[:, None] < 20, [[0, 1]], [[1, 0]])
    frames = np.arange(40)[:, None]
    crossed = replace(
        poses, points=poses.points[frames, order], scores=poses.scores[frames, order], ids=order + 1
    )
    body = standing(0.7, legs=1.2)
    straight, _ = fit_poses(poses, "person", body)
    fitted, _ = fit_poses(crossed, "person", body)
    np.testing.assert_allclose(fitted.points, straight.points[frames, order], atol=1e-3)


def test_frames_without_anyone_do_not_decide_whether_feet_are_seen() -> None:
    rare = dance()
    rare.scores[10:] = 0
    fitted, verdict = fit_poses(rare, "center")
    assert len(verdict.reasons) == 1
    assert extent(fitted)[1][1] < HEIGHT
