"""The measures on poses and changes that are known."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamoving_cli.errors import InputError
from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.quality import (
    JOINTS,
    Watched,
    body_masks,
    pck,
    pck_floor,
    seam,
    seam_by_chance,
    torso_length,
)

FRAMES, FPS = 48, Fraction(8)
STANDING = {  # x, y of a person 100 pixels tall
    kp.NOSE: (50, 10), kp.NECK: (50, 20), kp.RIGHT_SHOULDER: (40, 20), kp.LEFT_SHOULDER: (60, 20),
    kp.RIGHT_ELBOW: (35, 35), kp.LEFT_ELBOW: (65, 35), kp.RIGHT_WRIST: (32, 48), kp.LEFT_WRIST: (68, 48),
    kp.RIGHT_HIP: (44, 50), kp.LEFT_HIP: (56, 50), kp.RIGHT_KNEE: (44, 72), kp.LEFT_KNEE: (56, 72),
    kp.RIGHT_ANKLE: (44, 95), kp.LEFT_ANKLE: (56, 95),
}  # fmt: skip


def _dancer(frames: int = FRAMES, period: int = 16) -> Watched:
    """Someone who jumps left and right."""
    points, scores = np.zeros((frames, 134, 2)), np.zeros((frames, 134))
    for joint, xy in STANDING.items():
        points[:, joint], scores[:, joint] = xy, 1
    points[..., 0] += 20 * np.sin(2 * np.pi * np.arange(frames) / period)[:, None]
    return Watched(points, scores, np.ones(frames - 1))


def test_the_driver_itself_scores_one() -> None:
    dancer = _dancer()
    assert torso_length(dancer) == pytest.approx(30)
    assert pck(dancer, dancer) == 1


def test_joints_far_away_or_missed_are_wrong() -> None:
    dancer, other = _dancer(), _dancer()
    other.points[:, kp.NOSE] += 7  # more than 0.2 * 30
    other.scores[:, kp.LEFT_ANKLE] = 0
    assert pck(other, dancer) == pytest.approx(1 - 2 / len(JOINTS))
    other.points[:, kp.NOSE] -= 2  # 5 in both directions: 7.07 away no more, but 7.07 > 6
    assert pck(other, dancer) == pytest.approx(1 - 2 / len(JOINTS))
    other.points[:, kp.NOSE] -= 2
    assert pck(other, dancer) == pytest.approx(1 - 1 / len(JOINTS))


def test_joints_that_the_driver_hides_do_not_count() -> None:
    dancer, other = _dancer(), _dancer()
    dancer.scores[:, kp.LEFT_WRIST] = 0.1
    other.points[:, kp.LEFT_WRIST] += 50
    assert pck(other, dancer) == 1


def test_nobody_in_the_driver_is_refused() -> None:
    dancer = _dancer()
    with pytest.raises(InputError, match="no person"):
        pck(dancer, Watched(dancer.points, np.zeros_like(dancer.scores), dancer.changes))


def test_the_floor_of_one_who_moves_is_low_and_of_one_who_stands_is_high() -> None:
    assert pck_floor(_dancer(period=16), FPS) < 0.4  # 3 s are 24 frames: just out of phase
    assert pck_floor(_dancer(period=24), FPS) == 1  # in phase again
    still = _dancer()
    still.points[:] = still.points[:1]
    assert pck_floor(still, FPS) == 1


@settings(deadline=None, max_examples=25)
@given(hop=st.integers(2, 24), seed=st.integers(0, 99))
def test_changes_like_the_drivers_show_no_seam(hop: int, seed: int) -> None:
    own = np.random.default_rng(seed).uniform(1, 9, 199)
    assert seam(3 * own, own, hop) == pytest.approx(1)


@settings(deadline=None, max_examples=25)
@given(hop=st.integers(2, 24), place=st.integers(0, 23))
def test_a_jump_every_hop_is_seen_wherever_it_is(hop: int, place: int) -> None:
    own = np.ones(240)
    ours = own.copy()
    ours[place % hop :: hop] *= 1.5
    assert seam(ours, own, hop) == pytest.approx(1.5 * hop / (hop + 0.5))
    assert seam_by_chance(ours, own, hop) < seam(ours, own, hop)


def test_a_driver_that_falters_looks_like_a_seam_at_its_own_beat_only() -> None:
    own = np.ones(240)
    own[::6] = 0.5
    assert seam(np.ones(240), own, 12) > 1.6
    assert seam(np.ones(240), own, 10) < 1.2


def test_chance_alone_shows_seams_where_windows_are_few() -> None:
    """Restless frames without any seam: the measure and its chance level agree, and rise for few windows."""
    rng = np.random.default_rng(0)
    for windows, low in ((3, 1.5), (200, 1.0)):
        drawn = [np.exp(rng.normal(0, 0.7, 48 * windows)) for _ in range(20)]
        measured = np.median([seam(ours, np.ones_like(ours), 48) for ours in drawn])
        by_chance = np.median([seam_by_chance(ours, np.ones_like(ours), 48) for ours in drawn])
        assert measured == pytest.approx(by_chance, rel=0.08)
        assert by_chance > low


def test_masks_part_the_torso_from_arms_and_background() -> None:
    dancer = _dancer()
    points, scores = dancer.points[0], dancer.scores[0]
    points[kp.LEFT_WRIST] = 45, 30  # the left forearm lies across the chest
    torso, background = body_masks(points, scores, (110, 200))
    assert torso[25, 50]
    assert not torso[31, 50]  # the forearm
    assert not torso[60, 50]
    assert not background[50, 50]
    assert background[50, 150]
    assert not (torso & background).any()
