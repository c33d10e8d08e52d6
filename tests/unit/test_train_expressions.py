"""Synthetic faces: what each expression moves, what it leaves alone, and faces over time."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba", reason="the renderer needs the extra `train`")
from dreamoving_cli.train.body import Expression, load_bodies
from dreamoving_cli.train.expressions import acting, face_offsets
from dreamoving_cli.train.motion import dance
from dreamoving_cli.train.people import Camera, anatomy, random_look, shoot

FACE = 24  # of the 134 points, where the 68 of the face begin
CLOSE = Camera(distance=5.0, height=1.5, focal=14.0, center_z=1.5)


def points(face: Expression) -> np.ndarray:
    """The 68 face points of the template with an expression, meters, `68 3`."""
    b = load_bodies()
    return np.asarray((b.template + face_offsets(face))[b.face_landmarks])


def gap(face: Expression, upper: int, lower: int) -> float:
    at = points(face)
    return float(at[upper, 2] - at[lower, 2])


def test_an_open_mouth_parts_the_lips_and_lowers_the_chin_but_not_the_nose() -> None:
    shut, wide = points(Expression()), points(Expression(open=1))
    assert gap(Expression(open=1), 62, 66) > gap(Expression(), 62, 66) + 0.015
    assert wide[8, 2] < shut[8, 2] - 0.01
    np.testing.assert_array_equal(wide[27:36], shut[27:36])
    np.testing.assert_allclose(wide[[48, 54]], shut[[48, 54]], atol=0.004)


def test_a_smile_raises_and_widens_the_corners_and_a_frown_lowers_them() -> None:
    flat, smile, frown = (points(Expression(smile=s)) for s in (0, 1, -1))
    for corner in (48, 54):
        assert frown[corner, 2] + 0.005 < flat[corner, 2] < smile[corner, 2] - 0.005
    assert np.ptp(smile[[48, 54], 0]) > np.ptp(flat[[48, 54], 0]) + 0.008


def test_brows_rise_and_lids_fall() -> None:
    assert (points(Expression(brows=1))[17:27, 2] > points(Expression())[17:27, 2] + 0.005).all()
    for upper, lower in ((37, 41), (44, 46)):
        assert gap(Expression(blink=1), upper, lower) < gap(Expression(), upper, lower) - 0.004


def test_nothing_but_the_head_moves() -> None:
    moved = np.abs(face_offsets(Expression(1, 1, 1, 1))).max(1) > 1e-4
    assert moved.any()
    assert load_bodies().template[moved, 2].min() > anatomy()["levels"]["neck"] - 0.02


def test_closed_eyes_show_skin_and_a_neutral_face_is_the_drawn_one() -> None:
    look = random_look(np.random.default_rng(2))
    pose = dance(np.random.default_rng(2), 1, 16.0)[0]
    drawn = [
        shoot(look, dataclasses.replace(pose, face=face), CLOSE, 192, 192)
        for face in (Expression(), Expression(blink=1))
    ]
    np.testing.assert_array_equal(shoot(look, pose, CLOSE, 192, 192).color, drawn[0].color)
    changed = np.abs(drawn[1].color - drawn[0].color).max(-1) > 0.05
    x, y = np.argwhere(changed).mean(0)[::-1]
    low, high = (f(drawn[0].points[FACE:], axis=0) for f in (np.min, np.max))
    assert low[0] < x < high[0]
    assert low[1] - 40 < y < high[1]  # the drawn head is larger than the points' own


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 64), st.sampled_from([4.0, 16.0, 30.0]))
def test_faces_over_time_stay_in_bounds_and_do_not_jump(seed: int, frames: int, fps: float) -> None:
    faces = acting(np.random.default_rng(seed), frames, fps)
    values = np.array([dataclasses.astuple(face) for face in faces])
    assert values.shape == (frames, 4)
    assert (values >= [0, -0.7, -1, 0]).all()
    assert (values <= 1).all()
    if fps == 30.0 and frames > 1:
        assert np.abs(np.diff(values[:, :3], axis=0)).max() < 0.8


def test_most_faces_blink_within_some_seconds() -> None:
    shut = [max(f.blink for f in acting(np.random.default_rng(s), 160, 16.0)) for s in range(20)]
    assert np.mean(np.array(shut) > 0.5) > 0.8
