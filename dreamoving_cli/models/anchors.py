"""Anchor frames: a few frames of the clip that every frame sees in self-attention, besides itself.

What no prompt tells, the color of trousers say, is then the same in all frames and all windows, however long
the clip (cross-frame attention as in Text2Video-Zero, Khachatryan et al. 2023). Costs no training.

    anchors = Anchors(num_frames=2)
    unet(x_anchors, t, prompts, residuals, use_motion=False, widen=anchors.collect)
    noise = unet(x, t, prompts, residuals, widen=anchors.shown(branches))
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

Widen = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # keys and values of frames -> what they attend to


class Anchors:
    """Keys and values of the anchor frames in every self-attention, in walk order; of one step."""

    def __init__(self, num_frames: int) -> None:
        self.num_frames = num_frames
        self.kept: list[tuple[Tensor, Tensor]] = []  # g h (f n) d each; g: branches of guidance

    def collect(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep these and let the anchor frames see one another: (g f) h n d -> (g f) h (f n) d."""
        joined = [rearrange(x, "(g f) h n d -> g h (f n) d", f=self.num_frames) for x in (keys, values)]
        self.kept.append((joined[0], joined[1]))
        return _for_rows(joined[0], len(keys)), _for_rows(joined[1], len(keys))

    def shown(self, branches: int) -> Widen:
        """For one pass over other frames: (g b f) h n d -> (g b f) h (n + anchors) d.

        branches: of guidance in that pass; 1 where more were kept: the last of them.
        """
        kept = iter(self.kept)

        def widen(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            k, v = (x[-branches:] for x in next(kept))
            return torch.cat([keys, _for_rows(k, len(keys))], 2), torch.cat(
                [values, _for_rows(v, len(values))], 2
            )

        return widen


def _for_rows(x: Tensor, rows: int) -> Tensor:
    """One row a branch of guidance -> one for every frame of every window: g ... -> (g b f) ..."""
    return x.repeat_interleave(rows // len(x), 0)
