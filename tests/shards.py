"""Small shards of clips, a random pack to train on them, and a run's options: for tests of training."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamoving_cli.dataset.shards import Packed
from dreamoving_cli.extract.keypoints import NUM_POINTS, Poses, save_poses
from dreamoving_cli.media.images import write_image
from dreamoving_cli.media.writer import write_video
from dreamoving_cli.models.load import build_pack, save_pack
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.train.options import TrainOptions

FPS, FRAMES, SIZE = Fraction(12), 14, (64, 96)  # of the stored clips


def frames_of(seed: int) -> np.ndarray:
    """A bright bar that walks to the right, one step a frame: uint8 f h w 3."""
    rng = np.random.default_rng(seed)
    frames = np.full((FRAMES, *SIZE, 3), rng.integers(20, 90, 3), np.uint8)
    for k in range(FRAMES):
        frames[k, :, 6 * k : 6 * k + 6] = 230
    return frames


def make_sample(folder: Path, key: str, seed: int, depth: bool = False) -> Packed:
    """A clip with a pose whose nose is on the bar, and what passes for depth if asked."""
    folder.mkdir()
    write_video(folder / "clip.mp4", [frames_of(seed)], FPS, quality=4)
    (folder / "clip.mp4").rename(folder / "mp4")
    if depth:
        write_video(folder / "far.mp4", [frames_of(seed + 9)], FPS, quality=4)
        (folder / "far.mp4").rename(folder / "depth.mp4")
    points = np.zeros((FRAMES, 1, NUM_POINTS, 2), np.float32)
    points[..., 0] = 6 * np.arange(FRAMES)[:, None, None] + 3
    points[..., 1] = np.linspace(8, 56, NUM_POINTS)
    scores = np.ones((FRAMES, 1, NUM_POINTS), np.float32)
    save_poses(folder / "pose.json", Poses(FPS, *SIZE, points, scores))
    write_image(folder / "face.png", np.full((40, 40, 3), 200, np.uint8))
    (folder / "face.png").rename(folder / "face")
    (folder / "txt").write_text(f"dancer {seed}\n")
    facts = {"frames": FRAMES, "fps": str(FPS), "height": SIZE[0], "width": SIZE[1]}
    (folder / "json").write_text(json.dumps(facts))
    return Packed(key, folder)


def talking_pack(folder: Path) -> Path:
    """A random tiny pack whose ControlNets already say something."""
    pack = build_pack(tiny_config(), seed=0)
    with torch.no_grad():
        for net in pack.controlnets.values():
            net.controlnet.controlnet_mid_block.weight.normal_(std=0.02)
    save_pack(pack, folder, torch.float32)
    return folder


def options(data: Path, out: Path, start: Path, **more: Any) -> TrainOptions:
    """A run small enough for a test."""
    values = {
        "data": data,
        "out": out,
        "model": str(start),
        "size": "64x32",
        "frames": 3,
        "fps": 6.0,
        "steps": 2,
    }
    return TrainOptions(**{**values, "batch": 2, "warmup": 1, "device": "cpu", **more})


def state_of(out: Path) -> dict[str, Any]:
    return torch.load(out / "state.pt", weights_only=True)


def same(one: Any, other: Any) -> bool:
    """Bit for bit, through dicts and lists."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(v, other[k]) for k, v in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
