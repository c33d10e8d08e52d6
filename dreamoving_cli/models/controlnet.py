"""The Video ControlNet: a diffusers ControlNetModel walked by us, with motion blocks as in the U-Net.

    embedded = controlnet.embed_control(control)                  # control: b 3 f H W in 0..1 -> (b f) c h w
    residuals = controlnet(x, t, prompts, embedded, control_scale)
    noise = unet(x, t, unet_prompts, add_residuals([residuals, more]))

Its prompts are the text alone: `[[(k, v, 1.0)] for k, v in controlnet.text_keys(text)]`.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel
from torch import Tensor, nn

from dreamoving_cli.models.config import MotionConfig, Span
from dreamoving_cli.models.layers import (
    Pass,
    Prompt,
    Run,
    add,
    count_rows,
    cross_attentions,
    down_walk,
    embed_time,
    fold,
    in_walk,
    mid_walk,
    plainly,
    prompt_keys,
)
from dreamoving_cli.models.motion import MotionBlocks


class VideoControlNet(nn.Module):
    """Turns one control video into residuals for the U-Net's skips and middle."""

    def __init__(
        self, controlnet: dict[str, Any], motion: MotionConfig | None = None, resnet_norm: Span = "frame"
    ) -> None:
        super().__init__()
        self.controlnet: Any = ControlNetModel(**controlnet)
        self.motion = None if motion is None else MotionBlocks(self.controlnet, motion)
        self.resnet_norm: Span = resnet_norm
        self.recompute = False  # training with less memory, see `Pass`
        self.run: Run = plainly
        # A small pack's hint encoder starts from patches: convolutions at full size cost more than all else.
        self.patch = math.isqrt(controlnet.get("conditioning_channels", 3) // 3)

    @property
    def frame_by_frame(self) -> bool:
        """Whether a frame's residuals do not depend on the other frames of its window."""
        return self.motion is None and self.resnet_norm == "frame"

    def text_keys(self, text: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the text for every cross-attention, down, mid; text: b l d -> b h l d each."""
        return [prompt_keys(attention, text) for attention in cross_attentions(self.controlnet)]

    def embed_control(self, control: Tensor) -> Tensor:
        """b 3 f H W in 0..1 at the output's size -> (b f) c h w at the latents' size."""
        return self.controlnet.controlnet_cond_embedding(F.pixel_unshuffle(fold(control), self.patch))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        prompts: Sequence[Sequence[Prompt]],
        embedded: Tensor,
        control_scale: float = 1.0,
        use_motion: bool = True,
        branch: int | None = None,
    ) -> list[Tensor]:
        """Residuals (b f) c h w, down blocks first and the middle last, multiplied by `control_scale`.

        x: b c f h w. t: 0-d or (b,). prompts: one list per cross-attention. embedded: from `embed_control`.
        Prompts of g b rows give residuals (g b f) c h w, but for those that do not depend on them.
        branch: the last skip connection whose residual is wanted, and none of the middle; None: all.
        """
        net, motion = self.controlnet, self.motion if use_motion else None
        time = embed_time(net, torch.as_tensor(t, device=x.device), x.shape[0], x.dtype)
        rows = count_rows(x.shape[0], prompts) * x.shape[2]
        walk = in_walk(net, prompts, branch)
        step = Pass(time, x.shape[2], walk, self.resnet_norm, self.recompute, rows, run=self.run)
        states = down_walk(net, motion, net.conv_in(fold(x)) + embedded, step, branch)
        heads = [*net.controlnet_down_blocks][: len(states)]
        if branch is None:
            states.append(mid_walk(net.mid_block, motion, states[-1], step))
            heads.append(net.controlnet_mid_block)
        residuals = [head(state) for head, state in zip(heads, states, strict=True)]
        return residuals if control_scale == 1 else [residual * control_scale for residual in residuals]


def add_residuals(residuals_per_control: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Sum of all ControlNets' residuals, level by level; each already carries its control_scale."""
    return [reduce(add, level) for level in zip(*residuals_per_control, strict=True)]
