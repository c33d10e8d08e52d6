"""Find the 68 face points on the baked bodies: the light face network looks at rendered faces.

Run by a developer after bake_bodies.py, whose file it completes. Not imported by anything else.
"""

import dataclasses
from pathlib import Path

import numpy as np

from dreamoving_cli.extract.layout import FACE
from dreamoving_cli.extract.light import FaceMesh
from dreamoving_cli.extract.regions import Region
from dreamoving_cli.train.bake_bodies import BODIES
from dreamoving_cli.train.body import LIMBS, Pose, load_bodies, pose_body
from dreamoving_cli.train.people import Camera, anatomy, drawn_shape, project, random_look, shoot
from dreamoving_cli.train.raster import vertex_normals

NUM_LOOKS = 16
SIDE = 192  # pixels of a rendered face; what the network takes
DISTANCE_M, FOCAL, HEAD_CENTER_M = 5.0, 16.0, 0.045
FRONT_M = 0.15  # how much nearer the front of the face is than the neck
PIXELS_PER_M = 20.0  # of distance from the camera: of two vertices at one pixel, the nearer
TOWARDS_US = 0.35  # normals that point away more than this are not seen


def bake_face(path: Path = BODIES) -> Path:
    """Write the vertices of the face points into the baked file."""
    load_bodies.cache_clear()
    anatomy.cache_clear()
    with np.load(path) as file:
        arrays = dict(file)
    np.savez_compressed(path, **{**arrays, "face_landmarks": find_face_landmarks().astype(np.uint16)})
    return path


def find_face_landmarks() -> np.ndarray:
    """The vertex of each of the 68 points: nearest on average over several looks."""
    network, rng = FaceMesh(), np.random.default_rng(3)
    votes = [vote(network, rng, body) for body in range(NUM_LOOKS)]
    return np.mean([v for v in votes if v is not None], axis=0).argmin(1)


def vote(network: FaceMesh, rng: np.random.Generator, body: int) -> np.ndarray | None:
    """How far each vertex is from where the network sees each point, 68 v in pixels; None: it saw no face."""
    bodies = load_bodies()
    look = dataclasses.replace(random_look(rng), hair_style="short", body=body, ambient=0.6)
    vertices, starts = pose_body(body, standing(), drawn_shape(look))
    height = float(starts[bodies.bones["head"]][2])
    camera = Camera(DISTANCE_M, height, FOCAL, center_z=height + HEAD_CENTER_M)
    color = shoot(look, standing(), camera, SIDE, SIDE).color
    picture = np.clip((color[..., :3] + 0.8 * (1 - color[..., 3:])) * 255, 0, 255).astype(np.uint8)
    seen = network(picture, Region(SIDE / 2, SIDE / 2, SIDE))
    if seen is None:
        return None
    at = project(camera, vertices, SIDE, SIDE)
    across = np.linalg.norm(at[None, :, :2] - seen.landmarks[list(FACE)][:, None], axis=2)
    distance = across + (at[None, :, 2] - DISTANCE_M + FRONT_M) * PIXELS_PER_M
    normals = vertex_normals(vertices, bodies.faces)
    visible = (bodies.part == 0) & (normals[:, 1] < TOWARDS_US) & (anatomy()["head"] > 0.5)
    return np.where(visible, distance, 1e9)


def standing() -> Pose:
    """Upright, arms down, looking at us; not put on the floor, which clothes would raise."""
    hanging = {limb: np.array([0.29 if limb.endswith("L") else -0.29, 0.0, -0.957]) for limb in LIMBS}
    return Pose(np.zeros(3), np.eye(3), np.eye(3), np.eye(3), hanging, on_floor=False)
