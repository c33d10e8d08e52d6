"""The poses of a clip and their JSON file: 134 points a person, in pixels of the source, with scores.

The 134 points, in the order of DWPose's own drawing code: the 18 of OpenPose's body (neck at 1), three a foot
(big toe, small toe, heel; left foot first), the 68 of the face (iBUG order), 21 of the left hand, 21 of the
right.

The file is JSON: {"format": "dreamoving-pose", "version": 1, "fps": "30000/1001", "height": 1280,
"width": 720, "frames": [[person, ...], ...]}; a person is {"points": [x0, y0, x1, y1, ...],
"scores": [s0, ...]}. An absent point has score 0, and a frame may hold fewer people than another: the missing
ones have score 0 throughout.
"""

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from dreamoving_cli.errors import InputError
from dreamoving_cli.media.whole import whole_file

NUM_POINTS = 134
BODY, FEET, FACE = slice(0, 18), slice(18, 24), slice(24, 92)
LEFT_HAND, RIGHT_HAND = slice(92, 113), slice(113, 134)

NOSE, NECK = 0, 1
RIGHT_SHOULDER, RIGHT_ELBOW, RIGHT_WRIST = 2, 3, 4
LEFT_SHOULDER, LEFT_ELBOW, LEFT_WRIST = 5, 6, 7
RIGHT_HIP, RIGHT_KNEE, RIGHT_ANKLE = 8, 9, 10
LEFT_HIP, LEFT_KNEE, LEFT_ANKLE = 11, 12, 13
RIGHT_EYE, LEFT_EYE, RIGHT_EAR, LEFT_EAR = 14, 15, 16, 17

FORMAT, VERSION = "dreamoving-pose", 1
MAX_PIXELS = 1e6  # a coordinate beyond this is a damaged file, not a pose


@dataclass(frozen=True)
class Poses:
    """Everyone's points in every frame of a clip; frame k is shown at k / fps."""

    fps: Fraction
    height: int  # of the pictures that the points belong to
    width: int
    points: np.ndarray  # float32 f p 134 2: x, y in pixels
    scores: np.ndarray  # float32 f p 134, 0..1; 0 = absent

    def __post_init__(self) -> None:
        frames, people = self.points.shape[:2]
        assert self.points.shape == (frames, people, NUM_POINTS, 2), self.points.shape
        assert self.scores.shape == (frames, people, NUM_POINTS), self.scores.shape

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.points)


def save_poses(path: Path, poses: Poses) -> Path:
    """Write the JSON file, whole or not at all: points to 1/100 pixel, scores to 1/1000."""
    points = np.round(poses.points.astype(np.float64), 2)
    scores = np.round(poses.scores.astype(np.float64), 3)
    frames = [
        [
            {"points": person.ravel().tolist(), "scores": score.tolist()}
            for person, score in zip(frame, frame_scores, strict=True)
            if score.any()
        ]
        for frame, frame_scores in zip(points, scores, strict=True)
    ]
    head = {"format": FORMAT, "version": VERSION, "fps": str(poses.fps)}
    body = {"height": poses.height, "width": poses.width, "frames": frames}
    with whole_file(path) as part:
        part.write_text(json.dumps({**head, **body}, separators=(",", ":")), encoding="utf-8")
    return path


def load_poses(path: Path) -> Poses:
    """Read a file of `save_poses`, refusing anything else with the reason."""
    data = _read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"'{path}' is not a pose file", "Make one with: dreamoving extract-pose --json.")
    if data.get("version") != VERSION:
        raise InputError(
            f"'{path}' has pose format version {data.get('version')}, this is {VERSION}",
            "Extract the poses again or update dreamoving.",
        )
    try:
        poses = _parse(data)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f"'{path}' is a damaged pose file ({error})", "Extract the poses again.") from error
    if not poses.num_frames:
        raise InputError(f"'{path}' holds no frames", "Extract the poses again.")
    return poses


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror})", "Check the path.") from error
    except ValueError as error:
        raise InputError(f"'{path}' is not JSON", "Make one with: dreamoving extract-pose --json.") from error


def _parse(data: dict[str, Any]) -> Poses:
    frames = data["frames"]
    fps, height, width = Fraction(data["fps"]), int(data["height"]), int(data["width"])
    if fps <= 0 or height <= 0 or width <= 0:
        raise ValueError(f"fps {fps}, size {width}x{height}")
    people = max([1, *(len(frame) for frame in frames)])
    points = np.zeros((len(frames), people, NUM_POINTS, 2), np.float32)
    scores = np.zeros((len(frames), people, NUM_POINTS), np.float32)
    for f, frame in enumerate(frames):
        for p, person in enumerate(frame):
            points[f, p] = np.asarray(person["points"], np.float32).reshape(NUM_POINTS, 2)
            scores[f, p] = np.asarray(person["scores"], np.float32).reshape(NUM_POINTS)
    if not (np.abs(points) < MAX_PIXELS).all():  # also false for NaN
        raise ValueError("a point lies far outside the picture")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("a score is not within 0..1")
    return Poses(fps, height, width, points, scores)
