"""A model pack: build it with random weights, save it, load it strictly.

    pack = build_pack(config, seed=0)                      # training starts here
    text = pack.encode_text(["a woman dances"])            # b l d, with gradients
    features = pack.image_features(pixels)                 # pixels: b 3 s s from `normalize_pixels`
    tokens = pack.guider.tokens("face", features)          # b l d, with gradients
    save_pack(pack, folder)
    pack = load_pack(folder, controls=["pose"], device="cuda", dtype=torch.bfloat16)

`pack.networks()` names every network as its file: unet, controlnet_<kind>, guider, vae, text_encoder,
image_encoder.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreamoving_cli.errors import UsageError, WeightsError
from dreamoving_cli.models.checkpoints.files import Recipe
from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.content_guider import ContentGuider
from dreamoving_cli.models.controlnet import VideoControlNet
from dreamoving_cli.models.encoders import (
    build_image_encoder,
    build_text_encoder,
    encode_text,
    learn_tokenizer,
    load_tokenizer,
    prepare_pictures,
)
from dreamoving_cli.models.projections import ImageFeatures
from dreamoving_cli.models.unet import VideoUNet
from dreamoving_cli.models.vae import VAE


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
    if isinstance(folder, Recipe):
        from dreamoving_cli.models.checkpoints.assemble import assemble

        return assemble(folder, device, dtype)
    config = PackConfig.load(folder / "config.json")
    wanted = list(config.controls if controls is None else controls)
    if unknown := [kind for kind in wanted if kind not in config.controls]:
        offered = ", ".join(config.controls) or "none"
        raise UsageError(f"model '{config.name}' has no control '{unknown[0]}'", f"It has: {offered}.")
    with init_empty_weights(include_buffers=False):  # random weights would be thrown away
        pack = build_networks(config, wanted, load_tokenizer(folder / "tokenizer"))
    for name, network in pack.networks().items():
        path = folder / f"{name}.safetensors"
        load_exactly(network, read_weights(path), source=str(path))
        network.to(device=device, dtype=dtype).eval().requires_grad_(False)
        channels_last(network)
    return pack


def save_pack(pack: Pack, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the pack; config.json comes last, so that a folder without it is no pack."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, network in pack.networks().items():
        state = {
            key: value.detach().to("cpu", dtype).contiguous() for key, value in network.state_dict().items()
        }
        _write(folder / f"{name}.safetensors", partial(save_file, state))
    pack.tokenizer.save_pretrained(folder / "tokenizer")
    _write(folder / "config.json", lambda part: part.write_text(pack.config.to_json() + "\n"))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing", "Fetch the pack again.") from error
    except Exception as error:
        raise WeightsError(f"{path} cannot be read: {error}", "Fetch the pack again.") from error


def load_exactly(
    model: nn.Module, state: Mapping[str, Tensor], absent: Collection[str] = (), source: str = "the weights"
) -> None:
    """Load `state`; parameters under the prefixes in `absent` may be missing (fresh motion blocks)."""
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.startswith(tuple(absent))]
    extra = [key for key in state if key not in own]
    bent = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or extra or bent:
        problem = (
            f"{source} do not fit: missing {missing[:3]}, unexpected {extra[:3]}, other shapes {bent[:3]}"
        )
        raise WeightsError(problem, "Is it the right file?")
    model.load_state_dict(dict(state), strict=False, assign=any(value.is_meta for value in own.values()))


def channels_last(model: nn.Module) -> nn.Module:
    """Convolution weights in the memory order their inputs have."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return model


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
        unet=_fast(VideoUNet(config.unet, config.motion, config.resnet_norm)),
        controlnets={
            kind: _fast(VideoControlNet(config.controlnet(kind), control_motion, config.resnet_norm))
            for kind in controls
        },
        guider=ContentGuider(config),
        vae=_fast(VAE(config.vae)),
        text_encoder=build_text_encoder(config.text),
        tokenizer=tokenizer,
        image_encoder=None if config.image is None else build_image_encoder(config.image),
    )


def _fast(model: Any) -> Any:
    channels_last(model)
    return model


def _write(path: Path, write: Callable[[Path], object]) -> None:
    with _whole(path) as part:
        write(part)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)  # noqa: PTH105  (replaces on every platform)
    finally:
        part.unlink(missing_ok=True)
