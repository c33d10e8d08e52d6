"""What a denoiser's guess of the clean picture looks like, decoded: eyes and mouths are pixels within a cell.

The error of latents hardly sees them, but people do, and detectors tell by them who faces the camera.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dreamoving_cli.models.load import Pack
from dreamoving_cli.train.adversary import Adversary
from dreamoving_cli.train.data import Batch

SIDE = 96  # pixels of a square that is decoded
CLEAR = 0.3  # share of signal above which the judge looks at a guess: below it no guess can be sharp
BESIDE = 0.25  # what a pixel beside the head counts
PRESENT = 0.5  # cells of a frame that must show the person, or the head


class Squares(NamedTuple):
    """Where squares of one size lie: row of the batch, frame, top and left cell, n each."""

    row: Tensor
    frame: Tensor
    top: Tensor
    left: Tensor

    def cut(self, x: Tensor, side: int) -> Tensor:
        """b c f h w -> n c side side."""
        places = zip(*(of.tolist() for of in self), strict=True)
        return torch.stack([x[b, :, f, y : y + side, z : z + side] for b, f, y, z in places])


def decoded_loss(
    pack: Pack,
    clean: Tensor,
    batch: Batch,
    signal: Tensor,
    adversary: Adversary | None,
    draw: torch.Generator,
) -> Tensor:
    """Distances of decoded squares to the decoded truth, and the judge's wish.

    One square lies on each frame's head, one anywhere on its person; each counts by its share of signal.
    clean: b c f h w, the guess (`clean_guess`); signal: b, the alphas_cumprod of its noise.
    """
    side = min(SIDE // pack.config.pixel_factor, *clean.shape[-2:])
    on_heads, on_people = heads(batch.head * batch.person, side), anywhere(batch.person, side, draw)
    squares = Squares(*(torch.cat(both) for both in zip(on_heads, on_people, strict=True)))
    if not len(squares.row):
        return clean.sum() * 0
    made = decoded(pack, squares.cut(clean, side))
    with torch.no_grad():
        true = decoded(pack, squares.cut(batch.latents, side))
    shares = signal[squares.row]
    cover = F.interpolate(squares.cut(batch.head, side), made.shape[-2:])
    loss = distance(made - true, rearrange(shares, "n -> n 1 1 1") * (BESIDE + cover))
    if adversary is None:
        return loss
    clear = shares > CLEAR
    wish = adversary.loss(loss, made[clear], clean)
    adversary.learn(made[clear], true[clear])
    return loss + wish


def clean_guess(x: Tensor, guess: Tensor, a: Tensor, s: Tensor, prediction: str) -> Tensor:
    """The clean latents that a prediction stands for, b c f h w; a, s: factors of signal, noise."""
    return a * x - s * guess if prediction == "v_prediction" else (x - s * guess) / a.clamp(min=1e-3)


def distance(error: Tensor, weights: Tensor) -> Tensor:
    """Absolute and squared error of pixels, n c h w, and absolute of their gradients; weights: n 1 h w."""
    across, down = error.diff(dim=-1).abs() * weights[..., 1:], error.diff(dim=-2).abs() * weights[..., 1:, :]
    pixels = (error.abs() + 0.5 * error.square()) * weights
    return pixels.mean() + across.mean() + down.mean()


def heads(cover: Tensor, side: int) -> Squares:
    """A square around the head of each frame that shows one; cover: b 1 f h w."""
    mass = cover.sum((1, 3, 4))
    row, frame = torch.nonzero(mass > PRESENT, as_tuple=True)
    share = cover[row, 0, frame] / mass[row, frame][:, None, None]
    y, x = (
        (share.sum(other) * torch.arange(share.shape[along], device=share.device)).sum(1)
        for along, other in ((1, 2), (2, 1))
    )
    return around(row, frame, y, x, cover.shape[-2:], side)


def anywhere(cover: Tensor, side: int, draw: torch.Generator) -> Squares:
    """A square around a cell of each frame's person, drawn; cover: b 1 f h w."""
    spread = rearrange(cover, "b 1 f h w -> b f (h w)")
    row, frame = torch.nonzero(spread.sum(-1) > PRESENT, as_tuple=True)
    drawn = torch.rand(len(row), generator=draw).to(cover)
    reached = spread[row, frame].cumsum(1)
    cell = (reached < drawn[:, None] * reached[:, -1:]).sum(1)
    width = cover.shape[-1]
    return around(row, frame, cell // width, cell % width, cover.shape[-2:], side)


def around(row: Tensor, frame: Tensor, y: Tensor, x: Tensor, size: torch.Size, side: int) -> Squares:
    """Squares whose middle is cell y, x, n each, or as near to it as a picture of `size` (h, w) allows."""
    top, left = (
        (middle - (side - 1) / 2).round().long().clamp(0, most - side)
        for middle, most in zip((y, x), size, strict=True)
    )
    return Squares(row, frame, top, left)


def decoded(pack: Pack, latents: Tensor) -> Tensor:
    """Normalized latents n c h w -> pictures n 3 H W of about -1..1."""
    return pack.vae.decode(latents[:, :, None])[:, :, 0]
