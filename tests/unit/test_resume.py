"""The state file: it holds what a render needs to go on, and nothing else is taken for it."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.extract.keypoints import NUM_POINTS, Poses
from dreamoving_cli.resume import Checkpoint, state_path, unfinished
from dreamoving_cli.sampling import DenoiseState

FIXED: dict[str, Any] = {"seed": 7, "threads": 2, "options": {"prompt": "a dancer", "steps": 4}}


def state(step: int) -> DenoiseState:
    return DenoiseState(step, torch.randn(1, 2, 3, 4, 4), {"history.0": torch.randn(3, 2, 4, 4)})


def test_what_was_kept_is_loaded(tmp_path: Path) -> None:
    path = state_path(tmp_path / "out.mp4")
    points = np.random.default_rng(0).random((3, 1, NUM_POINTS, 2), np.float32)
    poses = Poses(Fraction(30000, 1001), 48, 64, points, points[..., 0])
    kept = Checkpoint(path, FIXED, poses)
    kept.keep(state(2))
    loaded = Checkpoint(path, FIXED)
    loaded.load()
    assert loaded.state is not None
    assert loaded.poses is not None
    assert kept.state is not None
    assert loaded.state.step == 2
    assert torch.equal(loaded.state.latents, kept.state.latents)
    assert torch.equal(loaded.state.history["history.0"], kept.state.history["history.0"])
    assert np.array_equal(loaded.poses.points, points)
    assert loaded.poses.fps == poses.fps
    assert unfinished(tmp_path / "out.mp4") == FIXED


def test_poses_alone_are_worth_keeping(tmp_path: Path) -> None:
    path = state_path(tmp_path / "out.mp4")
    points = np.zeros((3, 1, NUM_POINTS, 2), np.float32)
    Checkpoint(path, FIXED, Poses(Fraction(24), 48, 64, points, points[..., 0])).write()
    loaded = Checkpoint(path, FIXED)
    loaded.load()
    assert loaded.state is None
    assert loaded.poses is not None


def test_slow_writes_are_made_less_often_and_none_is_lost(tmp_path: Path) -> None:
    checkpoint = Checkpoint(state_path(tmp_path / "out.mp4"), FIXED)
    checkpoint.keep(state(1))
    checkpoint._times[1] = 1000.0  # as if the write had taken that long
    checkpoint.keep(state(2))
    assert torch.load(checkpoint.path)["step"] == 1
    checkpoint.write()
    assert torch.load(checkpoint.path)["step"] == 2


def test_another_render_is_refused_with_what_differs(tmp_path: Path) -> None:
    path = state_path(tmp_path / "out.mp4")
    Checkpoint(path, FIXED).keep(state(1))
    other = {**FIXED, "options": {"prompt": "a singer", "steps": 4}}
    with pytest.raises(UsageError, match="options prompt a dancer, now it is a singer"):
        Checkpoint(path, other).load()


def test_another_number_of_devices_is_said_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = state_path(tmp_path / "out.mp4")
    Checkpoint(path, FIXED, devices=4).keep(state(1))
    Checkpoint(path, FIXED, devices=4).load()
    assert "last bits" not in caplog.text
    loaded = Checkpoint(path, FIXED, devices=2)
    loaded.load()
    assert loaded.state is not None
    assert "going on with 2 devices, before 4: last bits may differ" in caplog.text


def test_nothing_unfinished_is_a_fresh_start_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = Checkpoint(state_path(tmp_path / "out.mp4"), FIXED)
    checkpoint.load()
    assert checkpoint.state is None
    assert "from the beginning" in caplog.text
    assert unfinished(tmp_path / "out.mp4") is None


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = state_path(tmp_path / "out.mp4")
    path.write_text("not a state")
    with pytest.raises(InputError, match="not a render's state"):
        unfinished(tmp_path / "out.mp4")
