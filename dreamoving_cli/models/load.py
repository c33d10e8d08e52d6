"""A model pack: build it with random weights, save it, load it strictly, at once or network by network.

    pack = build_pack(config, seed=0)                      # training starts here
    text = pack.encode_text(["a woman dances"])            # b l d, with gradients
    features = pack.image_features(pixels)                 # pixels: b 3 s s from `normalize_pixels`
    tokens = pack.guider.tokens("face", features)          # b l d, with gradients
    save_pack(pack, folder)
    pack = load_pack(folder, controls=["pose"], device="cuda", dtype=torch.bfloat16)

    pack = open_pack(folder, controls=["pose"])            # networks without weights: costs no memory
    fill(pack, "unet", dtype=torch.bfloat16)               # read when it is needed
    empty(pack.unet)                                       # forgotten; fill reads it again

`pack.networks()` names every network as its file: unet, controlnet_<kind>, guider, vae, text_encoder,
image_encoder.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from safetensors.torch import save_file
from torch import Tensor, nn

from dreamoving_cli.errors import UsageError, WeightsError
from dreamoving_cli.models.checkpoints.files import Recipe
from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.content_guider import ContentGuider
from dreamoving_cli.models.controlnet import VideoControlNet
from dreamoving_cli.models.convolution import quick_convolutions
from dreamoving_cli.models.encoders import (
    build_image_encoder,
    build_text_encoder,
    encode_text,
    learn_tokenizer,
    load_tokenizer,
    prepare_pictures,
)
from dreamoving_cli.models.projections import ImageFeatures
from dreamoving_cli.models.strict import State, check_fit, is_empty, load_exactly, read_weights
from dreamoving_cli.models.unet import VideoUNet
from dreamoving_cli.models.vae import VAE
from dreamoving_cli.whole import whole_file

States = Iterable[tuple[str, Iterable[tuple[str, Tensor]]]]


@dataclass
class Weights:
    """Where the weights of a pack's networks are, to be read one network at a time."""

    read: Callable[[str], tuple[State, str]]  # a network's name -> its weights in our names, the file's name
    changes: list[Callable[[str, nn.Module], None]] = field(default_factory=list)  # LoRAs, after each reading


@dataclass
class Pack:
    """The networks that render together."""

    config: PackConfig
    unet: VideoUNet
    controlnets: dict[str, VideoControlNet]
    guider: ContentGuider
    vae: VAE
    text_encoder: Any
    tokenizer: Any
    image_encoder: Any  # None where the pack takes no image prompts
    weights: Weights | None = None  # None: made here, nothing to read again
    any_of: Callable[[Sequence[bool]], list[bool]] = list  # what runs: more, where processes share networks

    def networks(self) -> dict[str, nn.Module]:
        """Every network by the name of its file."""
        named = {f"controlnet_{kind}": net for kind, net in self.controlnets.items()}
        parts = {"unet": self.unet, **named, "guider": self.guider, "vae": self.vae}
        encoders = {"text_encoder": self.text_encoder, "image_encoder": self.image_encoder}
        return {name: part for name, part in {**parts, **encoders}.items() if part is not None}

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Text tokens for the cross-attentions, b l d."""
        return encode_text(self.text_encoder, self.tokenizer, prompts)

    def image_features(self, pixels: Tensor, identity: Tensor | None = None) -> ImageFeatures:
        """What the projections take; pixels: b 3 s s, normalized for CLIP. identity: b c, from ArcFace."""
        seen = self.image_encoder(pixels.to(self.image_encoder.dtype), output_hidden_states=True)
        return ImageFeatures(seen.hidden_states[-2], getattr(seen, "image_embeds", None), identity)

    def no_image(self, batch: int = 1, identity: Tensor | None = None) -> ImageFeatures:
        """Features of "no picture": the encoder on all-zero pixels, and embeddings of zeros."""
        side = self.image_encoder.config.image_size
        seen = self.image_features(torch.zeros(batch, 3, side, side, device=self.image_encoder.device))
        embedding = None if seen.embedding is None else torch.zeros_like(seen.embedding)
        return ImageFeatures(seen.hidden, embedding, None if identity is None else torch.zeros_like(identity))

    def image_tokens(
        self, kind: str, pictures: Sequence[np.ndarray] | None, identity: Tensor | None = None
    ) -> Tensor:
        """Prompt tokens of this kind, 1 l d: the mean over the pictures (uint8 h w c); None: no picture."""
        if kind not in self.config.guider:
            offered = ", ".join(self.config.guider) or "none"
            raise UsageError(f"model '{self.config.name}' takes no {kind} picture", f"It takes: {offered}.")
        if pictures is None:
            nobody = torch.zeros(1, self.config.guider[kind].get("identity", 512))
            return self.guider.tokens(kind, self.no_image(identity=nobody.to(next(self.guider.parameters()))))
        pixels = prepare_pictures(pictures, self.image_encoder.config.image_size)
        if identity is not None:
            identity = identity.to(next(self.guider.parameters()))
        features = self.image_features(pixels.to(self.image_encoder.device), identity)
        return self.guider.tokens(kind, features).mean(0, keepdim=True)


def build_pack(config: PackConfig, seed: int | None = None, tokenizer: Any = None) -> Pack:
    """Random networks, fit for training: motion blocks and ControlNet outputs start at zero."""
    with torch.random.fork_rng(devices=[]) if seed is not None else nullcontext():
        if seed is not None:
            torch.random.manual_seed(seed)
        return build_networks(config, config.controls, tokenizer)


def load_pack(
    folder: Path | Recipe,
    controls: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Pack:
    """The pack in `folder`, ready to render, with the ControlNets named in `controls` (None: all).

    A recipe of public files is assembled; it names the controls itself.
    """
    pack = open_pack(folder, controls)
    for name, network in pack.networks().items():
        if is_empty(network):
            fill(pack, name, device, dtype)
        network.to(device=device, dtype=dtype)
    return pack


def open_pack(folder: Path | Recipe, controls: Sequence[str] | None = None) -> Pack:
    """As `load_pack`, its networks still empty; every file is held against them by its header."""
    if isinstance(folder, Recipe):
        from dreamoving_cli.models.checkpoints.assemble import assemble

        return assemble(folder)
    config = PackConfig.load(folder / "config.json")
    wanted = list(config.controls if controls is None else controls)
    if unknown := [kind for kind in wanted if kind not in config.controls]:
        offered = ", ".join(config.controls) or "none"
        raise UsageError(f"model '{config.name}' has no control '{unknown[0]}'", f"It has: {offered}.")
    pack = empty_networks(config, wanted, load_tokenizer(folder / "tokenizer"))

    def read(name: str, shapes: bool = False) -> tuple[State, str]:
        path = folder / f"{name}.safetensors"
        return read_weights(path, shapes), str(path)

    for name, network in pack.networks().items():
        state, source = read(name, shapes=True)
        check_fit(network, state, source=source)
    pack.weights = Weights(read)
    return pack


def empty_networks(config: PackConfig, controls: Collection[str], tokenizer: Any) -> Pack:
    """A pack whose weights are on the meta device: sizes and names, no memory; buffers are real."""
    with init_empty_weights(include_buffers=False):
        return build_networks(config, controls, tokenizer)


def fill(
    pack: Pack,
    name: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    as_stored: bool = False,
) -> None:
    """Read one network and merge its LoRAs, tensor by tensor from the mapped file.

    as_stored: linear layers and convolutions stay in their file's precision, where nothing is merged.
    """
    assert pack.weights is not None, "this pack was made here"
    network = pack.networks()[name]
    state, source = pack.weights.read(name)
    load_exactly(network, state, source=source)
    del state  # the mapping ends with the last of its tensors
    as_stored = as_stored and not pack.weights.changes
    try:
        for part in network.modules():
            if not (as_stored and isinstance(part, nn.Linear | nn.Conv2d)):
                _convert(part, torch.device(device), dtype)
        quick_convolutions(network.eval().requires_grad_(False))
        for change in pack.weights.changes:
            change(name, network)
    except BaseException:  # memory is full: half a network must not look like one
        empty(network)
        raise


@torch.no_grad()
def _convert(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """The weights and buffers of this module, without those of its parts, to this place and precision.

    Convolutions get their memory order in the same copy: a second one would leave holes in memory. A GPU
    changes the precision itself, faster than the CPU would.
    """
    order = torch.channels_last if isinstance(module, nn.Conv2d) else torch.preserve_format
    for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
        wanted = dtype if tensor.is_floating_point() else tensor.dtype
        kept = order if tensor.dim() == 4 else torch.preserve_format
        here = tensor.data.to(device) if device.type == "cuda" else tensor.data
        tensor.data = here.to(device, wanted, memory_format=kept)


def empty(network: nn.Module) -> None:
    """Forget the weights; names and sizes stay."""
    for module in network.modules():
        for name, weights in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(weights.to("meta"), requires_grad=False))


def save_pack(
    pack: Pack, folder: Path, dtype: torch.dtype = torch.float16, states: States | None = None
) -> None:
    """Write the pack; config.json comes last, so that a folder without it is no pack.

    states: every network's name and tensors, instead of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if states is None:
        states = ((name, network.state_dict().items()) for name, network in pack.networks().items())
    for name, tensors in states:
        state = {key: value.detach().to("cpu", dtype).contiguous() for key, value in tensors}
        with whole_file(folder / f"{name}.safetensors") as part:
            save_file(state, part)
    pack.tokenizer.save_pretrained(folder / "tokenizer")
    with whole_file(folder / "config.json") as part:
        part.write_text(pack.config.to_json() + "\n", encoding="utf-8")


def build_networks(config: PackConfig, controls: Collection[str], tokenizer: Any) -> Pack:
    """The networks of this config, with as many ControlNets as `controls` names."""
    tokenizer = learn_tokenizer() if tokenizer is None else tokenizer
    if len(tokenizer) > (vocabulary := config.text.get("vocab_size", 49408)):
        raise WeightsError(
            f"the tokenizer has {len(tokenizer)} tokens, the text encoder {vocabulary}",
            "Use the tokenizer that belongs to the model.",
        )
    control_motion = config.motion if config.controlnet_motion else None
    return Pack(
        config=config,
        unet=quick_convolutions(VideoUNet(config.unet, config.motion, config.resnet_norm)),
        controlnets={
            kind: quick_convolutions(
                VideoControlNet(config.controlnet(kind), control_motion, config.resnet_norm)
            )
            for kind in controls
        },
        guider=ContentGuider(config),
        vae=quick_convolutions(VAE(config.vae)),
        text_encoder=build_text_encoder(config.text),
        tokenizer=tokenizer,
        image_encoder=None if config.image is None else build_image_encoder(config.image),
    )
