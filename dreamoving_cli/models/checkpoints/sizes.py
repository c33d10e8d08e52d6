"""The sizes of networks, read off the shapes of their weights: one loader for full width and for the tests'.

What shapes do not tell is as in Stable Diffusion 1.x: 8 heads, 32 groups, CLIP's heads of 64 (ViT-H: of 80).
States are in diffusers' names, their tensors may be empty (meta device).
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from dreamoving_cli.models.config import MotionConfig, VaeConfig

State = Mapping[str, Tensor]

HEADS = 8
TEXT_HEAD, IMAGE_HEAD, RESAMPLER_HEAD = 64, 80, 64  # widths of one head
# (table, middle block) -> frames a released module was trained at; LongAnimateDiff's tables are twice as long
TRAINED = {(24, False): 16, (32, True): 16, (32, False): 16, (64, True): 32, (128, True): 64, (64, False): 64}
UNSTORED = 16  # frames, where the file holds no table (AnimateLCM)


def count(state: State, prefix: str) -> int:
    """How many numbered children stand under this prefix."""
    numbers = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
    return len(numbers)


def unet_sizes(state: State) -> dict[str, Any]:
    """Arguments of UNet2DConditionModel."""
    levels = count(state, "down_blocks.")
    attends = [any(key.startswith(f"down_blocks.{i}.attentions.") for key in state) for i in range(levels)]
    cross = next(value.shape[1] for key, value in state.items() if key.endswith("attn2.to_k.weight"))
    return {
        "in_channels": state["conv_in.weight"].shape[1],
        "out_channels": state["conv_out.weight"].shape[0],
        "block_out_channels": tuple(
            state[f"down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in range(levels)
        ),
        "layers_per_block": count(state, "down_blocks.0.resnets."),
        "down_block_types": tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
        "cross_attention_dim": cross,
        "attention_head_dim": HEADS,
    }


def vae_sizes(state: State) -> VaeConfig:
    """Arguments of AutoencoderKL, its scale as Stable Diffusion 1.x has it."""
    levels = count(state, "encoder.down_blocks.")
    widths = [state[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in range(levels)]
    kwargs = {
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "block_out_channels": widths,
        "layers_per_block": count(state, "encoder.down_blocks.0.resnets."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    return VaeConfig.model_validate({"class": "AutoencoderKL", "kwargs": kwargs})


def text_sizes(state: State) -> dict[str, Any]:
    """Arguments of CLIPTextConfig."""
    plain = {key.removeprefix("text_model."): value for key, value in state.items()}
    vocabulary, width = plain["embeddings.token_embedding.weight"].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": plain["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count(plain, "encoder.layers."),
        "num_attention_heads": width // TEXT_HEAD,
        "max_position_embeddings": plain["embeddings.position_embedding.weight"].shape[0],
        "hidden_act": "quick_gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


def image_sizes(state: State) -> dict[str, Any]:
    """Arguments of CLIPVisionConfig, for a ViT-H as all IP-Adapters of Stable Diffusion 1.x take it."""
    width, _, patch, _ = state["vision_model.embeddings.patch_embedding.weight"].shape
    cells = state["vision_model.embeddings.position_embedding.weight"].shape[0] - 1
    return {
        "hidden_size": width,
        "intermediate_size": state["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count(state, "vision_model.encoder.layers."),
        "num_attention_heads": width // IMAGE_HEAD,
        "image_size": math.isqrt(cells) * patch,
        "patch_size": patch,
        "projection_dim": state["visual_projection.weight"].shape[0],
        "hidden_act": "gelu",
    }


def motion_sizes(state: State, table: int | None, trained_frames: int | None = None) -> MotionConfig:
    """Motion blocks of a module in our names; table: frames of its stored positions, if any."""
    mid = any(key.startswith("mid_block.") for key in state)
    trained = trained_frames or TRAINED.get((table, mid) if table else (0, mid), table or UNSTORED)
    layers = count(state, "down_blocks.0.motion_modules.0.transformer_blocks.")
    return MotionConfig(
        positions=("down", "mid", "up") if mid else ("down", "up"),
        heads=HEADS,
        layers=layers,
        max_length=trained,
    )


def resnet_norm(table: int | None, state: State) -> str:
    """AnimateDiff v1 (24 positions, no middle block) normalizes over the clip, later ones over a frame."""
    mid = any(key.startswith("mid_block.") for key in state)
    return "clip" if table == 24 and not mid else "frame"


def hint_widths(state: State) -> tuple[int, ...]:
    """Widths of a ControlNet's hint encoder, level by level."""
    blocks = count(state, "controlnet_cond_embedding.blocks.")
    names = ["conv_in", *(f"blocks.{i}" for i in range(1, blocks, 2))]
    return tuple(state[f"controlnet_cond_embedding.{name}.weight"].shape[0] for name in names)


def adapter_settings(state: State, kind: str) -> dict[str, Any]:
    """The Content Guider's entry for an IP-Adapter of this kind (`identify.ADAPTERS`, or faceid-plus-v2)."""
    cross = next(value.shape[1] for key, value in state.items() if key.endswith("to_k_ip.weight"))
    if kind == "base":
        return {"projection": "base", "tokens": state["image_proj.proj.weight"].shape[0] // cross}
    if kind == "full-face":
        return {"projection": "full-face"}
    if kind == "plus":
        _, tokens, dim = state["image_proj.latents"].shape
        return {"projection": "plus", "tokens": tokens, "dim": dim, **_perceiver(state, "image_proj.")}
    settings = {
        "projection": "faceid",
        "tokens": state["image_proj.proj.2.weight"].shape[0] // cross,
        "identity": state["image_proj.proj.0.weight"].shape[1],
    }
    if kind == "faceid":
        return settings
    shape = _perceiver(state, "image_proj.perceiver_resampler.")
    return {**settings, "projection": "faceid-plus-v2", "shortcut": kind == "faceid-plus-v2", **shape}


def _perceiver(state: State, prefix: str) -> dict[str, int]:
    inner, dim = state[f"{prefix}layers.0.0.to_q.weight"].shape
    return {
        "depth": count(state, f"{prefix}layers."),
        "dim_head": RESAMPLER_HEAD,
        "heads": inner // RESAMPLER_HEAD,
        "ff_mult": state[f"{prefix}layers.0.1.1.weight"].shape[0] // dim,
    }


def position_table(state: Iterable[tuple[str, Tensor]]) -> int | None:
    """Frames of a motion module's stored positions (1 l c); None where it stores none."""
    return next((value.shape[1] for key, value in state if key.endswith("pos_encoder.pe")), None)
