"""Motion blocks: attention along time for every cell of the picture (AnimateDiff's temporal transformer).

State-dict names are those of diffusers' MotionAdapter; `keys.animatediff_to_ours` renames released files.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from einops import rearrange
from torch import Tensor, nn

from dreamoving_cli.models.config import MotionConfig
from dreamoving_cli.models.layers import (
    Run,
    feed_forward,
    group_norm,
    in_order,
    own_projections,
    plainly,
    split_heads,
)

MOST_ROWS = 2**15  # cells whose frames attend in one call: CUDA's kernels take no batch above 65,535


@lru_cache(maxsize=64)
def sinusoid(length: int, channels: int, device: torch.device) -> Tensor:
    """The position table, l c in fp32: sines on even channels, cosines on odd ones, base 10000."""
    with torch.inference_mode(False):  # a table made while rendering must also serve training
        position = torch.arange(length, dtype=torch.float32, device=device)
        even = torch.arange(0, channels, 2, dtype=torch.float32, device=device)
        angle = rearrange(position, "l -> l 1") * torch.exp(even * (-math.log(10000.0) / channels))
        return rearrange([angle.sin(), angle.cos()], "two l c -> l (c two)")[:, :channels].contiguous()


class TimeAttention(nn.Module):
    """Self-attention along time; positions are added here, so they reach queries, keys and values."""

    def __init__(self, channels: int, heads: int, scale: float = 1.0) -> None:
        super().__init__()
        self.heads = heads
        self.scale = None if scale == 1 else scale * (channels // heads) ** -0.5
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x: n f c, normalized; positions: f c."""
        x = x + positions
        q, k, v = (split_heads(part, self.heads) for part in own_projections(self, x))
        if len(q) <= MOST_ROWS:
            x = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            rows = zip(*(part.split(MOST_ROWS) for part in (q, k, v)), strict=True)
            x = torch.cat([F.scaled_dot_product_attention(q, k, v, scale=self.scale) for q, k, v in rows])
        return self.to_out(rearrange(x, "n h f d -> n f (h d)"))


class TimeTransformer(nn.Module):
    """Two self-attentions along time and a feed-forward, each with its norm and residual; n f c."""

    def __init__(self, channels: int, heads: int, scale: float = 1.0) -> None:
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(channels), TimeAttention(channels, heads, scale)
        self.norm2, self.attn2 = nn.LayerNorm(channels), TimeAttention(channels, heads, scale)
        self.norm3, self.ff = nn.LayerNorm(channels), FeedForward(channels, activation_fn="geglu")

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x), positions)
        x = x + self.attn2(self.norm2(x), positions)
        return x + feed_forward(self.ff, self.norm3(x))


class MotionBlock(nn.Module):
    """(b f) c h w -> (b f) c h w; the identity until `proj_out` is trained or loaded."""

    def __init__(self, channels: int, config: MotionConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_dim if config.head_dim else channels
        if inner % config.heads:
            raise ValueError(f"{inner} channels do not divide by {config.heads} heads")
        self.span = config.norm
        self.norm = nn.GroupNorm(config.groups, channels, eps=config.norm_eps)
        self.proj_in = nn.Linear(channels, inner)
        self.transformer_blocks = nn.ModuleList(
            TimeTransformer(inner, config.heads, config.scale) for _ in range(config.layers)
        )
        self.proj_out = nn.Linear(inner, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, num_frames: int, run: Run = plainly) -> Tensor:
        """x: (b f) c h w; every cell attends along f."""
        positions = sinusoid(num_frames, self.proj_in.out_features, x.device).to(x.dtype)
        return run(along_time, self, rearrange(x, "(b f) c h w -> b f c h w", f=num_frames), positions)


def along_time(block: MotionBlock, x: Tensor, positions: Tensor) -> Tensor:
    """What a motion block computes, b f c h w -> (b f) c h w; positions: f c."""
    frames, height, width = x.shape[1], *x.shape[-2:]
    residual = x = rearrange(x, "b f c h w -> (b f) c h w")
    x = group_norm(block.norm, x, frames, block.span)
    x = block.proj_in(rearrange(x, "(b f) c h w -> b f (h w) c", f=frames))
    x = rearrange(x, "b f n c -> (b n) f c").contiguous()  # one copy: products of strided rows are slow
    for transformer in block.transformer_blocks:
        x = transformer(x, positions)
    return residual + rearrange(block.proj_out(x), "(b h w) f c -> (b f) c h w", h=height, w=width)


class _Level(nn.Module):
    """The motion blocks of one level; a class of its own only for the name inside the state dict."""

    def __init__(self, blocks: Iterable[MotionBlock]) -> None:
        super().__init__()
        self.motion_modules = nn.ModuleList(blocks)


class MotionBlocks(nn.Module):
    """All motion blocks of a U-Net or ControlNet, as many and as wide as its levels ask for."""

    def __init__(self, model: Any, config: MotionConfig) -> None:
        super().__init__()

        def level(position: str, index: int, channels: list[int]) -> _Level:
            here = config.has(position, index)
            return _Level(MotionBlock(c, config) for c in channels if here)

        def levels(position: str, blocks: Iterable[Any]) -> nn.ModuleList:
            widths = [[r.out_channels for r, _, _ in in_order(block)] for block in blocks]
            return nn.ModuleList(level(position, i, channels) for i, channels in enumerate(widths))

        self.down_blocks = levels("down", model.down_blocks)
        self.mid_block = level("mid", 0, [r.out_channels for r in model.mid_block.resnets[1:]])
        self.up_blocks = levels("up", getattr(model, "up_blocks", ()))

    def at(self, position: str, level: int) -> nn.ModuleList:
        """The motion blocks of "down", "mid" or "up" at this level; empty where there are none."""
        levels: Any = {"down": self.down_blocks, "mid": [self.mid_block], "up": self.up_blocks}[position]
        return levels[level].motion_modules
