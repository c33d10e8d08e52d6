"""Regions and anchors: what is cut out of a picture lies where the region says."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamoving_cli.extract.networks import anchors
from dreamoving_cli.extract.regions import Region, angle_upright, around_center, around_points

angles = st.floats(-3.1, 3.1)
places = st.floats(60, 100)


@settings(deadline=None, max_examples=25)
@given(x=places, y=places, side=st.floats(20, 60), angle=angles, u=st.floats(0.2, 0.8), v=st.floats(0.2, 0.8))
def test_a_spot_in_the_picture_is_found_at_its_place_in_the_crop(
    x: float, y: float, side: float, angle: float, u: float, v: float
) -> None:
    region = Region(x, y, side, angle)
    spot = region.to_picture(np.array([[u, v]]))[0]
    rows, columns = np.mgrid[:160, :160] + 0.5  # the middle of each pixel
    glow = 255 * np.exp(-((columns - spot[0]) ** 2 + (rows - spot[1]) ** 2) / 18)
    crop = region.crop(glow.astype(np.uint8)[..., None].repeat(3, -1), 100)[..., 0].astype(float)
    at = np.mgrid[:100, :100] + 0.5
    bright = crop > 128
    found = at[:, bright].mean(1) / 100
    assert found == pytest.approx([v, u], abs=0.03)


@settings(deadline=None, max_examples=25)
@given(angle=angles, distance=st.floats(5, 50))
def test_up_points_at_the_rim(angle: float, distance: float) -> None:
    center = np.array([30.0, 40.0])
    rim = center + distance * np.array([math.sin(angle), -math.cos(angle)])
    region = around_center(center, rim)
    assert region.side == pytest.approx(2 * distance)
    np.testing.assert_allclose(
        region.to_picture(np.array([[0.5, 0.0], [0.5, 0.5]])), [rim, center], atol=1e-6
    )
    moved = region.grown(1.0, up=0.5)
    np.testing.assert_allclose([moved.x, moved.y], rim, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(angle=angles, seed=st.integers(0, 99))
def test_around_points_holds_them_tightly(angle: float, seed: int) -> None:
    points = np.random.default_rng(seed).uniform(-50, 50, (9, 2))
    region = around_points(points, angle)
    corner, right, down = region.to_picture(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    inside = (points - corner) @ np.stack([right - corner, down - corner], 1) / region.side**2
    assert inside.min() > -1e-9
    assert inside.max() < 1 + 1e-9
    assert np.ptp(inside, axis=0).max() == pytest.approx(1)


def test_a_level_line_needs_no_turn() -> None:
    assert angle_upright(np.array([0.0, 5.0]), np.array([9.0, 5.0])) == 0
    assert angle_upright(np.array([0.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(math.pi / 4)


@pytest.mark.parametrize(
    ("side", "strides", "count"), [(224, (8, 16, 32, 32, 32), 2254), (128, (8, 16, 16, 16), 896)]
)
def test_anchors_are_as_many_as_the_networks_outputs(side: int, strides: tuple[int, ...], count: int) -> None:
    grid = anchors(side, strides)
    assert grid.shape == (count, 2)
    assert grid.min() > 0
    assert grid.max() < 1
