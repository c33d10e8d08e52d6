"""Our denoise loop on a task, as `render` runs it: prompts encoded once, then all steps and windows."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dreamoving_cli.bench.sizes import CONTROL, CONTROL_SCALE, GUIDED, STRENGTHS, Task
from dreamoving_cli.bench.weights import picture_features, random_pack
from dreamoving_cli.compiling import compiled
from dreamoving_cli.conditioning import Denoiser, Layers, Place, Prompts
from dreamoving_cli.controls import Control
from dreamoving_cli.device import DTYPES, reuse_memory
from dreamoving_cli.guidance import Guidance
from dreamoving_cli.models.load import Pack
from dreamoving_cli.models.projections import ImageFeatures
from dreamoving_cli.sampling import FrameNoise, Solver, denoise, initial_latents, make_scheduler
from dreamoving_cli.windows import Windows

PROMPT, NEGATIVE_PROMPT = "a dancer on a beach", "rain"
SQUARE = 16  # pixels a side
DECODED = 8  # frames at once, as the presets have it
Run = Callable[[], Tensor]  # one timed run -> latents 1 c f h w, or pictures, uint8 f h w c


class Pictures:
    """Control pictures of colored squares, each frame its own: made in no time, and packed as poses are."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def read(self, frames: Sequence[int]) -> np.ndarray:
        """uint8 f h w c."""
        height, width = (side // SQUARE for side in self.size)
        colors = [np.random.default_rng(f).integers(0, 256, (height, width, 3), np.uint8) for f in frames]
        return np.stack(colors).repeat(SQUARE, 1).repeat(SQUARE, 2)


def solver(task: Task) -> Solver:
    """The sampler and the starting noise of a task."""
    scheduler = make_scheduler("ddim", task.steps, {"beta_schedule": "linear", **BETAS, "steps_offset": 1})
    height, width = task.size
    return Solver(scheduler, FrameNoise(task.seed, (4, height // 8, width // 8)), task.frames)


def windows(task: Task) -> Windows:
    return Windows(task.frames, task.window or task.frames, task.overlap, window_batch=task.window_batch)


def encode(pack: Pack, task: Task) -> Prompts:
    """Keys and values of the text and both pictures."""
    with torch.inference_mode():
        text = pack.encode_text([NEGATIVE_PROMPT, PROMPT][-task.branches :])
        layers: Layers = [[(k, v, 1.0)] for k, v in pack.unet.text_keys(text)]
        for number, kind in enumerate(GUIDED):
            features = picture_features(task, number).to(text.device)
            keys = pack.guider.keys(kind, pack.guider.tokens(kind, ImageFeatures(features)))
            for layer, (k, v) in zip(layers, keys, strict=True):
                layer.append((k, v, STRENGTHS[kind]))
        control: Layers = [[(k, v, 1.0)] for k, v in pack.controlnets[CONTROL].text_keys(text)]
    return Prompts(layers, {CONTROL: control}, Guidance(task.guidance_scale))


def on_device(pack: Pack, task: Task) -> Pack:
    for network in pack.networks().values():
        network.to(task.device)
    return pack


def make(task: Task, fast: bool = False) -> Run:
    """Build the networks; what one run does. fast: its blocks that repeat are compiled, by the first run."""
    reuse_memory(torch.device(task.device))
    pack = on_device(random_pack(task), task)
    place = Place(torch.device(task.device), DTYPES[task.dtype])
    control = Control(CONTROL, Pictures(task.size), CONTROL_SCALE)

    def run() -> Tensor:
        made = solver(task)
        prompts, placed = encode(pack, task), windows(task)
        model = Denoiser(pack, prompts, [control], made.timesteps, placed, place)
        with compiled([pack.unet, *pack.controlnets.values()]) if fast else nullcontext():
            latents = denoise(model.predict_noise, made, placed)
        return decoded(pack, latents, place) if task.pictures else latents

    return run


@torch.inference_mode()
def decoded(pack: Pack, latents: Tensor, place: Place) -> Tensor:
    """1 c f h w -> uint8 f h w c on the CPU, a few frames at a time."""
    parts = latents.split(DECODED, dim=2)
    pictures = (pack.vae.decode(part.to(place.device, place.dtype)).float().clamp(-1, 1) for part in parts)
    frames = [rearrange((x + 1) * 127.5, "1 c f h w -> f h w c").round().to(torch.uint8) for x in pictures]
    return torch.cat([of.cpu() for of in frames])


def starting_latents(task: Task) -> Tensor:
    """What every contender starts from: 1 c f h w."""
    return initial_latents(solver(task), task.frames)


BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012}
