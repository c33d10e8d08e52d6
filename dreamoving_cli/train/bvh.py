"""Recorded motion: any BVH file (hierarchy and channels) as a sequence of our poses.

Axes, units and names differ between files: up is where the head is, the legs tell what a meter is, and the
names of joints are those of common tools. Not here: what a pose means (body.py).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations, product
from pathlib import Path

import numpy as np

from dreamoving_cli.errors import InputError
from dreamoving_cli.train.body import Pose, between, load_bodies, rotation

NAMES = {  # our joint -> what files call it beside the side, best first; without case, spaces and dots
    "thigh": ("upleg", "upperleg", "thigh", "femur", "hip"),
    "shin": ("lowleg", "lowerleg", "shin", "calf", "tibia", "knee", "leg"),
    "foot": ("ankle", "foot"),  # where there are both, the foot is the ball of the foot
    "upperarm": (
        "uparm",
        "upperarm",
        "shldr",
        "humerus",
        "arm",
        "shoulder",
    ),  # "shoulder" may be the clavicle
    "forearm": ("forearm", "lowarm", "lowerarm", "radius", "elbow"),
    "hand": ("wrist", "hand"),
}
NECK, HEAD = ("neck", "neck1", "neckbase", "lowerneck"), ("head", "skull")
ENDS = {
    "thigh": "shin",
    "shin": "foot",
    "upperarm": "forearm",
    "forearm": "hand",
}  # limb -> the joint it ends at
PREFIX = re.compile(r"^(.*:|mixamorig\d*|bip\d*)", re.IGNORECASE)
CHEST = 0.35  # the chest reaches at least this share of the torso below the neck
GROUND = 10  # percentile of the lowest points that is taken for the floor
LIFT_M = 0.02  # recorded feet float by this much without leaving the floor


@dataclass(frozen=True)
class Joint:
    """One joint of the hierarchy; an end site has no channels."""

    name: str
    parent: int  # index of an earlier joint, -1 for the root
    offset: np.ndarray  # 3, from the parent
    channels: tuple[str, ...]  # as "xposition", "zrotation"


@dataclass(frozen=True)
class Motion:
    """A BVH file as it is written."""

    joints: tuple[Joint, ...]
    values: np.ndarray  # f c: channels of all joints in order; degrees and the file's unit of length
    frame_s: float
    source: str


@dataclass(frozen=True)
class Track:
    """Where the joints of a person are at some moments, z up."""

    positions: dict[str, np.ndarray]  # f 3 by our names: "thigh.L", "neck", "chest"
    head: np.ndarray  # f 3 3: how the head is turned against the chest, in world axes
    lowest: np.ndarray  # f: height of the lowest point


def read_dance(path: Path, fps: float | None = None, to_camera: bool = True) -> list[Pose]:
    """The poses of a BVH file at `fps` (None: its own); `to_camera` turns the dancer to us on the whole."""
    return as_poses(track(read_bvh(path), fps), to_camera)


def part_of_dance(rng: np.random.Generator, files: Sequence[Path], num_frames: int, fps: float) -> list[Pose]:
    """`num_frames` poses from somewhere in one of the files; a shorter dance is played to and fro."""
    poses = read_dance(files[int(rng.integers(len(files)))], fps)
    to_and_fro = poses + poses[-2:0:-1]
    first = int(rng.integers(max(len(poses) - num_frames, 0) + 1))
    return [to_and_fro[(first + i) % len(to_and_fro)] for i in range(num_frames)]


def read_bvh(path: Path) -> Motion:
    """The hierarchy and motion in this file."""
    try:
        words = path.read_text(encoding="utf-8", errors="replace").split()
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}", "Give a BVH file.") from error
    try:
        return parse(words, str(path))
    except (ValueError, IndexError, StopIteration) as error:
        reason = str(error) or "it ends too early"
        raise InputError(
            f"'{path}' is not a whole BVH file: {reason}", "Export or fetch it again."
        ) from error


def parse(words: list[str], source: str) -> Motion:
    """The file's words in order; ValueError says what is wrong."""
    if "MOTION" not in words or words[0] != "HIERARCHY":
        raise ValueError("HIERARCHY or MOTION is missing")
    cut = words.index("MOTION")
    joints = tuple(parse_joints(iter(words[1:cut])))
    motion = words[cut + 1 :]
    if motion[0] != "Frames:" or motion[2:4] != ["Frame", "Time:"]:
        raise ValueError("its motion does not begin with 'Frames:' and 'Frame Time:'")
    count, frame_s = int(motion[1]), float(motion[4])
    width = sum(len(joint.channels) for joint in joints)
    values = np.array(motion[5:], np.float64)
    if count < 1 or width < 1 or len(values) != count * width:
        raise ValueError(f"{count} frames of {width} channels are {count * width} numbers, not {len(values)}")
    if not (np.isfinite(values).all() and np.isfinite(frame_s) and frame_s > 0):
        raise ValueError("it holds numbers that are not finite, or its frame time is not above 0")
    return Motion(joints, values.reshape(count, width), frame_s, source)


def parse_joints(words: Iterator[str]) -> Iterator[Joint]:
    """Joints, parents first."""
    stack, count = [-1], 0
    for word in words:
        if word == "}":
            stack.pop()
            continue
        if word not in ("ROOT", "JOINT", "End"):
            raise ValueError(f"'{word}' where a joint should begin")
        name = " ".join(iter(lambda: next(words), "{"))
        offset, channels = parse_shape(words, is_end=word == "End")
        yield Joint(name, stack[-1], offset, channels)
        stack.append(count)
        count += 1


def parse_shape(words: Iterator[str], is_end: bool) -> tuple[np.ndarray, tuple[str, ...]]:
    """OFFSET and, unless this is an end site, CHANNELS of a joint."""
    if (word := next(words)) != "OFFSET":
        raise ValueError(f"'{word}' instead of OFFSET")
    offset = np.array([float(next(words)) for _ in range(3)])
    if is_end:
        return offset, ()
    if (word := next(words)) != "CHANNELS":
        raise ValueError(f"'{word}' instead of CHANNELS")
    channels = tuple(next(words).lower() for _ in range(int(next(words))))
    unknown = [c for c in channels if c not in {f"{a}{b}" for a in "xyz" for b in ("position", "rotation")}]
    if unknown:
        raise ValueError(f"there is no channel '{unknown[0]}'")
    return offset, channels


def forward_kinematics(motion: Motion) -> tuple[np.ndarray, np.ndarray]:
    """Positions f j 3 and rotations f j 3 3 of all joints in the file's world."""
    frames, count = len(motion.values), len(motion.joints)
    positions, rotations, at = np.zeros((frames, count, 3)), np.zeros((frames, count, 3, 3)), 0
    for j, joint in enumerate(motion.joints):
        local, turned = (
            np.broadcast_to(joint.offset, (frames, 3)).copy(),
            np.broadcast_to(np.eye(3), (frames, 3, 3)),
        )
        for channel in joint.channels:
            axis, values = "xyz".index(channel[0]), motion.values[:, at]
            if channel.endswith("position"):
                local[:, axis] = values
            else:
                turned = turned @ turns(axis, np.radians(values))
            at += 1
        if joint.parent < 0:
            positions[:, j], rotations[:, j] = local, turned
        else:
            base = rotations[:, joint.parent]
            positions[:, j] = positions[:, joint.parent] + np.einsum("fab,fb->fa", base, local)
            rotations[:, j] = base @ turned
    return positions, rotations


def turns(axis: int, radians: np.ndarray) -> np.ndarray:
    """Rotations f 3 3 about one axis."""
    out = np.zeros((len(radians), 3, 3))
    a, b = (axis + 1) % 3, (axis + 2) % 3
    out[:, axis, axis] = 1
    out[:, a, a] = out[:, b, b] = np.cos(radians)
    out[:, b, a], out[:, a, b] = np.sin(radians), -np.sin(radians)
    return out


def find_joints(motion: Motion) -> dict[str, int]:
    """Index of every joint that a pose needs: six a side, neck and head where there are any."""
    index: dict[str, int] = {}
    for j, joint in reversed(list(enumerate(motion.joints))):  # of two of a name the first counts
        index[re.sub(r"[^a-z0-9]", "", PREFIX.sub("", joint.name).lower())] = j
    found = {}
    for ours, words in NAMES.items():
        for side, spelled in (("L", ("left", "l")), ("R", ("right", "r"))):
            names = [name for word in words for s in spelled for name in (f"{s}{word}", f"{word}{s}")]
            found[f"{ours}.{side}"] = next((index[n] for n in names if n in index), -1)
    missing = [name for name, j in found.items() if j < 0]
    if missing:
        known = ", ".join(joint.name for joint in motion.joints if joint.channels)
        remedy = "Rename its joints as in Hips, LeftUpLeg, LeftLeg, LeftFoot, LeftArm, LeftForeArm, LeftHand."
        raise InputError(f"'{motion.source}' has no joint for {missing[0]} among {known}", remedy)
    for ours, words in (("neck", NECK), ("head", HEAD)):
        if (j := next((index[n] for n in words if n in index), -1)) >= 0:
            found[ours] = j
    return found


def track(motion: Motion, fps: float | None = None) -> Track:
    """The joints that a pose needs at `fps`, with z up."""
    found = find_joints(motion)
    positions, rotations = forward_kinematics(motion)
    at = {name: positions[:, j] for name, j in found.items()}
    at["neck"] = at.get("neck", (at["upperarm.L"] + at["upperarm.R"]) / 2)
    at["chest"] = positions[:, chest_joint(motion, found, positions)]
    to_ours = upright(at["neck"] - (at["foot.L"] + at["foot.R"]) / 2)
    shoulders = rotations[:, shared_ancestor(motion, found["upperarm.L"], found["upperarm.R"])]
    head = against_chest(shoulders, rotations[:, found["head"]] if "head" in found else shoulders)
    when = moments(len(positions), motion.frame_s, fps)
    return Track(
        positions={name: between_frames(p, when) @ to_ours.T for name, p in at.items()},
        head=to_ours @ nearest_rotations(between_frames(head, when)) @ to_ours.T,
        lowest=between_frames((positions @ to_ours.T)[..., 2].min(1), when),
    )


def moments(count: int, frame_s: float, fps: float | None) -> np.ndarray:
    """Frame positions to read at, as fractions of the file's frames."""
    if fps is None:
        return np.arange(count, dtype=np.float64)
    wanted = int((count - 1) * frame_s * fps + 1e-6) + 1
    return np.minimum(np.arange(wanted) / (fps * frame_s), count - 1)


def between_frames(values: np.ndarray, when: np.ndarray) -> np.ndarray:
    """Linear interpolation of f ... at fractional frames."""
    first = np.minimum(when.astype(int), len(values) - 1)
    share = (when - first).reshape(-1, *[1] * (values.ndim - 1))
    return (1 - share) * values[first] + share * values[np.minimum(first + 1, len(values) - 1)]


def nearest_rotations(matrices: np.ndarray) -> np.ndarray:
    """The rotations f 3 3 closest to these (means of two rotations are none)."""
    u, _, v = np.linalg.svd(matrices)
    u[:, :, 2] *= np.linalg.det(u @ v)[:, None]
    return u @ v


def against_chest(chest: np.ndarray, head: np.ndarray) -> np.ndarray:
    """How the head is turned against the chest, f 3 3 in world axes.

    Some files give the head axes of its own; they differ from the chest's by quarter turns, which are undone.
    """
    mean = (np.swapaxes(chest, 1, 2) @ head).mean(0)
    quarter = max(quarter_turns(), key=lambda turn: float(np.sum(turn * mean)))
    return head @ quarter.T @ np.swapaxes(chest, 1, 2)


def quarter_turns() -> list[np.ndarray]:
    """The 24 rotations of a cube."""
    signed = [
        np.eye(3)[list(order)] * signs
        for order in permutations(range(3))
        for signs in product((1, -1), repeat=3)
    ]
    return [turn for turn in signed if np.linalg.det(turn) > 0]


def ancestors(motion: Motion, joint: int) -> list[int]:
    """A joint, its parent, and so on to the root."""
    line = [joint]
    while motion.joints[line[-1]].parent >= 0:
        line.append(motion.joints[line[-1]].parent)
    return line


def shared_ancestor(motion: Motion, one: int, other: int) -> int:
    """The joint nearest to both that carries both."""
    line = ancestors(motion, other)
    return next(joint for joint in ancestors(motion, one) if joint in line)


def chest_joint(motion: Motion, found: dict[str, int], positions: np.ndarray) -> int:
    """The joint of the spine where the chest begins: the first that is well below the neck."""
    neck = found.get("neck", shared_ancestor(motion, found["upperarm.L"], found["upperarm.R"]))
    top, hips = positions[0, neck], (positions[0, found["thigh.L"]] + positions[0, found["thigh.R"]]) / 2
    reach = CHEST * np.linalg.norm(top - hips)
    line = ancestors(motion, neck)
    return next((j for j in line if np.linalg.norm(positions[0, j] - top) >= reach), line[-1])


def upright(upward: np.ndarray) -> np.ndarray:
    """Rotation 3 3 of the file's axes to ours; its vertical is the axis that `upward` f 3 is closest to."""
    mean = upward.mean(0)
    axis = np.zeros(3)
    axis[np.abs(mean).argmax()] = np.sign(mean[np.abs(mean).argmax()])
    return between(axis, np.array([0.0, 0.0, 1.0]))


def as_poses(track: Track, to_camera: bool = True) -> list[Pose]:
    """Our poses; lengths are scaled to our people's legs."""
    at = track.positions
    across = at["thigh.L"] - at["thigh.R"]
    turn = rotation(np.array([0.0, 0.0, 1.0]), -facing(across) if to_camera else 0.0)
    middle = (at["thigh.L"] + at["thigh.R"]) / 2
    torso = at["neck"] - middle
    pelvis = frames_of(across @ turn.T, torso @ turn.T)
    chest = frames_of((at["upperarm.L"] - at["upperarm.R"]) @ turn.T, (at["neck"] - at["chest"]) @ turn.T)
    head = turn @ track.head @ turn.T @ chest
    scale = meters(at)
    moved = (middle - middle.mean(0)) @ turn.T * scale
    ground = np.percentile(track.lowest, GROUND)
    moved[:, 2] = np.maximum((track.lowest - ground) * scale - LIFT_M, 0)
    limbs = {
        f"{limb}.{side}": units((at[f"{end}.{side}"] - at[f"{limb}.{side}"]) @ turn.T)
        for limb, end in ENDS.items()
        for side in "LR"
    }
    return [
        Pose(moved[f], pelvis[f], chest[f], head[f], {name: values[f] for name, values in limbs.items()})
        for f in range(len(moved))
    ]


def facing(across: np.ndarray) -> float:
    """Yaw in radians of the whole clip, 0 = to the camera; across: f 3 from the right to the left hip."""
    front = np.cross(units(across), [0.0, 0.0, 1.0])
    mean = front.mean(0)
    if np.linalg.norm(mean) < 0.2:  # turns about, so no side is the front
        mean = front[0]
    return float(np.arctan2(mean[0], -mean[1]))


def meters(at: dict[str, np.ndarray]) -> float:
    """Metres in the file's unit of length, by the legs."""
    bodies = load_bodies()
    ours = [bodies.heads[:, bodies.bones[name]] for name in ("upperleg01.L", "lowerleg01.L", "foot.L")]
    theirs = [at[f"{name}.L"] for name in ("thigh", "shin", "foot")]
    lengths = [
        sum(float(np.median(np.linalg.norm(b - a, axis=1))) for a, b in pairwise(chain))
        for chain in (ours, theirs)
    ]
    return lengths[0] / max(lengths[1], 1e-9)


def frames_of(left: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Rest-to-world rotations f 3 3 of a body part, from the lines to its left (kept) and upward, f 3."""
    x = units(left)
    z = units(up - np.sum(up * x, axis=1, keepdims=True) * x)
    return np.stack([x, np.cross(z, x), z], axis=2)


def units(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors ... 3."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
