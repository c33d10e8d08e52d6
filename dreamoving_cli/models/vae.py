"""The autoencoder between pixels and latents, frame by frame.

    latents = vae.encode(video)      # video: b c f h w in -1..1 -> latents b c f h w, about unit variance
    video = vae.decode(latents)      # not clamped

`mean` and `std` (one per latent channel) are buffers of the weights: `set_statistics` after training. A patch
above 1 shuffles that many pixels a side into channels before the network and back after it (`patch_out` where
the decoder ends on a finer grid); a latent patch does the same to its latents, for fewer cells in the U-Net.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from einops import rearrange
from torch import Tensor, nn

from dreamoving_cli.models.config import VaeConfig
from dreamoving_cli.models.layers import fold, unfold

CLASSES: dict[str, Any] = {"AutoencoderTiny": AutoencoderTiny, "AutoencoderKL": AutoencoderKL}


class VAE(nn.Module):
    """A diffusers autoencoder with normalized latents."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.patch, self.latent_patch = config.patch, config.latent_patch
        self.patch_out = config.patch_out or config.patch
        self.tiny = config.kind == "AutoencoderTiny"
        self.vae: Any = CLASSES[config.kind](**config.kwargs)
        channels = config.channels
        scale = self.vae.config.scaling_factor if config.kind == "AutoencoderKL" else 1.0
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.full((channels,), 1 / scale))

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """mean, std: c, of raw latents over many pictures."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def encode(self, video: Tensor, batch: int | None = None) -> Tensor:
        """b c f h w in -1..1 -> normalized latents b c f h w; `batch` frames at a time (None: all)."""
        raw = torch.cat([self.encode_raw(frames) for frames in fold(video).split(batch or _ALL)])
        return unfold((raw - _channels(self.mean)) / _channels(self.std), video.shape[2])

    def decode(self, latents: Tensor, batch: int | None = None) -> Tensor:
        """Normalized latents b c f h w -> video of about -1..1; `batch` frames at a time (None: all)."""
        raw = fold(latents) * _channels(self.std) + _channels(self.mean)
        return unfold(
            torch.cat([self.decode_raw(part) for part in raw.split(batch or _ALL)]), latents.shape[2]
        )

    def decode_in_tiles(self, side: int = 256) -> None:
        """From now on decode in overlapping tiles of `side` pixels: less memory, slightly other colors.

        A small autoencoder has no use for it and is left as it is.
        """
        if not self.tiny:
            factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
            self.vae.enable_tiling()
            self.vae.tile_sample_min_size, self.vae.tile_latent_min_size = side, side // factor

    @property
    def last_weight(self) -> Tensor:
        """The weight of the decoder's last layer."""
        decoder = self.vae.decoder
        return (decoder.layers[-1] if self.tiny else decoder.conv_out).weight

    def encode_raw(self, pictures: Tensor) -> Tensor:
        """n c h w in -1..1 -> the network's own latents n c h w; what a training of the autoencoder uses."""
        pictures = F.pixel_unshuffle(pictures, self.patch)
        if self.tiny:  # takes -1..1 and rescales inside
            return F.pixel_unshuffle(self.vae.encoder(pictures), self.latent_patch)
        raw = self.vae.encode(pictures).latent_dist.mode()
        return F.pixel_unshuffle(raw, self.latent_patch)

    def decode_raw(self, raw: Tensor) -> Tensor:
        """The network's own latents n c h w -> n c h w in -1..1."""
        raw = F.pixel_shuffle(raw, self.latent_patch)
        if self.tiny:
            return F.pixel_shuffle(self.vae.decoder(raw), self.patch_out)  # soft-clips to -3..3, gives -1..1
        return F.pixel_shuffle(self.vae.decode(raw).sample, self.patch_out)


def stable_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision to decode in: Stable Diffusion's autoencoder overflows in fp16."""
    return torch.float32 if dtype == torch.float16 else dtype


def _channels(x: Tensor) -> Tensor:
    return rearrange(x, "c -> 1 c 1 1")


_ALL = 2**31 - 1
