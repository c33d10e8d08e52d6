"""Names of released weight files, renamed to ours; every key is renamed or known to be left out.

Sources: AnimateDiff (guoyww), ControlNet (lllyasviel, LDM layout), IP-Adapter (tencent-ailab).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dreamoving_cli.models.layers import cross_attentions

MOTION_NAMES = (
    ("temporal_transformer.", ""),
    (".norms.0.", ".norm1."),
    (".norms.1.", ".norm2."),
    (".ff_norm.", ".norm3."),
    (".attention_blocks.0.", ".attn1."),
    (".attention_blocks.1.", ".attn2."),
)
RESNET_NAMES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
POSITIONS = (
    ".pos_encoder.pe",
    ".pos_embed.pe",
)  # position tables, AnimateDiff's and diffusers'; ours are computed
UNET_PARTS = (
    "conv_in.",
    "conv_out.",
    "conv_norm_out.",
    "time_embedding.",
    "down_blocks.",
    "mid_block.",
    "up_blocks.",
)


def motion_block_to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of one AnimateDiff temporal module -> keys of a `MotionBlock`."""
    return {rename_motion(key): value for key, value in state.items() if not key.endswith(POSITIONS)}


def animatediff_to_ours(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Keys of an AnimateDiff U-Net or motion module -> keys of a `VideoUNet` (`unet.*` and `motion.*`)."""
    state = state.get("state_dict", state)
    renamed = {}
    for name, value in state.items():
        key = name.removeprefix("module.")
        if key.endswith(POSITIONS) or not isinstance(value, Tensor):
            continue
        renamed[f"motion.{rename_motion(key)}" if "motion_modules." in key else f"unet.{key}"] = value
    return renamed


def motion_module_to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of a motion module or diffusers MotionAdapter -> keys of `MotionBlocks`.

    A U-Net saved along with it is left out; whatever else is in the file stays, for a strict load to refuse.
    """
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    return {
        rename_motion(key): value
        for key, value in plain.items()
        if not key.endswith(POSITIONS) and ("motion_modules." in key or not key.startswith(UNET_PARTS))
    }


def controlnet_to_ours(state: Mapping[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """Keys of an LDM ControlNet -> keys of a `VideoControlNet`; layers: residual blocks of each level.

    The whole models of ControlNet 1.0 hold a Stable Diffusion too, which is left out.
    """
    if any(key.startswith("control_model.") for key in state):
        state = {key: value for key, value in state.items() if key.startswith("control_model.")}
    names = {
        "input_blocks.0.0": "conv_in",
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
        "middle_block_out.0": "controlnet_mid_block",
        **_input_block_names(layers),
    }
    plain = {key.removeprefix("control_model."): value for key, value in state.items()}
    hints = sorted({int(key.split(".")[1]) for key in plain if key.startswith("input_hint_block.")})
    ends = {hints[0]: "conv_in", hints[-1]: "conv_out"} if hints else {}
    for i, hint in enumerate(hints):
        names[f"input_hint_block.{hint}"] = f"controlnet_cond_embedding.{ends.get(hint, f'blocks.{i - 1}')}"
    for i in range(sum(layers) + len(layers)):
        names[f"zero_convs.{i}.0"] = f"controlnet_down_blocks.{i}"
    return {f"controlnet.{_rename_ldm(key, names)}": value for key, value in plain.items()}


def ip_adapter_to_ours(state: Mapping[str, Tensor], unet: Any, kind: str) -> dict[str, Tensor]:
    """Keys of a flat IP-Adapter file -> those of a `ContentGuider`'s `kind`; FaceID's LoRA is left out.

    Adapters count all attentions, down, up, mid, two to a block; ours count cross-attentions, down, mid, up.
    """
    ours = {id(attention): i for i, attention in enumerate(cross_attentions(unet))}
    theirs = {str(2 * i + 1): ours[id(attention)] for i, attention in enumerate(_adapter_order(unet))}
    renamed = {}
    for key, value in state.items():
        if key.startswith("image_proj."):
            renamed[f"projections.{kind}.{key.removeprefix('image_proj.')}"] = value
        elif "_lora." not in key:
            number, _, rest = key.removeprefix("ip_adapter.").partition(".")
            renamed[f"attentions.{kind}.{theirs.get(number, number)}.{rest}"] = value
    return renamed


def adapter_attentions(unet: Any) -> list[str]:
    """Names of all attentions in the order in which IP-Adapter files number them: down, up, mid."""
    names = {id(module): name for name, module in unet.named_modules()}
    return [names[id(attention)] for b in _adapter_blocks(unet) for attention in (b.attn1, b.attn2)]


@torch.no_grad()
def merge_lora(attention: Any, lora: Mapping[str, Tensor], scale: float = 1.0) -> None:
    """Add FaceID's low-rank weights to an attention's own: W += scale * up @ down, for q, k, v and out."""
    layers = {
        "to_q": attention.to_q,
        "to_k": attention.to_k,
        "to_v": attention.to_v,
        "to_out": attention.to_out[0],
    }
    for name, layer in layers.items():
        down, up = lora[f"{name}_lora.down.weight"], lora[f"{name}_lora.up.weight"]
        layer.weight += scale * (up @ down).to(layer.weight)


def rename_motion(key: str) -> str:
    for theirs, ours in MOTION_NAMES:
        key = key.replace(theirs, ours)
    return key


def _input_block_names(layers: Sequence[int]) -> dict[str, str]:
    """LDM numbers residual blocks and downsamplers in one row; diffusers by level."""
    names, block = {}, 1
    for level, count in enumerate(layers):
        for i in range(count):
            names[f"input_blocks.{block}.0"] = f"down_blocks.{level}.resnets.{i}"
            names[f"input_blocks.{block}.1"] = f"down_blocks.{level}.attentions.{i}"
            block += 1
        names[f"input_blocks.{block}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        block += 1
    return names


def _rename_ldm(key: str, names: Mapping[str, str]) -> str:
    """The longest known beginning of `key` replaced, and inside residual blocks the layer's name too."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        if (head := names.get(".".join(parts[:end]))) is not None:
            rest = ".".join(parts[end:])
            if ".resnets." in head:
                rest = re.sub("^(" + "|".join(map(re.escape, RESNET_NAMES)) + ")", _resnet_name, rest)
            return f"{head}.{rest}"
    return key


def _resnet_name(match: re.Match[str]) -> str:
    return RESNET_NAMES[match[0]]


def _adapter_order(unet: Any) -> list[Any]:
    return [block.attn2 for block in _adapter_blocks(unet)]


def _adapter_blocks(unet: Any) -> list[Any]:
    blocks = [*unet.down_blocks, *unet.up_blocks, unet.mid_block]
    transformers = [t for block in blocks for t in getattr(block, "attentions", None) or () if t is not None]
    return [b for t in transformers for b in t.transformer_blocks]
