"""The Content Guider: image prompts as keys and values beside the text's (DreaMoving, eq. 1).

Each kind (face, cloth, style) has its own projection and its own key and value weights per cross-attention:

    tokens = guider.tokens("face", features)             # ImageFeatures -> b l d
    face = guider.keys("face", tokens)                   # one (k, v) per cross-attention of the U-Net
    prompts = [[(k, v, 1.0), (fk, fv, face_strength)] for (k, v), (fk, fv) in zip(text, face, strict=True)]
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.layers import cross_attentions, split_heads
from dreamoving_cli.models.projections import PROJECTIONS, ImageFeatures, Widths

PROMPTS = ("face", "cloth", "style")
KEY_STD = 0.02  # small, so that an untrained image prompt hardly disturbs the text


class KeyValue(nn.Module):
    """One cross-attention's weights for one kind of image prompt; names as in IP-Adapter files."""

    def __init__(self, cross: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_k_ip = nn.Linear(cross, width, bias=False)
        self.to_v_ip = nn.Linear(cross, width, bias=False)
        for layer in (self.to_k_ip, self.to_v_ip):
            nn.init.normal_(layer.weight, std=KEY_STD)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """b l d -> keys and values b h l d, in that order."""
        keys, values = (split_heads(layer(tokens), self.heads) for layer in (self.to_k_ip, self.to_v_ip))
        return keys.contiguous(), values.contiguous()


class ContentGuider(nn.Module):
    """Projections and keys of every kind in the pack's config."""

    def __init__(self, config: PackConfig, attentions: Sequence[tuple[int, int]] | None = None) -> None:
        """attentions: (width, heads) of each cross-attention in walk order; None: the U-Net's."""
        super().__init__()
        attentions = (
            attention_sizes(config.unet) if attentions is None and config.guider else attentions or ()
        )
        self.projections = nn.ModuleDict(
            {kind: build_projection(config, settings) for kind, settings in config.guider.items()}
        )
        self.attentions = nn.ModuleDict(
            {
                kind: nn.ModuleList(KeyValue(config.cross_attention_dim, *size) for size in attentions)
                for kind in config.guider
            }
        )

    def tokens(self, kind: str, image_features: ImageFeatures) -> Tensor:
        """Prompt tokens of one picture per batch item, b l d."""
        return self.projections[kind](image_features)

    def keys(self, kind: str, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values for every cross-attention of the U-Net, down, mid, up; tokens: b l d."""
        return [attention(tokens) for attention in self.attentions[kind]]  # type: ignore[attr-defined]


def needs_identity(config: PackConfig, kind: str) -> bool:
    """Whether this kind of prompt takes ArcFace embeddings beside the picture."""
    return bool(config.guider[kind]["projection"].startswith("faceid"))


def attention_sizes(unet: dict[str, Any]) -> list[tuple[int, int]]:
    """(width, heads) of each cross-attention of a U-Net with these arguments, in walk order."""
    with torch.device("meta"):
        model = UNet2DConditionModel(**unet)
    return [(attention.inner_dim, attention.heads) for attention in cross_attentions(model)]


def build_projection(config: PackConfig, settings: dict[str, Any]) -> nn.Module:
    """The projection named in `settings`; its other entries are arguments."""
    settings, image = dict(settings), config.image or {}
    widths = Widths(
        cross=config.cross_attention_dim,
        hidden=image.get("hidden_size", 768),
        embedding=image.get("projection_dim", 0),
        identity=settings.pop("identity", 512),
    )
    return PROJECTIONS[settings.pop("projection")](widths, **settings)
