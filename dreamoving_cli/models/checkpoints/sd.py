"""Stable Diffusion 1.x: U-Net, autoencoder, text encoder from folders and single files, in diffusers' names.

Single files are renamed by diffusers' own converters; here it is checked that they used every tensor.
"""

from collections.abc import Mapping
from typing import Any

from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor

from dreamoving_cli.errors import WeightsError

State = dict[str, Tensor]

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
# What single files hold beside the networks: an averaged U-Net, tables of the schedule, training's rest.
BESIDE = (
    "model_ema.", "betas", "alphas_cumprod", "sqrt_", "log_one_minus", "posterior_", "logvar", "scale_factor",
    "first_stage_model.loss.", "first_stage_model.model_ema.", "loss.", "discriminator.", "control_model.",
    "embedding_manager.", "cond_stage_model.logit_scale", "cond_stage_model.text_projection",
)  # fmt: skip
POSITIONS = "position_ids"  # a table 0, 1, 2, ... that older transformers saved
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def split_checkpoint(state: Mapping[str, Tensor], name: str) -> dict[str, State]:
    """A single file as `unet`, `vae` and `text_encoder` in diffusers' names, as many as it holds."""
    parts: dict[str, State] = {"unet": {}, "vae": {}, "text_encoder": {}}
    for key, value in state.items():
        if key.startswith(BESIDE):
            continue
        prefix = next((p for p in (UNET, VAE, TEXT) if key.startswith(p)), None)
        if prefix is None:
            raise WeightsError(
                f"{name} holds '{key}', which no part of Stable Diffusion 1.x has", "Is it the right file?"
            )
        part = {UNET: "unet", VAE: "vae", TEXT: "text_encoder"}[prefix]
        parts[part][key.removeprefix(prefix)] = value
    renamed = {
        "unet": unet_names(parts["unet"], name),
        "vae": vae_names(parts["vae"], name),
        "text_encoder": parts["text_encoder"],
    }
    return {part: found for part, found in renamed.items() if found}


def unet_names(state: Mapping[str, Tensor], name: str) -> State:
    """A U-Net in diffusers' or LDM's names -> diffusers'."""
    state = {key.removeprefix(UNET): value for key, value in state.items()}
    if "input_blocks.0.0.weight" not in state:
        return state
    config = {"layers_per_block": layers_per_block(state)}
    return _all_used(
        state, convert_ldm_unet_checkpoint({UNET + key: value for key, value in state.items()}, config), name
    )


def layers_per_block(state: Mapping[str, Tensor]) -> int:
    """Residual blocks of a level, counted in LDM's row of input blocks: a downsampler ends each level."""
    numbers = {int(key.split(".")[1]) for key in state if key.startswith("input_blocks.")}
    ends = [number for number in numbers if f"input_blocks.{number}.0.op.weight" in state]
    return min(ends, default=max(numbers) + 1) - 1


def vae_names(state: Mapping[str, Tensor], name: str) -> State:
    """An autoencoder in diffusers' (new or old) or LDM's names -> diffusers' new ones."""
    state = {
        key.removeprefix(VAE): value
        for key, value in state.items()
        if not key.removeprefix(VAE).startswith(BESIDE)
    }
    if "encoder.down.0.block.0.conv1.weight" in state:
        levels = len({key.split(".")[2] for key in state if key.startswith("encoder.down.")})
        types = {"down_block_types": [""] * levels, "up_block_types": [""] * levels}
        state = _all_used(state, convert_ldm_vae_checkpoint(dict(state), types), name)
    return {_new_attention(key): value for key, value in state.items()}


def text_names(state: Mapping[str, Tensor], own: Mapping[str, Any]) -> State:
    """A CLIP text encoder's keys as this transformers release names them; own: the model's keys."""
    prefix = "text_model." if any(key.startswith("text_model.") for key in own) else ""
    return {
        prefix + key.removeprefix("text_model."): value
        for key, value in state.items()
        if not key.endswith(POSITIONS)
    }


def image_names(state: Mapping[str, Tensor]) -> State:
    """A CLIP image encoder's keys without its table of positions."""
    return {key: value for key, value in state.items() if not key.endswith(POSITIONS)}


def _new_attention(key: str) -> str:
    for old, new in OLD_ATTENTION.items():
        key = key.replace(old, new) if ".attentions." in key else key
    return key


def _all_used(state: Mapping[str, Tensor], renamed: Mapping[str, Tensor | None], name: str) -> State:
    """`renamed`, if it holds as many tensors as went in."""
    found = {key: value for key, value in renamed.items() if value is not None}
    if len(found) != len(state) or len(found) != len(renamed):
        raise WeightsError(
            f"{name}: {len(found)} of its {len(state)} tensors have a place in Stable Diffusion 1.x",
            "Is it the right file?",
        )
    return found
