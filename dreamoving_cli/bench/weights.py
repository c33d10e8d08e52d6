"""Networks with random weights, made in seconds at any width, and the same in every process."""

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor, nn

from dreamoving_cli.bench.sizes import CONTROL, PICTURE_TOKENS, Task, bench_config
from dreamoving_cli.device import DTYPES
from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.content_guider import ContentGuider
from dreamoving_cli.models.controlnet import VideoControlNet
from dreamoving_cli.models.convolution import quick_convolutions
from dreamoving_cli.models.encoders import build_text_encoder, learn_tokenizer
from dreamoving_cli.models.load import Pack
from dreamoving_cli.models.unet import VideoUNet
from dreamoving_cli.models.vae import VAE

BLOCK = 2**20 + 7  # random numbers that weights repeat; a prime, so that no two rows are alike


def random_state(shapes: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights of these names and shapes that keep activations near unit size; the name is the seed."""
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))

    def filled(name: str, like: Tensor) -> Tensor:
        start = zlib.crc32(name.encode()) % BLOCK
        end = start + like.numel()
        source = block if end <= BLOCK else block.repeat(end // BLOCK + 1)
        noise = source[start:end].reshape(like.shape)
        if like.ndim > 1:
            return (noise * (like[0].numel() ** -0.5)).to(dtype)
        return (0.1 * noise + ("norm" in name and name.endswith("weight"))).to(dtype)

    return {name: filled(name, like) for name, like in shapes.items()}


def fill(network: Any, dtype: torch.dtype) -> Any:
    """Give a network without weights random ones."""
    shapes = {name: weight for name, weight in network.named_parameters() if weight.is_meta}
    network.load_state_dict(random_state(shapes, dtype), strict=False, assign=True)
    return network.to(dtype).eval().requires_grad_(False)


def random_pack(task: Task) -> Pack:
    """What denoises, with random weights on the CPU, and a text encoder; no image encoder.

    An autoencoder where the task wants pictures.
    """
    config, dtype = bench_config(task.width, task.norm), DTYPES[task.dtype]
    with init_empty_weights(include_buffers=False):
        unet = VideoUNet(config.unet, config.motion, config.resnet_norm)
        control = VideoControlNet(config.controlnet(CONTROL), None, config.resnet_norm)
        guider = ContentGuider(config)
    text = build_text_encoder(config.text)
    text.load_state_dict(random_state(text.state_dict(), torch.float32))
    networks: list[nn.Module] = [quick_convolutions(fill(net, dtype)) for net in (unet, control)]
    return Pack(
        config=config,
        unet=networks[0],  # type: ignore[arg-type]
        controlnets={CONTROL: networks[1]},  # type: ignore[dict-item]
        guider=fill(guider, dtype),
        vae=random_vae(config, dtype) if task.pictures else None,  # type: ignore[arg-type]
        text_encoder=text.to(dtype).eval().requires_grad_(False),
        tokenizer=learn_tokenizer(),
        image_encoder=None,
    )


def random_vae(config: PackConfig, dtype: torch.dtype) -> VAE:
    """An autoencoder with random weights."""
    with init_empty_weights(include_buffers=False):
        vae = VAE(config.vae)
    return quick_convolutions(fill(vae, dtype))


def picture_features(task: Task, number: int) -> Tensor:
    """What an image encoder would say of no picture and of a picture: 2 n c, or 1 n c without guidance."""
    width = bench_config(task.width).image or {}
    generator = torch.Generator().manual_seed(100 + number)
    shape = (2, PICTURE_TOKENS, width["hidden_size"])
    return torch.randn(shape, generator=generator)[-task.branches :].to(DTYPES[task.dtype])
