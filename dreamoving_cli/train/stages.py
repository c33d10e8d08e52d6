"""The stages as data: what is trained, on what, how fast. One loop (loop.py) runs them all.

`autoencoder` and `picture` build what the miniature has instead of public weights; the rest is the paper's.
STAGES has the miniature's values, PAPER those of DreaMoving (arXiv 2312.05107) at full size.
"""

from dataclasses import dataclass
from typing import Any

REACH = 4  # frames from a wanted one to the one that strays into its noisy picture, at most


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
    sharpen: float = 0.0  # share by which the autoencoder's targets are sharpened
    adversary: float = 0.0  # gradient of a judge of patches, as a share of the distances' own
    decoded: float = 0.0  # weight of decoded heads and parts of people (decoded.py)
    stray: float = 0.0  # share of samples whose noisy picture is partly of another frame (stray.py)
    latent_noise: float = 0.1  # strongest noise on what the decoder sees, raw latents being about 0.7
    side: int = 64  # pixels of the autoencoder's crops
    anchor: float = 0.0  # weight of how far the autoencoder's latents move away from those at the start
    weight_decay: float = 1e-2
    size: tuple[int, int] | None = None  # height, width that samples are cut to; None = as they are stored
    crop: str = "center"  # or "random"
    fps: float | None = None  # of the runs of frames; None = every stored frame
    optimizer: str = "muon"  # for matrices; or "adamw" for all
    schedule: str = "cosine"  # of the learning rate after the warm-up; or "constant"
    warmup: int = 100  # steps
    ema: float = 0.998
    drop_text: float = 0.0  # chance that a sample sees the pictures without the text,
    drop_images: float = 0.0  # the text without the pictures,
    drop_both: float = 0.1  # neither
    absent: float = 0.15  # chance that face or cloth is not attended to in a sample
    shared_noise: float = 0.5  # variance share of the noise that all frames of a clip have in common
    noise: str = "high"  # which steps are drawn more often: "high", "low", or "even"
    snr_gamma: float = 0.0  # min-SNR weights (Hang et al. 2023); 0 = none
    beta_schedule: str | None = None  # of the noise; None = the pack's

    @property
    def longest_run(self) -> int:
        """Frames that a clip must have for any sample to be drawn from it."""
        return self.frames + (REACH if self.stray else 0)

    @property
    def divisible(self) -> bool:
        """Whether each worker may hold a part of the weights: AdamW works on parts, all else on wholes."""
        whole = self.data == "crop" or self.facts or self.decoded
        return self.optimizer == "adamw" and not whole


ALL: dict[str, Any] = {"controls": True, "images": True, "motion": True, "shared_noise": 1.0}
IMAGE_PROMPTS = ("guider.", "image_encoder.")
STAGES = {
    "autoencoder": Stage(("vae.",), "crop", 1e-3, 16, 4000, side=96),
    "decoder": Stage(
        ("vae.vae.decoder.",), "crop", 4e-4, 16, 800, sharpen=0.2, adversary=0.8, latent_noise=0.3, side=96
    ),
    "refit": Stage(("vae.",), "crop", 8e-4, 32, 800, sharpen=0.2, anchor=5.0),
    "picture": Stage(
        ("unet.unet.", "controlnet_pose.controlnet.", "controlnet_depth.controlnet.", "text_encoder.",
         *IMAGE_PROMPTS),
        "picture", 6e-4, 16, 6000, controls=True, images=True, facts=True,
    ),
    "polish": Stage(
        ("unet.unet.", "controlnet_pose.controlnet.", "controlnet_depth.controlnet."),
        "picture", 2e-4, 16, 1500, controls=True, images=True, noise="even", decoded=6.0, adversary=0.3,
    ),
    "correction": Stage(
        ("unet.unet.", "controlnet_pose.controlnet.", "controlnet_depth.controlnet."),
        "picture", 3e-4, 64, 1000, controls=True, images=True, noise="even", stray=0.5,
    ),
    "content-guider": Stage(IMAGE_PROMPTS, "picture", 1e-4, 16, 500, controls=True, images=True, facts=True),
    "long-frames": Stage(("unet.motion.",), "clip", 3e-4, 2, 500, frames=16, motion=True, shared_noise=1.0),
    "video-controlnet": Stage(("controlnet_",), "clip", 1e-4, 2, 200, frames=16, **ALL),
    "expression": Stage(("unet.motion.",), "clip", 1e-4, 2, 300, frames=16, **ALL),
}  # fmt: skip

FULL: dict[str, Any] = {
    "optimizer": "adamw", "schedule": "constant", "warmup": 500, "ema": 0.9999, "absent": 0.0,
    "shared_noise": 0.0, "noise": "even", "drop_both": 0.1,
}  # fmt: skip
WITH_MOTION: dict[str, Any] = {**FULL, "frames": 64, "motion": True, "beta_schedule": "linear", "fps": 8.0}
PAPER = {
    "content-guider": Stage(
        ("guider.",), "picture", 1e-4, 128, 100_000, images=True, size=(512, 512), crop="random",
        beta_schedule="scaled_linear", **FULL | {"drop_text": 0.05, "drop_images": 0.05, "drop_both": 0.05},
    ),
    "long-frames": Stage(("unet.motion.",), "clip", 1e-4, 1, 10_000, size=(256, 256), **WITH_MOTION),
    "video-controlnet": Stage(
        ("controlnet_",), "clip", 1e-4, 1, 25_000, size=(352, 352), controls=True, **WITH_MOTION
    ),
    "expression": Stage(
        ("unet.motion.",), "clip", 5e-5, 1, 20_000, size=(512, 512), controls=True, **WITH_MOTION
    ),
}  # fmt: skip
SCALES = {"mini": STAGES, "paper": PAPER}
