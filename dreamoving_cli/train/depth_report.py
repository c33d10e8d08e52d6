"""How good the light depth network is on people, clothes and cameras that it never saw, and how steady."""

import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch

from dreamoving_cli.extract.depth import ClipDepth, DepthStore
from dreamoving_cli.extract.depth_networks import LightNetwork
from dreamoving_cli.extract.depth_tone import limits_of
from dreamoving_cli.media.images import resize
from dreamoving_cli.train.data import ClipStore
from dreamoving_cli.train.depth_data import SEEN
from dreamoving_cli.train.start import require_clips

EVERY = 5  # frames between two that are looked at
PAIRS = 2000  # of a pixel on the person and one behind, in each frame
FEW = 50  # pixels; a person that shows less is left out
BAR = 0.08  # of person_error and person_error_in_frame
STILL = 12  # frames of somebody who does not move
GRAIN = 2.0  # gray levels, standard deviation: what a camera adds to each pixel of each frame
WHITE = 255


def report_depth(weights: Path, data: Path) -> dict[str, float | bool]:
    """Over the held-out clips; each error beside that of the best single number for the same pixels.

    mae: of nearness, 0..1, over the picture. person_*: inside the person, after the scale and shift that fit
    best there (in_frame: that fit the whole frame): mean error relative to the nearness, and the share of
    the relief (variance) that is explained. ordering: of pairs of pixels, one on the person and one behind,
    the share that is told right. still_*: see `still_changes`.
    """
    store, network = require_clips(data, held_out=True), LightNetwork(torch.device("cpu"), weights)
    rows = [row for seed in store.seeds for row in clip_errors(store, network, seed)]
    still = [row for seed in store.seeds for row in still_changes(store, network, seed)]
    found = {"frames": len(rows), **means(rows), "still_clips": len(still), **means(still)}
    met = max(found["person_error"], found["person_error_in_frame"]) <= BAR
    calm = found["still_depth"] <= found["still_picture"] and found["still_without_grain"] == 0
    return {**found, "error_bar_met": met, "adds_no_flicker": calm}


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of each column."""
    return {name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]}


def clip_errors(store: ClipStore, network: LightNetwork, seed: int) -> list[dict[str, float]]:
    """The errors of every fifth frame of a clip that shows a person and something behind."""
    frames, near, person = (np.asarray(store.array(seed, n)[::EVERY]) for n in ("frames", "depth", "alpha"))
    made = 1 - network(at_size(network, frames))
    rng = np.random.default_rng(seed)
    rows = []
    for m, n, p in zip(made, near, person, strict=True):
        back = cv2.resize(m, n.shape[::-1], interpolation=cv2.INTER_LINEAR)
        seen = p / 255 > SEEN
        if min(seen.sum(), (~seen).sum()) > FEW:
            rows.append(frame_errors(back, n.astype(np.float32) / 255, seen, rng))
    return rows


def at_size(network: LightNetwork, frames: np.ndarray) -> np.ndarray:
    """Frames, uint8 f h w c, as the network looks at them."""
    return np.stack([resize(frame, *network.size(*frames.shape[1:3])) for frame in frames])


def still_changes(store: ClipStore, network: LightNetwork, seed: int) -> list[dict[str, float]]:
    """How much a person who stands still changes from frame to frame, in gray levels of picture and map.

    The clip's first frame, over and over, with the grain of a camera; the map as `extract-depth` writes it.
    Nothing where nobody is seen.
    """
    frame, seen = store.array(seed, "frames")[0], store.array(seed, "alpha")[0] / 255 > SEEN
    if seen.sum() <= FEW:
        return []
    grain = np.random.default_rng(seed).normal(0, GRAIN, (STILL, *frame.shape))
    shown = np.clip(np.round(frame + grain), 0, 255).astype(np.uint8)
    pictures = at_size(network, shown)
    inside = (
        resize(np.repeat(255 * seen[..., None], 3, -1).astype(np.uint8), *pictures.shape[1:3])[..., 0] > 127
    )
    distances = network(pictures)
    plain = network(at_size(network, np.repeat(frame[None], 2, 0)))
    return [
        {
            "still_picture": change(pictures.astype(np.float32), inside),
            "still_depth": change(WHITE * nearness(distances, smooth=True), inside),
            "still_depth_unsteadied": change(WHITE * nearness(distances, smooth=False), inside),
            "still_without_grain": change(WHITE * nearness(plain, smooth=False), inside),
        }
    ]


def nearness(distances: np.ndarray, *, smooth: bool) -> np.ndarray:
    """What becomes of a clip's distances, f h w, in a map: 0..1."""
    with tempfile.TemporaryDirectory() as folder:
        store = DepthStore(Path(folder) / "state", distances.shape)
        store.append(distances)
        near = ClipDepth(store, limits_of(store.blocks), smooth=smooth).nearness(range(len(distances)))
        store.close()
    return near


def change(frames: np.ndarray, inside: np.ndarray) -> float:
    """Mean absolute difference of neighbors in time. frames: f h w or f h w c; inside: h w."""
    return float(np.abs(np.diff(frames, axis=0))[:, inside].mean())


def frame_errors(
    made: np.ndarray, near: np.ndarray, person: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """All h w: what the network said, the truth, and where the person is."""
    inside, truth = made[person], near[person]
    slope, shift = np.polyfit(inside, truth, 1)
    off = slope * inside + shift - truth
    slope, shift = np.polyfit(made.ravel(), near.ravel(), 1)
    off_in_frame = slope * inside + shift - truth
    front, back = (rng.choice(made[mask], PAIRS) for mask in (person, ~person))
    return {
        "mae": np.abs(made - near).mean(),
        "mae_of_mean": np.abs(near - near.mean()).mean(),
        "person_error": (np.abs(off) / truth).mean(),
        "person_error_in_frame": (np.abs(off_in_frame) / truth).mean(),
        "person_error_of_mean": (np.abs(truth - truth.mean()) / truth).mean(),
        "person_relief": 1 - off.var() / max(truth.var(), 1e-9),
        "ordering": (front > back).mean(),
    }
