"""Noisy pictures that stray: partly of another frame, where the control still shows the one that is wanted.

Of true pictures with little noise a model learns that limbs are where it sees them. What it sees when it
renders is its own guess, with limbs blurred or beside their place; trained on such, it puts them where the
control says, also at the steps that draw their outlines.
"""

from dataclasses import replace

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dreamoving_cli.train.data import Batch

MOST = 0.9  # of the other frame in what is noised
LEAST_NOISE = 0.4  # factor of the noise from which errors of the clean picture count no more


def ends(runs: Batch, frames: int, rng: np.random.Generator) -> Batch:
    """The first or the last `frames` of each run; `other` has the latents of as many at its other end."""
    parts = [slice(frames), slice(runs.latents.shape[2] - frames, None)]
    here, there = parts if rng.random() < 0.5 else parts[::-1]

    def of_part(x: Tensor) -> Tensor:
        return x[:, :, here]

    return replace(
        runs,
        latents=of_part(runs.latents),
        person=of_part(runs.person),
        head=of_part(runs.head),
        arms=of_part(runs.arms),
        controls={kind: of_part(shown) for kind, shown in runs.controls.items()},
        other=runs.latents[:, :, there],
    )


def strayed(batch: Batch, share: float, draw: torch.Generator) -> Tensor:
    """What is noised: in a `share` of the samples mixed with the other frame, by up to MOST; b c f h w."""
    if batch.other is None:
        return batch.latents
    count = len(batch.latents)
    straying = torch.rand(count, generator=draw) < share
    mixed = straying * torch.rand(count, generator=draw) * MOST
    return torch.lerp(batch.latents, batch.other, rearrange(mixed, "b -> b 1 1 1 1").to(batch.latents))


def error_of_clean(guess: Tensor, clean: Tensor, s: Tensor) -> Tensor:
    """Error of the guessed clean latents b c f h w, at noise factors s b 1 1 1 1.

    Weighed as the error of the prediction that it stands for (v), but for little noise, where a small step of
    the picture would be a large one of the prediction.
    """
    return (guess - clean) / s.clamp(min=LEAST_NOISE)
