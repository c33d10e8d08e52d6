"""DWPose and its kin through onnxruntime: everyone in the picture, 134 points each.

Two networks: YOLOX finds people as boxes, a SimCC network finds the points in each box. The boxes are found
in every `detect_every`-th frame; between two such frames they are matched and moved evenly from one to the
other, so that the crops of a whole batch of frames go through the second network at once and nothing drifts.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dreamoving_cli.errors import WeightsError
from dreamoving_cli.extract import simcc, yolox
from dreamoving_cli.extract.keypoints import People
from dreamoving_cli.extract.sessions import Session
from dreamoving_cli.weights import weight_path

PERSON_NETWORK, POSE_NETWORK = "dwpose.det", "dwpose.pose"  # ids in models.lock
INPUT = 640, 640  # of a person network that takes any size
CROP = 384, 288  # of a pose network that takes any size: height, width
CROPS = 32  # go through the network at once
SAME = 0.3  # overlap of one person's boxes in two looked-at frames


class DwposeDetector:
    """Finds everyone in the frames of a clip."""

    def __init__(
        self, person_network: str = PERSON_NETWORK, pose_network: str = POSE_NETWORK, detect_every: int = 4
    ) -> None:
        self._boxes = BoxFinder(Session(network_path(person_network)))
        self._points = PointFinder(Session(network_path(pose_network)))
        self._every = detect_every
        self._before: np.ndarray | None = None  # boxes in the last frame that was looked at

    def __call__(self, frames: np.ndarray) -> list[People]:
        """Everyone in each of the next frames, uint8 f h w c; scores say how sure each point is."""
        boxes = self._boxes_of(frames)
        if not len(frames):
            return []
        flat = [(frame, box) for frame, of_frame in zip(frames, boxes, strict=True) for box in of_frame]
        points, scores = self._points(flat)
        ends = np.cumsum([len(of_frame) for of_frame in boxes])[:-1]
        return list(zip(np.split(points, ends), np.split(scores, ends), strict=True))

    def forget(self) -> None:
        """The next frame belongs to another shot."""
        self._before = None

    def _boxes_of(self, frames: np.ndarray) -> list[np.ndarray]:
        """Boxes in each frame, p 4; the whole picture where nobody was found, as the official code does."""
        found: list[np.ndarray] = []
        while len(found) < len(frames):
            if self._before is None:
                self._before = self._boxes(frames[0])
                found.append(self._before)
                continue
            step = min(self._every, len(frames) - len(found))
            after = self._boxes(frames[len(found) + step - 1])
            found += [between(self._before, after, k / step) for k in range(1, step + 1)]
            self._before = after
        height, width = frames.shape[1:3]
        whole = np.array([[0.0, 0.0, width, height]])
        return [boxes if len(boxes) else whole for boxes in found]


class BoxFinder:
    """Where people are in one picture."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._size = session.size(*INPUT)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Boxes p 4, the surest first. frame: uint8 h w c."""
        padded, scale = yolox.letterbox(frame, *self._size)
        [raw, *_] = self._session(padded.transpose(2, 0, 1)[None].astype(np.float32))
        cells = sum((self._size[0] // s) * (self._size[1] // s) for s in yolox.STRIDES)
        if raw.ndim != 3 or raw.shape[1] != cells or raw.shape[2] < 6:
            raise WeightsError(
                f"'{self._session.path}' gives {raw.shape}, not YOLOX's boxes", "Give a YOLOX network."
            )
        return yolox.person_boxes(raw[0], scale, *self._size)


class PointFinder:
    """The points of the person in each box."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._size = session.size(*CROP)

    def __call__(self, crops: Sequence[tuple[np.ndarray, np.ndarray]]) -> People:
        """Points p 134 2 in pixels of each crop's own picture, scores p 134. crops: (picture, box)."""
        places = [simcc.crop_of(box, *self._size) for _, box in crops]
        points, scores = [], []
        for start in range(0, len(crops), CROPS):
            part = slice(start, start + CROPS)
            pictures = [
                simcc.crop(picture, *place, *self._size)
                for (picture, _), place in zip(crops[part], places[part], strict=True)
            ]
            in_crop, found = self._peaks(np.stack(pictures))
            points += [
                simcc.to_picture(p, *at, *self._size) for p, at in zip(in_crop, places[part], strict=True)
            ]
            scores += [*found]
        made, made_scores = simcc.to_134(np.stack(points), np.stack(scores))
        return made.astype(np.float32), made_scores.clip(0, 1).astype(np.float32)

    def _peaks(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points in pixels of the crops, b n 2, and scores, b n. pictures: uint8 b h w c."""
        outputs = self._session(simcc.normalize(pictures))
        height, width = self._size
        fits = len(outputs) >= 2 and all(o.ndim == 3 for o in outputs[:2])
        if not fits or outputs[0].shape[-1] * height != outputs[1].shape[-1] * width:
            shapes = ", ".join(str(o.shape) for o in outputs)
            raise WeightsError(
                f"'{self._session.path}' gives {shapes}, not SimCC's rows and columns",
                "Give a SimCC network: DWPose, RTMPose or RTMW.",
            )
        return simcc.peaks(outputs[0], outputs[1], width)


def network_path(name: str) -> Path:
    """A network by file or by its id in models.lock."""
    return Path(name) if Path(name).is_file() else weight_path(name)


def between(before: np.ndarray, after: np.ndarray, share: float) -> np.ndarray:
    """Boxes on the way from one looked-at frame to the next; who is in one only keeps that box. p 4, q 4."""
    left = list(range(len(after)))
    boxes = []
    for box in before:
        same = max(left, key=lambda k: overlap(box, after[k]), default=None)
        if same is None or overlap(box, after[same]) < SAME:
            boxes += [box] if share < 1 else []
            continue
        left.remove(same)
        boxes.append((1 - share) * box + share * after[same])
    return np.array([*boxes, *after[left]]).reshape(-1, 4)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    both = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    areas = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()
    return float(both / max(areas - both, 1e-9))
