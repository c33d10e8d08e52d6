"""How far a model's prediction is off where the truth is known: on a clip's own latents with noise.

What training minimizes, on held-out clips: no sampler, no detector and no guidance in between, and the same
noise for all models and variants. So differences are seen that renders of a few clips would hide.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dreamoving_cli.models.load import Pack
from dreamoving_cli.sampling import fused_noise
from dreamoving_cli.train.data import ClipStore, as_video, head_cover
from dreamoving_cli.train.losses import snr_schedule
from dreamoving_cli.train.variants import EvaluateOptions, Ready, Variant, ready

LEVELS = (0.9, 0.75, 0.5, 0.2)  # shares of the noise schedule


@torch.inference_mode()
def noise_error(
    pack: Pack, store: ClipStore, seed: int, variant: Variant, options: EvaluateOptions
) -> dict[str, float]:
    """Squared errors as shares of the target's square: of all cells, of the person's and of the head's."""
    alphas = snr_schedule(pack)
    timesteps = torch.tensor([round(level * (len(alphas) - 1)) for level in LEVELS])
    span = slice(0, options.frames)
    clean = pack.vae.encode(as_video(store.array(seed, "frames")[span]), batch=8)
    alpha = torch.from_numpy(np.array(store.array(seed, "alpha")[span])).float() / 255
    cells = clean.shape[-2], clean.shape[-1]
    person = F.adaptive_avg_pool2d(rearrange(alpha, "f h w -> f 1 h w"), cells)[:, 0]
    points = torch.from_numpy(np.array(store.facts(seed)["points"][span]))
    head = head_cover(points, (alpha.shape[1], alpha.shape[2]), cells) * person
    unguided = replace(options, guidance_scale=1.0, preset=None)
    with ready(pack, store, seed, variant, unguided, timesteps) as model:
        found = [at_level(model, clean, alphas, step, pack) for step in range(len(LEVELS))]
    error, size = (torch.stack(of).sum(0) for of in zip(*found, strict=True))  # f h w
    parts = {"noise_error": torch.ones_like(person), "noise_error_person": person, "noise_error_head": head}
    return {
        name: float((error * part).sum() / (size * part).sum()) for name, part in parts.items() if part.any()
    }


def at_level(model: Ready, clean: Tensor, alphas: Tensor, step: int, pack: Pack) -> tuple[Tensor, Tensor]:
    """Squared error at the timestep of this number, and the target's square; 1 c f h w -> f h w each."""
    t = model.solver.timesteps[step]
    a, s = alphas[t].sqrt(), (1 - alphas[t]).sqrt()
    noise = rearrange(model.solver.noise.mixed(range(clean.shape[2]), step), "f c h w -> 1 c f h w")
    x = a * clean + s * noise
    target = a * noise - s * clean if pack.config.scheduler.prediction_type == "v_prediction" else noise
    if anchors := model.windows.anchors:
        model.denoiser.look(x[:, :, anchors], t, anchors)
    guess = fused_noise(model.denoiser.predict_noise, model.solver, x, model.windows, step)
    return (guess - target).square().sum((0, 1)), target.square().sum((0, 1))
