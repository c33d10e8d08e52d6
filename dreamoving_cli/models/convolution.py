"""3x3 convolutions on a CPU with a quarter of the products: Winograd's F(4x4, 3x3) (Lavin & Gray 2016).

    quick_convolutions(network)                # its convolutions, from now on
    y = winograd(x, conv.weight, conv.bias)    # what they do where it pays

A tile of 4x4 outputs takes 36 products instead of 144; what is left is 36 matrix products and sums of
neighbors. The result differs from the plain one by rounding alone: 3e-6 of its size instead of 1e-6.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)

TILE = 4  # outputs of a tile, a side
POINTS = TILE + 2  # inputs of a tile, a side
LEAST_CHANNELS = 128  # of inputs and outputs: below, the sums cost what the products save
LEAST_TILES = 32  # below, transforming the weights costs what the products save
KERNEL_BYTES = 2**27  # of transformed weights at once
KERNELS_ALIVE = 3  # as they are computed, as the product takes them, and those before
TILE_BYTES = 2**24  # of transformed inputs at once
# What a weight's three values become at the six points 0, 1, -1, 2, -2 and infinity.
AT_POINTS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


class QuickConv2d(nn.Conv2d):
    """A convolution of 3x3 that takes the way with fewer products where that is faster."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if pays(input, weight):
            return winograd(input, weight, bias)
        return super()._conv_forward(input, weight, bias)


def quick_convolutions(network: Network) -> Network:
    """Weights in the memory order that their inputs have, and the quick way for those that have one."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
            if type(module) is nn.Conv2d and has_quick_way(module):
                module.__class__ = QuickConv2d
    return network


def plain_convolutions(network: Network) -> Network:
    """torch's own way and memory order again: what other libraries run."""
    for module in network.modules():
        if isinstance(module, QuickConv2d):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
    network.to(memory_format=torch.contiguous_format)
    return network


def has_quick_way(conv: nn.Conv2d) -> bool:
    """Whether this is a 3x3 with padding 1 and nothing else, wide enough."""
    shape = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    plain = shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
    return plain and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether this input is worth it: on a CPU, in fp32, without gradients, enough tiles."""
    rows, _, height, width = x.shape
    here = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    return here and not torch.is_grad_enabled() and rows * tiles(height) * tiles(width) >= LEAST_TILES


def most_kernel_bytes(inputs: int, outputs: int) -> int:
    """What the transformed weights of a convolution of so many channels take at once, at most."""
    if min(inputs, outputs) < LEAST_CHANNELS:
        return 0
    return KERNELS_ALIVE * min(KERNEL_BYTES, POINTS**2 * inputs * outputs * 4)


def tiles(side: int) -> int:
    """Tiles that cover this many cells."""
    return -(-side // TILE)


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution of x, n c h w, with weight, o c 3 3, padding 1: n o h w with channels last."""
    rows, channels, height, width = x.shape
    down, across, outputs = tiles(height), tiles(width), weight.shape[0]
    margins = (0, 0, 1, TILE * across - width + 1, 1, TILE * down - height + 1)
    padded = F.pad(rearrange(x, "n c h w -> n h w c"), margins)
    out = x.new_empty(rows, down, TILE, across, TILE, outputs)
    some_outputs = max(KERNEL_BYTES // (POINTS**2 * channels * 4), 1)
    some_rows = max(TILE_BYTES // (POINTS**2 * down * across * channels * 4), 1)
    for part, into in zip(weight.split(some_outputs), out.split(some_outputs, -1), strict=True):
        kernels = at_points(part)
        for frames, drawn in zip(padded.split(some_rows), into.split(some_rows), strict=True):
            write_outputs(torch.bmm(cut_tiles(frames, down, across), kernels), drawn)
    if bias is not None:
        out += bias
    whole = rearrange(out, "n down i across j o -> n o (down i) (across j)")
    return whole[:, :, :height, :width].contiguous(memory_format=torch.channels_last)


def at_points(weight: Tensor) -> Tensor:
    """Weights o c 3 3 at the 36 points: 36 c o."""
    once = torch.tensor(AT_POINTS, dtype=torch.float64)
    twice = torch.kron(once, once).to(weight)
    return rearrange(twice @ rearrange(weight, "o c i j -> o (i j) c"), "o points c -> points c o")


def cut_tiles(padded: Tensor, down: int, across: int) -> Tensor:
    """Overlapping tiles of n h w c at the 36 points: 36 (n down across) c."""
    rows, _, width, channels = padded.shape
    lines = padded.new_empty(POINTS, rows, down, width, channels)
    take_points([padded[:, k : k + TILE * down - 3 : TILE] for k in range(POINTS)], lines)
    found = padded.new_empty(POINTS, POINTS, rows, down, across, channels)
    for line, into in zip(lines, found, strict=True):
        take_points([line[:, :, k : k + TILE * across - 3 : TILE] for k in range(POINTS)], into)
    return rearrange(found, "i j n down across c -> (i j) (n down across) c")


def take_points(cells: Sequence[Tensor], into: Tensor) -> None:
    """Six neighbors of equal shape at the six points, written over `into`."""
    a, b, c, d, e, f = cells
    torch.sub(e, c, alpha=5, out=into[0]).add_(a, alpha=4)
    even, odd = torch.sub(e, c, alpha=4), torch.sub(d, b, alpha=4)
    torch.add(even, odd, out=into[1])
    torch.sub(even, odd, out=into[2])
    torch.sub(e, c, out=even)
    torch.sub(d, b, out=odd)
    torch.add(even, odd, alpha=2, out=into[3])
    torch.sub(even, odd, alpha=2, out=into[4])
    torch.sub(f, d, alpha=5, out=into[5]).add_(b, alpha=4)


def write_outputs(products: Tensor, into: Tensor) -> None:
    """The products at the points, 36 tiles o, as outputs: n down 4 across 4 o."""
    rows, down, _, across, _, outputs = into.shape
    shape = (POINTS, POINTS, rows, down, across, outputs)
    points, lines = products.view(shape), products.new_empty(TILE, *shape[1:])
    take_cells(list(points), list(lines))
    for i in range(TILE):
        take_cells(list(lines[i]), [into[:, :, i, :, j] for j in range(TILE)])


def take_cells(points: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    """Four neighbors from what they are at the six points, written over `into`."""
    a, b, c, d, e, f = points
    near, far = b + c, d + e
    torch.add(near, a, out=into[0]).add_(far)
    torch.add(near, far, alpha=4, out=into[2])
    torch.sub(b, c, out=near)
    torch.sub(d, e, out=far)
    torch.add(near, far, alpha=2, out=into[1])
    torch.add(near, far, alpha=8, out=into[3]).add_(f)
