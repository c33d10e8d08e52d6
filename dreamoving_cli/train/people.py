"""Synthetic people: a look (body, skin, hair, clothes), a pose, a camera -> picture, depth, 134 keypoints."""

from dataclasses import dataclass
from functools import cache, lru_cache

import cv2
import numpy as np

from dreamoving_cli.train.body import Bodies, Expression, Pose, load_bodies, pose_body
from dreamoving_cli.train.expressions import face_offsets
from dreamoving_cli.train.faces import LARGE_HEAD_PX_PER_M, paint_face
from dreamoving_cli.train.garments import BOTTOMS, Garment, paint, random_garment
from dreamoving_cli.train.raster import rasterize, vertex_normals

OVERSAMPLE = 2  # samples a pixel, each side
HEAD_SIZE = 1.3  # of the head in life: a face of few pixels says more when it is larger
HAIR_FADES_M = 0.1  # below the neck, hair keeps its size from here on
HAIR = {
    "black": (24, 20, 20),
    "brown": (78, 48, 30),
    "blond": (214, 176, 108),
    "red": (152, 66, 32),
    "gray": (158, 156, 154),
}
SKIN = {"light": (242, 208, 186), "tan": (214, 164, 128), "brown": (158, 106, 76), "dark": (96, 62, 46)}
HAIR_STYLES = ("bald", "short", "bob", "long")


@dataclass(frozen=True, eq=False)  # compared and cached by identity
class Look:
    """Who is seen and what they wear."""

    body: int
    skin_name: str
    skin: np.ndarray
    hair_name: str
    hair: np.ndarray
    hair_style: str
    eyes: np.ndarray
    top: Garment
    bottom: Garment
    shoes: np.ndarray
    neckline: float  # meters below the neck
    hem: float  # meters below the waist
    looseness: float  # meters the top stands off the body
    light: np.ndarray  # unit, towards the light
    ambient: float
    seed: int


@dataclass(frozen=True)
class Camera:
    """A pinhole at (0, -distance, height), looking along +y; `focal` in picture heights."""

    distance: float
    height: float
    focal: float
    center_x: float = 0.0
    center_z: float = 0.0


@dataclass(frozen=True)
class Shot:
    """One rendered frame: color and alpha premultiplied `h w 4` float, depth `h w` m (inf = empty)."""

    color: np.ndarray
    depth: np.ndarray
    points: np.ndarray  # 134 2
    scores: np.ndarray  # 134


def shade_of(rng: np.random.Generator, table: dict[str, tuple[int, int, int]]) -> tuple[str, np.ndarray]:
    """A name and a variation of its color, sRGB 0..1."""
    name = str(rng.choice(list(table)))
    return name, np.clip(
        np.array(table[name]) / 255 * rng.uniform(0.88, 1.1) + rng.normal(0, 0.012, 3), 0.03, 0.97
    )


def random_look(rng: np.random.Generator) -> Look:
    """Any adult, dressed."""
    body = int(rng.integers(len(load_bodies().shapes)))
    skin_name, skin = shade_of(rng, SKIN)
    hair_name, hair = shade_of(rng, HAIR)
    weights = (0.04, 0.3, 0.3, 0.36) if body % 2 else (0.12, 0.68, 0.1, 0.1)
    bottom = random_garment(rng, BOTTOMS if body % 2 else BOTTOMS[:2])
    light = np.array([rng.normal(0, 0.6), -1.0, rng.uniform(0.1, 1.3)])
    return Look(
        body=body, skin_name=skin_name, skin=skin, hair_name=hair_name, hair=hair,
        hair_style=str(rng.choice(HAIR_STYLES, p=weights)),
        eyes=np.array([(70, 45, 28), (60, 100, 140), (70, 110, 70)])[int(rng.integers(3))] / 255,
        top=random_garment(rng), bottom=bottom,
        shoes=rng.choice([0.08, 0.3, 0.6, 0.92]) + rng.normal(0, 0.03, 3),
        neckline=rng.uniform(-0.02, 0.07), hem=rng.uniform(0.03, 0.2), looseness=rng.uniform(0.004, 0.028),
        light=light / np.linalg.norm(light), ambient=rng.uniform(0.45, 0.75), seed=int(rng.integers(2**31)),
    )  # fmt: skip


@cache
def anatomy() -> dict[str, np.ndarray]:
    """Per-vertex coordinates of the template that clothes and hair are cut by."""
    b = load_bodies()
    heads = b.heads.mean(0)
    arm_bones = [
        i
        for n, i in b.bones.items()
        if n.startswith(("upperarm", "lowerarm", "wrist", "finger", "metacarpal"))
    ]
    head_bones = [b.bones["head"], b.bones["eye.L"], b.bones["eye.R"]]
    arm = np.where(np.isin(b.skin_bones, arm_bones), b.skin_weights, 0).sum(1)
    head = np.where(np.isin(b.skin_bones, head_bones), b.skin_weights, 0).sum(1)
    shoulder, elbow, wrist = (heads[b.bones[f"{n}.L"]] for n in ("upperarm01", "lowerarm01", "wrist"))
    mirrored = b.template * np.where(b.template[:, :1] < 0, [[-1, 1, 1]], 1)
    upper, lower = elbow - shoulder, wrist - elbow
    total = np.linalg.norm(upper) + np.linalg.norm(lower)
    along = ((mirrored - shoulder) @ upper / np.linalg.norm(upper)) / total
    beyond = ((mirrored - elbow) @ lower / np.linalg.norm(lower) + np.linalg.norm(upper)) / total
    sleeve = np.where(along * total > np.linalg.norm(upper), beyond, along)
    z = {
        n: heads[b.bones[k]][2]
        for n, k in {
            "neck": "neck01",
            "hip": "upperleg01.L",
            "knee": "lowerleg01.L",
            "ankle": "foot.L",
            "eye": "eye.L",
            "waist": "spine03",
        }.items()
    }
    return {"arm": arm, "head": head, "sleeve": sleeve, "levels": z, "eye": heads[b.bones["eye.L"]]}


def _scalp(points: np.ndarray, eye: np.ndarray, low: float) -> np.ndarray:
    """True where hair grows, for template positions `... 3`; `low` = how far down the back, meters."""
    x, y, z = points[..., 0], points[..., 1] - eye[1], points[..., 2] - eye[2]
    front = z > 0.062 + 0.012 * np.cos(x * 40)
    side = (z > 0.02) & (y > 0.055)
    back = (z > low) & (y > 0.115)
    return front | side | back


@lru_cache(maxsize=4)
def _dressed_shape(look: Look) -> np.ndarray:
    """The rest shape with room for clothes, hair and shoes, `v 3`."""
    b, a = load_bodies(), anatomy()
    rest = b.shapes[look.body].copy()
    normals = vertex_normals(rest, b.faces)
    z, level = b.template[:, 2], a["levels"]
    body = b.part == 0
    head = a["head"] > 0.5
    sleeve_end = look.top.sleeve if look.top.cut != "tank" else 0.0
    top = body & ~head & np.where(a["arm"] > 0.5, a["sleeve"] < sleeve_end, z > level["waist"] - look.hem)
    top &= z < level["neck"] - look.neckline
    legs_to = {"shorts": level["knee"] + 0.08, "trousers": level["ankle"]}.get(
        look.bottom.cut, level["hip"] - 0.12
    )
    bottom = body & (a["arm"] < 0.5) & (z < level["waist"]) & (z > legs_to) & ~top
    grow = np.zeros(len(rest), np.float32)
    grow[top] = 0.004 + look.looseness
    grow[bottom] = 0.003 + 0.6 * look.looseness
    grow[body & (z < level["ankle"] + 0.01) & (a["arm"] < 0.5)] = 0.006
    if look.hair_style != "bald":
        grow[body & head & _scalp(b.template, a["eye"], -0.06)] = 0.014
    return rest + grow[:, None] * normals


@lru_cache(maxsize=4)
def drawn_shape(look: Look) -> np.ndarray:
    """The dressed rest shape with a head HEAD_SIZE as large as in life, `v 3`; hair grows with it."""
    b, a, shape = load_bodies(), anatomy(), _dressed_shape(look)
    neck = a["levels"]["neck"]
    hair = np.clip((b.template[:, 2] - neck + HAIR_FADES_M) / HAIR_FADES_M, 0, 1)
    share = np.where(b.part == 4, hair, np.where((b.part == 1) | (b.part == 2), 1.0, a["head"]))
    pivot = b.heads[look.body][b.bones["neck03"]]
    return (shape + share[:, None] * (HEAD_SIZE - 1) * (shape - pivot)).astype(np.float32)


@lru_cache(maxsize=4)
def _faces_shown(look: Look) -> np.ndarray:
    """Triangles of this look: the hair mesh cut to length, the skirt only where worn."""
    b, level = load_bodies(), anatomy()["levels"]
    z = b.template[b.faces].mean(1)[:, 2]
    part = b.part[b.faces[:, 0]]
    show = part <= 2
    if look.bottom.cut in ("skirt", "dress"):
        rng = np.random.default_rng(look.seed)
        show |= (part == 3) & (z > level["knee"] + rng.uniform(-0.2, 0.15)) & (z < level["waist"])
    if look.hair_style in ("bob", "long"):
        cut = level["eye"] - (0.13 if look.hair_style == "bob" else 0.32)
        corners, eye = b.template[b.faces], anatomy()["eye"]
        across, behind, up = np.moveaxis(corners, 2, 0)
        before_face = (abs(across) < 0.062) & (behind < eye[1] + 0.03) & (up < eye[2] + 0.06)
        show |= (part == 4) & (z > cut) & ~before_face.any(1)
    return b.faces[show]


def _attributes(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """What the shader reads at a pixel, `v 12`: template xyz, normal, eye, skirt, hair, arm, sleeve, lips."""
    b, a = load_bodies(), anatomy()
    part = np.stack([(b.part == 1) | (b.part == 2), b.part == 3, b.part == 4], 1)
    rest = np.stack([a["arm"], a["sleeve"], b.lips], 1)
    return np.concatenate([b.template, vertex_normals(vertices, faces), part, rest], 1).astype(np.float32)


def _albedo(look: Look, face: Expression, at: np.ndarray, bold: bool) -> np.ndarray:
    """Surface color `n 3` at `n` pixels of attributes `n 12`; bold: with the features of a small face."""
    a = anatomy()
    level, eye = a["levels"], a["eye"]
    x, y, z = at[:, 0], at[:, 1], at[:, 2]
    is_eye, is_skirt, is_hair, arm, sleeve = at[:, 6:11].T
    on_arm, head = arm > 0.5, z > level["neck"] + 0.03
    color = np.broadcast_to(look.skin, (len(at), 3))
    color = paint_face(color, at, head, eye, (look.skin, look.hair, look.eyes), face, bold)
    if look.hair_style != "bald":
        scalp = head & ~on_arm & (is_eye < 0.5) & _scalp(at[:, :3], eye, -0.06)
        color = np.where(scalp[:, None], look.hair, color)

    top_length = level["waist"] - look.hem
    v = np.where(on_arm, 0.93 - 0.9 * sleeve, (z - top_length) / (level["neck"] - 0.02 - top_length))
    u = np.where(on_arm, 1.0 + sleeve, x / 0.2)
    cloth = paint(look.top, u, v, ((y < 0.02) & ~on_arm).astype(np.float32))
    covered = np.where(
        on_arm,
        sleeve < look.top.sleeve,
        (z > top_length)
        & (z < level["neck"] - look.neckline - 0.25 * np.maximum(0, 0.05 - abs(x)) * (y < 0)),
    )
    if look.top.cut == "tank":
        covered &= ~on_arm & (abs(x) < 0.155)
    legs_to = {"shorts": level["knee"] + 0.08, "trousers": level["ankle"] + 0.01}.get(
        look.bottom.cut, level["hip"] - 0.1
    )
    v2 = (z - level["ankle"]) / (level["waist"] - level["ankle"])
    lower = paint(look.bottom, x / 0.2, v2 * 1.5, (y < 0).astype(np.float32))
    body = (is_eye < 0.5) & (is_hair < 0.5) & ~head
    wears_lower = body & ~on_arm & (z < level["waist"] + 0.02) & (z > legs_to)
    color = np.where((wears_lower | (is_skirt > 0.5))[:, None], lower, color)
    color = np.where(
        (body & covered & (is_skirt < 0.5))[:, None], lower if look.bottom.cut == "dress" else cloth, color
    )
    color = np.where(
        (body & (z < level["ankle"] + 0.005) & ~on_arm)[:, None], np.clip(look.shoes, 0.03, 0.97), color
    )
    return np.where((is_hair > 0.5)[:, None], look.hair, color)


def _lit(look: Look, albedo: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Lambert with a soft terminator, a sheen and cloth folds, `n 3`."""
    normal = at[:, 3:6] / (np.linalg.norm(at[:, 3:6], axis=1, keepdims=True) + 1e-6)
    wrap = np.clip(0.5 + 0.5 * normal @ look.light, 0, 1) ** 1.5
    k = look.seed % 97 / 10
    folds = 1 + 0.045 * np.sin(at[:, 2] * 60 + 3 * np.sin(at[:, 0] * 25 + k)) * (
        at[:, 2] < anatomy()["levels"]["neck"]
    )
    half = look.light + np.array([0, -1, 0])
    sheen = 0.1 * np.clip(normal @ (half / np.linalg.norm(half)), 0, 1) ** 24
    return albedo * ((look.ambient + (1.12 - look.ambient) * wrap) * folds)[:, None] + sheen[:, None]


def project(camera: Camera, points: np.ndarray, height: int, width: int) -> np.ndarray:
    """World points `n 3` to pixels and distance, float32 `n 3`."""
    distance = points[:, 1] + camera.distance
    scale = camera.focal * height / np.maximum(distance, 1e-3)
    x = width / 2 + (points[:, 0] - camera.center_x) * scale
    y = height / 2 - (points[:, 2] - camera.center_z) * scale
    return np.stack([x, y, distance], 1).astype(np.float32)


def shoot(look: Look, pose: Pose, camera: Camera, height: int, width: int) -> Shot:
    """Render one frame of one person, anti-aliased, on a transparent ground.

    The points are those of a head of ordinary size: drivers have one.
    """
    b = load_bodies()
    bold = camera.focal * height / camera.distance < LARGE_HEAD_PX_PER_M
    face = face_offsets(pose.face)
    vertices, _ = pose_body(look.body, pose, drawn_shape(look) + HEAD_SIZE * face)
    screen = project(camera, vertices, height * OVERSAMPLE, width * OVERSAMPLE)
    faces = _faces_shown(look)
    depth, index, attributes = rasterize(
        screen, faces, _attributes(vertices, faces), height * OVERSAMPLE, width * OVERSAMPLE
    )
    hit = index >= 0
    color = np.zeros((*index.shape, 4), np.float32)
    at = attributes[hit]
    color[hit] = np.concatenate(
        [np.clip(_lit(look, _albedo(look, pose.face, at, bold), at), 0, 1), np.ones((len(at), 1))], 1
    )
    color = cv2.resize(color, (width, height), interpolation=cv2.INTER_AREA)
    depth = np.minimum.reduce(
        [depth[i::OVERSAMPLE, j::OVERSAMPLE] for i in range(OVERSAMPLE) for j in range(OVERSAMPLE)]
    )
    points, scores = keypoints(
        b, *pose_body(look.body, pose, _dressed_shape(look) + face), pose, camera, height, width
    )
    return Shot(color, depth, points, scores)


BODY_18 = ("nose", "neck", "right_shoulder", "right_elbow", "right_wrist",
           "left_shoulder", "left_elbow", "left_wrist",
           "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
           "right_eye", "left_eye", "right_ear", "left_ear")  # fmt: skip
FEET_6 = ("left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe", "right_heel")


def hand_points(b: Bodies, starts: np.ndarray, side: str) -> np.ndarray:
    """21 points of one hand in OpenPose order, `21 3`; a tip lies 0.9 joints beyond the last joint."""
    at = {name: starts[i] for name, i in b.bones.items() if name.endswith(f".{side}")}
    points = [at[f"wrist.{side}"]]
    for finger in range(1, 6):
        a, m, e = (at[f"finger{finger}-{joint}.{side}"] for joint in (1, 2, 3))
        points += [a, m, e, e + 0.9 * (e - m)]
    return np.array(points)


def keypoints(
    b: Bodies, vertices: np.ndarray, starts: np.ndarray, pose: Pose, camera: Camera, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """The 134 points of DWPose in pixels `134 2` and scores `134`; a face turned away has none."""
    regressed = np.einsum("ks,ksd->kd", b.keypoint_weights, vertices[b.keypoint_vertices])
    of = {name: regressed[i] for name, i in b.keypoints.items()}
    of["neck"] = (of["left_shoulder"] + of["right_shoulder"]) / 2
    face = vertices[b.face_landmarks]
    world = np.concatenate(
        [
            [of[n] for n in BODY_18],
            [of[n] for n in FEET_6],
            face,
            hand_points(b, starts, "L"),
            hand_points(b, starts, "R"),
        ]
    )
    points = project(camera, world, height, width)[:, :2]
    scores = np.ones(134, np.float32)
    forward = pose.head @ np.array([0.0, -1.0, 0.0])
    facing = float(-forward[1])  # 1 = into the camera
    if facing < 0.15:
        scores[24:92] = 0
    if facing < -0.1:
        scores[[0, 14, 15]] = 0
    sideways = float(forward[0])
    scores[16] *= sideways > -0.6  # an ear behind the head is not seen
    scores[17] *= sideways < 0.6
    outside = (points[:, 0] < 0) | (points[:, 0] >= width) | (points[:, 1] < 0) | (points[:, 1] >= height)
    scores[outside] = 0
    return points.astype(np.float32), scores
