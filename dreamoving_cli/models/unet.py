"""The video U-Net: a diffusers UNet2DConditionModel walked by us, with motion blocks between its layers.

    unet = VideoUNet(config.unet, config.motion, config.resnet_norm)
    text = unet.text_keys(tokens)                      # tokens b l d -> one (k, v) per cross-attention
    prompts = [[(k, v, 1.0)] for k, v in text]         # with a face: [(k, v, 1.0), (k_f, v_f, face_strength)]
    noise = unet(x, t, prompts, residuals)             # x, noise: b c f h w

Training freezes `unet.unet` or `unet.motion` as its stage says; gradients also reach the prompts' keys and
values. `use_motion=False` leaves the motion blocks out: for pictures and for stages before they are trained.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dreamoving_cli.models.anchors import Widen
from dreamoving_cli.models.config import MotionConfig, Span
from dreamoving_cli.models.layers import (
    Deep,
    Pass,
    Prompt,
    Run,
    add,
    count_rows,
    cross_attentions,
    down_walk,
    embed_time,
    fold,
    group_norm,
    in_walk,
    mid_walk,
    plainly,
    prompt_keys,
    unfold,
    up_walk,
    with_rows,
)
from dreamoving_cli.models.motion import MotionBlocks


class VideoUNet(nn.Module):
    """Predicts noise (or velocity) for all frames of a window at once."""

    def __init__(
        self, unet: dict[str, Any], motion: MotionConfig | None = None, resnet_norm: Span = "frame"
    ) -> None:
        super().__init__()
        self.unet: Any = UNet2DConditionModel(**unet)
        self.motion = None if motion is None else MotionBlocks(self.unet, motion)
        self.resnet_norm: Span = resnet_norm
        self.recompute = False  # training with less memory, see `Pass`
        self.run: Run = plainly

    def text_keys(self, text: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the text for every cross-attention, down, mid, up; text: b l d -> b h l d."""
        return [prompt_keys(attention, text) for attention in cross_attentions(self.unet)]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        prompts: Sequence[Sequence[Prompt]],
        residuals: Sequence[Tensor] | None = None,
        use_motion: bool = True,
        widen: Widen | None = None,
        deep: Deep | None = None,
    ) -> Tensor:
        """x: b c f h w. t: 0-d or (b,). prompts: one list per cross-attention, in `text_keys` order.

        Prompts of g b rows, for g branches of guidance, give (g b) c f h w: what does not see them runs once.

        residuals: a ControlNet's, (b f) c h w, down blocks first and the middle last.
        widen: what frames see in self-attention beside themselves, see anchors.py.
        deep: keeps what lies deeper than its branch; if it has it already, only the rest is computed, and
        residuals are those of the rest's skips.
        """
        batch, num_frames = x.shape[0], x.shape[2]
        motion = self.motion if use_motion else None
        time = embed_time(self.unet, torch.as_tensor(t, device=x.device), batch, x.dtype)
        rows = count_rows(batch, prompts) * num_frames
        kept, branch = (None, None) if deep is None or deep.kept is None else (deep.kept, deep.branch)
        walk = in_walk(self.unet, prompts, branch)
        step = Pass(time, num_frames, walk, self.resnet_norm, self.recompute, rows, widen, run=self.run)

        skips = down_walk(self.unet, motion, self.unet.conv_in(fold(x)), step, branch)
        x = mid_walk(self.unet.mid_block, motion, skips[-1], step) if kept is None else kept
        if residuals is not None:
            down = residuals[:-1] if kept is None else residuals
            skips = [add(skip, residual) for skip, residual in zip(skips, down, strict=True)]
            x = add(x, residuals[-1]) if kept is None else x
        x = up_walk(self.unet, motion, x, skips, step, deep)

        x = group_norm(self.unet.conv_norm_out, x, num_frames, self.resnet_norm)
        return unfold(with_rows(self.unet.conv_out(self.unet.conv_act(x)), rows), num_frames)
