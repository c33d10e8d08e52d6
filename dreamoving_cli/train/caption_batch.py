"""Batches for the captioner, put together on the device: people before scenes, their words, patch targets.

A caption is three runs of ids, so that none is spelled out while training: the person's with four places for
the box, the scene's, the end mark.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dreamoving_cli.models.minigpt.model import NO_TOKEN
from dreamoving_cli.models.minigpt.tokenizer import Tokenizer
from dreamoving_cli.train.caption_data import drawn_people, drawn_scenes, people_of_clips
from dreamoving_cli.train.caption_facts import BOX_STEP, FRAMING_WORDS, caption_of, scene_facts
from dreamoving_cli.train.garments import COLORS, PATTERNS
from dreamoving_cli.train.live import Arrays, Dice, Pool
from dreamoving_cli.train.people import HAIR, HAIR_STYLES, SKIN

PERSON_IDS, SCENE_IDS = 56, 20  # room for runs of ids; the longest that were seen have 41 and 12
PEOPLE_BYTES, SCENES_BYTES = 4 * 2**30, 2**29
EVENLY = 0.5  # share of the people that are drawn so that all patterns come equally often
SHIFT = 0.12  # of the picture, by which a person is moved sideways
NOISE, BLURRED = 0.02, 0.3
HAIRS = ("a bald head", *(f"{style} {color} hair" for style in HAIR_STYLES[1:] for color in HAIR))
CLASSES: dict[str, tuple[str, ...]] = {  # of a person
    "color": tuple(COLORS), "second": ("", *COLORS), "pattern": PATTERNS, "framing": tuple(FRAMING_WORDS),
    "who": ("a man", "a woman"), "skin": tuple(SKIN), "hair": HAIRS,
}  # fmt: skip
SCENE_CLASSES = {"kind": ("plain", "room", "stage", "outdoors"), "background": ("", *COLORS)}


@dataclass(frozen=True)
class Batch:
    """What one step trains on."""

    pixels: Tensor  # b 3 s s, 0..1
    alpha: Tensor  # b s s, 0..1: how much of each pixel is the person
    told: Tensor  # b l, ids of the captions, NO_TOKEN after their end
    boxes: Tensor  # b 2 4: of the person and of its torso, x0 y0 x1 y1 in 0..1
    classes: dict[str, Tensor]  # b each


class Words:
    """Captions as ids; words are spelled once, as no piece reaches beyond one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.word = lru_cache(maxsize=None)(tokenizer.encode)

    def ids(self, text: str) -> list[int]:
        """As the tokenizer's."""
        return [i for word in text.split(" ") for i in self.word(word)]

    def of_person(self, facts: Mapping[str, Any]) -> tuple[list[int], int]:
        """Ids up to the scene, and where the four numbers of the box stand."""
        ids = self.ids(caption_of(facts, "", np.zeros(4)).rstrip(" "))
        return ids, ids.index(self.tokenizer.ids["<0>"])


def padded(rows: Sequence[list[int]], length: int) -> np.ndarray:
    """n length, int64."""
    assert max(map(len, rows)) <= length
    return np.array([row + [0] * (length - len(row)) for row in rows])


def numbers(facts: Sequence[Mapping[str, Any]], classes: Mapping[str, Sequence[str]]) -> Arrays:
    """The class of each fact, n each."""
    return {name: np.array([words.index(each[name]) for each in facts]) for name, words in classes.items()}


class Pictures:
    """People and scenes on the device."""

    def __init__(self, tokenizer: Tokenizer, side: int, device: torch.device) -> None:
        self.words, self.side, self.device = Words(tokenizer), side, device
        self.pools: dict[str, Pool] = {}
        self.box_ids = torch.tensor([tokenizer.ids[f"<{n}>"] for n in range(101)], device=device)
        self.eos = tokenizer.eos

    def add(self, name: str, arrays: Arrays) -> None:
        """Rows of people or scenes, as the jobs make them."""
        facts = arrays["facts"].tolist()
        rows = {"picture": np.ascontiguousarray(rearrange(arrays["pictures"], "n h w c -> n c h w"))}
        rows |= self.person_rows(facts) if name == "people" else self.scene_rows(facts)
        if name not in self.pools:
            room = PEOPLE_BYTES if name == "people" else SCENES_BYTES
            self.pools[name] = Pool(rows, room, self.device)
        self.pools[name].add(rows)

    def person_rows(self, facts: Sequence[Mapping[str, Any]]) -> Arrays:
        """Ids, boxes and classes of people."""
        said = [self.words.of_person(each) for each in facts]
        boxes = np.array([(each["box"], each["torso"]) for each in facts], np.float32)
        return {
            "ids": padded([ids for ids, _ in said], PERSON_IDS), "boxes": boxes,
            "length": np.array([len(ids) for ids, _ in said]), "box_at": np.array([at for _, at in said]),
            "arms": np.array([each["arms"] for each in facts]), **numbers(facts, CLASSES),
        }  # fmt: skip

    def scene_rows(self, facts: Sequence[Mapping[str, Any]]) -> Arrays:
        """Ids and classes of scenes."""
        said = [self.words.ids(each["scene"]) for each in facts]
        classes = numbers([scene_facts(each["scene"]) for each in facts], SCENE_CLASSES)
        return {
            "ids": padded(said, SCENE_IDS), "length": np.array([len(ids) for ids in said]), **classes,
        }  # fmt: skip

    def draw(self, dice: Dice, count: int) -> Batch:
        """Any of the people before any of the scenes, moved and mirrored."""
        people, scenes = self.people(dice, count), self.pools["scenes"].take(dice, count)
        shift = (dice.uniform(-SHIFT, SHIFT, count) * self.side).round().long()
        mirror = dice.chance(0.5, count)
        cut = moved(people["picture"], shift, mirror).float() / 255
        scene = moved(scenes["picture"], torch.zeros_like(shift), dice.chance(0.5, count)).float() / 255
        boxes = moved_boxes(people["boxes"], shift / self.side, mirror)
        alpha = cut[:, 3]
        mixed = cut[:, :3] * alpha[:, None] + scene * (1 - alpha[:, None])
        classes = {name: people[name] for name in (*CLASSES, "arms")}
        classes |= {name: scenes[name] for name in SCENE_CLASSES}
        return Batch(spoiled(mixed, dice), alpha, self.told(people, scenes, boxes[:, 0]), boxes, classes)

    def people(self, dice: Dice, count: int) -> dict[str, Tensor]:
        """Any people, and among them more of the rare patterns than there are."""
        some = round(EVENLY * count)
        pool = self.pools["people"]
        parts = pool.take(dice, count - some), pool.take(dice, some, "pattern")
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def told(self, people: Mapping[str, Tensor], scenes: Mapping[str, Tensor], box: Tensor) -> Tensor:
        """Ids of the captions, b l; box: b 4."""
        said = self.box_ids[((100 / BOX_STEP * box.double()).round() * BOX_STEP).long()]
        places = people["box_at"][:, None] + torch.arange(4, device=self.device)
        first = people["ids"].scatter(1, places, said)
        at = torch.arange(PERSON_IDS + SCENE_IDS + 1, device=self.device).expand(len(box), -1)
        start, end = people["length"][:, None], (people["length"] + scenes["length"])[:, None]
        ids = torch.where(
            at < start,
            first.gather(1, at.clamp(max=PERSON_IDS - 1)),
            scenes["ids"].gather(1, (at - start).clamp(0, SCENE_IDS - 1)),
        )
        return ids.masked_fill(at == end, self.eos).masked_fill(at > end, NO_TOKEN)


def moved(pictures: Tensor, shift: Tensor, mirror: Tensor) -> Tensor:
    """Moved to the right by `shift` pixels, then mirrored where told; what comes in is empty; b c h w."""
    width = pictures.shape[-1]
    at = torch.arange(width, device=pictures.device).expand(len(pictures), -1)
    source = torch.where(mirror[:, None], width - 1 - at, at) - shift[:, None]
    inside = (source >= 0) & (source < width)
    taken = pictures.gather(3, source.clamp(0, width - 1)[:, None, None].expand_as(pictures))
    return taken * inside[:, None, None]


def moved_boxes(boxes: Tensor, shift: Tensor, mirror: Tensor) -> Tensor:
    """As `moved`, of boxes b k 4 in 0..1; shift: share of the picture."""
    across = (boxes[..., 0::2] + shift[:, None, None]).clamp(0, 1)
    across = torch.where(mirror[:, None, None], 1 - across.flip(-1), across)
    return torch.stack([across[..., 0], boxes[..., 1], across[..., 1], boxes[..., 3]], -1)


def spoiled(pixels: Tensor, dice: Dice) -> Tensor:
    """A little other light, blur and noise, so little that no color changes its name; b 3 s s in 0..1."""
    count = len(pixels)
    light = dice.uniform(0.92, 1.08, count, 1, 1, 1) * dice.uniform(0.97, 1.03, count, 3, 1, 1)
    soft = dice.uniform(0.2, 0.8, count, 1, 1, 1) * dice.chance(BLURRED, count, 1, 1, 1)
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    noise = dice.normal(1, *pixels.shape) * dice.uniform(0, NOISE, count, 1, 1, 1)
    return ((pixels + (blurred - pixels) * soft) * light + noise).clamp(0, 1)


def patch_targets(batch: Batch, grid: int) -> dict[str, Tensor]:
    """What the heads should say, patch by patch in raster order, `b n`, or of the whole picture, `b`."""
    person = rearrange(F.adaptive_avg_pool2d(batch.alpha[:, None], grid), "b 1 h w -> b (h w)")
    at = (torch.arange(grid, device=person.device) + 0.5) / grid
    x0, y0, x1, y1 = batch.boxes[:, 1].unbind(-1)
    rows, columns = ((at > low[:, None]) & (at < high[:, None]) for low, high in ((y0, y1), (x0, x1)))
    inside = rearrange(rows[:, :, None] & columns[:, None], "b h w -> b (h w)")
    torso, empty = inside & (person > 0.7), person < 0.1
    known = dict.fromkeys(("color", "second", "pattern"), torso)
    known |= {"kind": empty, "background": empty & (batch.classes["background"] > 0)[:, None]}
    patches = {
        name: batch.classes[name][:, None].expand_as(where).masked_fill(~where, NO_TOKEN)
        for name, where in known.items()
    }
    return batch.classes | patches | {"person": person}


def people_job(folder: Path, seeds: list[int], side: int) -> tuple[str, Arrays]:
    """For `Pictures.add`."""
    return as_rows("people", people_of_clips(folder, seeds, side))


def drawn_job(first: int, count: int, side: int) -> tuple[str, Arrays]:
    """For `Pictures.add`."""
    return as_rows("people", drawn_people(first, count, side))


def scenes_job(first: int, count: int, side: int) -> tuple[str, Arrays]:
    """For `Pictures.add`."""
    return as_rows("scenes", drawn_scenes(first, count, side))


def as_rows(name: str, told: tuple[np.ndarray, list[dict[str, Any]]]) -> tuple[str, Arrays]:
    """A result of caption_data.py as processes hand it over."""
    return name, {"pictures": told[0], "facts": np.array(told[1], object)}
