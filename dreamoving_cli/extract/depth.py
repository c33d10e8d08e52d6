"""How far away everything in a clip is, and the depth pictures of it: read this first.

frames -> distances (a network, depth_networks.py) -> a file on disk (DepthStore) -> limits of the whole clip
(depth_tone.py) -> pictures on demand (ClipDepth). Whatever the clip's length, memory holds a few frames.
"""

import json
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from dreamoving_cli.errors import InputError
from dreamoving_cli.extract.cuts import with_cuts
from dreamoving_cli.extract.depth_tone import Limits, as_8_bit, limits_of, steadied
from dreamoving_cli.media.images import resize
from dreamoving_cli.media.video import Clip
from dreamoving_cli.whole import writing

HEADER = 4096  # bytes before the distances: what they were made from
BLOCK = 8  # frames read at once
STEP = 0.04  # of the clip's depth: what differs by more is movement, not noise

OnFrame = Callable[[int], None]  # frames done


class DepthNetwork(Protocol):
    """Says of frames how far away every pixel is."""

    name: str
    identity: str  # of the weights too: what it says of a frame depends on this and the frame alone
    batch: int  # frames at once

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width at which frames of this size are looked at."""

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Distances, float32 f h w, larger = farther, in meters if the network knows them.

        frames: uint8 f h w c of a size that `size` gave.
        """


class DepthStore:
    """The distances of a clip in a file: float32 f h w after a header; grows frame by frame."""

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        made_from: Mapping[str, Any] = MappingProxyType({}),
        *,
        resume: bool = False,
    ) -> None:
        """made_from: plain values that decide the distances; resume: go on with a file of the same."""
        self.num_frames, self.height, self.width = shape
        self._frame_bytes = 4 * self.height * self.width
        header = json.dumps({"shape": shape, **made_from}, sort_keys=True).encode().ljust(HEADER)
        with writing(path):
            going_on = resume and path.is_file() and self._starts_with(path, header)
            self._file = path.open("r+b" if going_on else "w+b")
            if not going_on:
                self._file.write(header)
        frames = (path.stat().st_size - HEADER) // self._frame_bytes if going_on else 0
        self.done = min(frames, self.num_frames)
        self.path = path

    @staticmethod
    def _starts_with(path: Path, header: bytes) -> bool:
        with path.open("rb") as file:
            return file.read(HEADER) == header

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens the file anew, to read."""
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._file = self.path.open("r+b")

    def append(self, distances: np.ndarray) -> None:
        """The next frames, float32 f h w."""
        with writing(self.path):
            self._file.seek(HEADER + self.done * self._frame_bytes)
            self._file.write(np.ascontiguousarray(distances, np.float32).tobytes())
            self._file.flush()
        self.done += len(distances)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Frames start .. stop - 1, float32 f h w."""
        self._file.seek(HEADER + start * self._frame_bytes)
        data = self._file.read((stop - start) * self._frame_bytes)
        return np.frombuffer(data, np.float32).reshape(-1, self.height, self.width)

    def blocks(self) -> Iterator[np.ndarray]:
        """All of it, some frames at a time."""
        for start in range(0, self.done, BLOCK):
            yield self.read(start, min(start + BLOCK, self.done))

    def close(self) -> None:
        """Release the file; it stays where it is."""
        self._file.close()


@dataclass(frozen=True)
class ClipDepth:
    """The depth of a clip: pictures on demand."""

    store: DepthStore
    limits: Limits
    cuts: tuple[int, ...] = ()
    smooth: bool = True

    def nearness(self, frames: Sequence[int]) -> np.ndarray:
        """float32 f h w at the network's size: 1 near, 0 far."""
        return self.limits.nearness(np.stack([self.distances(frame) for frame in frames]))

    def distances(self, frame: int) -> np.ndarray:
        """float32 h w, steadied over time if that is asked for."""
        step = STEP * (self.limits.far - self.limits.near)
        if not self.smooth or step <= 0:
            return self.store.read(frame, frame + 1)[0]
        ends = (0, *self.cuts, self.store.num_frames)
        at = bisect_right(ends, frame)
        read = lru_cache(2)(lambda k: self.store.read(k, k + 1)[0])
        return steadied(read, frame, (ends[at - 1], ends[at]), step)

    def at_size(self, frames: Sequence[int], height: int, width: int) -> Iterator[np.ndarray]:
        """float32 height width of each frame."""
        import cv2

        for frame in frames:
            near = self.nearness([frame])[0]
            method = cv2.INTER_LINEAR if height * width > near.size else cv2.INTER_AREA
            yield cv2.resize(near, (width, height), interpolation=method)

    def pictures(self, frames: Sequence[int], height: int, width: int) -> np.ndarray:
        """uint8 f h w c, gray: near is white."""
        gray = np.stack([as_8_bit(near) for near in self.at_size(frames, height, width)])
        return np.repeat(gray[..., None], 3, axis=-1)


@dataclass(frozen=True)
class DepthReport:
    """What was measured of an extraction."""

    detector: str
    frames: int
    near: float  # the distances that became white and black
    far: float
    flicker: float  # mean change of a pixel from frame to frame, of the full range; movement counts too
    frames_per_s: float | None  # over the frames that were looked at in this run; None: all were there
    cuts: int


def find_depth(
    clip: Clip,
    network: DepthNetwork,
    store: DepthStore,
    *,
    smooth: bool = True,
    on_frame: OnFrame = lambda k: None,
) -> tuple[ClipDepth, DepthReport]:
    """Fill the store with the clip's distances, from where it ends on; then their limits."""
    begun, before = time.perf_counter(), store.done
    cuts = fill(clip, network, store, on_frame)
    took_s = max(time.perf_counter() - begun, 1e-9)
    depth = ClipDepth(store, limits_of(store.blocks), tuple(cuts), smooth)
    near, far = depth.limits.near, depth.limits.far
    speed = round((store.done - before) / took_s, 2) if store.done > before else None
    report = DepthReport(
        network.name, store.done, round(near, 4), round(far, 4), round(flicker(depth), 5), speed, len(cuts)
    )
    return depth, report


def fill(clip: Clip, network: DepthNetwork, store: DepthStore, on_frame: OnFrame) -> list[int]:
    """Look at the frames that the store has not; the first frames of new shots."""
    cuts: list[int] = []
    held: list[np.ndarray] = []

    def look() -> None:
        distances = network(np.stack(held))
        if not np.isfinite(distances).all():
            raise InputError(
                f"{network.name} gave no finite numbers near frame {store.done} of '{clip.path}'",
                "Try --device cpu.",
            )
        store.append(distances)
        held.clear()
        on_frame(store.done)

    frames = with_cuts(chain.from_iterable(clip.batches(BLOCK)), clip.fps)
    for k, (frame, cut) in enumerate(frames):
        if cut:
            cuts.append(k)
        if k < store.done + len(held):
            continue
        held.append(resize(frame, store.height, store.width))
        if len(held) == network.batch:
            look()
    if held:
        look()
    return cuts


def flicker(depth: ClipDepth) -> float:
    """Mean absolute change of nearness between neighboring frames of one shot, over up to 100 pairs."""
    last = depth.store.num_frames - 1
    picks = set(np.linspace(1, last, 100).astype(int).tolist()) - {*depth.cuts} if last > 0 else set()
    changes = [float(np.abs(np.diff(depth.nearness([k - 1, k]), axis=0)).mean()) for k in sorted(picks)]
    return float(np.mean(changes)) if changes else 0.0
