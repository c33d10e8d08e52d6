"""LoRAs merged into a pack's weights when they are read: W += scale * alpha / rank * up @ down.

    merge_loras(pack, read_tensors(part), 0.8, part.name)     # checked now, also where networks are empty

Style and character LoRAs in kohya's, diffusers' and peft's names, for the U-Net and the text encoder;
AnimateDiff's motion LoRAs and domain adapter; the LoRA in FaceID files. Every tensor finds its layer or the
file is refused.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from torch import Tensor, nn

from dreamoving_cli.errors import WeightsError
from dreamoving_cli.models.checkpoints.identify import LORAS, require
from dreamoving_cli.models.keys import adapter_attentions, rename_motion
from dreamoving_cli.models.load import Pack
from dreamoving_cli.models.strict import is_empty

# Endings of all namings: "<attn>.to_q_lora.down.weight", "<layer>.lora.up.weight", "<layer>.lora_A.weight"
NAMING = re.compile(
    r"(?P<layer>.+?)(\.to_(?P<to>q|k|v|out)(?=_lora))?(\.lora_linear_layer|\.lora|_lora)"
    r"[._](?P<side>down|up|A|B)(\.default)?\.weight"
)
SIDES = {"down": "down", "A": "down", "up": "up", "B": "up"}
PREFIXES = {"unet.": "unet", "text_encoder.": "text_encoder", "base_model.model.": "unet"}


@dataclass(frozen=True)
class Delta:
    """What a LoRA adds to one layer."""

    down: Tensor
    up: Tensor
    scale: float

    def added_to(self, weight: Tensor) -> Tensor:
        """The new weight, in its own shape and dtype; sums in fp32."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        added = self.scale * product.reshape(weight.shape).to(weight.device)
        return (weight.float() + added).to(weight.dtype)


def merge_loras(pack: Pack, state: Mapping[str, Tensor], scale: float, name: str) -> int:
    """Merge one LoRA file into the pack's networks, those to be read too; how many layers it changes."""
    require(LORAS, state, name, "--lora")
    layers = layers_of(pack)
    pairs = pair_up(dict(plain_names(state, pack.unet.unet)), name)
    for key, delta in pairs.items():
        layer = layers.get(key)
        if layer is None:
            raise WeightsError(
                f"{name} changes '{key}', which model '{pack.config.name}' does not have",
                "Is it made for Stable Diffusion 1.x?",
            )
        _check_fits(layer.weight, delta, f"{name}: '{key}'")
    change = partial(add, {key: replace(delta, scale=delta.scale * scale) for key, delta in pairs.items()})
    for network in ("unet", "text_encoder"):
        if not is_empty(pack.networks()[network]):
            change(network, pack.networks()[network])
    if pack.weights is not None:
        pack.weights.changes.append(change)
    return len(pairs)


@torch.no_grad()
def add(deltas: Mapping[str, Delta], name: str, network: Any) -> None:
    """Add what belongs to this network of the pack."""
    for key, layer in layers_in(name, network).items():
        if key in deltas:
            layer.weight.copy_(deltas[key].added_to(layer.weight))


def layers_of(pack: Pack) -> dict[str, Any]:
    """Every linear layer and convolution that a LoRA may change, as network.path."""
    return layers_in("unet", pack.unet) | layers_in("text_encoder", pack.text_encoder)


def layers_in(name: str, network: Any) -> dict[str, Any]:
    """Those of one network of the pack; of the U-Net, as unet.path and motion.path."""
    parts = {"unet": {"unet": "unet", "motion": "motion"}, "text_encoder": {"text_encoder": ""}}
    return {
        f"{part}.{path.removeprefix('text_model.')}": module
        for part, attribute in parts.get(name, {}).items()
        for path, module in _modules(getattr(network, attribute) if attribute else network)
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def _modules(network: nn.Module | None) -> Iterator[tuple[str, nn.Module]]:
    return iter(()) if network is None else network.named_modules()


def plain_names(state: Mapping[str, Tensor], unet: Any) -> Iterator[tuple[str, Tensor]]:
    """The file's tensors as network.path.{down,up,alpha}."""
    if any(key.startswith(("lora_unet_", "lora_te_", "lora_te1_")) for key in state):
        yield from _from_kohya(state, unet)
        return
    attentions = adapter_attentions(unet)
    for key, value in state.items():
        key = key.removeprefix("module.")
        if key.startswith("ip_adapter."):
            number, rest = key.removeprefix("ip_adapter.").split(".", 1)
            if "_lora." in rest:  # the rest of the file is no LoRA
                yield _plain(f"unet.{attentions[int(number)]}.processor.{rest}"), value
        elif not key.startswith("image_proj."):
            yield _plain(key), value


def pair_up(tensors: dict[str, Tensor], name: str) -> dict[str, Delta]:
    """Both halves and alpha of each layer together; refuses what stands alone."""
    pairs = {}
    for layer in dict.fromkeys(key.rpartition(".")[0] for key in tensors):
        down, up = tensors.pop(f"{layer}.down", None), tensors.pop(f"{layer}.up", None)
        alpha = tensors.pop(f"{layer}.alpha", None)
        if down is None or up is None:
            raise WeightsError(f"{name} has half of a pair for '{layer}'", "Is the file complete?")
        pairs[layer] = Delta(down, up, 1.0 if alpha is None else float(alpha) / down.shape[0])
    return pairs


def _from_kohya(state: Mapping[str, Tensor], unet: Any) -> Iterator[tuple[str, Tensor]]:
    """kohya's flat names through diffusers' converter, which keeps alphas apart."""
    try:
        renamed, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(dict(state), unet_config=unet.config)
    except ValueError as error:
        raise WeightsError(
            f"the LoRA has layers that Stable Diffusion 1.x does not: {str(error)[:200]}",
            "Is it the right file?",
        ) from error
    for key, value in renamed.items():
        yield _plain(key), value
    for key, alpha in (alphas or {}).items():
        layer = re.sub(r"(_lora|\.lora_linear_layer)?(\.down\.weight)?\.alpha$", r"\1", key)
        layer += "" if layer.endswith(("_lora", ".lora_linear_layer")) else ".lora"
        yield _plain(f"{layer}.down.weight").removesuffix("down") + "alpha", torch.tensor(alpha)


def _plain(key: str) -> str:
    """One name of any naming as network.path.side; a name that is none of them stays as it is."""
    if key.endswith(".alpha"):
        return _plain(key.removesuffix(".alpha") + ".lora_A.weight").removesuffix("down") + "alpha"
    found = NAMING.fullmatch(key.replace(".processor.", "."))
    if found is None:
        return key
    layer = found["layer"] + (_attention_layer(found["layer"], found["to"]) if found["to"] else "")
    return f"{_network(layer)}.{SIDES[found['side']]}"


def _attention_layer(attention: str, to: str) -> str:
    """What q, k, v and out are called: CLIP's attentions have their own names."""
    if "self_attn" in attention:
        return ".out_proj" if to == "out" else f".{to}_proj"
    return ".to_out.0" if to == "out" else f".to_{to}"


def _network(layer: str) -> str:
    """A layer's path behind its network's name: unet, text_encoder or motion."""
    prefix = next((p for p in PREFIXES if layer.startswith(p)), "")
    network, path = PREFIXES.get(prefix, "unet"), layer.removeprefix(prefix)
    if "motion_modules." in path:
        network, path = "motion", rename_motion(path)
    return f"{network}.{path.removeprefix('text_model.')}"


def _check_fits(weight: Tensor, delta: Delta, where: str) -> None:
    rank = delta.down.shape[0]
    fits = delta.up.shape[0] == weight.shape[0] and delta.up.shape[1] == rank
    if not fits or delta.down[0].numel() != weight[0].numel():
        raise WeightsError(
            f"{where} is {[*weight.shape]}, in the file {[*delta.up.shape]} x {[*delta.down.shape]}",
            "Is it made for Stable Diffusion 1.x?",
        )
