"""Random weights in the exact layouts of the public files: `python -m tests.checkpoints FOLDER [--full]`.

Small networks by default, full width with --full. FOLDER/models.lock knows the files, so that they can stand
in for the public ones:

    export DREAMOVING_LOCK=FOLDER/models.lock DREAMOVING_CACHE=CACHE
    dreamoving models import FOLDER
    dreamoving render --model sd15 --device cpu ...
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import Tensor, nn

from dreamoving_cli.models.checkpoints.files import apart
from dreamoving_cli.models.config import MotionConfig, PackConfig, VaeConfig
from dreamoving_cli.models.encoders import learn_tokenizer
from dreamoving_cli.models.keys import adapter_attentions
from dreamoving_cli.models.load import Pack, build_pack, empty_networks
from dreamoving_cli.models.motion import sinusoid
from dreamoving_cli.paths import LOCK
from dreamoving_cli.weights import file_sha256
from dreamoving_cli.weights.lock import Lock, lock_text, read_lock

State = dict[str, Tensor]

Size = Literal["small", "narrow", "full"]

FOUR = {
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
UNETS: dict[str, dict[str, Any]] = {
    "full": {"block_out_channels": (320, 640, 1280, 1280), **FOUR},
    "narrow": {"block_out_channels": (32, 32, 64, 64), **FOUR},
    "small": {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
}
PLUS = {"projection": "plus", "tokens": 16, "dim_head": 64}
FACEID = {"projection": "faceid-plus-v2", "tokens": 4, "identity": 512, "dim_head": 64, "shortcut": True}


def config(
    size: Size = "small", positions: Iterable[str] = ("down", "mid", "up"), face: str = "plus"
) -> PackConfig:
    """Stable Diffusion 1.5 and what goes with it; face: a projection.

    size: "full"; "narrow", all levels, layers and attentions at a tenth of the width; "small", few of each.
    """
    full = size == "full"
    cross, vision = (768, 1280) if full else (64, 80)
    plus = {**PLUS, "dim": cross, "depth": 4, "heads": cross // 64, "ff_mult": 4}
    faces: dict[str, dict[str, Any]] = {
        "plus": plus,
        "base": {"projection": "base", "tokens": 4},
        "full-face": {"projection": "full-face"},
        "faceid": {"projection": "faceid", "tokens": 4, "identity": 512},
        "faceid-plus-v2": {**FACEID, **{key: plus[key] for key in ("depth", "heads", "ff_mult")}},
    }
    return PackConfig(
        name="random",
        unet={"in_channels": 4, "out_channels": 4, **UNETS[size]}
        | {"cross_attention_dim": cross, "attention_head_dim": 8},
        motion=MotionConfig(positions=tuple(positions), max_length=16),
        controls={
            kind: {"conditioning_embedding_out_channels": (16, 32, 96, 256) if full else (4, 4, 8, 8)}
            for kind in ("pose", "depth")
        },
        controlnet_motion=False,
        guider={"face": faces[face], "cloth": dict(plus), "style": dict(plus)},
        text=text_config(full),
        image={
            "hidden_size": vision,
            "intermediate_size": vision * 4,
            "num_hidden_layers": 32 if full else 2,
            "num_attention_heads": vision // 80,
            "image_size": 224 if full else 28,
            "patch_size": 14,
            "projection_dim": 1024 if full else 32,
            "hidden_act": "gelu",
        },
        vae=VaeConfig(**{"class": "AutoencoderKL", "kwargs": vae_config(size)}),
        context_frames=16,
    )


def vae_config(size: Size) -> dict[str, Any]:
    """AutoencoderKL's arguments; eight pixels a cell at every size."""
    return {
        "latent_channels": 4,
        "block_out_channels": [128, 256, 512, 512] if size == "full" else [32, 32, 32, 32],
        "layers_per_block": 1 if size == "small" else 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }


def text_config(full: bool) -> dict[str, Any]:
    """CLIP ViT-L's text half; the small one spells words byte by byte."""
    width, vocabulary = (768, 49408) if full else (64, 514)
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": width * 4,
        "num_hidden_layers": 12 if full else 2,
        "num_attention_heads": width // 64,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


def random_pack(settings: PackConfig, seed: int = 0) -> Pack:
    """A pack in which nothing is zero, so that every file changes the picture."""
    pack = build_pack(settings, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for network in pack.networks().values():
        network.eval().requires_grad_(False)
        for weight in network.parameters():
            if not weight.any():
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    return pack


def filled_pack(settings: PackConfig, seed: int = 0) -> Pack:
    """A random pack for full width: every weight is a piece of one long row of noise, in fp16, in seconds."""
    pack = empty_networks(settings, settings.controls, learn_tokenizer())
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2**22, generator=generator).half()
    for part in [part for network in pack.networks().values() for part in network.modules()]:
        for name, weight in part.named_parameters(recurse=False):
            start = int(torch.randint(2**21, (), generator=generator))
            size = min(weight.numel(), 2**21)
            row = noise[start : start + size].repeat(-(-weight.numel() // size))[: weight.numel()]
            spread = 0.02 if weight.ndim == 1 else weight[0].numel() ** -0.5
            value = (row * spread).reshape(weight.shape)  # no view: it would keep all that was repeated
            if isinstance(part, nn.GroupNorm | nn.LayerNorm) and name == "weight":
                value += 1
            setattr(part, name, nn.Parameter(value, requires_grad=False))
    return pack


def under(state: Mapping[str, Tensor], prefix: str) -> State:
    """The tensors under this prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def renamed(state: Mapping[str, Tensor], *rules: tuple[str, str]) -> State:
    """Every key with all rules (regular expression, replacement) applied in order."""

    def name(key: str) -> str:
        for old, new in rules:
            key = re.sub(old, new, key)
        return key

    return {name(key): value for key, value in state.items()}


def motion_layout(pack: Pack, table: int | None = 32) -> State:
    """A motion module as AnimateDiff saves it; table: frames of its stored positions."""
    state = renamed(
        under(pack.unet.state_dict(), "motion."),
        (r"(motion_modules\.\d+)\.", r"\1.temporal_transformer."),
        (r"\.norm([12])\.", lambda m: f".norms.{int(m[1]) - 1}."),  # type: ignore[arg-type]
        (r"\.norm3\.", ".ff_norm."),
        (r"\.attn([12])\.", lambda m: f".attention_blocks.{int(m[1]) - 1}."),  # type: ignore[arg-type]
    )
    queries = [key for key in state if key.endswith("to_q.weight")]
    for key in queries if table else ():
        positions = sinusoid(table, state[key].shape[0], torch.device("cpu"))[None]
        state[key.replace("to_q.weight", "pos_encoder.pe")] = positions.clone()
    return state


def adapter_motion_layout(pack: Pack, table: int = 32) -> State:
    """A motion module as diffusers' MotionAdapter saves it."""
    state = under(pack.unet.state_dict(), "motion.")
    for key in [key for key in state if key.endswith("attn1.to_q.weight")]:
        positions = sinusoid(table, state[key].shape[0], torch.device("cpu"))[None]
        state[key.replace("attn1.to_q.weight", "pos_embed.pe")] = positions.clone()
    return state


RESNET = (
    (r"\.norm1\.", ".in_layers.0."), (r"\.conv1\.", ".in_layers.2."),
    (r"\.norm2\.", ".out_layers.0."), (r"\.conv2\.", ".out_layers.3."),
    (r"\.time_emb_proj\.", ".emb_layers.1."), (r"\.conv_shortcut\.", ".skip_connection."),
)  # fmt: skip


def ldm_blocks(state: Mapping[str, Tensor], layers: int) -> State:
    """U-Net or ControlNet blocks as CompVis' code numbers them; diffusers' names in."""

    def name(key: str) -> str:
        found = re.match(
            r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", key
        )
        mid = re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", key)
        if mid:
            number = 1 if mid[1] == "attentions" else 2 * int(mid[2])
            return inner(f"middle_block.{number}.", mid[3], mid[1])
        if not found:
            return key
        level, part, index, rest = int(found[2]), found[3], int(found[4]), found[5]
        if part == "downsamplers":
            return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
        if part == "upsamplers":
            attends = any(k.startswith(f"up_blocks.{level}.attentions.") for k in state)
            return f"output_blocks.{level * (layers + 1) + layers}.{2 if attends else 1}.{rest}"
        row = "input_blocks" if found[1] == "down" else "output_blocks"
        number = level * (layers + 1) + index + (found[1] == "down")
        return inner(f"{row}.{number}.{0 if part == 'resnets' else 1}.", rest, part)

    def inner(head: str, rest: str, part: str) -> str:
        for old, new in RESNET if part == "resnets" else ():
            rest = re.sub(old, new, f".{rest}").removeprefix(".")
        return head + rest

    return {name(key): value for key, value in state.items()}


def ldm_unet(pack: Pack) -> State:
    """The U-Net as single files hold it, without prefix."""
    state = renamed(
        under(pack.unet.state_dict(), "unet."),
        (r"^time_embedding\.linear_1\.", "time_embed.0."),
        (r"^time_embedding\.linear_2\.", "time_embed.2."),
        (r"^conv_in\.", "input_blocks.0.0."),
        (r"^conv_norm_out\.", "out.0."),
        (r"^conv_out\.", "out.2."),
    )
    return ldm_blocks(state, pack.config.unet["layers_per_block"])


def ldm_controlnet(pack: Pack, kind: str) -> State:
    """A ControlNet as its authors saved it, without prefix."""
    state = under(pack.controlnets[kind].state_dict(), "controlnet.")
    last = 2 * (
        1 + len({key.split(".")[2] for key in state if key.startswith("controlnet_cond_embedding.blocks.")})
    )
    names = renamed(
        state,
        (r"^time_embedding\.linear_1\.", "time_embed.0."),
        (r"^time_embedding\.linear_2\.", "time_embed.2."),
        (r"^conv_in\.", "input_blocks.0.0."),
        (r"^controlnet_cond_embedding\.conv_in\.", "input_hint_block.0."),
        (r"^controlnet_cond_embedding\.conv_out\.", f"input_hint_block.{last}."),
        (r"^controlnet_cond_embedding\.blocks\.(\d+)\.", lambda m: f"input_hint_block.{2 * int(m[1]) + 2}."),  # type: ignore[arg-type]
        (r"^controlnet_down_blocks\.(\d+)\.", r"zero_convs.\1.0."),
        (r"^controlnet_mid_block\.", "middle_block_out.0."),
    )
    return ldm_blocks(names, pack.config.unet["layers_per_block"])


def old_vae(pack: Pack) -> State:
    """The autoencoder as diffusers named its attention until 2023."""
    return renamed(
        under(pack.vae.state_dict(), "vae."),
        (r"\.to_q\.", ".query."), (r"\.to_k\.", ".key."), (r"\.to_v\.", ".value."),
        (r"\.to_out\.0\.", ".proj_attn."),
    )  # fmt: skip


def ldm_vae(pack: Pack) -> State:
    """The autoencoder as single files hold it, without prefix; its attention is made of 1x1 convolutions."""
    state = under(pack.vae.state_dict(), "vae.")
    levels = len({key.split(".")[2] for key in state if key.startswith("encoder.down_blocks.")})
    names = renamed(
        state,
        (r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block."),
        (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
        (r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block."),  # type: ignore[arg-type]
        (r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{levels - 1 - int(m[1])}.upsample."),  # type: ignore[arg-type]
        (r"mid_block\.resnets\.(\d+)\.", lambda m: f"mid.block_{int(m[1]) + 1}."),  # type: ignore[arg-type]
        (r"mid_block\.attentions\.0\.", "mid.attn_1."),
        (r"attn_1\.group_norm\.", "attn_1.norm."), (r"attn_1\.to_([qkv])\.", r"attn_1.\1."),
        (r"attn_1\.to_out\.0\.", "attn_1.proj_out."),
        (r"conv_norm_out", "norm_out"), (r"conv_shortcut", "nin_shortcut"),
    )  # fmt: skip
    attention = re.compile(r".*attn_1\.(q|k|v|proj_out)\.weight")
    return {
        key: value[:, :, None, None] if attention.fullmatch(key) else value for key, value in names.items()
    }


def clip_text(pack: Pack) -> State:
    """The text encoder as all public files name it."""
    state = pack.text_encoder.state_dict()
    named = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in state.items()}
    length = pack.config.text["max_position_embeddings"]
    return named | {"text_model.embeddings.position_ids": torch.arange(length)[None]}


def single_file(pack: Pack) -> State:
    """A whole Stable Diffusion in one file, with what training left in it."""
    parts = {
        "model.diffusion_model.": ldm_unet(pack),
        "first_stage_model.": ldm_vae(pack),
        "cond_stage_model.transformer.": clip_text(pack),
    }
    state = {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}
    return state | {
        "alphas_cumprod": torch.ones(3),
        "model_ema.decay": torch.tensor(0.9),
        "betas": torch.ones(3),
    }


def adapter(pack: Pack, kind: str, rank: int = 4, seed: int = 0) -> State:
    """An IP-Adapter of this kind of prompt, with a LoRA on all attentions where it is a FaceID."""
    guider = pack.guider.state_dict()
    attentions = adapter_attentions(pack.unet.unet)
    ours = walk_order(attentions)
    state = {f"image_proj.{key}": value for key, value in under(guider, f"projections.{kind}.").items()}
    faceid = pack.config.guider[kind]["projection"].startswith("faceid")
    for number, name in enumerate(attentions):
        if faceid:
            state |= {
                f"ip_adapter.{number}.{key}": value
                for key, value in attention_lora(
                    pack.unet.unet.get_submodule(name), rank, seed + number
                ).items()
            }
        if number % 2:
            keys = under(guider, f"attentions.{kind}.{ours[name]}.")
            state |= {f"ip_adapter.{number}.{key}": value for key, value in keys.items()}
    return state


def walk_order(attentions: list[str]) -> dict[str, int]:
    """Each cross-attention's number in our order: down, mid, up."""
    cross = [name for name in attentions if name.endswith("attn2")]
    rank = {"down": 0, "mid_": 1, "up_b": 2}
    ordered = sorted(cross, key=lambda name: rank[name[:4]])
    return {name: i for i, name in enumerate(ordered)}


def attention_lora(attention: Any, rank: int, seed: int) -> State:
    """Random halves for q, k, v and out of one attention, named as processors hold them."""
    generator = torch.Generator().manual_seed(seed)
    layers = {"q": attention.to_q, "k": attention.to_k, "v": attention.to_v, "out": attention.to_out[0]}
    return {
        f"to_{name}_lora.{side}.weight": 0.05 * torch.randn(shape, generator=generator)
        for name, layer in layers.items()
        for side, shape in (("down", (rank, layer.in_features)), ("up", (layer.out_features, rank)))
    }


def style_lora(pack: Pack, rank: int = 4, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Random halves for every layer a style LoRA changes: network.path -> (down, up)."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for network, model in (("unet", pack.unet.unet), ("text_encoder", pack.text_encoder)):
        for path, layer in model.named_modules():
            if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                continue
            path = f"text_model.{path.removeprefix('text_model.')}" if network == "text_encoder" else path
            weight, kernel = layer.weight, layer.weight.shape[2:]
            down = 0.05 * torch.randn((rank, weight.shape[1], *kernel), generator=generator)
            up = 0.05 * torch.randn((weight.shape[0], rank, *(1 for _ in kernel)), generator=generator)
            pairs[f"{network}.{path}"] = (down, up)
    return pairs


def kohya(pairs: Mapping[str, tuple[Tensor, Tensor]], alpha: float) -> State:
    """A style LoRA as kohya's scripts save it."""
    state = {}
    for name, (down, up) in pairs.items():
        network, path = name.split(".", 1)
        flat = f"lora_{'te' if network == 'text_encoder' else 'unet'}_{path.replace('.', '_')}"
        state |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
        state[f"{flat}.alpha"] = torch.tensor(alpha)
    return state


def peft(pairs: Mapping[str, tuple[Tensor, Tensor]], sides: tuple[str, str] = ("lora_A", "lora_B")) -> State:
    """A style LoRA as diffusers saves it (peft's names, or its own older ones)."""
    named = [
        (name, side, half) for name, pair in pairs.items() for side, half in zip(sides, pair, strict=True)
    ]
    return {f"{name}.{side}.weight": half for name, side, half in named}


def motion_lora(pack: Pack, rank: int = 4, seed: int = 0) -> State:
    """A camera LoRA for the v2 motion module."""
    state: State = {}
    rules = (
        (r"(motion_modules\.\d+)\.", r"\1.temporal_transformer."),
        (r"\.attn1\.", ".attention_blocks.0."),
        (r"\.attn2\.", ".attention_blocks.1."),
    )
    for name, layer in pack.unet.motion.named_modules():  # type: ignore[union-attr]
        if name.endswith(("attn1", "attn2")):
            halves = attention_lora(layer, rank, seed)
            state |= renamed({f"{name}.processor.{key}": half for key, half in halves.items()}, *rules)
    return state


def write(folder: Path, full: bool = False, seed: int = 0) -> Path:
    """All files that `sd15` is made of, a models.lock that knows them, and a model file; where that is."""
    pack = filled_pack(config("full"), seed) if full else random_pack(config(), seed)
    folder.mkdir(parents=True, exist_ok=True)
    for weight_id, make in locked_files(pack).items():
        save(folder / f"{weight_id}.safetensors", make())
    torch.save({"state_dict": motion_layout(pack), "global_step": 1}, folder / "motion.sd15-v2.ckpt")
    save(folder / "dreamshaper.safetensors", single_file(pack))
    vocabulary, merges = write_tokenizer(folder / "tokenizer", pack.config.text["vocab_size"])
    write_lock(
        folder,
        {"sd15.tokenizer.vocab.json": vocabulary, "sd15.tokenizer.merges.txt": merges, **by_id(folder)},
    )
    (folder / "model.yaml").write_text("base: dreamshaper.safetensors\ntokenizer: tokenizer\n")
    return folder / "model.yaml"


def locked_files(pack: Pack) -> dict[str, Callable[[], State]]:
    """The safetensors of sd15 by their ids in models.lock."""
    return {
        "sd15.unet.fp16": lambda: under(pack.unet.state_dict(), "unet."),
        "sd15.text_encoder.fp16": lambda: clip_text(pack),
        "vae.ft-mse": lambda: old_vae(pack),
        "preview.taesd": taesd,
        "controlnet.openpose.fp16": lambda: {
            f"control_model.{key}": value for key, value in ldm_controlnet(pack, "pose").items()
        },
        "controlnet.depth.fp16": lambda: ldm_controlnet(pack, "depth"),
        "ip-adapter.image-encoder": lambda: dict(pack.image_encoder.state_dict()),
        "ip-adapter.plus-face": lambda: adapter(pack, "face"),
        "ip-adapter.plus": lambda: adapter(pack, "cloth"),
    }


def taesd() -> State:
    """The small autoencoder of previews, as its authors saved it."""
    return AutoencoderTiny().state_dict()


def by_id(folder: Path) -> dict[str, Path]:
    """The weight files in the folder that models.lock has an id for."""
    files = [*folder.glob("*.safetensors"), *folder.glob("*.ckpt")]
    return {file.name.rsplit(".", 1)[0]: file for file in files if "." in file.name.rsplit(".", 1)[0]}


def write_lock(folder: Path, files: Mapping[str, Path]) -> Path:
    """The shipped lock, cut down to these files and with their hashes instead of the public ones."""
    shipped = read_lock(LOCK)
    entries = {
        weight_id: replace(shipped.find(weight_id), sha256=file_sha256(file), size=file.stat().st_size)
        for weight_id, file in files.items()
    }
    path = folder / "models.lock"
    path.write_text(lock_text(Lock(entries, shipped.licenses)), encoding="utf-8")
    return path


def save(path: Path, state: Mapping[str, Tensor]) -> Path:
    """A safetensors file."""
    save_file(dict(apart(state)), path)
    return path


def write_tokenizer(folder: Path, size: int = 514) -> tuple[Path, Path]:
    """vocab.json and merges.txt of a tokenizer that spells bytes, its end tokens the last of `size`."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [f"<unused{i}>" for i in range(size - len(words) - 2)] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    merges.write_text("#version: 0.2\n", encoding="utf-8")
    return vocabulary, merges


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true", help="full width")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(write(arguments.folder, arguments.full, arguments.seed))  # noqa: T201
