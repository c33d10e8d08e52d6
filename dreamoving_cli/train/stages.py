"""The stages as data: what is trained, on what, how fast. One loop (loop.py) runs them all.

`autoencoder` and `picture` build what the miniature has instead of public weights; the rest is the paper's.
Their defaults here are the miniature's; the paper's numbers at full size are in docs/training.md.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stage:
    """One stage of training."""

    trains: tuple[str, ...]  # prefixes of parameter names, network first: "unet.motion"
    data: str  # "crop", "picture" or "clip"
    lr: float
    batch: int  # samples a step, over all workers
    steps: int
    frames: int = 1
    controls: bool = False
    images: bool = False
    motion: bool = False
    facts: bool = False  # read colors and classes off the image tokens as well
    sharpness: float = 0.0  # weight of local contrast in the autoencoder's loss
    weight_decay: float = 1e-2


ALL: dict[str, Any] = {"controls": True, "images": True, "motion": True}
IMAGE_PROMPTS = ("guider.", "image_encoder.")
STAGES = {
    "autoencoder": Stage(("vae.",), "crop", 1e-3, 32, 4000),
    "decoder": Stage(("vae.vae.decoder.",), "crop", 4e-4, 32, 800, sharpness=0.03),
    "picture": Stage(
        ("unet.unet.", "controlnet_pose.controlnet.", "controlnet_depth.controlnet.", "text_encoder.",
         *IMAGE_PROMPTS),
        "picture", 6e-4, 16, 6000, controls=True, images=True, facts=True,
    ),
    "content-guider": Stage(IMAGE_PROMPTS, "picture", 1e-4, 16, 500, controls=True, images=True, facts=True),
    "long-frames": Stage(("unet.motion.",), "clip", 3e-4, 2, 500, frames=16, motion=True),
    "video-controlnet": Stage(("controlnet_",), "clip", 1e-4, 2, 200, frames=16, **ALL),
    "expression": Stage(("unet.motion.",), "clip", 1e-4, 2, 300, frames=16, **ALL),
}  # fmt: skip
