"""Batches from a folder of synthetic clips (written by synth.py): crops, single pictures, or runs of frames.

Everything large is mapped into memory; a batch reads only what it uses. One batch has one size (a bucket).
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dreamoving_cli.models.encoders import normalize_pixels
from dreamoving_cli.train.synth import HELD_OUT

FACE = slice(24, 92)  # of the 134 points: from the brows to the chin
FOREARMS = (slice(3, 5), slice(6, 8))  # elbow and wrist


@dataclass(frozen=True)
class Batch:
    """One training batch of `f` frames a clip (1 for pictures)."""

    latents: Tensor  # b c f h w
    person: Tensor  # b 1 f h w: share of each latent cell that the person covers
    head: Tensor  # b 1 f h w: share of each latent cell that the head's box covers
    arms: Tensor  # b 1 f h w: the same of the forearms' boxes
    controls: dict[str, Tensor]  # kind -> b 3 f H W, 0..1
    pictures: dict[str, Tensor]  # face, cloth, style -> b 3 s s, normalized for CLIP
    captions: list[str]
    facts: dict[str, Tensor]  # what the pictures show: colors b 3, classes b
    other: Tensor | None = None  # latents of another frame of each clip, as in stray.py

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        tables = ("controls", "pictures", "facts")
        moved: dict[str, Any] = {n: {k: v.to(device) for k, v in getattr(self, n).items()} for n in tables}
        return replace(
            self, **moved, **{n: getattr(self, n).to(device) for n in ("latents", "person", "head", "arms")}
        )


@lru_cache(maxsize=8192)
def mapped(path: Path) -> np.ndarray:
    """An array on disk, read where it is touched."""
    return np.load(path, mmap_mode="r")


@lru_cache(maxsize=8192)
def facts_of(path: Path) -> dict[str, np.ndarray]:
    """The small arrays of a clip."""
    with np.load(path) as d:
        return {k: d[k] for k in d}


class ClipStore:
    """The clips of a folder, training or held-out."""

    def __init__(self, folder: Path, held_out: bool = False) -> None:
        self.folder = folder
        seeds = sorted(int(p.stem) for p in folder.glob("[0-9]*.npz"))
        self.seeds = [s for s in seeds if (s >= HELD_OUT) == held_out]
        self.buckets: dict[tuple[int, int], list[int]] = {}
        for seed in self.seeds:
            self.buckets.setdefault(self.array(seed, "frames").shape[1:3], []).append(seed)

    def array(self, seed: int, name: str) -> np.ndarray:
        """frames, pose, depth, alpha or latents of a clip."""
        return mapped(self.folder / f"{seed}.{name}.npy")

    def facts(self, seed: int) -> dict[str, np.ndarray]:
        """References, captions and colors of a clip."""
        return facts_of(self.folder / f"{seed}.npz")

    def crops(self, rng: np.random.Generator, count: int, side: int) -> tuple[Tensor, Tensor]:
        """`count 3 side side` in -1..1, and how much of each pixel is head, `count 1 side side` in 0..1.

        Four crops in ten are centered on the head, four on any part of the person, the rest lies anywhere.
        """
        pictures, heads = [], []
        for seed in rng.choice(self.seeds, count):
            frames = self.array(seed, "frames")
            i, (height, width) = int(rng.integers(len(frames))), frames.shape[1:3]
            alpha, points = self.array(seed, "alpha")[i], self.facts(seed)["points"][i]
            x, y = corner(rng, points, (height, width), side)
            head = head_cover(torch.from_numpy(points - (x, y)), (side, side), (side, side))
            pictures.append(frames[i, y : y + side, x : x + side])
            heads.append(head * torch.from_numpy(alpha[y : y + side, x : x + side] / 255.0))
        stacked = rearrange(torch.from_numpy(np.stack(pictures)), "b h w c -> b c h w").float() / 127.5 - 1
        return stacked, rearrange(torch.stack(heads), "b h w -> b 1 h w").float()

    def batch(self, rng: np.random.Generator, count: int, num_frames: int, stride: int = 1) -> Batch:
        """`count` runs of `num_frames` frames, all of one size."""
        sizes = list(self.buckets)
        fits = {
            s: [c for c in self.buckets[s] if len(self.array(c, "frames")) >= num_frames * stride]
            for s in sizes
        }
        weights = np.array([len(fits[s]) for s in sizes], float)
        seeds = rng.choice(fits[sizes[int(rng.choice(len(sizes), p=weights / weights.sum()))]], count)
        starts = [int(rng.integers(len(self.array(s, "frames")) - num_frames * stride + 1)) for s in seeds]
        runs = [slice(a, a + num_frames * stride, stride) for a in starts]

        def stack(name: str) -> Tensor:
            return torch.from_numpy(
                np.stack([self.array(s, name)[r] for s, r in zip(seeds, runs, strict=True)])
            )

        latents = rearrange(stack("latents"), "b f c h w -> b c f h w").float()
        cells = latents.shape[2], latents.shape[3], latents.shape[4]
        alpha = rearrange(stack("alpha"), "b f h w -> b 1 f h w").float() / 255
        depth = rearrange(stack("depth"), "b f h w -> b 1 f h w").expand(-1, 3, -1, -1, -1)
        points = np.stack([self.facts(s)["points"][r] for s, r in zip(seeds, runs, strict=True)])
        head, arms = cover(torch.from_numpy(points), (alpha.shape[-2], alpha.shape[-1]), cells[1:])
        return Batch(
            latents=latents,
            person=F.adaptive_avg_pool3d(alpha, cells),
            head=head[:, None],
            arms=arms[:, None],
            controls={
                "pose": rearrange(stack("pose"), "b f h w c -> b c f h w").float() / 255,
                "depth": depth.float() / 255,
            },
            pictures={kind: self._pictures(rng, seeds, kind) for kind in ("face", "cloth", "style")},
            captions=said(rng, [self.facts(s)["captions"] for s in seeds]),
            facts=self._facts(seeds),
        )

    def _pictures(self, rng: np.random.Generator, seeds: np.ndarray, kind: str) -> Tensor:
        """One reference picture a clip, `b 3 s s`."""
        from dreamoving_cli.media.images import fit_square

        if kind == "style":
            frames = [self.array(s, "frames") for s in seeds]
            chosen = [fit_square(np.ascontiguousarray(f[int(rng.integers(len(f)))]), 128) for f in frames]
        else:
            options = [self.facts(s)[f"{kind}s"] for s in seeds]
            chosen = [o[int(rng.integers(len(o)))] for o in options]
        gain = rng.uniform(0.85, 1.12, (len(chosen), 1, 1, 1))
        pixels = np.clip(np.stack(chosen) * gain / 255, 0, 1)
        return normalize_pixels(rearrange(torch.from_numpy(pixels).float(), "b h w c -> b c h w"))

    def _facts(self, seeds: np.ndarray) -> dict[str, Tensor]:
        """Colors `b 3` and classes `b` that the image tokens ought to tell."""
        from dreamoving_cli.train.garments import BOTTOMS, PATTERNS, TOPS
        from dreamoving_cli.train.people import HAIR_STYLES

        told: list[dict[str, Any]] = [self.facts(s) for s in seeds]

        def colors(name: str) -> Tensor:
            return torch.tensor(np.stack([t[name] for t in told]), dtype=torch.float32)

        def classes(name: str, words: tuple[str, ...]) -> Tensor:
            return torch.tensor([words.index(str(t[name])) for t in told])

        return {
            "skin": colors("skin"), "hair": colors("hair"), "cloth_color": colors("cloth_color"),
            "hair_style": classes("hair_style", HAIR_STYLES),
            "cloth_pattern": classes("cloth_pattern", PATTERNS),
            "cloth_cut": classes("cloth_cut", TOPS + BOTTOMS),
        }  # fmt: skip


def as_video(frames: np.ndarray) -> Tensor:
    """uint8 f h w c -> 1 c f h w in -1..1."""
    return rearrange(torch.from_numpy(np.array(frames)), "f h w c -> 1 c f h w").float() / 127.5 - 1


def said(rng: np.random.Generator, clips: list[np.ndarray]) -> list[str]:
    """One of each clip's captions; a third speak of a person, as users do who let the face decide."""
    picks, hidden = rng.random(len(clips)), rng.random(len(clips)) < 0.33
    told = [str(captions[int(pick * len(captions))]) for captions, pick in zip(clips, picks, strict=True)]
    return [nobody(text) if hide else text for text, hide in zip(told, hidden, strict=True)]


def nobody(caption: str) -> str:
    """A caption that does not say whether it is a woman or a man."""
    return caption.replace("a woman", "a person", 1).replace("a man", "a person", 1)


def corner(rng: np.random.Generator, points: np.ndarray, size: tuple[int, int], side: int) -> tuple[int, int]:
    """x, y of a crop of `side` pixels in a picture of `size` (height, width) with a person's points `134 2`.

    Four in ten are centered on the head, four near a joint of the body, the rest lie anywhere.
    """
    draw, (height, width) = rng.random(), size
    head, joint = points[FACE].mean(0), points[int(rng.integers(FACE.start))]
    if draw < 0.4 and 0 <= head[0] < width and 0 <= head[1] < height:
        center = head + rng.uniform(-16, 16, 2)
    elif draw < 0.8:
        center = joint + rng.uniform(-24, 24, 2)
    else:
        center = rng.uniform(0, (width, height))
    x, y = center - side / 2
    return int(np.clip(x, 0, width - side)), int(np.clip(y, 0, height - side))


def cover(points: Tensor, size: tuple[int, int], cells: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What the boxes of the head and of the forearms cover of each latent cell, two shares `... h w`.

    points: `... 134 2` in pixels of a picture of `size` (height, width).
    """
    arms = [box_cover(points[..., arm, :], size, cells) for arm in FOREARMS]
    return head_cover(points, size, cells), torch.maximum(*arms)


def head_cover(points: Tensor, size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """Share of each latent cell, `... h w`, that the box of the head covers; as `cover`."""
    return box_cover(points[..., FACE, :], size, cells)


def box_cover(points: Tensor, size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """Share of each latent cell, `... h w`, that the box around points `... n 2` covers.

    A margin of 0.3 of its longer side is added: for hair, for hands.
    """
    low, high = points.amin(-2), points.amax(-2)  # x y
    margin = 0.3 * (high - low).amax(-1, keepdim=True)
    covered = []
    for axis in (0, 1):  # x, y
        count, side = cells[1 - axis], size[1 - axis] / cells[1 - axis]
        starts = torch.arange(count, device=points.device) * side
        ends = torch.minimum((high + margin)[..., axis, None], starts + side)
        covered.append((ends - torch.maximum((low - margin)[..., axis, None], starts)).clamp(min=0) / side)
    return covered[1][..., :, None] * covered[0][..., None, :]
