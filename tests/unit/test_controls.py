"""Which frames of which file a control shows, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamoving_cli.controls import (
    Control,
    control_files,
    depth_cuts,
    footage_depth,
    open_controls,
    open_driver,
    pose_picks,
    shot_cuts,
)
from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.extract.keypoints import NUM_POINTS, Poses, save_poses
from dreamoving_cli.media.writer import write_video
from dreamoving_cli.options import RenderOptions
from tests.conftest import number_of
from tests.unit.test_depth import Brightness


def poses(frames: int, fps: Fraction) -> Poses:
    """Frame k has its points at x = k."""
    points = np.zeros((frames, 1, NUM_POINTS, 2), np.float32)
    points[..., 0] = np.arange(frames)[:, None, None]
    return Poses(fps, 48, 64, points, np.ones((frames, 1, NUM_POINTS), np.float32))


def driver_of(path: Path, **values: Any) -> Any:
    options = RenderOptions(pose=path, **values)
    return open_driver(options, control_files(options))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(
    st.integers(1, 60),
    st.sampled_from(["12", "24", "30000/1001", "50", "60"]),
    st.sampled_from([None, "source", "10", "30"]),
)
def test_poses_are_shown_at_their_times(tmp_path: Path, frames: int, rate: str, fps: str | None) -> None:
    saved = poses(frames, Fraction(rate))
    driver = driver_of(save_poses(tmp_path / "pose.json", saved), fps=fps)
    assert abs(driver.num_frames / driver.fps - frames / saved.fps) <= max(1 / driver.fps, 1 / saved.fps)
    for k, pick in enumerate(pose_picks(saved, driver)):
        time_s = k / driver.fps
        assert pick / saved.fps <= time_s
        assert time_s < (pick + 1) / saved.fps or pick == frames - 1


@pytest.mark.parametrize(
    ("fps", "start_s", "expected"),
    [(None, 0, (5, 9)), ("12", 0, (3, 5)), ("48", 0, (10, 18)), (None, "0.25", (3,)), (None, "0.5", ())],
)
def test_cuts_of_the_poses_are_cuts_of_the_output(
    tmp_path: Path, fps: str | None, start_s: Any, expected: tuple[int, ...]
) -> None:
    saved = replace(poses(16, Fraction(24)), cuts=(5, 9))
    path = save_poses(tmp_path / "pose.json", saved)
    options = RenderOptions(pose=path, fps=fps, start_s=start_s)
    files = control_files(options)
    driver = open_driver(options, files)
    cuts = shot_cuts(files, driver, None)
    assert cuts == expected
    picks = pose_picks(saved, driver)
    for cut in cuts:  # the first frame that shows the new shot
        assert any(picks[cut - 1] < at <= picks[cut] for at in saved.cuts)
    assert shot_cuts(files, driver, saved) == (5, 9)  # poses of footage are at the output's rate already


@pytest.mark.parametrize(
    ("rate", "asked", "expected"),
    [("60", None, "30"), ("60000/1001", None, "30000/1001"), ("120", None, "30"), ("60", "source", "60"),
     ("30", None, "30"), ("25", "12.5", "25/2")],
)  # fmt: skip
def test_rates_over_30_are_halved_unless_told(
    tmp_path: Path, rate: str, asked: str | None, expected: str
) -> None:
    path = save_poses(tmp_path / "pose.json", poses(24, Fraction(rate)))
    assert driver_of(path, fps=asked).fps == Fraction(expected)


def test_a_map_is_read_for_the_rendered_stretch(make_video: Callable[..., Path]) -> None:
    video = make_video("map.mp4", 36, fps=Fraction(24))
    options = RenderOptions(pose=video, pose_kind="map", start_s="0.5", duration_s="0.5")
    files = control_files(options)
    driver = open_driver(options, files)
    assert driver.num_frames == 12
    with open_controls(files, driver, (48, 64), None) as controls:
        assert [number_of(f) for f in controls[0].source.read([0, 5, 11])] == [12, 17, 23]


def test_what_a_file_is_comes_from_its_tag(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    frames = np.zeros((4, 48, 64, 3), np.uint8)
    tagged = {
        kind: write_video(
            tmp_path / f"{kind}.mp4", [frames], Fraction(24), metadata={"dreamoving_kind": kind}
        )
        for kind in ("pose", "depth")
    }
    footage = make_video("footage.mp4", 4)
    json = save_poses(tmp_path / "pose.json", poses(4, Fraction(24)))

    def form(**values: Any) -> str:
        return control_files(RenderOptions(**values))[0].form

    assert form(pose=tagged["pose"]) == "map"
    assert form(pose=footage) == "footage"
    assert form(pose=json) == "json"
    assert form(pose=footage, pose_kind="map") == "map"
    assert form(pose=tagged["pose"], pose_kind="footage") == "footage"
    assert form(depth=tagged["depth"]) == "map"
    assert form(controls=({"kind": "depth", "file": footage},)) == "map"
    with pytest.raises(InputError, match="holds depth pictures"):
        form(pose=tagged["depth"])
    assert form(depth=footage) == "footage"
    assert form(depth=footage, depth_kind="map") == "map"
    assert form(depth=tagged["depth"], depth_kind="footage") == "footage"
    with pytest.raises(InputError, match="holds pose pictures"):
        form(depth=tagged["pose"])
    with pytest.raises(InputError, match="not marked as a canny map"):
        form(pose=footage, controls=({"kind": "canny"},))


def test_depth_of_footage_is_read_at_the_outputs_times(
    tmp_path: Path, make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Brightness()
    monkeypatch.setattr("dreamoving_cli.controls.open_network", lambda options: network)
    video = make_video("footage.mp4", 36, fps=Fraction(24))
    options = RenderOptions(pose=video, pose_kind="map", depth=video, start_s="0.5", duration_s="0.5")
    files = control_files(options)
    driver = open_driver(options, files)
    told: list[tuple[int, int]] = []
    with (
        footage_depth(files, driver, (48, 64), "cpu", lambda *seen: told.append(seen)) as depth,
        open_controls(files, driver, (48, 64), None, depth) as controls,
    ):
        pose, near = (control.source.read([0, 5, 11, 12]) for control in controls)
        assert depth_cuts(controls) == depth.cuts
    assert network.seen == driver.num_frames == 12
    assert told[-1] == (12, 12)
    assert near.shape == pose.shape == (4, 48, 64, 3)
    dark = pose[0, 4:20].mean(-1) < 60  # the stand-in network says: dark is near
    assert near[0, 4:20][dark].mean() > near[0, 4:20][~dark].mean() + 60
    np.testing.assert_array_equal(near[3], near[2])  # the last frame is held
    with footage_depth(files[:1], driver, (48, 64), "cpu", lambda *seen: None) as nothing:
        assert nothing is None


def test_a_start_behind_the_end_is_refused(tmp_path: Path) -> None:
    path = save_poses(tmp_path / "pose.json", poses(24, Fraction(24)))
    with pytest.raises(UsageError, match="start is 2 s"):
        driver_of(path, start_s="2")


def test_a_clip_shorter_than_asked_is_rendered_whole(tmp_path: Path) -> None:
    path = save_poses(tmp_path / "pose.json", poses(24, Fraction(24)))
    assert driver_of(path, duration_s="10").num_frames == 24


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 60))
def test_a_control_acts_in_one_run_of_steps(start: float, end: float, steps: int) -> None:
    control = Control("pose", source=None, control_start=start, control_end=end)  # type: ignore[arg-type]
    acts = [control.acts_at(step, steps) for step in range(steps)]
    assert all(start <= k / steps and (k + 1) / steps <= end for k, on in enumerate(acts) if on)
    always = Control("pose", source=None)  # type: ignore[arg-type]
    assert all(always.acts_at(step, steps) for step in range(steps))
