"""Render the synthetic training set: one clip a seed, resumable, in worker processes.

    python -m dreamoving_cli.train synth --out DIR --clips 700 --workers 2

A clip is four arrays that training maps into memory (`SEED.frames.npy`, and pose, depth, alpha alike) and
`SEED.npz` with the rest, written last: where it is, the clip is whole.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from dreamoving_cli.errors import InputError
from dreamoving_cli.frozen import unknown

LARGE = ("frames", "pose", "depth", "alpha")
HELD_OUT = 1_000_000  # seeds from here on are never trained on
LONG_EVERY = 5  # one clip in five is as long as the motion blocks' window
LONG, SHORT = 64, 16


def clip_length(seed: int) -> int:
    """Frames of the clip of this seed."""
    return LONG if seed % LONG_EVERY == 0 else SHORT


@dataclass(frozen=True)
class Shooting:
    """How clips are taken; the people are those of the seeds all the same."""

    scale: float = 1.0  # of the pictures' sides
    framing: str | None = None  # of FRAMINGS; None: mixed
    frames: int | None = None  # None: as long as clip_length says
    fps: float = 16.0


def write_clip(folder: Path, recorded: Sequence[Path], seed: int, how: Shooting = Shooting()) -> Path:
    """Render one clip unless it is there already."""
    import cv2

    from dreamoving_cli.train.scenes import make_clip

    done = folder / f"{seed}.npz"
    if done.exists():
        return done
    cv2.setNumThreads(1)
    frames = how.frames or clip_length(seed)
    clip = make_clip(seed, frames, how.fps, recorded, scale=how.scale, framing=how.framing)
    for name in LARGE:
        np.save(folder / f"{seed}.{name}.npy", clip.pop(name))
    part = folder / f".{seed}.part.npz"
    np.savez(part, allow_pickle=False, **clip)
    return part.replace(done)


def synthesize(
    folder: Path, seeds: range, workers: int = 1, motion: Path | None = None, how: Shooting = Shooting()
) -> None:
    """Render the clips of these seeds into `folder`; `motion`: a folder of BVH files to dance to."""
    from dreamoving_cli.train.scenes import FRAMINGS

    if how.framing and how.framing not in FRAMINGS:
        raise unknown("framing", how.framing, FRAMINGS)
    recorded = recordings(motion) if motion else []
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:  # a fork inherits locks of threads
        for _ in pool.map(partial(write_clip, folder, recorded, how=how), seeds, chunksize=1):
            pass


def recordings(folder: Path) -> list[Path]:
    """The BVH files of a folder, each read once so that a broken one stops us before the work."""
    from dreamoving_cli.train.bvh import read_dance

    files = sorted(folder.glob("*.bvh"))
    if not files:
        raise InputError(f"no .bvh files in '{folder}'", "Give a folder of recorded motion to --motion.")
    for path in files:
        read_dance(path)
    return files
