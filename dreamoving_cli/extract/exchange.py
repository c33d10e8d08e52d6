"""Keypoints in the files of other programs: OpenPose's folder with a JSON a frame, COCO-WholeBody's one JSON.

Both ways, with nothing invented: what a format has no place for is left out, what it lacks is asked for.
Not here: our own file (keypoints.py).
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from dreamoving_cli.errors import InputError, OutputError, UsageError
from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.keypoints import FORMAT, NUM_POINTS, Poses, fill_places, load_poses, read_json
from dreamoving_cli.extract.simcc import BODY as FROM_COCO
from dreamoving_cli.media.whole import part_folder
from dreamoving_cli.whole import whole_file

SUFFIX = "_keypoints.json"  # of OpenPose's files
# Ours in the order of OpenPose's BODY_25; the middle of the hips (-1) is made.
BODY_25 = (0, 1, 2, 3, 4, 5, 6, 7, -1, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23)
PUPILS = 2  # OpenPose's face has 70 points, the last two of which we do not know
# COCO's 17 in ours.
TO_COCO = tuple(FROM_COCO.index(joint) for joint in range(17))
COCO_PARTS = {
    "foot_kpts": kp.FEET, "face_kpts": kp.FACE,
    "lefthand_kpts": kp.LEFT_HAND, "righthand_kpts": kp.RIGHT_HAND,
}  # fmt: skip
LABELED = 1.0  # COCO's visibility is 0, 1 (hidden) or 2; from programs it is a score
HIDDEN = 0.5  # the score of a labeled but hidden point
Size = tuple[int, int]  # height, width


def is_keypoints(path: Path) -> bool:
    """Whether this holds keypoints, ours or another program's, and not pictures."""
    return path.suffix.lower() == ".json" or (path.is_dir() and any(path.glob(f"*{SUFFIX}")))


def read_keypoints(path: Path, fps: Fraction | None = None, size: Size | None = None) -> Poses:
    """Keypoints from our file, COCO's or OpenPose's folder; fps, size: what the file does not tell."""
    if path.is_dir():
        return load_openpose(path, fps, size)
    data = read_json(path)
    if isinstance(data, dict) and data.get("format") == FORMAT:
        if fps or size:
            raise UsageError(f"{path} has a rate and a size of its own", "Leave out --fps and --size.")
        return load_poses(path)
    if isinstance(data, dict) and "annotations" in data:
        return load_coco(path, data, fps, size)
    raise InputError(
        f"'{path}' holds no keypoints that are known",
        "Give a file of extract-pose --json, COCO-WholeBody JSON, or a folder of OpenPose's JSON files.",
    )


def save_openpose(folder: Path, poses: Poses, name: str) -> Path:
    """Write NAME_000000000000_keypoints.json for each frame, the folder whole or not at all."""
    refuse_taken(folder)
    with part_folder(folder) as part:
        for k in range(poses.num_frames):
            people = [_openpose_person(poses, k, int(p)) for p in np.flatnonzero(poses.scores[k].any(-1))]
            text = json.dumps({"version": 1.3, "people": people}, separators=(",", ":"))
            (part / f"{name}_{k:012}{SUFFIX}").write_text(text, encoding="utf-8")
    return folder


def refuse_taken(folder: Path) -> None:
    """OpenPose's files need a folder of their own: what is left of a longer clip would be a frame of this."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists already and is not an empty folder", "Choose a new folder.")
    if not folder.absolute().parent.is_dir():
        raise OutputError(f"{folder.absolute().parent} is not a folder", "Create it.")


def _openpose_person(poses: Poses, frame: int, place: int) -> dict[str, Any]:
    points, scores = poses.points[frame, place], poses.scores[frame, place]
    hips = [kp.RIGHT_HIP, kp.LEFT_HIP]
    extended = np.concatenate([points, points[hips].mean(0, keepdims=True)])
    sure = np.append(scores, scores[hips].min())
    unknown = [0.0] * 3 * PUPILS
    return {
        "person_id": [int(poses.identities[frame, place])],
        "pose_keypoints_2d": _triples(extended[list(BODY_25)], sure[list(BODY_25)]),
        "face_keypoints_2d": _triples(points[kp.FACE], scores[kp.FACE]) + unknown,
        "hand_left_keypoints_2d": _triples(points[kp.LEFT_HAND], scores[kp.LEFT_HAND]),
        "hand_right_keypoints_2d": _triples(points[kp.RIGHT_HAND], scores[kp.RIGHT_HAND]),
    }


def _triples(points: np.ndarray, scores: np.ndarray) -> list[float]:
    """x, y, score of each point; zeros for an absent one, as both formats have it. points: n 2; scores: n."""
    rows = np.concatenate([np.round(points.astype(float), 2), np.round(scores.astype(float), 3)[:, None]], 1)
    rows[scores <= 0] = 0
    return [float(value) for value in rows.ravel()]


def load_openpose(folder: Path, fps: Fraction | None, size: Size | None) -> Poses:
    """Read OpenPose's folder; frames are the numbers in the names, from the lowest on."""
    if fps is None or size is None:
        raise UsageError(f"OpenPose's files in {folder} tell neither rate nor size", "Give --fps and --size.")
    files = {frame_number(path): path for path in sorted(folder.glob(f"*{SUFFIX}"))}
    if not files:
        raise InputError(f"{folder} holds no *{SUFFIX}", "Give a folder that OpenPose wrote.")
    frames: list[list[dict[str, Any]]] = [[] for _ in range(min(files), max(files) + 1)]
    for number, path in files.items():
        with _damaged(path):
            frames[number - min(files)] = [_from_openpose(one) for one in read_json(path)["people"]]
    with _damaged(folder):
        return _poses(frames, fps, size)


def frame_number(path: Path) -> int:
    """The last number in the name of one of OpenPose's files."""
    found = re.findall(r"\d+", path.name.removesuffix(SUFFIX))
    if not found:
        raise InputError(
            f"{path} has no frame number in its name", f"Name it like dance_000000000007{SUFFIX}."
        )
    return int(found[-1])


def _from_openpose(person: dict[str, Any]) -> dict[str, Any]:
    out = np.zeros((NUM_POINTS, 3))
    body = np.array(person["pose_keypoints_2d"], float).reshape(-1, 3)
    if len(body) == 25:
        for ours, row in zip(BODY_25, body, strict=True):
            if ours >= 0:
                out[ours] = row
    elif len(body) == 18:
        out[kp.BODY] = body
    else:
        raise ValueError(f"a body of {len(body)} points, neither 25 nor 18")
    for part, key in (
        (kp.FACE, "face_keypoints_2d"),
        (kp.LEFT_HAND, "hand_left_keypoints_2d"), (kp.RIGHT_HAND, "hand_right_keypoints_2d"),
    ):  # fmt: skip
        rows = np.array(person.get(key) or [], float).reshape(-1, 3)[: part.stop - part.start]
        out[part][: len(rows)] = rows
    number = person.get("person_id", [-1])
    return {**_person(out), **({"id": int(number[0])} if number and int(number[0]) > 0 else {})}


def _person(rows: np.ndarray) -> dict[str, Any]:
    """Points and scores of our file. rows: 134 3: x, y, score."""
    return {"points": rows[:, :2], "scores": np.clip(rows[:, 2], 0, 1)}


def save_coco(path: Path, poses: Poses, name: str) -> Path:
    """Write COCO-WholeBody annotations: one image a frame, one annotation a person, scores as visibility."""
    images = [
        {
            "id": k,
            "file_name": f"{name}_{k:06}.png",
            "height": poses.height,
            "width": poses.width,
            "frame_id": k,
        }
        for k in range(poses.num_frames)
    ]
    shown = zip(*np.nonzero(poses.scores.any(-1)), strict=True)
    content = {
        "info": {"description": "poses by dreamoving", "fps": str(poses.fps)},
        "images": images,
        "annotations": [_annotation(poses, int(k), int(p), number) for number, (k, p) in enumerate(shown, 1)],
        "categories": [{"id": 1, "name": "person", "supercategory": "person"}],
    }
    with whole_file(path) as part:
        part.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
    return path


def _annotation(poses: Poses, frame: int, place: int, number: int) -> dict[str, Any]:
    points, scores = poses.points[frame, place], poses.scores[frame, place]
    seen = points[scores > 0]
    low, high = seen.min(0).astype(float), seen.max(0).astype(float)
    parts = {name: _triples(points[part], scores[part]) for name, part in COCO_PARTS.items()}
    valid = {name.replace("kpts", "valid"): bool(scores[part].any()) for name, part in COCO_PARTS.items()}
    return {
        "id": number, "image_id": frame, "category_id": 1, "iscrowd": 0,
        "track_id": int(poses.identities[frame, place]),
        "bbox": np.round([*low, *(high - low)], 2).tolist(),
        "area": round(float((high - low).prod()), 2),
        "num_keypoints": int((scores[list(TO_COCO)] > 0).sum()),
        "keypoints": _triples(points[list(TO_COCO)], scores[list(TO_COCO)]), **parts, **valid,
    }  # fmt: skip


def load_coco(path: Path, data: dict[str, Any], fps: Fraction | None, size: Size | None) -> Poses:
    """Read COCO-WholeBody annotations; frames are the images in the order of their ids."""
    with _damaged(path):
        images = sorted(data["images"], key=lambda image: image["id"])
        told = data.get("info", {}).get("fps")
        if fps is None and told is None:
            raise UsageError(f"{path} does not tell the frame rate", "Give --fps.")
        rate = fps if fps is not None else Fraction(told)
        sizes = {(int(image["height"]), int(image["width"])) for image in images}
        if size is None and len(sizes) != 1:
            raise UsageError(f"the images of {path} have {len(sizes)} sizes", "Give --size.")
        order = {image["id"]: k for k, image in enumerate(images)}
        frames: list[list[dict[str, Any]]] = [[] for _ in images]
        for one in data["annotations"]:
            frames[order[one["image_id"]]].append(_from_coco(one))
        return _poses(frames, rate, size or sizes.pop())


def _from_coco(annotation: dict[str, Any]) -> dict[str, Any]:
    out = np.zeros((NUM_POINTS, 3))
    body = np.array(annotation["keypoints"], float).reshape(17, 3)
    out[list(TO_COCO)] = body
    for name, part in COCO_PARTS.items():
        if annotation.get(name):
            out[part] = np.array(annotation[name], float).reshape(-1, 3)
    if (body[:, 2] > LABELED).any():  # labels, not scores
        out[:, 2] = np.select([out[:, 2] > LABELED, out[:, 2] > 0], [1.0, HIDDEN])
    shoulders = out[[kp.RIGHT_SHOULDER, kp.LEFT_SHOULDER]]
    if shoulders[:, 2].min() > 0:
        out[kp.NECK] = [*shoulders[:, :2].mean(0), shoulders[:, 2].min()]
    number = annotation.get("track_id")
    return {**_person(out), **({"id": int(number)} if number is not None and int(number) > 0 else {})}


def _poses(frames: Sequence[list[dict[str, Any]]], fps: Fraction, size: Size) -> Poses:
    if not frames:
        raise InputError("there are no frames in the keypoints", "Give a file that holds some.")
    for frame in frames:
        taken = {person["id"] for person in frame if "id" in person}
        free = (k for k in range(1, len(frame) + len(taken) + 1) if k not in taken)
        for person in frame:
            person.setdefault("id", next(free))
    ids = np.zeros((len(frames), max([1, *(len(frame) for frame in frames)])), np.int64)
    points, scores = fill_places(list(frames), ids)
    return Poses(fps, *size, points, scores, ids)


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """What a broken file raises becomes one sentence."""
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"'{path}' is not a sound keypoints file ({error})", "Export it again.") from error
