"""MediaPipe's networks as functions of numpy arrays: a class for all, and one for those that find things."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from dreamoving_cli.extract.regions import Region
from dreamoving_cli.weights import weight_path

OVERLAP = 0.3  # detections that overlap more than this are one thing


class Network:
    """One TensorFlow Lite network on one CPU core; takes square pictures."""

    def __init__(self, weight_id: str, low: float = 0.0) -> None:
        """low: what black becomes in the network's input; white becomes 1."""
        with _silence():
            self._net = _load(weight_id)
        self._input = self._net.get_input_details()[0]
        self._outputs = self._net.get_output_details()
        self.side = int(self._input["shape"][1])
        self._scale, self._low = np.float32((1 - low) / 255), np.float32(low)

    def __call__(self, picture: np.ndarray) -> list[np.ndarray]:
        """All outputs, in the network's order. picture: uint8 h w c of the network's own side."""
        self._net.set_tensor(self._input["index"], (picture * self._scale + self._low)[None])
        self._net.invoke()
        return [self._net.get_tensor(output["index"])[0] for output in self._outputs]


@dataclass(frozen=True)
class Detection:
    """Something found: its score, its box (left, top, right, bottom) and its points n 2, in pixels."""

    score: float
    box: np.ndarray
    points: np.ndarray


class Detector:
    """A network that names boxes with points, relative to a fixed grid of anchors."""

    def __init__(self, weight_id: str, strides: Sequence[int], threshold: float) -> None:
        self._network = Network(weight_id, low=-1.0)
        self._anchors = anchors(self._network.side, strides)  # n 2
        self._threshold = threshold

    def __call__(self, frame: np.ndarray, region: Region | None = None) -> list[Detection]:
        """What is in the picture (or a region of it), the surest first. frame: uint8 h w c."""
        height, width = frame.shape[:2]
        region = region or Region(width / 2, height / 2, max(height, width))
        side = self._network.side
        values, logits = self._network(region.crop(frame, side, cv2.BORDER_CONSTANT))
        scores = sigmoid(logits[:, 0])
        sure = np.flatnonzero(scores > self._threshold)
        pairs = values.reshape(len(values), -1, 2)[sure] / side  # center, size, then the points
        anchor = self._anchors[sure, None]
        places = pairs[:, 2:] + anchor
        center, half = pairs[:, 0] + anchor[:, 0], pairs[:, 1] / 2
        corners = np.stack([center - half, center + half], 1)
        merged = _merge(scores[sure], np.concatenate([corners, places], 1))
        return [_placed(score, points, region) for score, points in merged]


def anchors(side: int, strides: Sequence[int]) -> np.ndarray:
    """Centers of the grid cells in 0..1, n 2: two per cell and layer, layers of one stride on one grid."""
    rows = []
    for stride in sorted(set(strides)):
        cells = -(-side // stride)
        y, x = np.mgrid[:cells, :cells]
        centers = (np.stack([x, y], -1).reshape(-1, 2) + 0.5) / cells
        rows.append(centers.repeat(2 * list(strides).count(stride), axis=0))
    return np.concatenate(rows).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """The logistic function, safe for large logits."""
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -60, 60))))


def _merge(scores: np.ndarray, points: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """Non-maximum suppression that averages what it suppresses, by score. points: n (2 corners + k) 2."""
    found = []
    left = np.argsort(-scores)
    while len(left):
        same = _overlaps(points[left[0], :2], points[left, :2]) > OVERLAP
        same[0] = True
        weights = scores[left[same]]
        found.append((float(weights[0]), np.average(points[left[same]], axis=0, weights=weights)))
        left = left[~same]
    return found


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of one box, 2 2, with others, n 2 2."""
    low, high = np.maximum(box[0], boxes[:, 0]), np.minimum(box[1], boxes[:, 1])
    both = np.prod(np.maximum(high - low, 0), -1)
    area, areas = np.prod(box[1] - box[0]), np.prod(boxes[:, 1] - boxes[:, 0], -1)
    return np.asarray(both / np.maximum(area + areas - both, 1e-9))


def _placed(score: float, points: np.ndarray, region: Region) -> Detection:
    in_picture = region.to_picture(points)
    return Detection(score, in_picture[:2].reshape(4), in_picture[2:])


def _load(weight_id: str) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(model_path=str(weight_path(weight_id)), num_threads=1)
    network.allocate_tensors()
    return network


@contextmanager
def _silence() -> Iterator[None]:
    """Hide what the runtime's C++ prints on stderr while it loads; no setting of it does."""
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123 (a device, not a path of ours)
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
