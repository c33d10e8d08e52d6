"""Pictures to teach the captioner: people cut from clips or rendered anew, before any scenes.

people.npy   n s s 4   RGB and alpha, squashed as the captioner sees pictures
scenes.npy   m s s 3
facts.json   what is true of each
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dreamoving_cli.train.caption_facts import caption_of, looks_facts, place_facts, scene_facts
from dreamoving_cli.train.motion import dance
from dreamoving_cli.train.people import random_look, shoot
from dreamoving_cli.train.scenes import (
    BUCKET_SHARES,
    BUCKETS,
    FRAMING_SHARES,
    FRAMINGS,
    aim,
    over,
    random_scene,
)
from dreamoving_cli.train.synth import HELD_OUT
from dreamoving_cli.whole import whole_file

FRAMES_A_CLIP = 6
SIDE = 168  # pixels, of the stored pictures
SHIFT = 0.12  # of the picture, by which a person is moved sideways


@dataclass(frozen=True)
class Example:
    """One picture with all that is said of it."""

    picture: np.ndarray  # s s 3 uint8
    alpha: np.ndarray  # s s uint8
    caption: str
    facts: dict[str, Any]


def drawn_person(seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """A person of this seed before a scene: RGB and alpha uint8 `h w 4`, and the facts."""
    rng = np.random.default_rng(seed)
    height, width = BUCKETS[int(rng.choice(len(BUCKETS), p=BUCKET_SHARES))]
    look, framing = random_look(rng), str(rng.choice(FRAMINGS, p=FRAMING_SHARES))
    camera, scene = aim(rng, look, framing, width / height), random_scene(rng, height, width)
    shot = shoot(look, dance(rng, 1, 16.0)[0], camera, height, width)
    alpha = np.clip(shot.color[..., 3:] * 255, 0, 255).astype(np.uint8)
    facts = looks_facts(look, framing) | place_facts(shot.points, shot.scores, alpha[..., 0])
    picture = over(shot.color, scene.picture)
    return np.concatenate([picture, alpha], 2), facts | {"scene": scene.words}


def people_of_clips(folder: Path) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Frames of the training clips, `h w 4`, and their facts; the looks are drawn again from the seeds."""
    for path in sorted(folder.glob("[0-9]*.npz")):
        seed = int(path.stem)
        if seed >= HELD_OUT:
            continue
        rng = np.random.default_rng(seed)
        rng.choice(len(BUCKETS), p=BUCKET_SHARES)
        look, framing = random_look(rng), str(rng.choice(FRAMINGS, p=FRAMING_SHARES))
        with np.load(path) as told:
            assert str(told["framing"]) == framing  # drawn in the order of scenes.make_clip
            assert np.allclose(told["skin"], look.skin)
            points, scores = told["points"], told["scores"]
        frames, alphas = (
            np.load(folder / f"{seed}.{name}.npy", mmap_mode="r") for name in ("frames", "alpha")
        )
        for i in np.linspace(0, len(frames) - 1, FRAMES_A_CLIP).astype(int):
            facts = looks_facts(look, framing) | place_facts(points[i], scores[i], alphas[i])
            yield np.concatenate([frames[i], alphas[i][..., None]], 2), facts


def squashed(picture: np.ndarray, side: int) -> np.ndarray:
    """uint8 h w c -> side side c."""
    return np.asarray(cv2.resize(np.ascontiguousarray(picture), (side, side), interpolation=cv2.INTER_AREA))


def prepare(out: Path, clips: Path | None, drawn: int, scenes: int) -> None:
    """Write people, scenes and facts into `out` unless they are there."""
    if (out / "facts.json").exists():
        return
    cv2.setNumThreads(1)
    out.mkdir(parents=True, exist_ok=True)
    people, facts, plates, words = [], [], [], []
    for picture, told in people_of_clips(clips) if clips else ():
        people.append(squashed(picture, SIDE))
        facts.append(told)
    for seed in range(drawn):
        picture, told = drawn_person(500_000 + seed)
        people.append(squashed(picture, SIDE))
        facts.append(told)
    rng = np.random.default_rng(0)
    for _ in range(scenes):
        height, width = BUCKETS[int(rng.choice(len(BUCKETS), p=BUCKET_SHARES))]
        scene = random_scene(rng, height, width)
        plates.append(squashed((np.clip(scene.picture, 0, 1) * 255).astype(np.uint8), SIDE))
        words.append(scene.words)
    np.save(out / "people.npy", np.stack(people))
    np.save(out / "scenes.npy", np.stack(plates))
    with whole_file(out / "facts.json") as part:
        part.write_text(json.dumps({"people": facts, "scenes": words}))


class PictureStore:
    """Endless pictures: any of the people before any of the scenes, moved and mirrored."""

    def __init__(self, folder: Path, side: int) -> None:
        self.side = side
        self.people = np.load(folder / "people.npy", mmap_mode="r")
        self.scenes = np.load(folder / "scenes.npy", mmap_mode="r")
        told = json.loads((folder / "facts.json").read_text())
        self.facts: list[dict[str, Any]] = told["people"]
        self.words: list[str] = told["scenes"]

    def draw(self, rng: np.random.Generator) -> Example:
        """One picture."""
        i, j = int(rng.integers(len(self.people))), int(rng.integers(len(self.scenes)))
        person, scene = (squashed(array, self.side) for array in (self.people[i], self.scenes[j]))
        facts, side = self.facts[i], self.side
        boxes = np.array([facts["box"], facts["torso"]])
        shift = int(rng.uniform(-SHIFT, SHIFT) * side)
        person, boxes[:, [0, 2]] = moved(person, shift), np.clip(boxes[:, [0, 2]] + shift / side, 0, 1)
        if rng.random() < 0.5:
            person, boxes[:, [0, 2]] = person[:, ::-1], 1 - boxes[:, [2, 0]]
        if rng.random() < 0.5:
            scene = scene[:, ::-1]
        alpha = person[..., 3:].astype(np.uint16)
        picture = ((person[..., :3] * alpha + scene * (255 - alpha)) // 255).astype(np.uint8)
        words = self.words[j]
        facts = (
            facts
            | scene_facts(words)
            | {"scene": words, "box": boxes[0].tolist(), "torso": boxes[1].tolist()}
        )
        return Example(picture, person[..., 3], caption_of(facts, words, boxes[0]), facts)


def moved(person: np.ndarray, shift: int) -> np.ndarray:
    """The picture moved to the right by `shift` pixels; what comes in is empty."""
    out = np.roll(person, shift, 1)
    out[:, : max(shift, 0)] = 0
    if shift < 0:
        out[:, shift:] = 0
    return out


def held_out(count: int) -> list[Example]:
    """Pictures that were never trained on, in their own shape."""
    examples = []
    for seed in range(HELD_OUT, HELD_OUT + count):
        person, facts = drawn_person(seed)
        facts = facts | scene_facts(facts["scene"])
        caption = caption_of(facts, facts["scene"], np.array(facts["box"]))
        examples.append(Example(person[..., :3], person[..., 3], caption, facts))
    return examples
