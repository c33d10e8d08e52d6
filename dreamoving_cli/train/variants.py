"""A held-out clip as a model makes it, with parts of the model left out.

    with ready(pack, store, seed, VARIANTS["no-face"], options) as model: ...

Not here: what is measured of it (evaluate.py, noise_error.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from dreamoving_cli.conditioning import Denoiser, ImagePrompts, encode_prompts
from dreamoving_cli.controls import Control
from dreamoving_cli.errors import UsageError
from dreamoving_cli.models.load import Pack
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.presets import load_preset
from dreamoving_cli.sampling import FrameNoise, Solver, denoise, make_scheduler
from dreamoving_cli.train.data import ClipStore
from dreamoving_cli.windows import Windows


@dataclass(frozen=True)
class EvaluateOptions:
    """What is rendered."""

    model: Path
    data: Path
    out: Path
    clips: int = 8
    frames: int = 16
    steps: int = 15
    guidance_scale: float = 2.0
    seed: int = 0
    variants: tuple[str, ...] = ("full",)
    drivers: tuple[Path, ...] = ()  # footage, rendered without pictures or words
    against: tuple[Path, ...] = ()  # further packs, whole
    context_frames: int | None = None  # of a window; None = the pack's
    context_overlap: int = 4
    renders: bool = True  # else the error of the noise alone is measured
    preset: str | None = None  # whose sampler, steps, guidance and strengths; None: ddim and those above

    @property
    def look(self) -> RenderOptions:
        """How clips are rendered."""
        if self.preset is not None:
            return load_preset(self.preset)
        return RenderOptions(steps=self.steps, guidance_scale=self.guidance_scale)

    @property
    def columns(self) -> "dict[str, tuple[Path, Variant]]":
        """Name -> which pack, and what of it."""
        columns = {name: (self.model, VARIANTS[name]) for name in self.variants}
        for path in self.against:
            name = path.parent.name if path.name == "pack" else path.name
            if name in ("truth", *columns):
                raise UsageError(f"two of what is compared are called '{name}'", "Rename the pack's folder.")
            columns[name] = (path, VARIANTS["full"])
        return columns


@dataclass(frozen=True)
class Variant:
    """A model with a part left out."""

    leaves_out: str  # in words
    face: float = 1.0
    cloth: float = 1.0
    control: float = 1.0
    still: tuple[str, ...] = ()  # networks whose motion blocks do nothing
    anchors: bool = True


VARIANTS = {
    "full": Variant("nothing"),
    "no-face": Variant("the face picture: alpha_f 0", face=0.0),
    "no-cloth": Variant("the garment picture: alpha_c 0", cloth=0.0),
    "no-control": Variant("the Video ControlNet", control=0.0),
    "no-control-motion": Variant("motion blocks of the Video ControlNet", still=("controlnet_",)),
    "no-motion": Variant("motion blocks of the U-Net", still=("unet",)),
    "no-anchors": Variant("the pack's anchor frames", anchors=False),
}


class Ready(NamedTuple):
    """A model that knows a clip's prompts and controls."""

    denoiser: Denoiser
    solver: Solver
    windows: Windows


@contextmanager
def ready(
    pack: Pack,
    store: ClipStore,
    seed: int,
    variant: Variant,
    options: EvaluateOptions,
    timesteps: Tensor | None = None,
) -> Iterator[Ready]:
    """The model, shown the clip's pose, face, garment and caption; timesteps: in place of the sampler's."""
    facts, poses = store.facts(seed), np.array(store.array(seed, "pose")[: options.frames])
    look = options.look
    prompt = look.replace(
        prompt=str(facts["captions"][0]),
        face_strength=look.face_strength * variant.face,
        cloth_strength=look.cloth_strength * variant.cloth,
    )
    shown = ImagePrompts({"face": [facts["faces"][0]], "cloth": [facts["cloths"][0]]})
    frames, height, width = poses.shape[:3]
    factor, channels = pack.config.pixel_factor, pack.config.latent_channels
    scheduler = make_scheduler(prompt.sampler, prompt.steps, pack.config.scheduler.model_dump())
    if timesteps is not None:
        scheduler.timesteps = timesteps
    noise = FrameNoise(options.seed, (channels, height // factor, width // factor), pack.config.shared_noise)
    solver = Solver(scheduler, noise, frames)
    scale = look.pose_scale * variant.control
    controls = [Control("pose", Stored(poses), scale)] if scale else []
    anchors = pack.config.anchor_frames * variant.anchors
    window = options.context_frames or pack.config.context_frames
    windows = Windows(frames, window, options.context_overlap, anchor_frames=anchors)
    with without_motion(pack, variant.still):
        prompts = encode_prompts(pack, prompt, shown)
        yield Ready(Denoiser(pack, prompts, controls, solver.timesteps, windows), solver, windows)


def render_clip(
    pack: Pack, store: ClipStore, seed: int, variant: Variant, options: EvaluateOptions
) -> np.ndarray:
    """The clip as the model makes it: uint8 f h w c."""
    with ready(pack, store, seed, variant, options) as (denoiser, solver, windows):
        latents = denoise(denoiser.predict_noise, solver, windows, look=denoiser.look)
    with torch.inference_mode():
        video = rearrange(pack.vae.decode(latents, batch=8).clamp(-1, 1), "1 c f h w -> f h w c")
    return ((video + 1) * 127.5).round().to(torch.uint8).numpy()


@dataclass(frozen=True)
class Stored:
    """Control pictures that are there already."""

    pictures: np.ndarray  # f h w c

    def read(self, frames: Sequence[int]) -> np.ndarray:
        """uint8 f h w c."""
        return self.pictures[list(frames)]


@contextmanager
def without_motion(pack: Pack, networks: tuple[str, ...]) -> Iterator[None]:
    """Motion blocks of these networks are the identity while the block lasts."""
    kept: list[tuple[nn.Parameter, torch.Tensor]] = []
    for name, network in pack.networks().items():
        if networks and name.startswith(networks) and getattr(network, "motion", None) is not None:
            outputs = [
                p for n, p in network.named_parameters() if n.startswith("motion.") and ".proj_out." in n
            ]
            kept += [(p, p.detach().clone()) for p in outputs]
    with torch.no_grad():
        for p, _ in kept:
            p.zero_()
        try:
            yield
        finally:
            for p, value in kept:
                p.copy_(value)
