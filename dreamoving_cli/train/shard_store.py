"""Batches from a data set built by `dreamoving dataset`: read where they lie in its shards, in any order.

Clips are decoded, cut to the stage's size, encoded by the pack's autoencoder; poses are drawn at that size.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from dreamoving_cli.dataset.shards import Member, read_index
from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.extract.draw import draw_control
from dreamoving_cli.extract.keypoints import Poses, poses_of
from dreamoving_cli.media.images import fit_square, resize
from dreamoving_cli.models.content_guider import needs_identity
from dreamoving_cli.models.encoders import prepare_pictures
from dreamoving_cli.models.load import Pack
from dreamoving_cli.train.data import Batch, ClipStore, as_video
from dreamoving_cli.train.device_store import DeviceStore
from dreamoving_cli.train.stages import Stage
from dreamoving_cli.whole import whole_file

ENCODE_BATCH = 8  # frames that the autoencoder takes at once


class Store(Protocol):
    """Where batches come from; both draw all they choose from the generator they are given."""

    def crops(self, rng: np.random.Generator, count: int, side: int) -> tuple[Tensor, Tensor]:
        """`count 3 side side` in -1..1, and how much of each pixel is head."""

    def batch(self, rng: np.random.Generator, count: int, num_frames: int) -> Batch:
        """`count` runs of `num_frames` frames, all of one size."""


@dataclass(frozen=True)
class Cut:
    """Which frames of a sample are used, and which part of their pictures."""

    picks: list[int]
    scaled: tuple[int, int]  # height, width that the stored pictures are resized to
    top: int
    left: int
    size: tuple[int, int]

    def of(self, frame: np.ndarray) -> np.ndarray:
        """That part of a stored frame, uint8 h w c."""
        (height, width), (h, w) = self.scaled, self.size
        return resize(frame, height, width)[self.top : self.top + h, self.left : self.left + w]


class ShardSample:
    """One sample of a data set."""

    def __init__(self, key: str, members: dict[str, Member]) -> None:
        self.key, self.members = key, members

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What its json says."""
        return dict(json.loads(self.members["json"].read()))

    @property
    def num_frames(self) -> int:
        return int(self.facts.get("frames", 1))

    @property
    def size(self) -> tuple[int, int]:
        """Height, width as stored."""
        return int(self.facts["height"]), int(self.facts["width"])

    @property
    def caption(self) -> str:
        return self.members["txt"].read().decode().strip() if "txt" in self.members else ""

    def frames(self, cut: Cut, name: str = "mp4") -> np.ndarray:
        """The chosen frames, cut; uint8 f h w c. name: mp4, or depth.mp4."""
        if name not in self.members and "jpg" in self.members:
            return cut.of(self.picture("jpg"))[None]
        content, fps = self.members[name].read(), Fraction(self.facts["fps"])
        return np.stack([cut.of(frame) for frame in decode(content, cut.picks, fps)])

    def picture(self, name: str) -> np.ndarray:
        """A picture among its members, uint8 h w c."""
        return np.asarray(Image.open(io.BytesIO(self.members[name].read())).convert("RGB"))

    def poses(self) -> Poses:
        """The dancer's points in stored pixels."""
        return poses_of(json.loads(self.members["pose.json"].read()), self.key)


class ShardStore:
    """The samples of a folder of shards, for one pack and stage."""

    def __init__(self, folder: Path, pack: Pack, stage: Stage, cache: bool = False) -> None:
        self.pack, self.stage = pack, stage
        self.samples = [ShardSample(key, members) for key, members in read_index(folder).items()]
        self.cache = cache_folder(folder, pack) if cache else None
        if cache and stage.crop != "center":
            raise UsageError(
                f"latents cannot be kept with crop '{stage.crop}'",
                "Set crop: center, or leave cache_latents out.",
            )
        if not self.samples:
            raise InputError(f"there are no samples in '{folder}'", "Build them: dreamoving dataset build.")

    def crops(self, rng: np.random.Generator, count: int, side: int) -> tuple[Tensor, Tensor]:
        """`count 3 side side` in -1..1 from anywhere, and zeros: nobody says where the heads are."""
        pictures = []
        for index in rng.integers(len(self.samples), size=count):
            sample = self.samples[int(index)]
            (height, width), pick = sample.size, int(rng.integers(sample.num_frames))
            top, left = (int(rng.integers(length - side + 1)) for length in (height, width))
            pictures.append(sample.frames(Cut([pick], (height, width), top, left, (side, side)))[0])
        stacked = rearrange(torch.from_numpy(np.stack(pictures)), "b h w c -> b c h w").float() / 127.5 - 1
        return stacked, torch.zeros(count, 1, side, side)

    def batch(self, rng: np.random.Generator, count: int, num_frames: int) -> Batch:
        """`count` runs of `num_frames` frames, all of one size."""
        samples = self._choose(rng, count, num_frames)
        size = self.stage.size or self._stored_size(samples[0])
        cuts = [self._cut(rng, sample, size, num_frames) for sample in samples]
        pairs = list(zip(samples, cuts, strict=True))
        latents = torch.cat([self._latents(sample, cut) for sample, cut in pairs])
        cells = (count, 1, *latents.shape[2:])
        return Batch(
            latents=latents,
            person=torch.zeros(cells),
            head=torch.zeros(cells),
            arms=torch.zeros(cells),
            controls=self._controls(pairs) if self.stage.controls else {},
            pictures=self._pictures(rng, samples) if self.stage.images else {},
            captions=[sample.caption for sample in samples],
            facts={},
        )

    def _stride(self, sample: ShardSample) -> int:
        """Stored frames between two of a run."""
        if self.stage.fps is None or "fps" not in sample.facts:
            return 1
        return max(round(float(Fraction(sample.facts["fps"])) / self.stage.fps), 1)

    def _choose(self, rng: np.random.Generator, count: int, num_frames: int) -> list[ShardSample]:
        """Samples that are long enough; of one stored size where the stage has none."""
        fits = [s for s in self.samples if s.num_frames >= (num_frames - 1) * self._stride(s) + 1]
        if self.stage.controls:
            fits = [s for s in fits if "pose.json" in s.members or "depth.mp4" in s.members]
        if not fits:
            raise InputError(
                f"no sample is {num_frames} frames long or has what the stage needs",
                "Build longer clips, or give fewer frames or a higher fps.",
            )
        if self.stage.size is None:
            size = fits[int(rng.integers(len(fits)))].size
            fits = [s for s in fits if s.size == size]
        return [fits[int(i)] for i in rng.integers(len(fits), size=count)]

    def _stored_size(self, sample: ShardSample) -> tuple[int, int]:
        """The largest size that the pack takes within the stored one."""
        height, width = (side // self.pack.config.size_multiple for side in sample.size)
        return height * self.pack.config.size_multiple, width * self.pack.config.size_multiple

    def _cut(
        self, rng: np.random.Generator, sample: ShardSample, size: tuple[int, int], num_frames: int
    ) -> Cut:
        """A random run of frames, and the center or any part of the picture."""
        stride = self._stride(sample)
        start = int(rng.integers(sample.num_frames - (num_frames - 1) * stride))
        height, width = sample.size
        scale = max(size[0] / height, size[1] / width) if self.stage.size else 1.0
        scaled = max(round(height * scale), size[0]), max(round(width * scale), size[1])
        room = scaled[0] - size[0], scaled[1] - size[1]
        where = rng.random(2) if self.stage.crop == "random" else (0.5, 0.5)
        top, left = (
            int(share * (length + (share != 0.5))) for share, length in zip(where, room, strict=True)
        )
        return Cut([start + stride * k for k in range(num_frames)], scaled, top, left, size)

    @torch.no_grad()
    def _latents(self, sample: ShardSample, cut: Cut) -> Tensor:
        """1 c f h w, encoded now or before."""
        if self.cache is None:
            return self._encode(sample.frames(cut))
        path = self.cache / f"{sample.key}-{cut.size[0]}x{cut.size[1]}.npy"
        if not path.exists():
            every = Cut(list(range(sample.num_frames)), cut.scaled, cut.top, cut.left, cut.size)
            with whole_file(path) as part, part.open("wb") as file:
                np.save(file, self._encode(sample.frames(every)).numpy().astype(np.float16))
        return torch.from_numpy(np.load(path, mmap_mode="r")[:, :, cut.picks]).float()

    def _encode(self, frames: np.ndarray) -> Tensor:
        """uint8 f h w c -> 1 c f h w, on the CPU."""
        device = next(self.pack.vae.parameters()).device
        return self.pack.vae.encode(as_video(frames).to(device), batch=ENCODE_BATCH).float().cpu()

    def _controls(self, pairs: Sequence[tuple[ShardSample, Cut]]) -> dict[str, Tensor]:
        """Kind -> b 3 f h w in 0..1; a kind that one of the samples lacks is left out."""
        controls = {}
        for kind, member in (("pose", "pose.json"), ("depth", "depth.mp4")):
            if all(member in sample.members for sample, _ in pairs):
                drawn = [draw_poses(s, c) if kind == "pose" else s.frames(c, member) for s, c in pairs]
                stacked = torch.from_numpy(np.stack(drawn)).float() / 255
                controls[kind] = rearrange(stacked, "b f h w c -> b c f h w")
        return controls

    def _pictures(self, rng: np.random.Generator, samples: Sequence[ShardSample]) -> dict[str, Tensor]:
        """Kind -> b 3 s s, normalized for CLIP; zeros where a sample has no picture of that kind."""
        side = self.pack.image_encoder.config.image_size
        pictures = {}
        for kind in self.pack.config.guider:
            shown = [self._reference(rng, sample, kind) for sample in samples]
            blank = torch.zeros(1, 3, side, side)
            rows = [
                blank if p is None else prepare_pictures([fit_square(p, max(p.shape[:2]))], side)
                for p in shown
            ]
            pictures[kind] = torch.cat(rows)
        return pictures

    def _reference(self, rng: np.random.Generator, sample: ShardSample, kind: str) -> np.ndarray | None:
        """The picture of a kind; style is any frame of the sample itself."""
        if kind == "style":
            pick, (height, width) = int(rng.integers(sample.num_frames)), sample.size
            return sample.frames(Cut([pick], (height, width), 0, 0, (height, width)))[0]
        return sample.picture(f"{kind}.jpg") if f"{kind}.jpg" in sample.members else None


def open_store(data: Path, pack: Pack, stage: Stage, cache: bool = False, follow: float = 0.0) -> Store:
    """The data set of a folder: shards, or synthetic clips; where the pack is on CUDA, they lie there too."""
    if not is_sharded(data):
        if pack.vae.mean.is_cuda:
            return DeviceStore(data, pack, stage.data == "crop", stage.longest_run, follow)
        return ClipStore(data)
    if stage.images and any(needs_identity(pack.config, kind) for kind in pack.config.guider):
        raise UsageError("a face prompt with ArcFace's embeddings cannot be trained", "Take another adapter.")
    return ShardStore(data, pack, stage, cache)


def is_sharded(data: Path) -> bool:
    """Whether a folder holds shards."""
    return any(data.glob("*.tar"))


def cache_folder(folder: Path, pack: Pack) -> Path:
    """Where latents of this autoencoder are kept: its weights decide."""
    first = next(pack.vae.parameters()).detach().cpu().numpy().tobytes()
    mean = pack.vae.mean.cpu().numpy().tobytes() + pack.vae.std.cpu().numpy().tobytes()
    place = folder / "latents" / sha256(first + mean).hexdigest()[:12]
    place.mkdir(parents=True, exist_ok=True)
    return place


def draw_poses(sample: ShardSample, cut: Cut) -> np.ndarray:
    """The chosen frames' poses as pictures, uint8 f h w c."""
    poses = sample.poses()
    scale = np.array([cut.scaled[1] / poses.width, cut.scaled[0] / poses.height], np.float32)
    points = poses.points[cut.picks] * scale - np.array([cut.left, cut.top], np.float32)
    scores = poses.scores[cut.picks]
    return np.stack([draw_control(p, s, cut.size, *cut.size) for p, s in zip(points, scores, strict=True)])


def decode(content: bytes, picks: Sequence[int], fps: Fraction) -> list[np.ndarray]:
    """Frames of a video of ours, uint8 h w c each; picks rise."""
    found: dict[int, np.ndarray] = {}
    wanted = set(picks)
    with av.open(io.BytesIO(content), "r") as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        container.seek(int(picks[0] / fps / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            assert frame.pts is not None
            number = round(frame.pts * stream.time_base * fps)
            if number in wanted:
                found[number] = frame.to_ndarray(format="rgb24")
            if number >= picks[-1]:
                break
    if missing := wanted - found.keys():
        raise InputError(
            f"a clip lacks its frames {sorted(missing)[:3]}", "Check it: dreamoving dataset check."
        )
    return [found[pick] for pick in picks]
