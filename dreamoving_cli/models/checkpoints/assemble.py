"""One pack from public files: its config from their shapes, its networks, to be filled one by one.

    config = recipe_config(recipe)                       # reads headers only
    pack = assemble(recipe)                              # every tensor has found its place
    fill(pack, "unet")                                   # models/load.py: reads the weights

Motion blocks of a Video ControlNet start as the identity, so a ControlNet file without them gets none.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

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
from dreamoving_cli.models.load import Pack, Weights, empty_networks
from dreamoving_cli.models.strict import check_fit

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
CONTROL = "controlnet_"  # before the kind, in names of networks


def recipe_config(recipe: Recipe) -> PackConfig:
    """The config of the pack that these files make; tells at once when one of them is the wrong file."""
    states = {role: base_state(recipe, role, read_shapes) for role in BASE}
    unet = sizes.unet_sizes(states["unet"])
    motion = read_shapes(recipe.parts["motion"])
    require(["motion"], motion, recipe.parts["motion"].name, "motion")
    part, table = recipe.parts["motion"], sizes.position_table(motion.items())
    ours = motion_module_to_ours(motion)
    known = sizes.motion_sizes(ours, table, part.trained_frames)
    motion_config = known.model_copy(update={"scale": part.motion_scale})
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


def assemble(recipe: Recipe) -> Pack:
    """The pack with empty networks, against which every file is held by its header."""
    config = recipe_config(recipe)
    vocabulary, merges = (recipe.parts[role].path for role in ("vocabulary", "merges"))
    tokenizer = read_tokenizer(vocabulary, merges, config.text["max_position_embeddings"])
    pack = empty_networks(config, config.controls, tokenizer)
    for network, state, part in weights_of(recipe, pack, read_shapes):
        check_fit(network, state, STATISTICS if network is pack.vae else (), part.name)

    def read(name: str) -> tuple[State, str]:
        state, part = network_weights(recipe, pack, name)
        known = {key: pack.vae.get_buffer(key) for key in STATISTICS} if name == "vae" else {}
        return {**state, **known}, part.name

    pack.weights = Weights(read)
    for kind in config.guider:
        if needs_identity(config, kind):
            merge_loras(pack, read_tensors(recipe.parts[kind]), 1.0, recipe.parts[kind].name)
    return pack


def count_values(recipe: Recipe, of: Callable[[Tensor], int] = Tensor.numel) -> dict[str, int]:
    """Numbers in the weights of each network, or the sum of this, by its name; reads headers only."""
    states = {role: base_state(recipe, role, read_shapes) for role in BASE}
    states["unet"] |= read_shapes(recipe.parts["motion"])
    states |= {f"controlnet_{kind}": read_shapes(part) for kind, part in recipe.controls.items()}
    if "image_encoder" in recipe.parts:
        states["image_encoder"] = read_shapes(recipe.parts["image_encoder"])
    counts = {name: sum(map(of, state.values())) for name, state in states.items()}
    adapters = [read_shapes(recipe.parts[kind]) for kind in PROMPTS if kind in recipe.parts]
    guider = sum(of(value) for state in adapters for value in state.values())
    return counts | ({"guider": guider} if guider else {})


def weights_of(
    recipe: Recipe, pack: Pack, read: Read = read_tensors
) -> Iterator[tuple[nn.Module, State, Part]]:
    """Each network of the pack, its weights in our names, and the file to name when they do not fit."""
    absent = {f"{CONTROL}{kind}" for kind in pack.controlnets.keys() - recipe.controls.keys()}
    absent |= set() if pack.config.guider else {"guider"}
    for name, network in pack.networks().items():
        if name not in absent:
            yield network, *network_weights(recipe, pack, name, read)


def network_weights(recipe: Recipe, pack: Pack, name: str, read: Read = read_tensors) -> tuple[State, Part]:
    """The weights of one network in our names, and the file to name when they do not fit."""
    parts = recipe.parts
    if name == "guider":
        kinds = list(pack.config.guider)
        adapters = [ip_adapter_to_ours(read(parts[kind]), pack.unet.unet, kind) for kind in kinds]
        return {key: value for state in adapters for key, value in state.items()}, parts[kinds[0]]
    if name == "image_encoder":
        return sd.image_names(read(parts[name])), parts[name]
    if name.startswith(CONTROL):
        part = recipe.controls[name.removeprefix(CONTROL)]
        return _control_weights(pack, name.removeprefix(CONTROL), read(part)), part
    state, part = base_state(recipe, name, read), parts.get(name) or parts.get("base") or parts["motion"]
    if name == "unet":
        motion = motion_module_to_ours(read(parts["motion"]))
        return prefixed("unet", state) | prefixed("motion", motion), parts["motion"]
    if name == "text_encoder":
        return sd.text_names(state, pack.text_encoder.state_dict()), part
    return prefixed("vae", state), part


def prefixed(prefix: str, state: State) -> dict[str, Tensor]:
    """All tensors one level down."""
    return {f"{prefix}.{key}": value for key, value in state.items()}


def _control_weights(pack: Pack, kind: str, state: State) -> State:
    """A ControlNet's weights; a file without motion blocks takes them off the network."""
    renamed = _control_names(state, _layers(pack.config))
    if not moves(renamed):
        pack.controlnets[kind].motion = None
    return renamed


def control_moves(recipe: Recipe, config: PackConfig, kind: str) -> bool:
    """Whether this ControlNet's file has motion blocks, by its header."""
    return moves(_control_names(read_shapes(recipe.controls[kind]), _layers(config)))


def moves(state: State) -> bool:
    return any(key.startswith("motion.") for key in state)


def _layers(config: PackConfig) -> list[int]:
    return [config.unet["layers_per_block"]] * len(config.unet["block_out_channels"])


def base_state(recipe: Recipe, role: str, read: Read) -> dict[str, Tensor]:
    """U-Net, autoencoder or text encoder in diffusers' names, from one file, a folder or its own file."""
    state: dict[str, Tensor] = {}
    if role in recipe.parts:
        state = _own_state(role, recipe.parts[role], read)
    elif (base := recipe.parts.get("base")) is not None:
        state = (_from_folder if base.path.is_dir() else _from_checkpoint)(base, role, read)
    if not state:
        raise WeightsError(
            f"model '{recipe.name}' has no file for its {role}", f"Give '{role}: FILE' in its model file."
        )
    return state


def _from_checkpoint(base: Part, role: str, read: Read) -> dict[str, Tensor]:
    state = read(base)
    require(["checkpoint"], state, base.name, "base")
    return sd.split_checkpoint(state, base.name).get(role, {})


def _from_folder(base: Part, role: str, read: Read) -> dict[str, Tensor]:
    """A network of a diffusers folder, if it has it."""
    files = [base.path / role / name for name in FOLDER_FILES[role]]
    file = next((file for file in files if file.is_file()), None)
    return {} if file is None else _own_state(role, Part(file, trusted=base.trusted), read)


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
