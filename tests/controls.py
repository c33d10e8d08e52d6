"""Controls of noise, and a pack in which every block does something: where a wrong frame would be seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dreamoving_cli.models.load import Pack, build_pack
from dreamoving_cli.models.tiny import tiny_config


@dataclass(frozen=True)
class NoisePictures:
    """A control picture of noise for each frame."""

    side: int  # pixels

    def read(self, frames: Sequence[int]) -> np.ndarray:
        """uint8 f h w c."""
        shape = (self.side, self.side, 3)
        return np.stack([np.random.default_rng(f).integers(0, 255, shape, dtype=np.uint8) for f in frames])


def moving_pack() -> Pack:
    """A pose ControlNet without motion, a depth one with; no motion block is the identity."""
    made = build_pack(tiny_config(), seed=0)
    torch.manual_seed(0)
    for network in made.networks().values():
        for name, weight in network.named_parameters():
            if ("motion" in name and "proj_out" in name) or "controlnet_" in name:
                nn.init.normal_(weight, std=0.05)
    made.controlnets["pose"].motion = None
    return made
