"""One synthetic clip: a dressed person dances before a background, with everything a training step needs.

A clip is a dict of arrays: frames, pose and depth controls, reference pictures, and words.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dreamoving_cli.extract.draw import draw_control
from dreamoving_cli.media.images import resize
from dreamoving_cli.train.body import Pose, load_bodies, pose_body
from dreamoving_cli.train.bvh import part_of_dance
from dreamoving_cli.train.expressions import acting
from dreamoving_cli.train.garments import background, product_picture, random_color
from dreamoving_cli.train.motion import as_pose, dance, random_key
from dreamoving_cli.train.people import HEAD_SIZE, Camera, Look, anatomy, drawn_shape, random_look, shoot

BUCKETS = ((288, 192), (288, 160), (224, 224), (192, 288), (160, 288))  # height, width
BUCKET_SHARES = (0.4, 0.2, 0.1, 0.1, 0.2)
SIDE_STEP = 16  # of an enlarged bucket's sides: pixels of the miniature's latent cell
FRAMINGS = ("full body", "half body", "portrait")
FRAMING_SHARES = (0.76, 0.17, 0.07)
REFERENCE_SIDE = 128  # pixels of a face or cloth picture
NUM_REFERENCES = 4  # pictures of each kind per clip
RECORDED = 0.5  # share of clips that dance to recorded motion, where there is any


@dataclass(frozen=True)
class Scene:
    """Where the dance takes place: a picture, its depth (0 far .. 1 near), and its words."""

    picture: np.ndarray  # h w 3 float
    depth: np.ndarray  # h w float
    words: str


def _plain(rng: np.random.Generator, height: int, width: int) -> Scene:
    name, color = random_color(rng)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    light = 1 + rng.uniform(-0.18, 0.18) * (x - 0.3) + rng.uniform(-0.25, 0.1) * (y - 0.3)
    return Scene(
        color * light[..., None], np.full((height, width), rng.uniform(0, 0.3)), f"a plain {name} background"
    )


def _floor(
    rng: np.random.Generator, height: int, width: int, horizon: float, color: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A floor below the horizon: picture rows `h 3`-broadcastable and nearness `h`."""
    rows = (np.arange(height) / height - horizon) / (1 - horizon)
    shade = color * (0.8 + 0.3 * np.clip(rows, 0, 1))[:, None, None] * np.ones((1, width, 1))
    return shade, np.clip(rows, 0, 1) * 0.75


def _room(rng: np.random.Generator, height: int, width: int) -> Scene:
    wall_name, wall = random_color(rng)
    floor_name, floor = random_color(rng)
    horizon = rng.uniform(0.62, 0.85)
    base = _plain(rng, height, width).depth
    picture = np.broadcast_to(wall, (height, width, 3)).copy() * (
        1 - 0.15 * np.linspace(0, 1, width)[None, :, None] * rng.uniform(-1, 1)
    )
    words = f"a room with a {wall_name} wall and a {floor_name} floor"
    for _ in range(int(rng.integers(0, 4))):  # windows, pictures, doors
        w, h = rng.uniform(0.1, 0.35) * width, rng.uniform(0.12, 0.4) * height
        x, y = rng.uniform(-0.05, 0.95) * width, rng.uniform(0.02, 0.5) * height
        cv2.rectangle(
            picture, (int(x - 3), int(y - 3)), (int(x + w + 3), int(y + h + 3)), (wall * 0.6).tolist(), -1
        )
        cv2.rectangle(picture, (int(x), int(y)), (int(x + w), int(y + h)), random_color(rng)[1].tolist(), -1)
    rows, near = _floor(rng, height, width, horizon, floor)
    below = np.arange(height) / height > horizon
    picture[below] = rows[below]
    depth = np.maximum(base, near[:, None] * below[:, None])
    return Scene(picture, depth, words)


def _outdoors(rng: np.random.Generator, height: int, width: int) -> Scene:
    horizon = rng.uniform(0.45, 0.75)
    name, ground, sky = [
        ("a green field under a blue sky", (0.32, 0.55, 0.22), (0.55, 0.75, 0.95)),
        ("a sandy beach under a bright sky", (0.86, 0.76, 0.56), (0.72, 0.87, 0.97)),
        ("a gray street under a pale sky", (0.45, 0.45, 0.47), (0.82, 0.85, 0.9)),
        ("a snowy field at dusk", (0.9, 0.92, 0.97), (0.5, 0.45, 0.62)),
    ][int(rng.integers(4))]
    rows = np.linspace(0, 1, height)[:, None, None] * np.ones((1, width, 1))
    picture = np.array(sky) * (0.85 + 0.25 * rows)
    for _ in range(int(rng.integers(0, 6))):  # bushes, houses, dunes at the horizon
        center = (int(rng.uniform(0, width)), int(horizon * height))
        axes = (int(rng.uniform(0.05, 0.25) * width), int(rng.uniform(0.03, 0.25) * height))
        cv2.ellipse(
            picture, center, axes, 0, 180, 360, (np.array(ground) * rng.uniform(0.5, 0.9)).tolist(), -1
        )
    floor, near = _floor(rng, height, width, horizon, np.array(ground))
    below = np.arange(height) / height > horizon
    picture[below] = floor[below]
    return Scene(picture, near[:, None] * below[:, None] * np.ones((1, width)), name)


def _stage(rng: np.random.Generator, height: int, width: int) -> Scene:
    name, color = random_color(rng)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    glow = np.exp(
        -(
            ((x - rng.uniform(0.2, 0.8) * width) / (0.4 * width)) ** 2
            + ((y - 0.4 * height) / (0.5 * height)) ** 2
        )
    )
    picture = 0.05 + 0.85 * glow[..., None] * color
    return Scene(picture, np.zeros((height, width)), f"a dark stage with {name} light")


def random_scene(rng: np.random.Generator, height: int, width: int) -> Scene:
    """A background of any kind; a third are plain."""
    kind = [_plain, _room, _outdoors, _stage][int(rng.choice(4, p=(0.36, 0.32, 0.2, 0.12)))]
    scene = kind(rng, height, width)
    noise = cv2.resize(
        rng.normal(0, 0.02, (12, 12, 1)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    return Scene(np.clip(scene.picture + noise[..., None], 0, 1).astype(np.float32), scene.depth, scene.words)


def aim(rng: np.random.Generator, look: Look, framing: str, aspect: float) -> Camera:
    """A camera that frames the dancer; `aspect` = width / height."""
    bodies, level = load_bodies(), anatomy()["levels"]
    rest = bodies.shapes[look.body][bodies.part == 0]
    bottom, tall = float(rest[:, 2].min()), float(rest[:, 2].max() - rest[:, 2].min())
    chin = level["neck"] - bottom
    if framing == "full body":
        seen = tall / float(rng.uniform(0.58, 0.9))
        center = 0.5 * tall + float(rng.uniform(-0.04, 0.1)) * tall
    elif framing == "half body":
        seen = 0.55 * tall / float(rng.uniform(0.75, 1.0))
        center = float(chin) - 0.14 * tall
    else:
        seen = 0.3 * tall / float(rng.uniform(0.7, 1.1))
        center = float(chin) + 0.03 * tall
    if framing != "full body" and aspect < 0.8:
        seen *= 1.25
    distance = rng.uniform(3.0, 9.0)
    return Camera(
        distance, center, distance / seen, center_x=rng.normal(0, 0.05) * seen * aspect, center_z=center
    )


def worn_points(
    rng: np.random.Generator, points: np.ndarray, scores: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints of a clip as a real detector gives them: jittered, parts missing. `f 134 2`, `f 134`."""
    spans = {"face": slice(24, 92), "left": slice(92, 113), "right": slice(113, 134), "feet": slice(18, 24)}
    scores = scores.copy()
    for name, chance in (("face", 0.2), ("left", 0.2), ("right", 0.2), ("feet", 0.25)):
        if rng.random() < chance:
            scores[:, spans[name]] = 0
        else:
            scores[rng.random(len(scores)) < 0.08, spans[name]] = 0
    scores[:, :18][rng.random((len(scores), 18)) < 0.015] = 0
    whole = rng.normal(0, 0.003, (len(points), 1, 2))
    return points + size * (rng.normal(0, 0.003, points.shape) + whole).astype(np.float32), scores


def over(shot_color: np.ndarray, scene: np.ndarray) -> np.ndarray:
    """Premultiplied `h w 4` over `h w 3`, as uint8."""
    mixed = shot_color[..., :3] + scene * (1 - shot_color[..., 3:])
    return np.clip(mixed * 255 + 0.5, 0, 255).astype(np.uint8)


def nearness(depth: np.ndarray, scene: np.ndarray, near: float, far: float) -> np.ndarray:
    """The depth control: 255 near, 0 far, the dancer before the scene; uint8 `h w`."""
    person = 0.55 + 0.45 * (far - depth) / (far - near)
    return np.clip(np.where(np.isfinite(depth), person, scene * 0.6) * 255, 0, 255).astype(np.uint8)


def face_picture(rng: np.random.Generator, look: Look) -> np.ndarray:
    """A portrait of the person, as a user's photo would be cropped: uint8 `s s 3`."""
    key = random_key(rng, 0.3, 0.25)
    hanging = {n: np.array([0.35 if n.endswith("L") else -0.35, 0.0, -0.94]) for n in key.limbs if "arm" in n}
    key = dataclasses.replace(key, limbs=key.limbs | hanging)
    pose: Pose = as_pose(key, float(rng.normal(0, 0.25)), 0.0)
    light = np.array([rng.normal(0, 0.8), -1.0, rng.uniform(-0.1, 1.3)])
    lit = dataclasses.replace(look, light=light / np.linalg.norm(light), ambient=rng.uniform(0.4, 0.8))
    vertices, _ = pose_body(look.body, pose, drawn_shape(lit))
    middle = vertices[load_bodies().face_landmarks].mean(0)
    seen = rng.uniform(0.3, 0.42) * HEAD_SIZE
    distance = rng.uniform(1.2, 5)
    camera = Camera(
        distance - middle[1],
        middle[2],
        distance / seen,
        center_x=middle[0] + rng.normal(0, 0.015),
        center_z=middle[2] + 0.02,
    )
    shot = shoot(lit, pose, camera, REFERENCE_SIDE, REFERENCE_SIDE)
    tint = np.clip(1 + rng.normal(0, 0.05, 3), 0.85, 1.15)
    return over(shot.color * [*tint, 1], background(rng, REFERENCE_SIDE, REFERENCE_SIDE))


def cloth_picture(rng: np.random.Generator, look: Look, frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The garment: a product picture, or cut from another frame of the clip; uint8 `s s 3`."""
    garment = look.bottom if look.bottom.cut == "dress" else look.top
    if rng.random() < 0.75:
        return resize(product_picture(garment, rng), REFERENCE_SIDE, REFERENCE_SIDE)
    i = int(rng.integers(len(frames)))
    x0, y0, x1, y1 = boxes[i]
    if x1 - x0 < 12 or y1 - y0 < 12:
        return resize(product_picture(garment, rng), REFERENCE_SIDE, REFERENCE_SIDE)
    return resize(np.ascontiguousarray(frames[i, y0:y1, x0:x1]), REFERENCE_SIDE, REFERENCE_SIDE)


def torso_box(points: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """x0 y0 x1 y1 of shoulders to hips with a margin, inside the picture."""
    torso = points[[2, 5, 8, 11]]
    (x0, y0), (x1, y1) = torso.min(0), torso.max(0)
    margin = 0.25 * max(x1 - x0, y1 - y0)
    return (int(np.clip(x0 - margin, 0, width)), int(np.clip(y0 - margin / 2, 0, height)),
            int(np.clip(x1 + margin, 0, width)), int(np.clip(y1 + margin / 2, 0, height)))  # fmt: skip


def caption(rng: np.random.Generator, look: Look, scene: Scene, framing: str) -> str:
    """What is shown, in words; looks are named half of the time, the scene nearly always."""
    who = "a woman" if look.body % 2 else "a man"
    told = rng.random() < 0.5
    if told:
        hair = "a bald head" if look.hair_style == "bald" else f"{look.hair_style} {look.hair_name} hair"
        who += f" with {look.skin_name} skin and {hair}"
    if rng.random() < 0.5:
        garment = look.bottom if look.bottom.cut == "dress" else look.top
        who += f" in a {garment.name} {garment.cut}"
        if garment is look.top and not told:  # the text encoder takes no more words than one of both
            who += f" and {look.bottom.name} {look.bottom.cut}"
    text = f"{who} is dancing"
    if framing != "full body":
        text += f", {framing}"
    return f"{text}, {scene.words}" if rng.random() < 0.92 else text


def make_clip(
    seed: int,
    num_frames: int = 24,
    fps: float = 16.0,
    recorded: Sequence[Path] = (),
    scale: float = 1.0,
    framing: str | None = None,
) -> dict[str, np.ndarray]:
    """Everything about one clip, drawn from `seed`; half dance as in the BVH files `recorded`, if there are.

    scale: of its sides, for the same people in larger pictures; framing: of FRAMINGS, else it is drawn.

    frames `f h w 3`, pose `f h w 3`, depth `f h w`, faces and cloths `n s s 3` (uint8); points `f 134 2`;
    boxes `f 4` torso; captions (two strings), and the colors that tests ask for.
    """
    rng = np.random.default_rng(seed)
    bucket = BUCKETS[int(rng.choice(len(BUCKETS), p=BUCKET_SHARES))]
    height, width = (round(side * scale / SIDE_STEP) * SIDE_STEP for side in bucket)
    look, drawn = random_look(rng), str(rng.choice(FRAMINGS, p=FRAMING_SHARES))
    framing = framing or drawn
    camera, scene = aim(rng, look, framing, width / height), random_scene(rng, height, width)
    poses = (
        part_of_dance(rng, recorded, num_frames, fps)
        if recorded and rng.random() < RECORDED
        else dance(rng, num_frames, fps)
    )
    faces = acting(np.random.default_rng((seed, 1)), num_frames, fps)
    poses = [dataclasses.replace(pose, face=face) for pose, face in zip(poses, faces, strict=True)]
    shots = [shoot(look, pose, camera, height, width) for pose in poses]
    frames = np.stack([over(s.color, scene.picture) for s in shots])
    finite = np.concatenate([s.depth[np.isfinite(s.depth)] for s in shots] or [np.zeros(1)])
    near, far = (finite.min(), finite.max()) if len(finite) else (1.0, 2.0)
    points, scores = np.stack([s.points for s in shots]), np.stack([s.scores for s in shots])
    seen, given = worn_points(rng, points, scores, max(height, width))
    boxes = np.array([torso_box(p, height, width) for p in points])
    return {
        "frames": frames,
        "pose": np.stack([
            draw_control(p[None], s[None], (height, width), height, width)
            for p, s in zip(seen, given, strict=True)
        ]),
        "depth": np.stack([nearness(s.depth, scene.depth, near, far + 1e-3) for s in shots]),
        "alpha": np.stack([np.clip(s.color[..., 3] * 255, 0, 255).astype(np.uint8) for s in shots]),
        "faces": np.stack([face_picture(rng, look) for _ in range(NUM_REFERENCES)]),
        "cloths": np.stack([cloth_picture(rng, look, frames, boxes) for _ in range(NUM_REFERENCES)]),
        "points": points, "scores": scores, "boxes": boxes,
        "captions": np.array([caption(rng, look, scene, framing) for _ in range(4)]),
        "skin": look.skin, "hair": look.hair, "hair_style": np.array(look.hair_style),
        "cloth_color": (look.bottom if look.bottom.cut == "dress" else look.top).color,
        "cloth_second": (look.bottom if look.bottom.cut == "dress" else look.top).second,
        "cloth_pattern": np.array((look.bottom if look.bottom.cut == "dress" else look.top).pattern),
        "cloth_cut": np.array((look.bottom if look.bottom.cut == "dress" else look.top).cut),
        "body": np.array(look.body), "framing": np.array(framing), "scene": np.array(scene.words),
    }  # fmt: skip
