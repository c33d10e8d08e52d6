"""How good the light depth network is on people, clothes and cameras that it never saw."""

from pathlib import Path

import cv2
import numpy as np
import torch
from einops import rearrange

from dreamoving_cli.extract.depth_networks import LightNetwork
from dreamoving_cli.media.images import resize
from dreamoving_cli.models.depth import load_depth_net
from dreamoving_cli.train.data import ClipStore
from dreamoving_cli.train.depth_data import SEEN
from dreamoving_cli.train.start import require_clips

EVERY = 5  # frames between two that are looked at
PAIRS = 2000  # of a pixel on the person and one behind, in each frame
FEW = 50  # pixels; a person that shows less is left out


def report_depth(weights: Path, data: Path) -> dict[str, float]:
    """Over the held-out clips; each error beside that of the best single number for the same pixels.

    mae: of nearness, 0..1, over the picture. person_*: inside the person, after the scale and shift that fit
    best: mean error relative to the nearness, and the share of the relief (variance) that is explained.
    ordering: of pairs of pixels, one on the person and one behind, the share that is told right.
    """
    store, network = require_clips(data, held_out=True), load_depth_net(weights)
    rows = [row for seed in store.seeds for row in clip_errors(store, network, seed)]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return {"frames": len(rows), **{name: round(value, 4) for name, value in means.items()}}


def clip_errors(store: ClipStore, network: torch.nn.Module, seed: int) -> list[dict[str, float]]:
    """The errors of every fifth frame of a clip that shows a person and something behind."""
    frames, near, person = (np.asarray(store.array(seed, n)[::EVERY]) for n in ("frames", "depth", "alpha"))
    height, width = LightNetwork.size_of(*frames.shape[1:3])
    pictures = np.stack([resize(frame, height, width) for frame in frames])
    with torch.inference_mode():
        made = network(rearrange(torch.from_numpy(pictures), "f h w c -> f c h w").float() / 255).numpy()
    rng = np.random.default_rng(seed)
    rows = []
    for m, n, p in zip(made, near, person, strict=True):
        back = cv2.resize(m, n.shape[::-1], interpolation=cv2.INTER_LINEAR)
        seen = p / 255 > SEEN
        if min(seen.sum(), (~seen).sum()) > FEW:
            rows.append(frame_errors(back, n.astype(np.float32) / 255, seen, rng))
    return rows


def frame_errors(
    made: np.ndarray, near: np.ndarray, person: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """All h w: what the network said, the truth, and where the person is."""
    inside, truth = made[person], near[person]
    slope, shift = np.polyfit(inside, truth, 1)
    off = slope * inside + shift - truth
    front, back = (rng.choice(made[mask], PAIRS) for mask in (person, ~person))
    return {
        "mae": np.abs(made - near).mean(),
        "mae_of_mean": np.abs(near - near.mean()).mean(),
        "person_error": (np.abs(off) / truth).mean(),
        "person_error_of_mean": (np.abs(truth - truth.mean()) / truth).mean(),
        "person_relief": 1 - off.var() / max(truth.var(), 1e-9),
        "ordering": (front > back).mean(),
    }
