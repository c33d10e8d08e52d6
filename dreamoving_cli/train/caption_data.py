"""Pictures to teach the captioner: people cut from clips or rendered anew, and scenes, each with its facts.

Not here: how they are put together (caption_batch.py).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamoving_cli.models.minigpt.vision import squash
from dreamoving_cli.train.caption_facts import (
    caption_of,
    looks_facts,
    place_facts,
    scene_facts,
    shown_garment,
)
from dreamoving_cli.train.motion import dance
from dreamoving_cli.train.people import Look, random_look, shoot
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

FRAMES_A_CLIP = 6
DRAWN_FROM = 500_000  # seed of the first person that is rendered here
Told = tuple[np.ndarray, list[dict[str, Any]]]  # pictures n s s c uint8 and what is true of each


@dataclass(frozen=True)
class Example:
    """One picture with all that is said of it."""

    picture: np.ndarray  # h w 3 uint8
    caption: str
    facts: dict[str, Any]


def person_facts(
    look: Look, framing: str, cut: np.ndarray, points: np.ndarray, scores: np.ndarray
) -> dict[str, Any]:
    """What is true of a person; cut: RGB and alpha uint8 `h w 4`, with its points and their scores."""
    place = place_facts(points, scores, cut[..., 3])
    shown = shown_garment(look, cut[..., :3], cut[..., 3], place["torso"])
    return looks_facts(look, framing, shown) | place


def drawn_person(seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """A person of this seed before a scene: RGB and alpha uint8 `h w 4`, and the facts."""
    rng = np.random.default_rng(seed)
    height, width = BUCKETS[int(rng.choice(len(BUCKETS), p=BUCKET_SHARES))]
    look, framing = random_look(rng), str(rng.choice(FRAMINGS, p=FRAMING_SHARES))
    camera, scene = aim(rng, look, framing, width / height), random_scene(rng, height, width)
    shot = shoot(look, dance(rng, 1, 16.0)[0], camera, height, width)
    alpha = np.clip(shot.color[..., 3:] * 255, 0, 255).astype(np.uint8)
    cut = np.concatenate([over(shot.color, scene.picture), alpha], 2)
    return cut, person_facts(look, framing, cut, shot.points, shot.scores) | {"scene": scene.words}


def drawn_people(first: int, count: int, side: int) -> Told:
    """Rendered people, squashed."""
    made = [drawn_person(DRAWN_FROM + seed) for seed in range(first, first + count)]
    return np.stack([squashed(cut, side) for cut, _ in made]), [facts for _, facts in made]


def people_of_clips(folder: Path, seeds: list[int], side: int) -> Told:
    """Frames of clips, squashed; the looks are drawn again from the seeds."""
    cuts, facts = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        rng.choice(len(BUCKETS), p=BUCKET_SHARES)
        look = random_look(rng)
        with np.load(folder / f"{seed}.npz") as told:
            assert np.allclose(told["skin"], look.skin)  # drawn in the order of scenes.make_clip
            framing = str(told["framing"])
            points, scores = told["points"], told["scores"]
        frames, alphas = (
            np.load(folder / f"{seed}.{name}.npy", mmap_mode="r") for name in ("frames", "alpha")
        )
        for i in np.linspace(0, len(frames) - 1, FRAMES_A_CLIP).astype(int):
            cut = np.concatenate([frames[i], alphas[i][..., None]], 2)
            facts.append(person_facts(look, framing, cut, points[i], scores[i]))
            cuts.append(squashed(cut, side))
    return np.stack(cuts), facts


def drawn_scenes(first: int, count: int, side: int) -> Told:
    """Scenes of these seeds, squashed; the only fact is their words."""
    plates, words = [], []
    for seed in range(first, first + count):
        rng = np.random.default_rng((DRAWN_FROM, seed))
        height, width = BUCKETS[int(rng.choice(len(BUCKETS), p=BUCKET_SHARES))]
        scene = random_scene(rng, height, width)
        plates.append(squashed((np.clip(scene.picture, 0, 1) * 255).astype(np.uint8), side))
        words.append({"scene": scene.words})
    return np.stack(plates), words


def squashed(picture: np.ndarray, side: int) -> np.ndarray:
    """uint8 h w c -> side side c, as captioners see them; alpha by itself, or it would change the colors."""
    rgb, alpha = picture[..., :3], picture[..., 3:]
    parts = [squash(np.ascontiguousarray(rgb), side)]
    parts += [squash(np.ascontiguousarray(alpha[..., 0]), side)[..., None]] if alpha.shape[-1] else []
    return np.concatenate(parts, 2)


def held_out(count: int) -> list[Example]:
    """Pictures that were never trained on, in their own shape."""
    examples = []
    for seed in range(HELD_OUT, HELD_OUT + count):
        person, facts = drawn_person(seed)
        facts = facts | scene_facts(facts["scene"])
        caption = caption_of(facts, facts["scene"], np.array(facts["box"]))
        examples.append(Example(person[..., :3], caption, facts))
    return examples
