"""A head start for a patch autoencoder: at step 0 it keeps the principal components of its patches.

Without it, the first thousands of steps go into finding that linear code (docs/log.md has the figures).
A code passes the networks' ReLUs as a pair of channels, +c and -c.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from dreamoving_cli.models.vae import VAE

CODE_STD = 0.5  # of the first latent channel; small, so that the decoder's soft clipping is nearly linear
QUIET = 0.1  # the residual branches start at this share of their usual size


def components(patches: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean `d` and the first `count` principal directions `count d` of patches `n d`."""
    mean = patches.mean(0)
    _, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean))
    return mean, vectors.flip(1)[:, :count].T


@torch.no_grad()
def start_from_components(vae: VAE, pictures: Tensor) -> None:
    """Set an AutoencoderTiny, encoder of one level, to the principal components of `pictures`, n c h w."""
    encoder, decoder = vae.vae.encoder.layers, vae.vae.decoder.layers
    patches = rearrange(torch.nn.functional.pixel_unshuffle(pictures, vae.patch), "n c h w -> (n h w) c")
    count = encoder[-1].out_channels
    mean, directions = components((patches + 1) / 2, count)
    codes = (((patches + 1) / 2) - mean) @ directions.T
    scale = (
        CODE_STD / codes.std(0).max() * (codes.std(0).max() / codes.std(0)) ** 0.5
    )  # later channels are lifted
    for layers in (encoder, decoder):
        for block in layers:
            if hasattr(block, "conv"):
                block.conv[-1].weight.mul_(QUIET)
                block.conv[-1].bias.zero_()
    first, last = encoder[0], encoder[-1]
    _set_pair(first, directions * scale[:, None], -(directions @ mean) * scale)
    _set_join(last, torch.eye(count), torch.zeros(count))
    convolutions = [m for m in decoder if isinstance(m, nn.Conv2d)]
    _set_pair(convolutions[0], torch.eye(count), torch.zeros(count))
    if vae.patch_out == vae.patch:  # a decoder of several levels has to learn the way back
        _set_join(convolutions[-1], (directions / scale[:, None]).T, mean)


def _set_pair(conv: nn.Conv2d, rows: Tensor, bias: Tensor) -> None:
    """The first channels become +rows and -rows of the center pixel; rows `k d`."""
    count = len(rows)
    assert conv.bias is not None
    conv.weight.mul_(QUIET)
    for sign, at in ((1.0, 0), (-1.0, count)):
        conv.weight[at : at + count] = 0
        conv.weight[at : at + count, :, 1, 1] = sign * rows
        conv.bias[at : at + count] = sign * bias


def _set_join(conv: nn.Conv2d, columns: Tensor, bias: Tensor) -> None:
    """The output is columns x (channel +i minus channel -i); columns `o k`."""
    count = columns.shape[1]
    assert conv.bias is not None
    conv.weight.mul_(QUIET)
    conv.weight[:, : 2 * count] = 0
    conv.weight[:, :count, 1, 1] = columns
    conv.weight[:, count : 2 * count, 1, 1] = -columns
    conv.bias.copy_(bias)
