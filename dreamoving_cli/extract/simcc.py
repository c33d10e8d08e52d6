"""Keypoints by a SimCC network (DWPose, RTMPose, RTMW): its crops, and what its output means.

Arithmetic of IDEA-Research/DWPose (onnxpose.py, wholebody.py), numpy only. SimCC: one row of scores over all
columns and one over all rows for each point, finer than pixels. Not here: running the network (dwpose.py).
"""

import cv2
import numpy as np

from dreamoving_cli.errors import WeightsError
from dreamoving_cli.extract import keypoints as kp

PADDING = 1.25  # sides of the crop in sides of the box
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])  # of RGB
BOTH_SHOULDERS = 0.3  # the neck is there where both shoulders score more than this

# OpenPose's 18 in order from COCO's 17 and the neck, which stands at 17 here.
BODY = (0, 17, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
# Halpe's 26 points hold the feet as big toes, small toes, heels; ours are foot by foot, left first.
HALPE_FEET = (20, 22, 24, 21, 23, 25)


def crop_of(box: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Center and size (each x, y) of the crop about a box, grown to the aspect of height x width. box: 4."""
    center = (box[:2] + box[2:]) / 2
    w, h = (box[2:] - box[:2]) * PADDING
    aspect = width / height
    return center, np.array([w, w / aspect] if w > h * aspect else [h * aspect, h])


def crop(image: np.ndarray, center: np.ndarray, size: np.ndarray, height: int, width: int) -> np.ndarray:
    """That part of the picture at height x width, black outside. image: uint8 h w c."""
    return np.asarray(cv2.warpAffine(image, crop_matrix(center, size, height, width), (width, height)))


def crop_matrix(center: np.ndarray, size: np.ndarray, height: int, width: int) -> np.ndarray:
    """2 x 3: pixels of the picture to pixels of the crop."""
    scale = width / size[0]
    shift = np.array([width, height]) / 2 - scale * center
    return np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])


def normalize(crops: np.ndarray) -> np.ndarray:
    """The network's input, float32 b c h w. crops: uint8 b h w c, RGB."""
    values = (crops - MEAN.astype(np.float32)) / STD.astype(np.float32)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def peaks(simcc_x: np.ndarray, simcc_y: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Points in pixels of the crop, b n 2, and scores, b n. simcc_x: b n columns; simcc_y: b n rows."""
    places = np.stack([simcc_x.argmax(-1), simcc_y.argmax(-1)], -1).astype(np.float64)
    scores = np.minimum(simcc_x.max(-1), simcc_y.max(-1))
    places[scores <= 0] = -1
    return places / (simcc_x.shape[-1] / width), scores


def to_picture(
    places: np.ndarray, center: np.ndarray, size: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Points of a crop as pixels of the picture. places: n 2."""
    return np.asarray(places / [width, height] * size + center - size / 2)


def to_134(points: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The project's 134 points, p 134 2 and p 134, of what a network found. points: p n 2; scores: p n.

    n = 133 (COCO-WholeBody), 26 (Halpe: body and feet) or 17 (COCO's body).
    """
    count = scores.shape[1]
    if count not in KNOWN:
        raise WeightsError(
            f"the pose network finds {count} points", f"Use one that finds {', '.join(map(str, KNOWN))}."
        )
    shoulders = [5, 6]
    neck = points[:, shoulders].mean(1, keepdims=True)
    there = (scores[:, shoulders] > BOTH_SHOULDERS).all(1, keepdims=True).astype(scores.dtype)
    body = np.concatenate([points[:, :17], neck], 1), np.concatenate([scores[:, :17], there], 1)
    out, out_scores = np.zeros((len(points), kp.NUM_POINTS, 2)), np.zeros((len(points), kp.NUM_POINTS))
    out[:, kp.BODY], out_scores[:, kp.BODY] = body[0][:, BODY], body[1][:, BODY]
    rest = KNOWN[count]
    out[:, 18 : 18 + len(rest)], out_scores[:, 18 : 18 + len(rest)] = points[:, rest], scores[:, rest]
    return out, out_scores


KNOWN: dict[int, list[int]] = {133: list(range(17, 133)), 26: list(HALPE_FEET), 17: []}
