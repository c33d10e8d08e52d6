"""EVA's vision transformer as MiniGPT-v2 uses it, and its pictures; module names are those of eva_vit_g.pth.

Biases of query and value but none of key, learned absolute positions, no layer scale, no norm at the end.
"""

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from dreamoving_cli.models.encoders import normalize_pixels
from dreamoving_cli.models.minigpt.config import VisionConfig

BLOCK_EPS = 1e-6


class VisionAttention(nn.Module):
    """Self-attention of one block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: b l d -> the same."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        joined = F.linear(x, self.qkv.weight, bias)
        q, k, v = rearrange(joined, "b l (three h d) -> three b h l d", three=3, h=self.heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h l d -> b l (h d)"))


class VisionMlp(nn.Module):
    """The two linear layers of one block."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: b l d -> the same."""
        return self.fc2(F.gelu(self.fc1(x)))


class VisionBlock(nn.Module):
    """Attention and MLP, each after a norm and beside a shortcut."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=BLOCK_EPS)
        self.attn = VisionAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=BLOCK_EPS)
        self.mlp = VisionMlp(config.width, config.mlp_width)

    def forward(self, x: Tensor) -> Tensor:
        """x: b l d -> the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Pixels to one token a patch, a class token before them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid**2 + 1, config.width))
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(3, config.width, config.patch, stride=config.patch)}
        )
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: b 3 s s, normalized -> b (1 + patches) d, in raster order."""
        patches = rearrange(self.patch_embed["proj"](pixels), "b c h w -> b (h w) c")
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


def resize_positions(table: Tensor, grid: int) -> Tensor:
    """A table of positions, 1 (1 + n) d, for `grid` patches a side: bicubic, the class token's kept."""
    stored = round((table.shape[1] - 1) ** 0.5)
    if stored == grid:
        return table
    square = rearrange(table[:, 1:].float(), "1 (h w) d -> 1 d h w", h=stored)
    resized = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], rearrange(resized, "1 d h w -> 1 (h w) d").to(table.dtype)], dim=1)


def squash(picture: np.ndarray, side: int) -> np.ndarray:
    """uint8 h w c -> side side c, stretched as the model was trained: Pillow's bicubic, nothing cut off."""
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


def vision_pixels(pictures: list[np.ndarray], side: int) -> Tensor:
    """uint8 h w c each -> b 3 side side, normalized."""
    squashed = np.stack([squash(picture, side) for picture in pictures])
    return normalize_pixels(rearrange(torch.from_numpy(squashed), "b h w c -> b c h w").float() / 255)
