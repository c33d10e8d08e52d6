"""The light depth network: a small U-Net from a picture to how near each pixel is; and how it is loaded.

Learned on synthetic people (train/depth.py). Not here: ZoeDepth (zoe.py), clips and files (extract/).
"""

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dreamoving_cli.errors import WeightsError

WIDTHS = (40, 64, 88, 112)  # at a quarter, an eighth, ... of the input's size
DETAIL = 16  # channels at half of the input's size
MEAN, SPREAD = (0.45, 0.42, 0.40), 0.26  # of the training pictures' colors


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """b c h w -> b c h w."""
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(x + self.second_norm(self.second(inner)))


class Mix(nn.Module):
    """Attention between all cells of the smallest map: who stands where in the whole picture."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """b c h w -> b c h w."""
        height = x.shape[2]
        tokens = self.norm(rearrange(x, "b c h w -> b (h w) c"))
        q, k, v = rearrange(self.to_qkv(tokens), "b n (k h d) -> k b h n d", k=3, h=self.heads)
        seen = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
        return x + rearrange(self.to_out(seen), "b (h w) c -> b c h w", h=height)


class DepthNet(nn.Module):
    """Pictures in, nearness out: about 0 far, 1 near; both sides multiples of 32."""

    def __init__(self) -> None:
        super().__init__()
        first, *_, last = WIDTHS
        self.detail = nn.Conv2d(3, DETAIL, 3, stride=2, padding=1)
        self.stem = nn.Conv2d(3 * 16 + 2, first, 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(wide, wider, 3, stride=2, padding=1) for wide, wider in pairwise(WIDTHS)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Residual(width) for _ in range(2 if level == 2 else 1)))
            for level, width in enumerate(WIDTHS)
        )
        self.mix = Mix(last)
        self.up = nn.ModuleList(nn.Conv2d(wider, wide, 1) for wide, wider in pairwise(WIDTHS))
        self.refine = nn.ModuleList(Residual(width) for width in WIDTHS[:-1])
        self.narrow = nn.Conv2d(first, DETAIL, 1)
        self.fuse = nn.Conv2d(2 * DETAIL, DETAIL, 3, padding=1)
        self.head = nn.Conv2d(DETAIL, 4, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        """b 3 h w in 0..1 -> b h w."""
        x = (pictures - pictures.new_tensor(MEAN)[:, None, None]) / SPREAD
        detail = F.relu(self.detail(x))
        x = F.relu(self.stem(with_places(F.pixel_unshuffle(x, 4))))
        skips = []
        for level, block in enumerate(self.blocks):
            x = block(F.relu(self.down[level - 1](x)) if level else x)
            skips.append(x)
        x = self.mix(skips.pop())
        for up, refine in zip(reversed(self.up), reversed(self.refine), strict=True):
            skip = skips.pop()
            x = refine(skip + F.interpolate(up(x), skip.shape[-2:], mode="bilinear"))
        x = F.interpolate(self.narrow(x), detail.shape[-2:], mode="bilinear")
        x = F.relu(self.fuse(torch.cat([detail, x], 1)))
        return F.pixel_shuffle(self.head(x), 2)[:, 0]


def with_places(x: Tensor) -> Tensor:
    """Two more channels that tell a cell where it lies, -1..1: floors are below. b c h w -> b c+2 h w."""
    batch, _, height, width = x.shape
    y = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)
    across = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype)
    places = torch.stack(torch.meshgrid(y, across, indexing="ij")).expand(batch, -1, -1, -1)
    return torch.cat([x, places], 1)


def load_depth_net(path: Path) -> DepthNet:
    """The network with the weights of a safetensors file; anything missing or left over is refused."""
    from safetensors.torch import load_file

    network = DepthNet().eval()
    try:
        network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    except Exception as error:  # safetensors raises its own, unexported error types
        raise WeightsError(
            f"'{path}' does not hold the light depth network ({str(error).splitlines()[0][:120]})",
            "Install dreamoving again, or train it: python -m dreamoving_cli.train depth.",
        ) from error
    return network.to(memory_format=torch.channels_last)
