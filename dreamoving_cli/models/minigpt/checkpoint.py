"""A captioner from the public files: EVA ViT-g, Llama-2-7b-chat, MiniGPT-v2's LoRA and projector; strictly.

Sizes are read from the tensors. Known extras are left out by name (a 40th block and the head of EVA, rotary
tables), LoRA is merged into the weights, everything else must fit. Layouts: Vision-CAIR/MiniGPT-4 @d94738a7.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dreamoving_cli.errors import WeightsError
from dreamoving_cli.models.checkpoints.files import Part, read_shapes, read_tensors
from dreamoving_cli.models.minigpt.config import CaptionerConfig, VisionConfig
from dreamoving_cli.models.minigpt.home import Home, settle
from dreamoving_cli.models.minigpt.model import Captioner, fast_init
from dreamoving_cli.models.minigpt.tokenizer import Tokenizer, read_tokenizer
from dreamoving_cli.models.minigpt.vision import resize_positions
from dreamoving_cli.models.strict import load_exactly

State = dict[str, Tensor]

HERE = Home()
SIDE = 448  # pixels that MiniGPT-v2 looks at
EVA_DEPTH = 39  # blocks that are used; the file may hold one more
EVA_EXTRAS = re.compile(r"norm\.|fc_norm\.|head\.|mask_token$|.*relative_position")
EVA_HEAD, LLAMA_HEAD = 88, 128  # widths of one attention head, which no tensor tells
LORA_ALPHA = 16
LORA_TARGETS = 2  # query and value
LORA = re.compile(
    r"llama_model\.base_model\.model\.(model\.layers\.\d+\.self_attn\.[qv]_proj)\.lora_([AB])(?:\.default)?\.weight"
)
ROTARY = "rotary_emb.inv_freq"  # computed, not loaded


@dataclass(frozen=True)
class PublicFiles:
    """Where the public files are."""

    eva: Part
    llama: Sequence[Part]
    adapter: Part
    tokenizer: Path


@dataclass(frozen=True)
class Heads:
    """Attention heads, where they are not those of the public files."""

    vision: int
    llama: int


def assemble_captioner(files: PublicFiles, home: Home = HERE) -> Captioner:
    """The captioner, ready to describe."""
    tokenizer = read_tokenizer(files.tokenizer)
    states = (read_tensors(files.eva), read_all(files.llama), read_tensors(files.adapter))
    config = captioner_config(*states[:2], tokenizer)
    return build_captioner(config, tokenizer, to_ours(*states, config, home.dtype), home)


def build_captioner(
    config: CaptionerConfig, tokenizer: Tokenizer, state: State, home: Home = HERE
) -> Captioner:
    """The captioner with these weights and no others, at home; takes them out of `state`."""
    with fast_init():
        model = Captioner(config, tokenizer)
    load_exactly(model, state, source="MiniGPT-v2's files")
    state.clear()  # a layer that has moved is not kept twice
    return settle(model, home)


def read_all(parts: Sequence[Part], shapes: bool = False) -> State:
    """The tensors of several files that make one state."""
    state: State = {}
    for part in parts:
        more = read_shapes(part) if shapes else read_tensors(part)
        if both := state.keys() & more.keys():
            raise WeightsError(f"{part.name} holds {sorted(both)[0]} once more", "Give each file once.")
        state |= more
    return state


def assembled_shapes(files: PublicFiles) -> State:
    """The weights of the assembled captioner as empty tensors; reads headers only."""
    states = (read_shapes(files.eva), read_all(files.llama, shapes=True), read_shapes(files.adapter))
    return to_ours(*states, captioner_config(*states[:2], read_tokenizer(files.tokenizer)), torch.float32)


def captioner_config(
    eva: Mapping[str, Tensor],
    llama: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    heads: Heads | None = None,
    side: int = SIDE,
) -> CaptionerConfig:
    """The sizes of the captioner that these files make."""
    patches, embedding = needed(eva, "patch_embed.proj.weight"), needed(llama, "model.embed_tokens.weight")
    width, hidden = patches.shape[0], embedding.shape[1]
    heads = heads or Heads(max(width // EVA_HEAD, 1), max(hidden // LLAMA_HEAD, 1))
    vision = VisionConfig(
        side=side,
        patch=patches.shape[-1],
        width=width,
        depth=min(blocks(eva, "blocks."), EVA_DEPTH),
        heads=heads.vision,
        hidden=needed(eva, "blocks.0.mlp.fc1.bias").shape[0],
    )
    settings = {
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": needed(llama, "model.layers.0.mlp.gate_proj.weight").shape[0],
        "num_hidden_layers": blocks(llama, "model.layers."),
        "num_attention_heads": heads.llama,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eos,
        "pad_token_id": None,
    }
    if len(tokenizer.pieces) != embedding.shape[0]:
        raise WeightsError(
            f"the tokenizer has {len(tokenizer.pieces)} pieces, Llama {embedding.shape[0]}",
            "Give the tokenizer.model that lies beside Llama's weights.",
        )
    return CaptionerConfig(name="minigpt-v2", vision=vision, llama=settings)


def needed(state: Mapping[str, Tensor], key: str) -> Tensor:
    """A tensor that tells a size."""
    if key not in state:
        raise WeightsError(f"a file of MiniGPT-v2 has no '{key}'", "Is it the right file? Fetch it again.")
    return state[key]


def blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered blocks there are under this prefix."""
    numbers = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
    return len(numbers)


def to_ours(
    eva: Mapping[str, Tensor],
    llama: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    config: CaptionerConfig,
    dtype: torch.dtype,
    alpha: float = LORA_ALPHA,
) -> State:
    """Every tensor of the files in our names: used as it is, merged (in `dtype`), or known to be left out."""
    lora, rest = split_adapter(adapter, int(config.llama["num_hidden_layers"]))
    width = config.vision.width
    state: State = {"ln_vision.weight": torch.ones(width), "ln_vision.bias": torch.zeros(width)}
    state |= {f"visual_encoder.{key}": value for key, value in used_of_eva(eva, config.vision).items()}
    words = {key: value for key, value in llama.items() if not key.endswith(ROTARY)}
    for target, factors in lora.items():
        weight = needed(words, f"{target}.weight")
        scale = alpha / factors["A"].shape[0]
        merged = weight.float() + scale * factors["B"].float() @ factors["A"].float()
        words[f"{target}.weight"] = merged.to(dtype)
    return state | {f"llama_model.{key}": value for key, value in words.items()} | rest


def used_of_eva(eva: Mapping[str, Tensor], vision: VisionConfig) -> State:
    """The vision transformer's weights, its positions stretched to the grid."""
    used = {
        key: value
        for key, value in eva.items()
        if not EVA_EXTRAS.match(key) and not key.startswith(f"blocks.{vision.depth}.")
    }
    return used | {"pos_embed": resize_positions(needed(eva, "pos_embed"), vision.grid)}


def split_adapter(adapter: Mapping[str, Tensor], layers: int) -> tuple[dict[str, dict[str, Tensor]], State]:
    """(LoRA by the layer that it changes, the projector and what else is the picture's side)."""
    lora: dict[str, dict[str, Tensor]] = {}
    rest: State = {}
    for key, value in adapter.items():
        if found := LORA.fullmatch(key):
            lora.setdefault(found[1], {})[found[2]] = value
        elif not key.endswith(ROTARY):
            rest[key] = value
    count = sum(map(len, lora.values()))
    expected = 2 * LORA_TARGETS * layers
    if count != expected or any(len(factors) != 2 for factors in lora.values()):
        raise WeightsError(
            f"MiniGPT-v2's checkpoint holds {count} LoRA tensors of {expected}",
            "Is it the right file? Fetch it again.",
        )
    if {"llama_proj.weight", "llama_proj.bias"} - rest.keys():
        raise WeightsError("MiniGPT-v2's checkpoint has no projector (llama_proj)", "Fetch it again.")
    return lora, rest
