"""How right a captioner is on synthetic people that it was never taught, beside shuffled captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamoving_cli.models.minigpt.load import load_captioner
from dreamoving_cli.train.caption_data import Example, held_out
from dreamoving_cli.train.caption_facts import EVEN, PATTERN_WORDS, read_caption
from dreamoving_cli.train.captioner import PROMPT

BATCH = 25
ARMS_SAID: dict[Any, int] = {None: -1, "": 0, " with one arm up": 1, " with both arms up": 2}
NAMES = (
    "garment_color", "pattern", "background_color", "scene", "framing", "who", "skin", "hair", "arms",
)  # fmt: skip


def report_captioner(folder: Path, count: int) -> dict[str, Any]:
    """Shares of right answers, the person's mean IoU; `shuffled`: each caption given to the next picture."""
    captioner, examples = load_captioner(folder), held_out(count)
    captions: list[str] = []
    for start in range(0, count, BATCH):
        pictures = [example.picture for example in examples[start : start + BATCH]]
        captions += captioner.describe(pictures, PROMPT)
    read = [read_caption(caption) for caption in captions]
    return {
        "pictures": count,
        "right": measure(examples, read),
        "shuffled": measure(examples, read[1:] + read[:1]),
        "first": captions[:3],
    }


def measure(examples: Sequence[Example], read: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean of each attribute over the pictures that have it."""
    marks = [marks_of(example.facts, said) for example, said in zip(examples, read, strict=True)]
    shares = {name: [mark[name] for mark in marks if name in mark] for name in (*NAMES, "person_iou")}
    return {name: round(float(np.mean(values)), 3) for name, values in shares.items() if values}


def marks_of(truth: dict[str, Any], said: dict[str, Any]) -> dict[str, float]:
    """What one caption says rightly; its first color is either one where two cover about the same."""
    colors = [truth["color"], *([truth["second"]] if truth["pattern"] in EVEN else [])]
    marks = {
        "garment_color": said.get("colors", [""])[0] in colors,
        "pattern": said.get("pattern") == PATTERN_WORDS[truth["pattern"]],
        "scene": said.get("kind") == truth["kind"],
        "arms": ARMS_SAID.get(said.get("arms"), -1) == truth["arms"],
        **{name: said.get(name) == truth[name] for name in ("framing", "skin", "hair")},
        "who": said.get("who") == truth["who"],
        "person_iou": iou(truth["box"], said.get("box")),
    }
    if truth["background"]:
        marks["background_color"] = said.get("background") == truth["background"]
    return {name: float(value) for name, value in marks.items()}


def iou(a: Sequence[float], b: Sequence[float] | None) -> float:
    """Intersection over union of two boxes x0 y0 x1 y1; 0 where there is none."""
    if b is None:
        return 0.0
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = float(np.prod(np.clip(high - low, 0, None)))
    areas = [float((box[2] - box[0]) * (box[3] - box[1])) for box in (a, b)]
    return shared / max(sum(areas) - shared, 1e-9)
