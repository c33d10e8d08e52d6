"""How a captioner's words for real pictures agree with what is measured in them, beside shuffled words.

What is measured knows no captioner: joints from the pose extractor, colors from pixels. Shuffled: the mean
over all captions of other files, so that nothing is left to chance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dreamoving_cli.caption.sources import Picks, inputs, moments, pictures
from dreamoving_cli.errors import InputError
from dreamoving_cli.extract.detectors import Detector, open_detector
from dreamoving_cli.extract.settings import PoseOptions
from dreamoving_cli.models.minigpt.load import load_captioner
from dreamoving_cli.train.caption_facts import SHOULDERS, TORSO, WRISTS, read_caption
from dreamoving_cli.train.caption_report import ARMS_SAID, iou
from dreamoving_cli.train.captioner import PROMPT
from dreamoving_cli.train.garments import COLORS
from dreamoving_cli.train.measures import color_name

HIPS, ANKLES = (8, 11), (10, 13)
SEEN = 0.3  # score from which a joint counts
INSIDE = 0.7  # share of the torso's width and height whose colors count
ROUND = 0.12  # of the box of the joints, by which a person reaches beyond them
BATCH = 8


@dataclass(frozen=True)
class Seen:
    """One picture with what was measured in it."""

    file: str
    picture: np.ndarray  # h w 3 uint8
    facts: dict[str, Any]


def report_real(captioner: Path, sources: Sequence[str], frames: int) -> dict[str, Any]:
    """Agreement by attribute, of each picture's own caption and of those of other files."""
    seen = list(measured(sources, frames))
    files = {each.file for each in seen}
    if len(files) < 2:
        raise InputError(f"people were found in {len(files)} files", "Give two or more with a person.")
    model = load_captioner(captioner)
    captions: list[str] = []
    for start in range(0, len(seen), BATCH):
        captions += model.describe([each.picture for each in seen[start : start + BATCH]], PROMPT)
    read = [read_caption(caption) for caption in captions]
    own = [agreement(each.facts, said) for each, said in zip(seen, read, strict=True)]
    others = [
        agreement(each.facts, said)
        for each in seen
        for other, said in zip(seen, read, strict=True)
        if other.file != each.file
    ]
    return {
        "files": len(files), "pictures": len(seen),
        "right": means(own), "shuffled": means(others),
        "seen": [told(each, caption) for each, caption in zip(seen, captions, strict=True)],
    }  # fmt: skip


def measured(sources: Sequence[str], frames: int) -> Iterator[Seen]:
    """The pictures, and frames of the videos, in which somebody is found."""
    detector = open_detector(PoseOptions(detector="light", whole_body=False))[1]
    for path in (path for source in sources for path in inputs(source)):
        for picture in pictures(path, moments(path, Picks(count=frames))):
            facts = facts_of(picture, detector)
            if facts is not None:
                yield Seen(path.name, picture, facts)


def facts_of(picture: np.ndarray, detector: Detector) -> dict[str, Any] | None:
    """What joints and pixels tell; None where no torso is found."""
    detector.forget()
    [(points, scores)] = detector(picture[None])
    if not len(points) or scores[0][list(SHOULDERS)].min() < SEEN:
        return None
    size = np.array([picture.shape[1], picture.shape[0]])
    return joint_facts(points[0], scores[0], size) | color_facts(picture, points[0], scores[0])


def joint_facts(points: np.ndarray, scores: np.ndarray, size: np.ndarray) -> dict[str, Any]:
    """Framing, arms and box; points: 134 2 in pixels, size: width, height."""
    inside = (scores > SEEN) & (points >= 0).all(1) & (points < size).all(1)
    framing = "portrait"
    if inside[list(HIPS)].any():
        framing = "full body" if inside[list(ANKLES)].any() else "half body"
    body = points[:18][inside[:18]]
    low, high = body.min(0), body.max(0)
    margin = ROUND * (high - low)
    box = np.clip(np.concatenate([low - margin, high + margin]) / np.tile(size, 2), 0, 1)
    up = sum(bool(inside[w] and points[w, 1] < points[s, 1]) for w, s in zip(WRISTS, SHOULDERS, strict=True))
    return {"framing": framing, "arms": up, "box": box.tolist()}


def color_facts(picture: np.ndarray, points: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """The middle color of the torso, and of what is outside of the person's box, in Lab."""
    corners = points[TORSO].copy()
    missing = scores[list(HIPS)] < SEEN  # cut off below: as long as the shoulders are wide
    drop = np.array([0, np.linalg.norm(corners[0] - corners[1])])
    corners[2:][missing] = (corners[:2] + drop)[missing]
    middle = corners.mean(0)
    quad = (middle + INSIDE * (corners - middle))[[0, 1, 3, 2]]
    torso, around = (np.zeros(picture.shape[:2], np.uint8) for _ in range(2))
    cv2.fillPoly(torso, [quad.round().astype(np.int32)], 1)
    size = np.array([picture.shape[1], picture.shape[0]])
    x0, y0, x1, y1 = (np.array(joint_facts(points, scores, size)["box"]) * np.tile(size, 2)).astype(int)
    around[:] = 1
    around[y0:y1, x0:x1] = 0
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    names = {"garment": torso, "background": around}
    return {name: np.median(lab[mask > 0], 0).tolist() for name, mask in names.items() if mask.any()}


def agreement(facts: dict[str, Any], said: dict[str, Any]) -> dict[str, float]:
    """What of a caption agrees with what was measured; colors by name and as distance in Lab."""
    marks = {
        "framing": float(said.get("framing") == facts["framing"]),
        "arms": float(ARMS_SAID.get(said.get("arms"), -1) == facts["arms"]),
        "person_iou": iou(facts["box"], said.get("box")),
    }
    colors: dict[str, list[str]] = {
        "garment": said.get("colors", []),
        "background": [said.get("background", "")],
    }
    for name, words in colors.items():
        if name in facts and any(words):
            lab = np.array(facts[name])
            marks[f"{name}_color"] = float(color_name(lab, COLORS) in words)
            marks[f"{name}_distance"] = min(float(np.linalg.norm(lab_of(word) - lab)) for word in words)
    return marks


def lab_of(word: str) -> np.ndarray:
    """A named color in Lab."""
    return np.asarray(cv2.cvtColor(np.array([[COLORS[word]]], np.float32) / 255, cv2.COLOR_RGB2Lab)[0, 0])


def means(marks: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each attribute over the pairs that have it."""
    names = dict.fromkeys(name for mark in marks for name in mark)
    return {name: round(float(np.mean([m[name] for m in marks if name in m])), 2) for name in names}


def told(each: Seen, caption: str) -> dict[str, Any]:
    """One row: what was measured, in words, and what the captioner said."""
    colors: dict[str, Any] = {
        name: color_name(np.array(each.facts[name]), COLORS)
        for name in ("garment", "background")
        if name in each.facts
    }
    return {"file": each.file, "framing": each.facts["framing"], "arms": each.facts["arms"], **colors,
            "caption": caption}  # fmt: skip
