"""The same batches as data.py's, from clips that lie on the device: nothing is read or copied during a step.

The frames of a size are one tensor each of latents, poses and so on; a batch is an index into them. On a GPU
a step of the miniature takes milliseconds, which no reading of single clips keeps up with.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dreamoving_cli.media.images import fit_square
from dreamoving_cli.models.encoders import normalize_pixels
from dreamoving_cli.models.load import Pack
from dreamoving_cli.train.data import Batch, ClipStore, as_video, corner, head_cover, said

STYLES = 4  # frames of a clip that serve as pictures of its style
SIDE = 128  # pixels of a reference picture
READERS = 8  # threads that read clips from disk
AT_ONCE = 64  # clips that are read before they are moved
Size = tuple[int, int]


class Pool:
    """Clips of one size: tensors over all frames, tensors and words over all clips."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.captions: list[np.ndarray] = []
        self.points: list[np.ndarray] = []  # f 134 2 each
        self.lengths: list[int] = []

    def add(self, clips: list[dict[str, Any]]) -> None:
        """Append clips as `DeviceStore.prepared` gives them."""
        for name in clips[0]["tensors"]:
            before = [self.tensors[name]] if name in self.tensors else []
            self.tensors[name] = torch.cat([*before, *(clip["tensors"][name] for clip in clips)])
        self.captions += [clip["captions"] for clip in clips]
        self.points += [clip["points"] for clip in clips]
        self.lengths += [len(clip["points"]) for clip in clips]

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
        self.pools: dict[Size, Pool] = {}
        self.held: set[int] = set()
        self.folder = folder
        self.take_in()

    def take_in(self) -> None:
        """Move every clip of the folder that is not here yet to the device."""
        super().__init__(self.folder)
        new = [seed for seed in self.seeds if seed not in self.held]
        self.held |= set(new)
        new = [seed for seed in new if len(self.facts(seed)["points"]) >= self.least]
        for k in range(0, len(new), AT_ONCE):
            part = new[k : k + AT_ONCE]
            with ThreadPoolExecutor(READERS) as readers:
                read = list(readers.map(self.read, part))
            ready: dict[Size, list[dict[str, Any]]] = {}
            for seed, arrays in zip(part, read, strict=True):
                size = arrays["alpha"].shape[1], arrays["alpha"].shape[2]
                ready.setdefault(size, []).append(self.prepared(seed, arrays))
            for size, clips in ready.items():
                self.pools.setdefault(size, Pool()).add(clips)
        self.looked = time.monotonic()

    def read(self, seed: int) -> dict[str, np.ndarray]:
        """The arrays of a clip that are used here, from disk."""
        names = ("frames", "alpha") if self.pixels else ("frames", "alpha", "pose", "depth")
        arrays = {n: np.load(self.folder / f"{seed}.{n}.npy") for n in names}
        frames, small = arrays["frames"], self.facts(seed)
        picks = np.linspace(0, len(frames) - 1, STYLES).astype(int)
        if not self.pixels:
            arrays["styles"] = np.stack([fit_square(frames[i], SIDE) for i in picks])
        return arrays | {name: small[name] for name in ("faces", "cloths")}

    @torch.no_grad()
    def prepared(self, seed: int, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        """A clip's tensors on the device, its words and points."""
        small = self.facts(seed)
        moved = {name: torch.from_numpy(a).to(self.device)[None] for name, a in arrays.items()}
        for name in ("frames", "alpha", "pose", "depth"):
            if name in moved:
                moved[name] = moved[name][0]
        if not self.pixels:
            latents = self.pack.vae.encode(as_video(arrays["frames"]).to(self.device), batch=16)
            moved["latents"] = rearrange(latents, "1 c f h w -> f c h w").half()
            cells, alpha = (latents.shape[3], latents.shape[4]), moved.pop("alpha")
            moved["person"] = F.adaptive_avg_pool2d(alpha[:, None].float() / 255, cells)[:, 0].half()
            points = torch.from_numpy(small["points"]).to(self.device)
            moved["head"] = head_cover(points, (alpha.shape[1], alpha.shape[2]), cells).half()
            moved |= {
                f"fact.{name}": fact.to(self.device) for name, fact in self._facts(np.array([seed])).items()
            }
            del moved["frames"]
        return {"tensors": moved, "captions": small["captions"], "points": small["points"]}

    def draw_pool(self, rng: np.random.Generator, count: int, length: int) -> tuple[Pool, np.ndarray]:
        """A size, and `count` of its clips that have `length` frames."""
        if self.follow and time.monotonic() - self.looked > self.follow:
            self.take_in()
        pools = list(self.pools.values())
        fits = [np.flatnonzero(np.array(pool.lengths) >= length) for pool in pools]
        weights = np.array([len(f) for f in fits], float)
        which = int(rng.choice(len(pools), p=weights / weights.sum()))
        return pools[which], rng.choice(fits[which], count)

    def crops(self, rng: np.random.Generator, count: int, side: int) -> tuple[Tensor, Tensor]:
        """As ClipStore's, all from pictures of one size."""
        pool, clips = self.draw_pool(rng, count, 1)
        rows = pool.runs(rng, clips, 1, 1)[:, 0]
        first = np.concatenate([[0], np.cumsum(pool.lengths)])[clips]
        points = np.stack([pool.points[c][i] for c, i in zip(clips, rows - first, strict=True)])
        size = pool.tensors["alpha"].shape[1], pool.tensors["alpha"].shape[2]
        corners = np.array([corner(rng, p, size, side) for p in points])
        at = torch.from_numpy(rows).to(self.device)[:, None, None]
        x, y = (torch.from_numpy(corners[:, [i]] + np.arange(side)).to(self.device) for i in (0, 1))
        pictures = pool.tensors["frames"][at, y[:, :, None], x[:, None, :]]
        covered = pool.tensors["alpha"][at, y[:, :, None], x[:, None, :]].float() / 255
        inside = torch.from_numpy((points - corners[:, None]).astype(np.float32)).to(self.device)
        head = head_cover(inside, (side, side), (side, side)) * covered
        return rearrange(pictures, "b h w c -> b c h w").float() / 127.5 - 1, head[:, None]

    def batch(self, rng: np.random.Generator, count: int, num_frames: int, stride: int = 1) -> Batch:
        """As ClipStore's."""
        pool, clips = self.draw_pool(rng, count, num_frames * stride)
        rows = torch.from_numpy(pool.runs(rng, clips, num_frames, stride)).to(self.device)
        chosen, tensors = torch.from_numpy(clips).to(self.device), pool.tensors
        depth = rearrange(tensors["depth"][rows], "b f h w -> b 1 f h w").expand(-1, 3, -1, -1, -1)
        return Batch(
            latents=rearrange(tensors["latents"][rows], "b f c h w -> b c f h w").float(),
            person=tensors["person"][rows][:, None].float(),
            head=tensors["head"][rows][:, None].float(),
            controls={
                "pose": rearrange(tensors["pose"][rows], "b f h w c -> b c f h w").float() / 255,
                "depth": depth.float() / 255,
            },
            pictures={
                kind: self.picture(rng, tensors[f"{kind}s"], chosen) for kind in ("face", "cloth", "style")
            },
            captions=[said(rng, pool.captions[c]) for c in clips],
            facts={n.removeprefix("fact."): t[chosen] for n, t in tensors.items() if n.startswith("fact.")},
        )

    def picture(self, rng: np.random.Generator, options: Tensor, clips: Tensor) -> Tensor:
        """One reference picture a clip, `b 3 s s`, out of `options` `n k s s 3`."""
        picks = torch.from_numpy(rng.integers(options.shape[1], size=len(clips))).to(self.device)
        gain = torch.from_numpy(rng.uniform(0.85, 1.12, (len(clips), 1, 1, 1))).to(self.device)
        pixels = (options[clips, picks].float() * gain.float() / 255).clamp(0, 1)
        return normalize_pixels(rearrange(pixels, "b h w c -> b c h w"))
