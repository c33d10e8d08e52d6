"""What is measured: the width of the networks, and one task for every contender. No torch here."""

from dataclasses import dataclass
from typing import Any

from dreamoving_cli.models.config import MotionConfig, PackConfig, Span, VaeConfig

GUIDED = ("face", "cloth")  # image prompts of every task, with these strengths
STRENGTHS = {"face": 0.7, "cloth": 0.5}
CONTROL, CONTROL_SCALE = "pose", 0.8
PICTURE_TOKENS, PICTURE_WIDTH = 257, 1280  # what OpenCLIP ViT-H/14 gives for a picture of 224x224
WIDTHS: dict[str, tuple[int, ...]] = {  # channels of the U-Net's levels; full is Stable Diffusion 1.5
    "full": (320, 640, 1280, 1280),
    "half": (160, 320, 640, 640),
    "tiny": (32, 32, 64, 64),
}


@dataclass(frozen=True)
class Task:
    """One clip to denoise, the same for every contender."""

    width: str  # a key of WIDTHS
    frames: int
    size: tuple[int, int]  # height, width in pixels
    steps: int
    guidance_scale: float = 1.0
    device: str = "cpu"
    dtype: str = "fp32"  # a key of device.DTYPES
    window: int | None = None  # frames seen together; None: the whole clip
    overlap: int = 0  # frames that two windows share
    window_batch: int = 1  # windows that ours computes at once
    pictures: bool = False  # a run ends with pictures; else with latents
    norm: Span = "frame"  # of the motion blocks; "clip" is diffusers' way
    seed: int = 0

    @property
    def branches(self) -> int:
        return 2 if self.guidance_scale > 1 else 1


def bench_config(width: str, norm: Span = "frame", picture_width: int = PICTURE_WIDTH) -> PackConfig:
    """Stable Diffusion 1.5 with a motion module, a pose ControlNet and two IP-Adapters, at this width."""
    channels = WIDTHS[width]
    cross = 64 if width == "tiny" else 768
    plus = {"projection": "plus", "tokens": 16, "dim": cross, "depth": 4, "dim_head": 64}
    plus |= {"heads": cross // 64, "ff_mult": 4}
    return PackConfig(
        name=f"random, {width} width",
        unet={
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": channels,
            "layers_per_block": 2,
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "cross_attention_dim": cross,
            "attention_head_dim": 8,
        },
        motion=MotionConfig(max_length=64, norm=norm),
        controls={CONTROL: {"conditioning_embedding_out_channels": (16, 32, 96, 256)}},
        controlnet_motion=False,
        guider={kind: dict(plus) for kind in GUIDED},
        text=text_config(cross),
        image={"hidden_size": picture_width, "num_hidden_layers": 32, "projection_dim": 1024},
        vae=VaeConfig.model_validate({"class": "AutoencoderKL", "kwargs": vae_config(width)}),
        context_frames=16,
    )


def text_config(width: int) -> dict[str, Any]:
    """A text encoder of one layer: it only has to give both sides the same 77 tokens."""
    return {
        "vocab_size": 514,
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": width // 64,
        "max_position_embeddings": 77,
        "bos_token_id": 512,
        "eos_token_id": 513,
        "pad_token_id": 513,
    }


def vae_config(width: str) -> dict[str, Any]:
    """AutoencoderKL's arguments; Stable Diffusion's at full width, eight pixels a cell at every one."""
    channels = {"full": [128, 256, 512, 512], "half": [64, 128, 256, 256], "tiny": [32, 32, 32, 32]}[width]
    return {
        "latent_channels": 4,
        "block_out_channels": channels,
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
