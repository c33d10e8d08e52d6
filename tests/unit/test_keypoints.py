"""The pose file: what is saved is loaded, and what is not a pose file is refused with the reason."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamoving_cli.errors import InputError
from dreamoving_cli.extract.keypoints import Poses, load_poses, save_poses


def _poses(frames: int, people: int, seed: int = 0) -> Poses:
    rng = np.random.default_rng(seed)
    points = np.round(rng.uniform(-20, 2000, (frames, people, 134, 2)), 2).astype(np.float32)
    scores = np.round(rng.uniform(0.001, 1, (frames, people, 134)), 3).astype(np.float32)
    return Poses(Fraction(30000, 1001), 1280, 720, points, scores)


@settings(deadline=None, max_examples=25)
@given(frames=st.integers(1, 4), people=st.integers(1, 3), seed=st.integers(0, 99))
def test_saved_poses_load_again(
    tmp_path_factory: pytest.TempPathFactory, frames: int, people: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("poses") / "pose.json"
    poses = _poses(frames, people, seed)
    loaded = load_poses(save_poses(path, poses))
    assert (loaded.fps, loaded.height, loaded.width) == (poses.fps, poses.height, poses.width)
    np.testing.assert_allclose(loaded.points, poses.points, atol=2e-4)
    np.testing.assert_allclose(loaded.scores, poses.scores, atol=1e-6)


def test_a_frame_without_people_stays_empty(tmp_path: Path) -> None:
    poses = _poses(3, 2)
    poses.scores[1] = 0
    loaded = load_poses(save_poses(tmp_path / "pose.json", poses))
    assert loaded.num_frames == 3
    assert not loaded.scores[1].any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "openpose"}, "not a pose file"),
        ({"version": 3}, "version 3"),
        ({"cuts": [5]}, "damaged"),
        ({"raw": []}, "damaged"),
        ({"fps": "0"}, "damaged"),
        ({"fps": "30/0"}, "damaged"),
        ({"frames": [[{"points": [1, 2], "scores": [1]}]]}, "damaged"),
        ({"frames": [[{"points": [float("nan")] * 268, "scores": [1] * 134}]]}, "damaged"),
        ({"frames": [[{"points": [1] * 268, "scores": [7] * 134}]]}, "damaged"),
        ({"frames": []}, "no frames"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, object], says: str) -> None:
    path = save_poses(tmp_path / "pose.json", _poses(1, 1))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=says):
        load_poses(path)


def test_missing_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_poses(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(InputError, match="not JSON"):
        load_poses(tmp_path / "text.json")
