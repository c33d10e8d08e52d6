"""People as boxes, by a YOLOX network: its input picture and what its output means, as in DWPose's own code.

Arithmetic of IDEA-Research/DWPose (onnxdet.py), numpy only. Not here: running the network (dwpose.py).
"""

import cv2
import numpy as np

PAD = 114  # gray of the picture's empty part
STRIDES = (8, 16, 32)
CANDIDATE, FOUND = 0.1, 0.3  # scores: of boxes that suppress others, and of those that are people
OVERLAP = 0.45  # boxes that overlap more than this are one person
PERSON = 0  # its class in COCO


def letterbox(image: np.ndarray, height: int, width: int) -> tuple[np.ndarray, float]:
    """The picture in the top left corner of height x width, and its scale there. image: uint8 h w c."""
    scale = min(height / image.shape[0], width / image.shape[1])
    size = int(image.shape[1] * scale), int(image.shape[0] * scale)
    padded = np.full((height, width, 3), PAD, np.uint8)
    padded[: size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return padded, scale


def decode(raw: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes as center and size in pixels of the network's input, n 4. raw: n (4 + 1 + classes)."""
    cells, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[: height // stride, : width // stride]
        cells.append(np.stack([x, y], -1).reshape(-1, 2))
        strides.append(np.full((cells[-1].shape[0], 1), stride))
    grid, stride_of = np.concatenate(cells), np.concatenate(strides)
    center, size = (raw[:, :2] + grid) * stride_of, np.exp(raw[:, 2:4]) * stride_of
    return np.concatenate([center, size], 1)


def person_boxes(raw: np.ndarray, scale: float, height: int, width: int) -> np.ndarray:
    """People as left, top, right, bottom in pixels, p 4, the surest first. raw: n (5 + classes)."""
    scores = raw[:, 4] * raw[:, 5 + PERSON]
    sure = scores > CANDIDATE
    boxes = decode(raw, height, width)[sure]
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1) / scale
    kept = [k for k in suppress(corners, scores[sure]) if scores[sure][k] > FOUND]
    return np.asarray(corners[kept].reshape(-1, 4))


def suppress(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """Which boxes stay when each removes the less sure ones that it overlaps. boxes: n 4; scores: n."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1  # pixels, both ends counted
    areas = sides.prod(1)
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(int(first))
        low = np.maximum(boxes[first, :2], boxes[rest, :2])
        high = np.minimum(boxes[first, 2:], boxes[rest, 2:])
        both = np.maximum(high - low + 1, 0).prod(1)
        order = rest[both / (areas[first] + areas[rest] - both) <= OVERLAP]
    return kept
