"""A posable synthetic person: baked MakeHuman bodies (bodies.npz), a pose of directions, skinned vertices.

World: meters, z up; at rest the person looks along -y and its left is +x. A pose names what a dancer would:
how pelvis, chest and head are turned, and where each limb points. Nothing here knows colors or cameras.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from dreamoving_cli.train.raster import skin

LIMBS = ("upperarm.L", "upperarm.R", "forearm.L", "forearm.R", "thigh.L", "thigh.R", "shin.L", "shin.R")
BONES_OF_LIMB = {
    "upperarm": ("upperarm01", "upperarm02"),
    "forearm": ("lowerarm01", "lowerarm02"),
    "thigh": ("upperleg01", "upperleg02"),
    "shin": ("lowerleg01", "lowerleg02"),
}
END_OF_LIMB = {"upperarm": "lowerarm01", "forearm": "wrist", "thigh": "lowerleg01", "shin": "foot"}
PARENT_OF_LIMB = {"forearm": "upperarm", "shin": "thigh"}


@dataclass(frozen=True)
class Bodies:
    """The baked file: `n` bodies of one topology with `v` vertices and `j` bones."""

    shapes: np.ndarray  # n v 3
    heads: np.ndarray  # n j 3: where each bone starts at rest
    template: np.ndarray  # v 3: mean shape, the coordinate system of clothes and hair
    faces: np.ndarray  # t 3
    part: np.ndarray  # v: 0 body, 1 and 2 eyes, 3 skirt, 4 hair
    skin_weights: np.ndarray  # v k
    skin_bones: np.ndarray  # v k
    bone_parents: np.ndarray  # j
    bones: dict[str, int]
    keypoints: dict[str, int]
    keypoint_vertices: np.ndarray
    keypoint_weights: np.ndarray
    lips: np.ndarray  # v 0..1
    eyelids: np.ndarray  # v 0..1
    face_landmarks: np.ndarray  # 68: the vertices of the iBUG face points


@cache
def load_bodies() -> Bodies:
    """The baked bodies, read once."""
    with np.load(Path(__file__).with_name("bodies.npz")) as d:
        return Bodies(
            shapes=d["shapes"].astype(np.float32),
            heads=d["heads"],
            template=d["template"].astype(np.float32),
            faces=d["faces"].astype(np.int32),
            part=d["part"],
            skin_weights=d["skin_weights"].astype(np.float32),
            skin_bones=d["skin_bones"].astype(np.int32),
            bone_parents=d["bone_parents"],
            bones={str(name): i for i, name in enumerate(d["bone_names"])},
            keypoints={str(name): i for i, name in enumerate(d["keypoint_names"])},
            keypoint_vertices=d["keypoint_vertices"].astype(np.int64),
            keypoint_weights=d["keypoint_weights"],
            lips=d["lips"].astype(np.float32),
            eyelids=d["eyelids"].astype(np.float32),
            face_landmarks=d["face_landmarks"].astype(np.int64)
            if "face_landmarks" in d
            else np.zeros(68, np.int64),
        )


@dataclass(frozen=True)
class Expression:
    """A moment of a face; expressions.py says what it looks like."""

    open: float = 0.0  # the mouth, 0..1
    smile: float = 0.0  # -1 (a frown) to 1
    brows: float = 0.0  # raised, -1..1
    blink: float = 0.0  # 0..1, eyes shut


@dataclass(frozen=True)
class Pose:
    """One moment of a dance. Rotations are `3 3` from rest to world, directions unit `3` in the world."""

    root: np.ndarray  # 3: offset of the pelvis on the floor plane; its height follows from the feet
    pelvis: np.ndarray
    chest: np.ndarray
    head: np.ndarray
    limbs: dict[str, np.ndarray]  # LIMBS -> direction
    curl: tuple[float, float] = (0.3, 0.3)  # fingers of the left and right hand, 0 flat .. 1 fist
    on_floor: bool = True
    face: Expression = Expression()


def rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rodrigues: `3 3` about `axis` by `angle` radians."""
    x, y, z = axis / (np.linalg.norm(axis) + 1e-12)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Shortest rotation `3 3` that turns direction `start` into `end`."""
    start, end = start / np.linalg.norm(start), end / np.linalg.norm(end)
    axis, cosine = np.cross(start, end), float(np.clip(start @ end, -1, 1))
    if np.linalg.norm(axis) < 1e-6:
        return np.eye(3) if cosine > 0 else rotation(np.array([0.0, 0.0, 1.0]), np.pi)
    return rotation(axis, np.arccos(cosine))


def part_way(start: np.ndarray, end: np.ndarray, share: float) -> np.ndarray:
    """Rotation `share` of the way from `start` to `end` along the shortest arc."""
    delta = end @ start.T
    angle = np.arccos(np.clip((np.trace(delta) - 1) / 2, -1, 1))
    if angle < 1e-6:
        return start
    axis = np.array([delta[2, 1] - delta[1, 2], delta[0, 2] - delta[2, 0], delta[1, 0] - delta[0, 1]])
    return rotation(axis, share * angle) @ start


def bone_rotations(bodies: Bodies, heads: np.ndarray, pose: Pose) -> np.ndarray:
    """Rest-to-world rotation of every bone, `j 3 3`."""
    bones, out = bodies.bones, np.full((len(heads), 3, 3), np.nan)
    out[bones["root"]] = pose.pelvis
    for i, name in enumerate(("spine05", "spine04", "spine03", "spine02", "spine01")):
        out[bones[name]] = part_way(pose.pelvis, pose.chest, (i + 1) / 5)
    for i, name in enumerate(("neck01", "neck02", "neck03", "head")):
        out[bones[name]] = part_way(pose.chest, pose.head, (i + 1) / 4)
    for side in "LR":
        for limb in ("upperarm", "forearm", "thigh", "shin"):
            first = bones[f"{BONES_OF_LIMB[limb][0]}.{side}"]
            rest = heads[bones[f"{END_OF_LIMB[limb]}.{side}"]] - heads[first]
            base = pose.pelvis if limb == "thigh" else pose.chest
            if limb in PARENT_OF_LIMB:
                base = out[bones[f"{BONES_OF_LIMB[PARENT_OF_LIMB[limb]][0]}.{side}"]]
            turned = between(base @ rest, pose.limbs[f"{limb}.{side}"]) @ base
            for name in BONES_OF_LIMB[limb]:
                out[bones[f"{name}.{side}"]] = turned
        raised = out[bones[f"upperarm01.{side}"]]
        out[bones[f"clavicle.{side}"]] = part_way(pose.chest, raised, 0.12)
        out[bones[f"shoulder01.{side}"]] = part_way(pose.chest, raised, 0.25)
        out[bones[f"foot.{side}"]] = part_way(out[bones[f"lowerleg01.{side}"]], pose.pelvis, 0.7)
        _turn_fingers(bodies, heads, out, side, pose.curl["LR".index(side)])
    for j, parent in enumerate(bodies.bone_parents):
        if np.isnan(out[j, 0, 0]):
            out[j] = out[parent]
    return out


def _turn_fingers(bodies: Bodies, heads: np.ndarray, out: np.ndarray, side: str, curl: float) -> None:
    """Bend fingers 2 to 5 joint by joint about the axis across the palm."""
    bones = bodies.bones
    hand = out[bones[f"lowerarm01.{side}"]]
    out[bones[f"wrist.{side}"]] = hand
    across = heads[bones[f"finger5-1.{side}"]] - heads[bones[f"finger2-1.{side}"]]
    along = heads[bones[f"finger3-1.{side}"]] - heads[bones[f"wrist.{side}"]]
    palm = np.cross(across, along) * (1 if side == "L" else -1)
    sign = 1.0 if np.cross(across, along) @ palm > 0 else -1.0
    for finger in range(2, 6):
        for joint in range(1, 4):
            out[bones[f"finger{finger}-{joint}.{side}"]] = hand @ rotation(
                sign * across, (curl - 0.3) * 0.9 * joint
            )


def pose_body(body: int, pose: Pose, rest: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Skinned vertices `v 3` and bone starts `j 3` in the world. `rest` replaces the rest shape (clothes)."""
    bodies = load_bodies()
    heads = bodies.heads[body]
    rotations = bone_rotations(bodies, heads, pose)
    starts = np.zeros_like(heads, dtype=np.float64)
    for j, parent in enumerate(bodies.bone_parents):
        if parent >= 0:
            starts[j] = starts[parent] + rotations[parent] @ (heads[j] - heads[parent])
    offsets = starts - np.einsum("jab,jb->ja", rotations, heads)
    rest = bodies.shapes[body] if rest is None else rest
    vertices = skin(
        rest, bodies.skin_weights, bodies.skin_bones, rotations.astype(np.float32), offsets.astype(np.float32)
    )
    shift = np.array([pose.root[0], pose.root[1], pose.root[2]])
    if pose.on_floor:
        shift[2] = pose.root[2] - vertices[bodies.part == 0, 2].min()
    return (vertices + shift).astype(np.float32), starts + shift
