"""From image features to prompt tokens: the projections of IP-Adapter, with its state-dict names.

Every projection is called as `projection(features)` and gives b l d, d the U-Net's cross-attention width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dreamoving_cli.models.layers import split_heads


@dataclass(frozen=True)
class ImageFeatures:
    """What encoders know of a picture; a projection takes what it needs."""

    hidden: Tensor | None = None  # b n c: the image encoder's last but one hidden state
    embedding: Tensor | None = None  # b c: the image encoder's projected embedding
    identity: Tensor | None = None  # b c: the face's ArcFace embedding, L2-normalized


@dataclass(frozen=True)
class Widths:
    """Feature widths a projection stands between."""

    cross: int  # the U-Net's cross-attention
    hidden: int = 0
    embedding: int = 0
    identity: int = 512


class PerceiverAttention(nn.Module):
    """Latents attend to the image and to themselves."""

    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        inner = dim_head * heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """x: b n d of the image. latents: b l d."""
        x, latents = self.norm1(x), self.norm2(latents)
        k, v = self.to_kv(torch.cat([x, latents], dim=1)).chunk(2, dim=-1)
        q, k, v = (split_heads(part, self.heads) for part in (self.to_q(latents), k, v))
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h l d -> b l (h d)"))


def _feed_forward(dim: int, ff_mult: int) -> nn.Sequential:
    wide = nn.Linear(dim, dim * ff_mult, bias=False)
    return nn.Sequential(nn.LayerNorm(dim), wide, nn.GELU(), nn.Linear(dim * ff_mult, dim, bias=False))


class Perceiver(nn.Module):
    """Given latents, refined by looking at the image's hidden state; b l d -> b l cross."""

    def __init__(
        self, dim: int, widths: Widths, depth: int, dim_head: int, heads: int, ff_mult: int = 4
    ) -> None:
        super().__init__()
        self.proj_in = nn.Linear(widths.hidden, dim)
        self.proj_out = nn.Linear(dim, widths.cross)
        self.norm_out = nn.LayerNorm(widths.cross)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(dim, dim_head, heads), _feed_forward(dim, ff_mult)])
            for _ in range(depth)
        )

    def refine(self, latents: Tensor, hidden: Tensor) -> Tensor:
        x = self.proj_in(hidden)
        layer: Any  # a pair: attention, feed-forward
        for layer in self.layers:
            latents = layer[0](x, latents) + latents
            latents = layer[1](latents) + latents
        return self.norm_out(self.proj_out(latents))


class Resampler(Perceiver):
    """IP-Adapter plus and plus-face: learned latents look at the hidden state."""

    def __init__(self, widths: Widths, tokens: int = 16, dim: int | None = None, **shape: Any) -> None:
        dim = widths.cross if dim is None else dim
        super().__init__(dim, widths, **{"depth": 4, "dim_head": 64, "heads": 12, **shape})
        self.latents = nn.Parameter(torch.randn(1, tokens, dim) / dim**0.5)

    def forward(self, features: ImageFeatures) -> Tensor:
        hidden = _present(features.hidden)
        return self.refine(self.latents.expand(hidden.shape[0], -1, -1), hidden)


class ImageProjection(nn.Module):
    """IP-Adapter base: one linear layer from the embedding to all tokens."""

    def __init__(self, widths: Widths, tokens: int = 4) -> None:
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Linear(widths.embedding, tokens * widths.cross)
        self.norm = nn.LayerNorm(widths.cross)

    def forward(self, features: ImageFeatures) -> Tensor:
        return self.norm(
            rearrange(self.proj(_present(features.embedding)), "b (l d) -> b l d", l=self.tokens)
        )


class FullFaceProjection(nn.Module):
    """IP-Adapter full-face: every token of the hidden state, one by one."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        first = nn.Linear(widths.hidden, widths.hidden)
        self.proj = nn.Sequential(
            first, nn.GELU(), nn.Linear(widths.hidden, widths.cross), nn.LayerNorm(widths.cross)
        )

    def forward(self, features: ImageFeatures) -> Tensor:
        return self.proj(_present(features.hidden))


class FaceIdProjection(nn.Module):
    """IP-Adapter FaceID: tokens from the identity alone."""

    def __init__(self, widths: Widths, tokens: int = 4) -> None:
        super().__init__()
        self.tokens = tokens
        first = nn.Linear(widths.identity, widths.identity * 2)
        self.proj = nn.Sequential(first, nn.GELU(), nn.Linear(widths.identity * 2, tokens * widths.cross))
        self.norm = nn.LayerNorm(widths.cross)

    def forward(self, features: ImageFeatures) -> Tensor:
        return self.norm(rearrange(self.proj(_present(features.identity)), "b (l d) -> b l d", l=self.tokens))


class FaceIdPlusProjection(FaceIdProjection):
    """IP-Adapter FaceID-plus: identity tokens look at the hidden state; v2 adds the result to them."""

    def __init__(
        self, widths: Widths, tokens: int = 4, shortcut: bool = True, scale: float = 1.0, **shape: Any
    ) -> None:
        super().__init__(widths, tokens)
        self.shortcut, self.scale = shortcut, scale
        shape = {"depth": 4, "dim_head": 64, "heads": max(widths.cross // 64, 1), **shape}
        self.perceiver_resampler = Perceiver(widths.cross, widths, **shape)

    def forward(self, features: ImageFeatures) -> Tensor:
        x = super().forward(features)
        seen = self.perceiver_resampler.refine(x, _present(features.hidden))
        return x + self.scale * seen if self.shortcut else seen


def _present(feature: Tensor | None) -> Tensor:
    if feature is None:
        raise ValueError("this projection needs image features that were not given")
    return feature


PROJECTIONS: dict[str, type[nn.Module]] = {
    "base": ImageProjection,
    "plus": Resampler,
    "full-face": FullFaceProjection,
    "faceid": FaceIdProjection,
    "faceid-plus-v2": FaceIdPlusProjection,
}
