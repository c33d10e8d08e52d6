"""The poses of a clip and their JSON file: 134 points a person, in pixels of the source, with scores.

The 134 points, in the order of DWPose's own drawing code: the 18 of OpenPose's body (neck at 1), three a foot
(big toe, small toe, heel; left foot first), the 68 of the face (iBUG order), 21 of the left hand, 21 of the
right.

The file is described in docs/keypoints.md. Not here: other programs' files (exchange.py).
"""

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from dreamoving_cli.errors import InputError
from dreamoving_cli.whole import whole_file

NUM_POINTS = 134
BODY, FEET, FACE = slice(0, 18), slice(18, 24), slice(24, 92)
LEFT_HAND, RIGHT_HAND = slice(92, 113), slice(113, 134)

NOSE, NECK = 0, 1
RIGHT_SHOULDER, RIGHT_ELBOW, RIGHT_WRIST = 2, 3, 4
LEFT_SHOULDER, LEFT_ELBOW, LEFT_WRIST = 5, 6, 7
RIGHT_HIP, RIGHT_KNEE, RIGHT_ANKLE = 8, 9, 10
LEFT_HIP, LEFT_KNEE, LEFT_ANKLE = 11, 12, 13
RIGHT_EYE, LEFT_EYE, RIGHT_EAR, LEFT_EAR = 14, 15, 16, 17

FORMAT, VERSION = "dreamoving-pose", 2
READS = (1, 2)  # 1: no ids, cuts and raw detections
People = tuple[np.ndarray, np.ndarray]  # of one frame: points p 134 2 in pixels, scores p 134
MAX_ID = 2**31
MAX_PIXELS = 1e6  # a coordinate beyond this is a damaged file, not a pose


@dataclass(frozen=True)
class Raw:
    """What the detector said, before any repair; shapes as in Poses."""

    points: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Poses:
    """Everyone's points in every frame of a clip; frame k is shown at k / fps."""

    fps: Fraction
    height: int  # of the pictures that the points belong to
    width: int
    points: np.ndarray  # float32 f p 134 2: x, y in pixels
    scores: np.ndarray  # float32 f p 134, 0..1; 0 = absent
    ids: np.ndarray | None = None  # int f p: who is in this place, 0 = nobody; None = always the same
    cuts: tuple[int, ...] = ()  # first frames of new shots
    raw: Raw | None = None
    detector: str = ""

    def __post_init__(self) -> None:
        frames, people = self.points.shape[:2]
        for points, scores in [(self.points, self.scores)] + (
            [(self.raw.points, self.raw.scores)] if self.raw else []
        ):
            assert points.shape == (frames, people, NUM_POINTS, 2), points.shape
            assert scores.shape == (frames, people, NUM_POINTS), scores.shape
        assert self.ids is None or self.ids.shape == (frames, people), self.ids

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.points)

    @property
    def identities(self) -> np.ndarray:
        """Who is in each place of each frame, int f p; 0 = nobody."""
        if self.ids is not None:
            return self.ids
        return np.asarray(self.scores.any(-1) * np.arange(1, self.scores.shape[1] + 1))


def save_poses(path: Path, poses: Poses) -> Path:
    """Write the JSON file, whole or not at all: points to 1/100 pixel, scores to 1/1000."""
    head = {
        "format": FORMAT, "version": VERSION, "fps": str(poses.fps), "height": poses.height,
        "width": poses.width, "detector": poses.detector, "cuts": list(poses.cuts),
    }  # fmt: skip
    with whole_file(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head, separators=(",", ":"))[:-1])
        _write_frames(file, "frames", poses.points, poses.scores, poses.identities)
        if poses.raw:
            _write_frames(file, "raw", poses.raw.points, poses.raw.scores, poses.identities)
        file.write("}\n")
    return path


def _write_frames(file: TextIO, key: str, points: np.ndarray, scores: np.ndarray, ids: np.ndarray) -> None:
    """One frame after the other, so that a long clip is never held as text."""
    file.write(f',\n"{key}":[')
    for k in range(len(points)):
        people = [
            {
                "id": int(ids[k, p]),
                "points": np.round(points[k, p].astype(np.float64), 2).ravel().tolist(),
                "scores": np.round(scores[k, p].astype(np.float64), 3).tolist(),
            }
            for p in range(points.shape[1])
            if scores[k, p].any()
        ]
        file.write((",\n" if k else "\n") + json.dumps(people, separators=(",", ":")))
    file.write("]")


def load_poses(path: Path) -> Poses:
    """Read a file of `save_poses`, refusing anything else with the reason."""
    return poses_of(read_json(path), str(path))


def poses_of(data: Any, path: str) -> Poses:
    """The poses in the JSON values of such a file; path: for refusals."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"'{path}' is not a pose file", "Make one with: dreamoving extract-pose --json.")
    if data.get("version") not in READS:
        raise InputError(
            f"'{path}' has pose format version {data.get('version')}, this release reads up to {VERSION}",
            "Extract the poses again or update dreamoving.",
        )
    try:
        poses = _parse(data)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f"'{path}' is a damaged pose file ({error})", "Extract the poses again.") from error
    if not poses.num_frames:
        raise InputError(f"'{path}' holds no frames", "Extract the poses again.")
    return poses


def read_json(path: Path) -> Any:
    """What a JSON file holds; InputError where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror})", "Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{path}' is not JSON", "Make one with: dreamoving extract-pose --json.") from error


def _parse(data: dict[str, Any]) -> Poses:
    frames, raw = data["frames"], data.get("raw")
    fps, height, width = Fraction(data["fps"]), int(data["height"]), int(data["width"])
    if fps <= 0 or height <= 0 or width <= 0:
        raise ValueError(f"fps {fps}, size {width}x{height}")
    if raw is not None and len(raw) != len(frames):
        raise ValueError(f"{len(frames)} frames, but {len(raw)} of raw detections")
    cuts = tuple(sorted({int(cut) for cut in data.get("cuts", ())}))
    if any(not 0 < cut < len(frames) for cut in cuts):
        raise ValueError(f"a cut lies outside the {len(frames)} frames")
    people = max([1, *(len(frame) for frame in frames)])
    ids = np.zeros((len(frames), people), np.int64)
    points, scores = fill_places(frames, ids)
    detected = Raw(*fill_places(raw, ids)) if raw is not None else None
    return Poses(fps, height, width, points, scores, ids, cuts, detected, str(data.get("detector", "")))


def fill_places(frames: list[Any], ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points f p 134 2 and scores f p 134 of a file's frames; who is in which place is kept in ids, f p.

    A person keeps a place while nobody else has taken it.
    """
    points = np.zeros((*ids.shape, NUM_POINTS, 2), np.float32)
    scores = np.zeros((*ids.shape, NUM_POINTS), np.float32)
    home: dict[int, int] = {}
    for f, frame in enumerate(frames):
        numbers = [int(person.get("id", k + 1)) for k, person in enumerate(frame)]
        if len(set(numbers)) < len(numbers) or any(not 0 < number < MAX_ID for number in numbers):
            raise ValueError(f"the ids in frame {f} are {numbers}")
        for number, person in sorted(zip(numbers, frame, strict=True), key=lambda pair: pair[0] not in home):
            p = _place_of(number, ids[f], home.get(number))
            ids[f, p], home[number] = number, p
            points[f, p] = np.asarray(person["points"], np.float32).reshape(NUM_POINTS, 2)
            scores[f, p] = np.asarray(person["scores"], np.float32).reshape(NUM_POINTS)
    if not (np.abs(points) < MAX_PIXELS).all():  # also false for NaN
        raise ValueError("a point lies far outside the picture")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("a score is not within 0..1")
    return points, scores


def _place_of(number: int, row: np.ndarray, home: int | None) -> int:
    """Where this person goes: where they are or were, else the first free place. row: ids of the frame, p."""
    if number in row:
        return int(np.flatnonzero(row == number)[0])
    if home is not None and not row[home]:
        return home
    free = np.flatnonzero(row == 0)
    if not len(free):
        raise ValueError(f"person {number} is among the raw detections only")
    return int(free[0])
