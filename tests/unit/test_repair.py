"""Repairs: each fault is put right, and a sound track is left as it is."""

from fractions import Fraction

import numpy as np
import pytest

from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.draw import VISIBLE
from dreamoving_cli.extract.repair import (
    RepairOptions,
    fill_gaps,
    hide_faces_behind,
    reject_outliers,
    repair,
    steady,
    torso_length,
)
from dreamoving_cli.extract.swaps import GROUPS, mend_swaps
from dreamoving_cli.extract.tracking import Track

FPS = Fraction(25)
BODY = {
    kp.NOSE: (0, -60), kp.NECK: (0, -40), kp.RIGHT_SHOULDER: (-20, -40), kp.RIGHT_ELBOW: (-35, -15),
    kp.RIGHT_WRIST: (-45, 10), kp.LEFT_SHOULDER: (20, -40), kp.LEFT_ELBOW: (35, -15), kp.LEFT_WRIST: (45, 10),
    kp.RIGHT_HIP: (-14, 30), kp.RIGHT_KNEE: (-15, 70), kp.RIGHT_ANKLE: (-16, 110), kp.LEFT_HIP: (14, 30),
    kp.LEFT_KNEE: (15, 70), kp.LEFT_ANKLE: (16, 110), kp.RIGHT_EYE: (-5, -64), kp.LEFT_EYE: (5, -64),
    kp.RIGHT_EAR: (-10, -62), kp.LEFT_EAR: (10, -62),
}  # fmt: skip


def dancer(frames: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Someone who faces us and sways; points f 134 2 and scores f 134. Hands hang at the wrists."""
    points = np.zeros((frames, 134, 2))
    for joint, place in BODY.items():
        points[:, joint] = place
    rng = np.random.default_rng(0)
    points[:, kp.FEET] = np.repeat([BODY[kp.LEFT_ANKLE], BODY[kp.RIGHT_ANKLE]], 3, 0) + rng.normal(
        0, 3, (6, 2)
    )
    points[:, kp.FACE] = rng.normal(0, 5, (68, 2)) + BODY[kp.NOSE]
    for part, wrist in ((kp.LEFT_HAND, kp.LEFT_WRIST), (kp.RIGHT_HAND, kp.RIGHT_WRIST)):
        points[:, part] = rng.normal(0, 4, (21, 2)) + BODY[wrist]
    sway = 6 * np.sin(np.arange(frames) / 4)
    points[..., 0] += 200 + sway[:, None]
    points[..., 1] += 200
    return points.astype(np.float32), np.full((frames, 134), 0.9, np.float32)


def swapped(points: np.ndarray, frames: slice, groups: tuple[int, ...] = (0, 1)) -> np.ndarray:
    out = points.copy()
    for group in groups:
        left, right = zip(*GROUPS[group][1], strict=True)
        out[frames, list(left)], out[frames, list(right)] = (
            points[frames, list(right)],
            points[frames, list(left)],
        )
    return out


def test_a_sound_track_is_left_alone() -> None:
    points, scores = dancer()
    track, done = repair(Track(1, 0, points, scores), FPS, RepairOptions(smoothing="none"))
    np.testing.assert_array_equal(track.points, points)
    np.testing.assert_array_equal(track.scores, scores)
    assert sum(vars(done).values()) == 0


@pytest.mark.parametrize("groups", [(0,), (1,), (0, 1)], ids=["arms", "legs", "both"])
@pytest.mark.parametrize("frames", [slice(10, 13), slice(0, 4), slice(12, 30), slice(29, 30)], ids=str)
def test_swaps_are_changed_back(groups: tuple[int, ...], frames: slice) -> None:
    """Even where most frames are swapped: the face tells."""
    points, scores = dancer()
    mended, _, changed = mend_swaps(swapped(points, frames, groups), scores, 70)
    np.testing.assert_array_equal(mended, points)
    assert changed == len(range(*frames.indices(30)))


def test_without_a_face_the_longer_time_tells() -> None:
    points, scores = dancer()
    scores[:, kp.FACE] = 0
    mended, _, changed = mend_swaps(swapped(points, slice(5, 9)), scores, 70)
    np.testing.assert_array_equal(mended, points)
    assert changed == 4


def test_without_a_face_a_long_stretch_is_not_touched() -> None:
    points, scores = dancer(60)
    scores[:, kp.FACE] = 0
    assert mend_swaps(swapped(points, slice(5, 30)), scores, 70)[2] == 0


def test_a_turn_is_no_swap() -> None:
    """A body that turns passes through narrow shoulders; its names stay."""
    points, scores = dancer(40)
    turn = np.cos(np.linspace(0, np.pi, 40))[:, None]
    points[..., 0] = 200 + (points[..., 0] - 200) * turn
    mended, _, changed = mend_swaps(points, scores, 70)
    assert changed == 0
    np.testing.assert_array_equal(mended, points)


def test_an_unsure_face_on_a_back_is_removed() -> None:
    points, scores = dancer()
    points[..., 0] = 400 - points[..., 0]  # from behind
    scores[:, kp.FACE] = 0.4
    out, count = hide_faces_behind(points, scores)
    assert count == 30
    assert not (out[:, [kp.NOSE, kp.LEFT_EYE, *range(24, 92)]] > VISIBLE).any()
    assert (out[:, kp.LEFT_SHOULDER] > VISIBLE).all()
    scores[:, kp.FACE] = 0.9  # a mirror image, then
    assert hide_faces_behind(points, scores)[1] == 0


@pytest.mark.parametrize("length", [1, 2])
def test_leaps_are_removed_and_their_gap_is_filled(length: int) -> None:
    points, scores = dancer()
    wild = points.copy()
    wild[10 : 10 + length, kp.LEFT_WRIST] += 90
    track, done = repair(Track(1, 0, wild, scores), FPS, RepairOptions(smoothing="none"))
    assert done.outliers == length
    assert done.filled == length
    np.testing.assert_allclose(track.points, points, atol=1.5)
    assert (track.scores > VISIBLE).all()


def test_a_quick_move_is_no_leap() -> None:
    points, scores = dancer()
    points[15:, [kp.LEFT_WRIST, *range(92, 113)]] += [30, -70]  # and there it stays
    out, count = reject_outliers(points, scores, 70)
    assert count == 0 or not (out[:14] != scores[:14]).any()


def test_an_impossible_limb_is_removed() -> None:
    points, scores = dancer()
    points[5:8, kp.RIGHT_ANKLE] += [300, 0]
    out, _ = reject_outliers(points, scores, 70)
    assert not (out[5:8, kp.RIGHT_ANKLE] > VISIBLE).any()


def test_flicker_about_the_threshold_is_steadied() -> None:
    scores = np.full((20, 134), 0.9, np.float32)
    scores[5:15:2, 4] = 0.25  # shown, hidden, shown, ...
    scores[:, 7] = np.where(np.arange(20) % 2, 0.32, 0.1)  # never sure
    out, count = steady(scores)
    assert (out[:, 4] > VISIBLE).all()
    assert not (out[:, 7] > VISIBLE).any()
    assert count == 5 + 10


def test_gaps_are_filled_up_to_the_limit() -> None:
    points, scores = dancer()
    points[:, 4] = np.arange(30)[:, None] * [2.0, 1.0]
    truth = points[:, 4].copy()
    scores[5:9, 4], scores[12:19, 4] = 0, 0
    scores[:2, 7] = 0  # nothing before it
    filled, out, count = fill_gaps(points * (scores[..., None] > 0), scores, 5)
    assert count == 4
    np.testing.assert_allclose(filled[5:9, 4], truth[5:9], atol=1e-4)
    assert not (out[12:19, 4] > VISIBLE).any()
    assert not (out[:2, 7] > VISIBLE).any()


def test_the_torso_of_a_portrait_comes_from_its_shoulders_or_face() -> None:
    points, scores = dancer()
    assert torso_length(points, scores) == pytest.approx(70, abs=1)
    scores[:, [kp.LEFT_HIP, kp.RIGHT_HIP]] = 0
    assert torso_length(points, scores) == pytest.approx(1.4 * 40, abs=1)
    scores[:, kp.BODY] = 0
    assert torso_length(points, scores) > 10
    assert torso_length(points, np.zeros_like(scores)) == 1
