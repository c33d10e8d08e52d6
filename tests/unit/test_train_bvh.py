"""Recorded motion: a small figure written by hand in several dialects, and the files beside the checkout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamoving_cli.errors import InputError

pytest.importorskip("numba", reason="the renderer needs the extra `train`")
from dreamoving_cli.train import scenes
from dreamoving_cli.train.body import LIMBS, Pose, load_bodies, pose_body
from dreamoving_cli.train.bvh import forward_kinematics, part_of_dance, read_bvh, read_dance
from dreamoving_cli.train.synth import recordings

MOTION = Path(__file__).resolve().parents[2].parent / "shared" / "motion"
FIGURE = (  # name, depth in the tree, offset from the parent (y up; it looks along +z, its left is +x)
    ("Hips", 0, (0, 90, 0)),
    ("Spine", 1, (0, 20, 0)), ("Neck", 2, (0, 30, 0)), ("Head", 3, (0, 10, 0)),
    ("LeftArm", 2, (18, 26, 0)), ("LeftForeArm", 3, (28, 0, 0)), ("LeftHand", 4, (25, 0, 0)),
    ("RightArm", 2, (-18, 26, 0)), ("RightForeArm", 3, (-28, 0, 0)), ("RightHand", 4, (-25, 0, 0)),
    ("LeftUpLeg", 1, (10, -5, 0)), ("LeftLeg", 2, (0, -42, 0)), ("LeftFoot", 3, (0, -40, 0)),
    ("RightUpLeg", 1, (-10, -5, 0)), ("RightLeg", 2, (0, -42, 0)), ("RightFoot", 3, (0, -40, 0)),
)  # fmt: skip
ENDS = {"Head": (0, 20, 0), "LeftFoot": (0, -3, 15), "RightFoot": (0, -3, 15)}
OTHER_NAMES = {
    "LeftArm": "L_Shoulder", "LeftForeArm": "L_Elbow", "LeftHand": "L_Wrist", "RightArm": "R_Shoulder",
    "RightForeArm": "R_Elbow", "RightHand": "R_Wrist", "LeftUpLeg": "L_Hip", "LeftLeg": "L_Knee",
    "LeftFoot": "L_Ankle", "RightUpLeg": "R_Hip", "RightLeg": "R_Knee", "RightFoot": "R_Ankle",
}  # fmt: skip


def as_is(v: tuple[float, ...]) -> tuple[float, ...]:
    return v


def figure(
    turns: list[dict[str, float]], change=as_is, axis: str = "Z", names: dict[str, str] | None = None
) -> str:
    """A BVH file of one frame per dict: joint -> degrees about the axis to its front; else a T-pose."""
    lines, depth = ["HIERARCHY"], -1
    for i, (name, level, offset) in enumerate(FIGURE):
        lines += ["}"] * (depth - level + 1)
        depth = level
        kind, channels = ("JOINT", 3) if i else ("ROOT", 6)
        place = "Xposition Yposition Zposition " if i == 0 else ""
        lines += [
            f"{kind} {(names or {}).get(name, name)}",
            "{",
            "OFFSET " + " ".join(map(str, change(offset))),
        ]
        lines += [
            f"CHANNELS {channels} {place}"
            + " ".join(f"{a}rotation" for a in sorted("XYZ", key=lambda a: a != axis))
        ]
        if name in ENDS:
            lines += ["End Site", "{", "OFFSET " + " ".join(map(str, change(ENDS[name]))), "}"]
    lines += ["}"] * (depth + 1) + ["MOTION", f"Frames: {len(turns)}", "Frame Time: 0.02"]
    for frame in turns:
        rows = [(*(change(o) if i == 0 else ()), frame.get(n, 0), 0, 0) for i, (n, _, o) in enumerate(FIGURE)]
        lines.append(" ".join(str(v) for row in rows for v in row))
    return "\r\n".join(lines) + "\n"


def dance_of(folder: Path, text: str, fps: float | None = None) -> list[Pose]:
    path = folder / "figure.bvh"
    path.write_text(text)
    return read_dance(path, fps)


ROWS = [{}, {"LeftArm": 90, "RightUpLeg": -30}]


def test_a_t_pose_and_a_raised_arm(tmp_path: Path) -> None:
    still, raised = dance_of(tmp_path, figure(ROWS))
    assert set(still.limbs) == set(LIMBS)
    for pose in (still, raised):
        np.testing.assert_allclose(pose.pelvis, np.eye(3), atol=0.06)
        np.testing.assert_allclose(pose.chest, np.eye(3), atol=1e-6)
        np.testing.assert_allclose(pose.head, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(still.limbs["upperarm.L"], [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(still.limbs["forearm.R"], [-1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(still.limbs["shin.L"], [0, 0, -1], atol=1e-6)
    np.testing.assert_allclose(raised.limbs["forearm.L"], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(raised.limbs["thigh.R"], [-0.5, 0, -np.sqrt(0.75)], atol=1e-6)


def z_up(v: tuple[float, ...]) -> tuple[float, ...]:
    return (v[0], -v[2], v[1])


def away(v: tuple[float, ...]) -> tuple[float, ...]:
    return (-v[0], v[1], -v[2])


def in_meters(v: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(x / 100 for x in v)


DIALECTS = {
    "z up": figure([{n: -a for n, a in row.items()} for row in ROWS], z_up, axis="Y"),
    "facing away": figure([{n: -a for n, a in row.items()} for row in ROWS], away),
    "in meters": figure(ROWS, in_meters),
    "named as SMPL": figure(ROWS, names=OTHER_NAMES),
    "named with a prefix": figure(ROWS, names={n: f"mixamorig:{n}" for n, _, _ in FIGURE}),
}


@pytest.mark.parametrize("text", DIALECTS.values(), ids=DIALECTS)
def test_every_dialect_says_the_same(tmp_path: Path, text: str) -> None:
    for ours, theirs in zip(dance_of(tmp_path, figure(ROWS)), dance_of(tmp_path, text), strict=True):
        np.testing.assert_allclose(ours.root, theirs.root, atol=1e-6)
        for name in ("pelvis", "chest", "head"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-6)
        for limb in LIMBS:
            np.testing.assert_allclose(ours.limbs[limb], theirs.limbs[limb], atol=1e-6)


def test_a_turned_head_turns_and_no_limb_does(tmp_path: Path) -> None:
    (pose,) = dance_of(tmp_path, figure([{"Head": 20}]))
    assert np.degrees(np.arccos(pose.head[2, 2])) == pytest.approx(20, abs=1e-3)  # leaned to its right
    assert pose.head[0, 2] < 0
    np.testing.assert_allclose(pose.chest, np.eye(3), atol=1e-6)


@pytest.mark.parametrize(("fps", "count"), [(None, 51), (50, 51), (25, 26), (24, 25), (100, 101), (1, 2)])
def test_resampling_keeps_the_duration(tmp_path: Path, fps: float | None, count: int) -> None:
    text = figure([{"LeftArm": float(k)} for k in range(51)])  # one second, one degree a frame
    poses = dance_of(tmp_path, text, fps)
    assert len(poses) == count
    angles = [np.degrees(np.arctan2(p.limbs["upperarm.L"][2], p.limbs["upperarm.L"][0])) for p in poses]
    np.testing.assert_allclose(angles, np.arange(count) * 50 / (fps or 50), atol=0.01)


def test_only_a_jump_leaves_the_floor(tmp_path: Path) -> None:
    lines = figure([{}] * 10).splitlines()
    values = lines[-1].split()
    lines[-1] = " ".join([values[0], str(float(values[1]) + 30), *values[2:]])
    *standing, jumping = dance_of(tmp_path, "\n".join(lines))
    assert all(pose.root[2] == 0 for pose in standing)
    assert 0.2 < jumping.root[2] < 0.4
    lowest = pose_body(0, jumping)[0][load_bodies().part == 0, 2].min()
    assert lowest == pytest.approx(jumping.root[2], abs=1e-4)


def test_joints_lie_where_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "f.bvh").write_text(figure(ROWS))
    motion = read_bvh(tmp_path / "f.bvh")
    positions, _ = forward_kinematics(motion)
    at = {joint.name: positions[:, j] for j, joint in enumerate(motion.joints)}
    np.testing.assert_allclose(at["LeftHand"][0], [71, 136, 0])
    np.testing.assert_allclose(at["LeftHand"][1], [18, 189, 0], atol=1e-9)


def test_a_short_dance_is_played_to_and_fro(tmp_path: Path) -> None:
    path = tmp_path / "f.bvh"
    path.write_text(figure(ROWS))
    whole = read_dance(path)
    poses = part_of_dance(np.random.default_rng(0), [path], 5, 50.0)
    hands = [p.limbs["forearm.L"] for p in poses]
    assert len(whole) == 2
    for i, hand in enumerate(hands):
        np.testing.assert_allclose(hand, whole[i % 2].limbs["forearm.L"], atol=1e-6)


def test_half_of_the_clips_dance_to_recorded_motion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f.bvh").write_text(figure(ROWS))
    drawn: list[list[Pose]] = []

    def spy(*args: Any) -> list[Pose]:
        drawn.append(part_of_dance(*args))
        return drawn[-1]

    monkeypatch.setattr(scenes, "part_of_dance", spy)
    for seed in range(8):
        scenes.make_clip(seed, 1, recorded=recordings(tmp_path))
    assert 1 <= len(drawn) <= 7


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.bvh files"):
        recordings(tmp_path)


GOOD = figure(ROWS)
BAD = {
    "empty": ("", "HIERARCHY or MOTION is missing"),
    "no motion": (GOOD.partition("MOTION")[0], "MOTION is missing"),
    "cut off": (GOOD[:-200], r"2 frames of 51 channels are 102 numbers, not"),
    "cut off in the hierarchy": (GOOD[:150] + "\nMOTION", "ends too early|instead of"),
    "no frames": (GOOD.replace("Frames: 2", "Frames: 0"), "0 frames"),
    "no time": (GOOD.replace("Time: 0.02", "Time: 0"), "frame time is not above 0"),
    "not a number": (GOOD.replace("\n0 90 0", "\n0 nan 0"), "not finite"),
    "strange channel": (GOOD.replace("Xposition", "Wposition"), "no channel 'wposition'"),
    "no knee": (GOOD.replace("LeftLeg", "LeftWing"), r"no joint for shin\.L"),
}


@pytest.mark.parametrize(("text", "reason"), BAD.values(), ids=BAD)
def test_refusals_name_the_file_and_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        dance_of(tmp_path, text)
    assert "figure.bvh" in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.bvh' cannot be read: No such file"):
        read_bvh(tmp_path / "none.bvh")


@pytest.mark.shared
@pytest.mark.parametrize("name", ["dab", "jesse_dance", "jumping", "jumping_jacks", "wave_hello"])
def test_recorded_people_stand_upright_and_face_us(name: str) -> None:
    path = MOTION / f"{name}.bvh"
    if not path.exists():
        pytest.skip(f"no recorded motion at {MOTION}")
    poses = read_dance(path, 8)
    assert len(poses) > 20
    up = np.array([0.0, 0.0, 1.0])
    assert np.mean([up @ p.pelvis @ up for p in poses]) > 0.9
    assert np.mean([up @ p.head @ up for p in poses]) > 0.8
    assert np.mean([-(p.pelvis @ [0.0, -1.0, 0.0])[1] for p in poses]) > 0.5
    assert np.mean([p.limbs["shin.L"][2] for p in poses]) < -0.6
    assert all(0 <= p.root[2] < 0.6 for p in poses)
    assert np.mean([p.limbs["upperarm.L"][0] - p.limbs["upperarm.R"][0] for p in poses]) > 0.2
