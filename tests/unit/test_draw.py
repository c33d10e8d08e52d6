"""draw_pose against the official drawing, and the laws of draw_control."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamoving_cli.extract.draw import BODY, FACE, LEFT_HAND, RIGHT_HAND, draw_control, draw_pose

GOLDENS = Path(__file__).parents[2].parent / "shared" / "parity" / "goldens"


def _person(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    points = rng.uniform([0, 0], [width, height], (1, 134, 2)).astype(np.float32)
    return points, rng.uniform(0, 1, (1, 134)).astype(np.float32)


@pytest.mark.shared
@pytest.mark.skipif(not GOLDENS.is_dir(), reason="the reference goldens lie beside a developer's checkout")
class TestOfficialDrawing:
    @pytest.mark.parametrize(
        ("picture", "parts"),
        [
            ("full", [BODY, FACE, LEFT_HAND, RIGHT_HAND]),
            ("body", [BODY]),
            ("face", [FACE]),
            ("hand", [LEFT_HAND, RIGHT_HAND]),
        ],
    )
    def test_equals_the_golden_picture(self, picture: str, parts: list[slice]) -> None:
        from safetensors.numpy import load_file

        golden = load_file(GOLDENS / "B4_dwpose_draw.safetensors")
        scores = np.zeros_like(golden["in.scores134"])
        for part in parts:
            scores[:, part] = golden["in.scores134"][:, part]
        drawn = draw_pose(golden["in.keypoints134_px"], scores, 512, 512)
        expected = cv2.imread(str(GOLDENS / f"B4_draw_{picture}_512.png"))[..., ::-1]
        np.testing.assert_array_equal(drawn, expected)
        if picture == "full":
            np.testing.assert_array_equal(drawn, golden["out.rgb_uint8"])


def test_nobody_is_black() -> None:
    assert not draw_pose(np.ones((2, 134, 2)) * 50, np.zeros((2, 134)), 100, 90).any()
    assert not draw_pose(np.zeros((0, 134, 2)), np.zeros((0, 134)), 100, 90).any()


def test_points_outside_the_picture_do_no_harm() -> None:
    points, scores = _person(100, 100)
    draw_pose(points * 400 - 20000, np.ones_like(scores), 100, 100)


@settings(deadline=None, max_examples=25)
@given(st.integers(16, 900), st.integers(16, 900), st.integers(0, 99))
def test_control_has_the_size_asked_for(height: int, width: int, seed: int) -> None:
    points, scores = _person(300, 200, seed)
    control = draw_control(points, scores, (300, 200), height, width)
    assert control.shape == (height, width, 3)
    assert control.dtype == np.uint8


def test_control_is_the_official_drawing_where_sizes_agree() -> None:
    points, scores = _person(640, 512)
    control = draw_control(points, scores, (640, 512), 640, 512)
    np.testing.assert_array_equal(control, draw_pose(points, scores, 640, 512))


def test_control_does_not_depend_on_the_size_of_the_source() -> None:
    points, scores = _person(576, 384)
    control = draw_control(points, scores, (576, 384), 288, 192)
    np.testing.assert_array_equal(control, draw_control(points * 2, scores, (1152, 768), 288, 192))


def test_control_crops_the_source_at_its_center() -> None:
    points, scores = np.zeros((1, 134, 2)), np.zeros((1, 134))
    points[0, 30], scores[0, 30] = (320, 180), 1  # a face point in the middle of a wide source
    control = draw_control(points, scores, (360, 640), 288, 192)
    rows, columns = np.nonzero(control.max(-1))
    assert abs(rows.mean() - 143.5) < 1
    assert abs(columns.mean() - 95.5) < 1
