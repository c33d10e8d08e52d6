"""One sample as files in a folder of its own, named by what they are: `mp4`, `pose.json`, `txt`, `json`, ...

These names become the suffixes of its members in a shard. Not here: where the folder lies (work.py).
"""

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from dreamoving_cli.dataset.captions import described
from dreamoving_cli.dataset.crops import area, cloth_box, face_crops, garment
from dreamoving_cli.dataset.rules import Drop, Rules
from dreamoving_cli.dataset.survey import Candidate
from dreamoving_cli.errors import InputError
from dreamoving_cli.extract import extract_to_file
from dreamoving_cli.extract.draw import VISIBLE, draw_control
from dreamoving_cli.extract.keypoints import Poses, save_poses
from dreamoving_cli.extract.pose import find_poses
from dreamoving_cli.extract.settings import PoseOptions
from dreamoving_cli.media.images import resize, write_image
from dreamoving_cli.media.video import Clip, open_clip, probe
from dreamoving_cli.media.writer import write_video

QUALITY = 16  # of H.264: hardly to be told from the source
BATCH = 8
THUMBNAIL_SIDE = 160
DIM = 0.55  # of the footage's brightness under a pose


@dataclass(frozen=True)
class Place:
    """Where a sample is written, and what it is made from."""

    key: str
    folder: Path  # empty
    thumbnail: Path
    source: str  # the name of the file
    sha256: str


@dataclass(frozen=True)
class Sample:
    """What became of one candidate: its facts, or why it was dropped."""

    key: str
    facts: dict[str, Any]
    drop: Drop | None = None


def stored_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) with a shorter side of at most `side`, both even, of nearly the same shape."""
    factor = min(side / min(height, width), 1.0)
    even_height, even_width = (max(round(length * factor / 2), 1) * 2 for length in (height, width))
    return even_height, even_width


def make_clip(source: Path, candidate: Candidate, rules: Rules, place: Place) -> Sample:
    """Write the members of a clip into an empty folder."""
    folder = place.folder
    info = probe(source)
    size = stored_size(info.height, info.width, rules.side)
    stretch = {"fps": Fraction(candidate.fps), "start_s": candidate.start_s, "num_frames": candidate.frames}
    with open_clip(source, size=size, **stretch) as clip:  # type: ignore[arg-type]
        poses, share = follow(clip, rules)
        if share < rules.people and not rules.keep_people_less:
            drop = Drop("no person", f"in {share:.0%} of the frames, at least {rules.people:.0%}")
            return Sample(place.key, {}, drop)
        write_video(folder / "mp4.mp4", clip.batches(BATCH), clip.fps, quality=QUALITY)
        if poses is not None:
            save_poses(folder / "pose.json", poses)
            write_references(clip, poses, folder)
        write_image(place.thumbnail, picture_of(clip, poses, clip.num_frames // 2), overwrite=True)
    caption = candidate.caption or described(folder / "mp4.mp4", rules.captioner)
    (folder / "mp4.mp4").rename(folder / "mp4")
    write_depth(folder, rules)
    facts = {
        "start_s": str(candidate.start_s), "duration_s": str(candidate.duration_s), "fps": candidate.fps,
        "frames": candidate.frames, "height": size[0], "width": size[1], "caption": caption,
        "movement": candidate.movement, "blur": candidate.blur, "person": round(share, 4),
    }  # fmt: skip
    return finished(facts, place)


def finished(facts: dict[str, Any], place: Place) -> Sample:
    """Write the words and the facts; the facts last."""
    folder, facts = place.folder, facts | {"source": place.source, "source_sha256": place.sha256}
    if facts["caption"]:
        (folder / "txt").write_text(facts["caption"] + "\n", encoding="utf-8")
    (folder / "json").write_text(json.dumps(facts, sort_keys=True) + "\n", encoding="utf-8")
    return Sample(place.key, facts)


def follow(clip: Clip, rules: Rules) -> tuple[Poses | None, float]:
    """The dancer's poses, and in which share of the frames there are any; None where nobody is."""
    if "pose" not in rules.controls:
        return None, 1.0
    try:
        poses, report = find_poses(clip, PoseOptions(detector=rules.detector))
    except InputError:
        return None, 0.0
    lean = Poses(poses.fps, poses.height, poses.width, poses.points, poses.scores, poses.ids, poses.cuts,
                 None, poses.detector)  # fmt: skip
    return lean, report.found_rate


def write_references(clip: Clip, poses: Poses, folder: Path) -> None:
    """The dancer's face and garment, each from the frame that shows it largest."""
    points, scores = poses.points[:, 0], poses.scores[:, 0]
    for face in face_crops(points, scores, lambda frame: clip.read([frame])[0]):
        write_image(folder / "face.jpg", face)
        (folder / "face.jpg").rename(folder / "face")
        break
    boxes = [cloth_box(p, s, (poses.height, poses.width)) for p, s in zip(points, scores, strict=True)]
    areas = [0 if box is None else area(box) for box in boxes]
    best = int(np.argmax(areas))
    if areas[best]:
        write_image(folder / "cloth.jpg", garment(clip.read([best])[0], boxes[best]))
        (folder / "cloth.jpg").rename(folder / "cloth")


def write_depth(folder: Path, rules: Rules) -> None:
    """The depth map of the clip just written, by the extractor of that name."""
    if "depth" not in rules.controls:
        return
    source, target = folder / "source.mp4", folder / "depth.mp4"
    (folder / "mp4").rename(source)
    extract_to_file("depth", source, target)
    source.rename(folder / "mp4")


def picture_of(clip: Clip, poses: Poses | None, frame: int) -> np.ndarray:
    """One frame, small, with its pose drawn on top."""
    image = clip.read([frame])[0]
    factor = THUMBNAIL_SIDE / max(image.shape[:2])
    height, width = (max(round(side * factor), 1) for side in image.shape[:2])
    small = resize(image, height, width)
    if poses is None or not (poses.scores[frame] > VISIBLE).any():
        return small
    drawn = draw_control(poses.points[frame], poses.scores[frame], (clip.height, clip.width), height, width)
    return np.where(drawn.any(-1, keepdims=True), drawn, (small * DIM).astype(np.uint8))
