"""What a render will look like, while it is made: a sheet of its frames beside the output.

    previews = Previews(preview_path(output), preview_decoder(job.source, job.config))
    previews.show(state, scheduler)     # after a step

The picture behind noisy latents follows from those before and after a step. It is made visible by a small
autoencoder: TAESD for Stable Diffusion's latents, else the pack's own. Nothing here touches the render.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dreamoving_cli.media.images import contact_sheet, resize, spread, write_image
from dreamoving_cli.models.checkpoints.assemble import STATISTICS
from dreamoving_cli.models.checkpoints.files import Recipe
from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.strict import load_exactly, read_weights
from dreamoving_cli.models.vae import VAE
from dreamoving_cli.sampling import DenoiseState
from dreamoving_cli.taesd import CONFIG, read_taesd

CELLS, COLUMNS, CELL_SIDE = 8, 4, 256  # pictures, in a row, pixels of a picture's longer side
PATIENCE = 10  # a sheet is made when the last one took less than 1/10 of the time since


def preview_path(output: Path) -> Path:
    """Where the sheet of an unfinished render is: beside the output."""
    return output.with_name(output.name + ".preview.png")


def preview_decoder(source: Path | Recipe, config: PackConfig) -> VAE:
    """A small autoencoder for the latents of this model, on the CPU."""
    absent: tuple[str, ...] = ()
    if isinstance(source, Path) and config.vae.kind == "AutoencoderTiny":
        vae, file = VAE(config.vae), str(source / "vae.safetensors")
        state = read_weights(Path(file))
    else:
        vae, absent = VAE(CONFIG), STATISTICS
        state, file = read_taesd()
    load_exactly(vae, state, absent, file)
    return vae.float().eval().requires_grad_(False)


class Previews:
    """The sheet of one render, made again after a step unless that would slow the render down."""

    def __init__(self, path: Path, decoder: VAE) -> None:
        self.path, self.decoder = path, decoder
        self._before: DenoiseState | None = None
        self._ended, self._took = 0.0, 0.0

    def show(self, state: DenoiseState, scheduler: Any) -> None:
        """Write the sheet of this state; scheduler: one that has not been stepped."""
        before, self._before = self._before, state
        start = time.monotonic()
        if start - self._ended < PATIENCE * self._took:
            return
        picks = spread(state.latents.shape[2], CELLS)
        frames = self._pictures(clean_latents(state, before, scheduler, picks))
        sheet = contact_sheet(frames, min(COLUMNS, len(picks)), [str(frame) for frame in picks])
        write_image(self.path, sheet, overwrite=True)
        self._ended = time.monotonic()
        self._took = self._ended - start

    def remove(self) -> None:
        """The video is there: the sheet has served."""
        self.path.unlink(missing_ok=True)

    @torch.inference_mode()
    def _pictures(self, latents: Tensor) -> list[np.ndarray]:
        """1 c f h w -> uint8 h w c each, no larger than a cell."""
        pictures = []
        for frame in latents.split(1, dim=2):
            pixels = rearrange(self.decoder.decode(frame).clamp(-1, 1), "1 c 1 h w -> h w c")
            picture = ((pixels + 1) * 127.5).round().to(torch.uint8).numpy()
            factor = min(CELL_SIDE / max(picture.shape[:2]), 1.0)
            pictures.append(resize(picture, *(round(side * factor) for side in picture.shape[:2])))
        return pictures


def clean_latents(
    state: DenoiseState, before: DenoiseState | None, scheduler: Any, frames: Sequence[int]
) -> Tensor:
    """What these frames seem to become, 1 c f h w: x = signal * clean + noise, solved for what is clean.

    Two states tell it where the solver adds no noise of its own; else the state is only scaled.
    """
    levels = noise_levels(scheduler)
    signal, noise = levels[state.step]
    after = state.latents[:, :, frames]
    draws = type(scheduler).__name__ in ("EulerAncestralDiscreteScheduler", "LCMScheduler")
    if draws or before is None or before.step != state.step - 1:
        return after / max(signal, 1e-3)
    old_signal, old_noise = levels[before.step]
    mixed = noise * before.latents[:, :, frames] - old_noise * after
    return mixed / (old_signal * noise - signal * old_noise)


def noise_levels(scheduler: Any) -> list[tuple[float, float]]:
    """(signal, noise) in the latents before each step, and after the last."""
    if hasattr(scheduler, "sigmas"):
        sigmas = [float(sigma) for sigma in scheduler.sigmas]
        if "Euler" in type(scheduler).__name__:
            return [(1.0, sigma) for sigma in sigmas]
        return [((1 + s * s) ** -0.5, s * (1 + s * s) ** -0.5) for s in sigmas]
    alphas = [float(scheduler.alphas_cumprod[t]) for t in scheduler.timesteps]
    return [(a**0.5, (1 - a) ** 0.5) for a in [*alphas, float(scheduler.final_alpha_cumprod)]]
