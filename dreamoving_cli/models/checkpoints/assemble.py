"""One pack from public files: its config from their shapes, its networks with their weights.

    config = recipe_config(recipe)                       # reads headers only
    pack = assemble(recipe, "cuda", torch.bfloat16)

Motion blocks of a Video ControlNet start as the identity, so a ControlNet file without them gets none.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor, nn

from dreamoving_cli.errors import WeightsError
from dreamoving_cli.models.checkpoints import sd, sizes
from dreamoving_cli.models.checkpoints.files import Part, Recipe, read_shapes, read_tensors
from dreamoving_cli.models.checkpoints.identify import ADAPTERS, require
from dreamoving_cli.models.checkpoints.lora import merge_loras
from dreamoving_cli.models.config import PackConfig, SchedulerConfig
from dreamoving_cli.models.content_guider import PROMPTS, needs_identity
from dreamoving_cli.models.encoders import read_tokenizer
from dreamoving_cli.models.keys import controlnet_to_ours, ip_adapter_to_ours, motion_module_to_ours
from dreamoving_cli.models.load import Pack, build_networks, channels_last, load_exactly

State = Mapping[str, Tensor]
Read = Callable[[Part], dict[str, Tensor]]

FOLDER_FILES = {  # of a diffusers folder, in the order of preference
    "unet": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors",
             "diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"),
    "text_encoder": ("model.safetensors", "model.fp16.safetensors",
                     "pytorch_model.bin", "pytorch_model.fp16.bin"),
}  # fmt: skip
FOLDER_FILES["vae"] = FOLDER_FILES["unet"]
STATISTICS = ("mean", "std")  # of latents: our autoencoder's own, from its config
BASE = ("unet", "vae", "text_encoder")


def recipe_config(recipe: Recipe) -> PackConfig:
    """The config of the pack that these files make; tells at once when one of them is the wrong file."""
    states = base_states(recipe, read_shapes)
    unet = sizes.unet_sizes(states["unet"])
    motion = read_shapes(recipe.parts["motion"])
    require(["motion"], motion, recipe.parts["motion"].name, "motion")
    part, table = recipe.parts["motion"], sizes.position_table(motion.items())
    ours = motion_module_to_ours(motion)
    motion_config = sizes.motion_sizes(ours, table, part.trained_frames)
    controls = {kind: _control_settings(kind, part) for kind, part in recipe.controls.items()}
    guider = {kind: _adapter_settings(kind, recipe.parts[kind]) for kind in PROMPTS if kind in recipe.parts}
    return PackConfig(
        name=recipe.name,
        unet=unet,
        motion=motion_config,
        resnet_norm=part.resnet_norm or sizes.resnet_norm(table, ours),  # type: ignore[arg-type]
        controls=controls,
        guider=guider,
        text=sizes.text_sizes(states["text_encoder"]),
        image=_image_sizes(recipe.parts["image_encoder"]) if guider else None,
        vae=sizes.vae_sizes(states["vae"]),
        scheduler=SchedulerConfig(beta_schedule=part.beta_schedule),  # type: ignore[arg-type]
        context_frames=recipe.context_frames or motion_config.max_length,
    )


def assemble(recipe: Recipe, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Pack:
    """The pack, ready to render: networks on the device, in this dtype, without gradients."""
    config = recipe_config(recipe)
    vocabulary, merges = (recipe.parts[role].path for role in ("vocabulary", "merges"))
    tokenizer = read_tokenizer(vocabulary, merges, config.text["max_position_embeddings"])
    with init_empty_weights(include_buffers=False):
        pack = build_networks(config, config.controls, tokenizer)
    for network, state, part in weights_of(recipe, pack):
        load_exactly(network, state, absent=STATISTICS if network is pack.vae else (), source=part.name)
        network.to(device=device, dtype=dtype).eval().requires_grad_(False)
        channels_last(network)
    for kind in config.guider:
        if needs_identity(config, kind):
            merge_loras(pack, read_tensors(recipe.parts[kind]), 1.0, recipe.parts[kind].name)
    return pack


def count_values(recipe: Recipe) -> dict[str, int]:
    """Numbers in the weights of each network, by its name in the pack; reads headers only."""
    states = base_states(recipe, read_shapes)
    states["unet"] |= read_shapes(recipe.parts["motion"])
    states |= {f"controlnet_{kind}": read_shapes(part) for kind, part in recipe.controls.items()}
    if "image_encoder" in recipe.parts:
        states["image_encoder"] = read_shapes(recipe.parts["image_encoder"])
    counts = {name: sum(value.numel() for value in state.values()) for name, state in states.items()}
    adapters = [read_shapes(recipe.parts[kind]) for kind in PROMPTS if kind in recipe.parts]
    guider = sum(value.numel() for state in adapters for value in state.values())
    return counts | ({"guider": guider} if guider else {})


def weights_of(
    recipe: Recipe, pack: Pack, read: Read = read_tensors
) -> Iterator[tuple[nn.Module, dict[str, Tensor], Part]]:
    """Each network of the pack, its weights in our names, and the file to name when they do not fit."""
    parts, states = recipe.parts, base_states(recipe, read)
    base = parts.get("base")
    motion = motion_module_to_ours(read(parts["motion"]))
    yield pack.unet, prefixed("unet", states.pop("unet")) | prefixed("motion", motion), parts["motion"]
    yield pack.vae, prefixed("vae", states.pop("vae")), parts.get("vae") or base or parts["motion"]
    text = sd.text_names(states.pop("text_encoder"), pack.text_encoder.state_dict())
    yield pack.text_encoder, text, parts.get("text_encoder") or base or parts["motion"]
    for kind, part in recipe.controls.items():
        yield *_control_weights(pack, kind, read(part)), part
    if pack.image_encoder is not None:
        yield pack.image_encoder, sd.image_names(read(parts["image_encoder"])), parts["image_encoder"]
    guider: dict[str, Tensor] = {}
    for kind in pack.config.guider:
        guider |= ip_adapter_to_ours(read(parts[kind]), pack.unet.unet, kind)
    if guider:
        yield pack.guider, guider, parts[next(iter(pack.config.guider))]


def prefixed(prefix: str, state: State) -> dict[str, Tensor]:
    """All tensors one level down."""
    return {f"{prefix}.{key}": value for key, value in state.items()}


def _control_weights(pack: Pack, kind: str, state: State) -> tuple[nn.Module, dict[str, Tensor]]:
    """A ControlNet and its weights; a file without motion blocks takes them off the network."""
    layers = [pack.config.unet["layers_per_block"]] * len(pack.config.unet["block_out_channels"])
    net, renamed = pack.controlnets[kind], _control_names(state, layers)
    if not any(key.startswith("motion.") for key in renamed):
        net.motion = None
    return net, renamed


def base_states(recipe: Recipe, read: Read) -> dict[str, dict[str, Tensor]]:
    """U-Net, autoencoder and text encoder in diffusers' names, from one file, a folder or single ones."""
    states: dict[str, dict[str, Tensor]] = {}
    if (base := recipe.parts.get("base")) is not None:
        states = _folder_states(base, read) if base.path.is_dir() else _checkpoint_states(base, read)
    for role in BASE:
        if role in recipe.parts:
            states[role] = _own_state(role, recipe.parts[role], read)
    if missing := [role for role in BASE if role not in states]:
        raise WeightsError(
            f"model '{recipe.name}' has no file for its {missing[0]}",
            f"Give '{missing[0]}: FILE' in its model file.",
        )
    return states


def _checkpoint_states(base: Part, read: Read) -> dict[str, dict[str, Tensor]]:
    state = read(base)
    require(["checkpoint"], state, base.name, "base")
    return sd.split_checkpoint(state, base.name)


def _folder_states(base: Part, read: Read) -> dict[str, dict[str, Tensor]]:
    """The networks of a diffusers folder, as many as it has."""
    states = {}
    for role, names in FOLDER_FILES.items():
        file = next((base.path / role / name for name in names if (base.path / role / name).is_file()), None)
        if file is not None:
            states[role] = _own_state(role, Part(file, trusted=base.trusted), read)
    return states


def _own_state(role: str, part: Part, read: Read) -> dict[str, Tensor]:
    """A network from a file of its own; a whole checkpoint serves too, for the part that is asked for."""
    state = read(part)
    kind = require([role.replace("_", "-"), "checkpoint"], state, part.name, role)
    if kind == "checkpoint":
        return sd.split_checkpoint(state, part.name).get(role, {})
    if role == "text_encoder":
        return state
    return sd.unet_names(state, part.name) if role == "unet" else sd.vae_names(state, part.name)


def _control_names(state: State, layers: list[int]) -> dict[str, Tensor]:
    """A ControlNet in LDM's, diffusers' or our names -> ours."""
    if any("input_hint_block." in key for key in state):
        return controlnet_to_ours(state, layers)
    if "controlnet.conv_in.weight" in state:
        return dict(state)
    return prefixed("controlnet", state)


def _control_settings(kind: str, part: Part) -> dict[str, Any]:
    state = read_shapes(part)
    require(["controlnet", "video-controlnet"], state, part.name, f"controls: {kind}")
    levels = [1]  # the hint encoder's names do not depend on the levels
    plain = {key.removeprefix("controlnet."): value for key, value in _control_names(state, levels).items()}
    return {"conditioning_embedding_out_channels": sizes.hint_widths(plain)}


def _adapter_settings(role: str, part: Part) -> dict[str, Any]:
    """The Content Guider's entry; what FaceID-plus is, version 1 or 2, its keys do not tell."""
    state = read_shapes(part)
    kind = require(ADAPTERS, state, part.name, role)
    if kind == "faceid-plus":
        if part.kind not in ("faceid-plus", "faceid-plus-v2"):
            raise WeightsError(
                f"{part.name} is an IP-Adapter FaceID-plus, of version 1 or 2: the keys do not tell",
                f"Say which: {role}: {{file: {part.path}, kind: faceid-plus-v2}}.",
            )
        kind = part.kind
    return sizes.adapter_settings(state, kind)


def _image_sizes(part: Part) -> dict[str, Any]:
    state = read_shapes(part)
    require(["image-encoder"], state, part.name, "image_encoder")
    return sizes.image_sizes(state)
