"""The same batches as data.py's, from clips that lie on the device: nothing is read or copied during a step.

The frames of a size are one tensor each of latents, poses and so on; a batch is an index into them. On a GPU
a step of the miniature takes milliseconds, which no reading of single clips keeps up with.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dreamoving_cli.media.images import fit_square
from dreamoving_cli.models.encoders import normalize_pixels
from dreamoving_cli.models.load import Pack
from dreamoving_cli.train.data import Batch, ClipStore, corner, cover, head_cover, said
from dreamoving_cli.train.live import fresh_seeds

STYLES = 4  # frames of a clip that serve as pictures of its style
SIDE = 128  # pixels of a reference picture
READERS = 8  # threads that read clips from disk
AT_ONCE = 64  # clips that are read before they are moved
ENCODED = 256  # frames that the autoencoder takes at once
Size = tuple[int, int]


class Shelf:
    """Clips of one size: tensors over all frames, tensors and words over all clips."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.captions: list[np.ndarray] = []
        self.points: list[np.ndarray] = []  # f 134 2 each
        self.lengths: list[int] = []

    def add(self, tensors: dict[str, Tensor], facts: list[dict[str, np.ndarray]]) -> None:
        """Append clips: what `DeviceStore.prepared` makes of them, and what their files say."""
        for name, new in tensors.items():
            self.tensors[name] = torch.cat([self.tensors[name], new]) if name in self.tensors else new
        self.captions += [fact["captions"] for fact in facts]
        self.points += [fact["points"] for fact in facts]
        self.lengths += [len(fact["points"]) for fact in facts]

    def runs(self, rng: np.random.Generator, clips: np.ndarray, num_frames: int, stride: int) -> np.ndarray:
        """Where the frames of one run of each clip lie, `b f`."""
        first = np.concatenate([[0], np.cumsum(self.lengths)])[clips]
        free = np.array(self.lengths)[clips] - num_frames * stride + 1
        starts: np.ndarray = first + rng.integers(free)
        return starts[:, None] + np.arange(0, num_frames * stride, stride)


class DeviceStore(ClipStore):
    """A folder of synthetic clips, held on the device of the pack's autoencoder.

    pack: its autoencoder encodes the frames, unless `pixels` are wanted (to train the autoencoder itself).
    least: frames a clip must have, as long as the runs that will be asked for; shorter ones are left out.
    follow: seconds after which clips that were rendered meanwhile are taken in as well; 0 = never.
    """

    def __init__(self, folder: Path, pack: Pack, pixels: bool, least: int = 1, follow: float = 0.0) -> None:
        self.pack, self.pixels, self.least, self.follow = pack, pixels, least, follow
        self.device = pack.vae.mean.device
        self.shelves: dict[Size, Shelf] = {}
        self.held: set[int] = set()
        super().__init__(folder)
        self.take_in()

    def take_in(self) -> None:
        """Move every clip of the folder that is not here yet to the device."""
        new = fresh_seeds(self.folder, self.held)
        self.held |= set(new)
        with ThreadPoolExecutor(READERS) as readers:
            lengths = [len(fact["points"]) for fact in readers.map(self.facts, new)]
            new = [seed for seed, length in zip(new, lengths, strict=True) if length >= self.least]
            for k in range(0, len(new), AT_ONCE):
                sizes: dict[Size, list[int]] = {}
                for seed in new[k : k + AT_ONCE]:
                    sizes.setdefault(self.array(seed, "alpha").shape[1:3], []).append(seed)
                for size, seeds in sizes.items():
                    facts = [self.facts(seed) for seed in seeds]
                    read = list(readers.map(self.read, seeds))
                    self.shelves.setdefault(size, Shelf()).add(self.prepared(seeds, read), facts)
        self.looked = time.monotonic()

    def read(self, seed: int) -> dict[str, np.ndarray]:
        """The arrays of a clip that are used here, from disk; those of the whole clip as `1 ...`."""
        names = ("frames", "alpha") if self.pixels else ("frames", "alpha", "pose", "depth")
        arrays = {n: np.load(self.folder / f"{seed}.{n}.npy") for n in names}
        if not self.pixels:
            frames = arrays["frames"]
            picks = np.linspace(0, len(frames) - 1, STYLES).astype(int)
            arrays["styles"] = np.stack([fit_square(frames[i], SIDE) for i in picks])[None]
            arrays |= {name: self.facts(seed)[name][None] for name in ("faces", "cloths")}
        return arrays

    @torch.no_grad()
    def prepared(self, seeds: list[int], read: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        """The tensors of clips of one size, on the device."""
        moved = {name: torch.cat([self.on_device(arrays[name]) for arrays in read]) for name in read[0]}
        if self.pixels:
            return moved
        frames, alpha = moved.pop("frames"), moved.pop("alpha")
        latents = [self.encoded(part) for part in frames.split(ENCODED)]
        moved["latents"] = torch.cat(latents).half()
        cells = moved["latents"].shape[2], moved["latents"].shape[3]
        moved["person"] = F.adaptive_avg_pool2d(alpha[:, None].float() / 255, cells)[:, 0].half()
        points = self.on_device(np.concatenate([self.facts(seed)["points"] for seed in seeds]))
        parts = cover(points, (alpha.shape[1], alpha.shape[2]), cells)
        moved["head"], moved["arms"] = (part.half() for part in parts)
        told = self._facts(np.array(seeds))
        return moved | {f"fact.{name}": fact.to(self.device) for name, fact in told.items()}

    def encoded(self, frames: Tensor) -> Tensor:
        """uint8 f h w c -> latents f c h w."""
        video = rearrange(frames, "f h w c -> 1 c f h w").float() / 127.5 - 1
        return rearrange(self.pack.vae.encode(video), "1 c f h w -> f c h w")

    def on_device(self, array: np.ndarray) -> Tensor:
        """An array on the device; nothing waits for the copy."""
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def draw_shelf(self, rng: np.random.Generator, count: int, length: int) -> tuple[Shelf, np.ndarray]:
        """A size, and `count` of its clips that have `length` frames."""
        if self.follow and time.monotonic() - self.looked > self.follow:
            self.take_in()
        shelves = list(self.shelves.values())
        fits = [np.flatnonzero(np.array(shelf.lengths) >= length) for shelf in shelves]
        weights = np.array([len(f) for f in fits], float)
        which = int(rng.choice(len(shelves), p=weights / weights.sum()))
        return shelves[which], rng.choice(fits[which], count)

    def crops(self, rng: np.random.Generator, count: int, side: int) -> tuple[Tensor, Tensor]:
        """As ClipStore's, all from pictures of one size."""
        shelf, clips = self.draw_shelf(rng, count, 1)
        rows = shelf.runs(rng, clips, 1, 1)[:, 0]
        first = np.concatenate([[0], np.cumsum(shelf.lengths)])[clips]
        points = np.stack([shelf.points[c][i] for c, i in zip(clips, rows - first, strict=True)])
        size = shelf.tensors["alpha"].shape[1], shelf.tensors["alpha"].shape[2]
        corners = np.array([corner(rng, p, size, side) for p in points])
        at = self.on_device(rows)[:, None, None]
        x, y = (self.on_device(corners[:, [i]] + np.arange(side)) for i in (0, 1))
        pictures = shelf.tensors["frames"][at, y[:, :, None], x[:, None, :]]
        covered = shelf.tensors["alpha"][at, y[:, :, None], x[:, None, :]].float() / 255
        inside = self.on_device((points - corners[:, None]).astype(np.float32))
        head = head_cover(inside, (side, side), (side, side)) * covered
        return rearrange(pictures, "b h w c -> b c h w").float() / 127.5 - 1, head[:, None]

    def batch(self, rng: np.random.Generator, count: int, num_frames: int, stride: int = 1) -> Batch:
        """As ClipStore's."""
        shelf, clips = self.draw_shelf(rng, count, num_frames * stride)
        rows = self.on_device(shelf.runs(rng, clips, num_frames, stride))
        chosen, tensors = self.on_device(clips), shelf.tensors
        depth = rearrange(tensors["depth"][rows], "b f h w -> b 1 f h w").expand(-1, 3, -1, -1, -1)
        return Batch(
            latents=rearrange(tensors["latents"][rows], "b f c h w -> b c f h w").float(),
            person=tensors["person"][rows][:, None].float(),
            head=tensors["head"][rows][:, None].float(),
            arms=tensors["arms"][rows][:, None].float(),
            controls={
                "pose": rearrange(tensors["pose"][rows], "b f h w c -> b c f h w").float() / 255,
                "depth": depth.float() / 255,
            },
            pictures={
                kind: self.picture(rng, tensors[f"{kind}s"], chosen) for kind in ("face", "cloth", "style")
            },
            captions=said(rng, [shelf.captions[c] for c in clips]),
            facts={n.removeprefix("fact."): t[chosen] for n, t in tensors.items() if n.startswith("fact.")},
        )

    def picture(self, rng: np.random.Generator, options: Tensor, clips: Tensor) -> Tensor:
        """One reference picture a clip, `b 3 s s`, out of `options` `n k s s 3`."""
        picks = self.on_device(rng.integers(options.shape[1], size=len(clips)))
        gain = self.on_device(rng.uniform(0.85, 1.12, (len(clips), 1, 1, 1)))
        pixels = (options[clips, picks].float() * gain.float() / 255).clamp(0, 1)
        return normalize_pixels(rearrange(pixels, "b h w c -> b c h w"))
