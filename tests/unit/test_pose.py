"""Smoothing and pose maps: what needs no network."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamoving_cli.errors import UsageError
from dreamoving_cli.extract import control_kind, extract_to_file
from dreamoving_cli.extract.draw import draw_control
from dreamoving_cli.extract.keypoints import Poses
from dreamoving_cli.extract.pose import pose_maps
from dreamoving_cli.extract.smoothing import smooth
from dreamoving_cli.media.images import resize


@settings(deadline=None, max_examples=25)
@given(sigma=st.floats(0.0, 3), frames=st.integers(1, 20))
def test_smoothing_keeps_steady_motion(sigma: float, frames: int) -> None:
    points = np.broadcast_to(np.array([3.0, 5.0]), (frames, 1, 134, 2)).copy()
    scores = np.ones((frames, 1, 134))
    np.testing.assert_allclose(smooth(points, scores, sigma), points, rtol=1e-6)
    points *= np.arange(frames)[:, None, None, None]
    middle = slice(10, -10)
    np.testing.assert_allclose(smooth(points, scores, sigma)[middle], points[middle], rtol=1e-5)


def test_smoothing_calms_noise_and_ignores_absent_points() -> None:
    rng = np.random.default_rng(0)
    points, scores = rng.normal(50, 1, (200, 1, 134, 2)), np.ones((200, 1, 134))
    calm = smooth(points, scores, 1.0)
    assert calm.std() < 0.7
    scores[::2] = 0
    points[::2] = 1e4
    calm = smooth(points, scores, 1.0)
    assert np.abs(calm[1::2] - 50).max() < 6
    np.testing.assert_array_equal(calm[::2], points[::2].astype(np.float32))


def test_no_smoothing_changes_nothing() -> None:
    points = np.random.default_rng(0).normal(size=(5, 1, 134, 2)).astype(np.float32)
    np.testing.assert_array_equal(smooth(points, np.ones((5, 1, 134)), 0.0), points)


def test_a_map_at_a_small_size_shows_what_draw_control_draws() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(0, [600, 900], (9, 1, 134, 2)).astype(np.float32)
    poses = Poses(Fraction(25), 900, 600, points, np.ones((9, 1, 134), np.float32))
    maps = np.concatenate(list(pose_maps(poses)))
    assert maps.shape == (9, 900, 600, 3)
    for frame, picture in enumerate(maps):
        small = draw_control(points[frame], poses.scores[frame], (900, 600), 288, 192)
        difference = np.abs(resize(picture, 288, 192).astype(int) - small)
        assert difference.mean() < 6


def test_unknown_kinds_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match="no extractor 'canny'"):
        extract_to_file("canny", tmp_path / "a.mp4", tmp_path / "b.mp4")


def test_the_kind_of_a_map_is_in_its_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from dreamoving_cli.extract import KIND_TAG
    from dreamoving_cli.media.writer import write_video

    frames = np.zeros((3, 32, 32, 3), np.uint8)
    tagged = write_video(tmp_path / "map.mp4", [frames], Fraction(25), metadata={KIND_TAG: "pose"})
    plain = write_video(tmp_path / "plain.mp4", [frames], Fraction(25))
    assert control_kind(tagged) == "pose"
    assert control_kind(plain) is None
