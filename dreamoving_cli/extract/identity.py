"""Who a person is: ArcFace's embedding of an aligned face, for FaceID; the networks are InsightFace's.

    crops, embeddings = read_identities([("me.jpg", picture)])   # uint8 h w c each; float32 n 512

SCRFD finds faces and their five points (eyes, nose, corners of the mouth), the points are turned onto a fixed
pattern, ArcFace reads the result. Its weights are for non-commercial research only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from dreamoving_cli.errors import InputError
from dreamoving_cli.extract.sessions import Session
from dreamoving_cli.weights import weight_path

DETECTOR, RECOGNIZER = "scrfd.det_10g", "arcface.w600k_r50"
SIDE, ARCFACE_SIDE, CROP_SIDE = 640, 112, 224  # pixels: what SCRFD looks at, what ArcFace and CLIP are shown
STRIDES, ANCHORS = (8, 16, 32), 2  # pixels per cell of each output, boxes per cell
SURE, OVERLAP = 0.5, 0.4  # least score; share of two boxes' union beyond which the weaker one goes
# Where ArcFace expects left eye, right eye, nose and the corners of the mouth, of 112 x 112 pixels
PATTERN = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


@dataclass(frozen=True)
class FoundFace:
    """One face in a picture."""

    box: np.ndarray  # left, top, right, bottom
    points: np.ndarray  # 5 2, x and y
    score: float

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return float((right - left) * (bottom - top))


def read_identities(photos: Sequence[tuple[str, np.ndarray]]) -> tuple[list[np.ndarray], np.ndarray]:
    """The aligned face of each photo (name, uint8 h w c) for CLIP, and all embeddings, float32 n 512."""
    faces = [largest_face(picture, name) for name, picture in photos]
    pairs = list(zip((picture for _, picture in photos), faces, strict=True))
    embeddings = [embed(align(picture, face.points, ARCFACE_SIDE)) for picture, face in pairs]
    return [align(picture, face.points, CROP_SIDE) for picture, face in pairs], np.stack(embeddings)


def largest_face(picture: np.ndarray, name: str) -> FoundFace:
    """The largest face of a photo; a close portrait is looked at once more with room around it."""
    height, width = picture.shape[:2]
    faces = find_faces(picture) or find_faces(_roomy(picture), offset=(width // 2, height // 2))
    if not faces:
        raise InputError(
            f"no face was found in {name}: all {width}x{height} pixels were searched, twice",
            "Give a photo in which the face is large and turned to the camera.",
        )
    return max(faces, key=lambda face: face.area)


def find_faces(picture: np.ndarray, offset: tuple[int, int] = (0, 0)) -> list[FoundFace]:
    """Faces in uint8 h w c, RGB, the surest first; offset: of the picture inside a larger one, taken off."""
    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    size = max(int(width * scale), 1), max(int(height * scale), 1)
    canvas = np.zeros((SIDE, SIDE, 3), np.float32)
    canvas[: size[1], : size[0]] = cv2.resize(picture, size)
    outputs = _session(DETECTOR)(((canvas - 127.5) / 128).transpose(2, 0, 1)[None])
    faces = decode_faces(outputs, SIDE)
    shift = np.array(offset, np.float32)
    return [
        FoundFace(
            face.box / scale - np.tile(shift, 2), (face.points / scale - shift).astype(np.float32), face.score
        )
        for face in faces
    ]


def decode_faces(outputs: Sequence[np.ndarray], side: int) -> list[FoundFace]:
    """SCRFD's nine outputs (scores n 1, boxes n 4 and points n 10 for each stride) as faces, no two alike."""
    flat = [output.reshape(-1, output.shape[-1]) for output in outputs]
    faces = []
    for stride in STRIDES:
        cells = side // stride
        score, box, points = (_of_width(flat, width, cells * cells * ANCHORS) for width in (1, 4, 10))
        ys, xs = np.mgrid[:cells, :cells]
        centers = np.repeat(np.stack([xs, ys], -1).reshape(-1, 2), ANCHORS, axis=0) * float(stride)
        for i in np.flatnonzero(score[:, 0] >= SURE):
            sides = box[i].reshape(2, 2) * stride * np.array([[-1], [1]])
            faces.append(
                FoundFace(
                    (centers[i] + sides).reshape(4),
                    centers[i] + points[i].reshape(5, 2) * stride,
                    float(score[i, 0]),
                )
            )
    return _without_overlaps(faces)


def align(picture: np.ndarray, points: np.ndarray, side: int) -> np.ndarray:
    """The face turned and scaled so that its five points lie on the pattern; uint8 side side 3."""
    return cv2.warpAffine(picture, alignment(points, side), (side, side), borderValue=0.0)


def alignment(points: np.ndarray, side: int) -> np.ndarray:
    """The 2 3 matrix of the similarity (Umeyama 1991) that takes the five points nearest to the pattern."""
    target = PATTERN * (side / ARCFACE_SIDE)
    source = points.astype(np.float64)
    source_mean, target_mean = source.mean(0), target.mean(0)
    centered, wanted = source - source_mean, target - target_mean
    u, spread, v = np.linalg.svd(wanted.T @ centered / len(source))
    flip = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    turn = u @ np.diag(flip) @ v
    scale = (spread * flip).sum() / centered.var(0).sum()
    return np.concatenate([scale * turn, (target_mean - scale * turn @ source_mean)[:, None]], axis=1)


def embed(face: np.ndarray) -> np.ndarray:
    """ArcFace's embedding of an aligned face, 512 numbers of length 1; face: uint8 112 112 3, RGB."""
    picture = ((face.astype(np.float32) - 127.5) / 127.5).transpose(2, 0, 1)[None]
    [embedding] = _session(RECOGNIZER)(picture)
    vector: np.ndarray = embedding[0] / np.linalg.norm(embedding[0])
    return vector.astype(np.float32)


@lru_cache(maxsize=2)
def _session(weight_id: str) -> Session:
    return Session(weight_path(weight_id))


def _roomy(picture: np.ndarray) -> np.ndarray:
    """The picture with half its size of gray around it: SCRFD overlooks faces that fill their picture."""
    height, width = picture.shape[:2]
    room = (height // 2, height - height // 2), (width // 2, width - width // 2), (0, 0)
    return np.pad(picture, room, constant_values=127)


def _of_width(outputs: Sequence[np.ndarray], width: int, rows: int) -> np.ndarray:
    """The output with so many columns and rows; networks differ in the order of their outputs."""
    return next(output for output in outputs if output.shape == (rows, width))


def _without_overlaps(faces: list[FoundFace]) -> list[FoundFace]:
    kept: list[FoundFace] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if all(_overlap(face, other) <= OVERLAP for other in kept):
            kept.append(face)
    return kept


def _overlap(a: FoundFace, b: FoundFace) -> float:
    low, high = np.maximum(a.box[:2], b.box[:2]), np.minimum(a.box[2:], b.box[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    return shared / (a.area + b.area - shared)
