"""Guidance: a prediction moved further away from what it would be without prompts, or without controls.

    guidance = Guidance.of(options)
    scale, driver = guidance.at(step, steps)            # 1 is off
    noise = guide(noise, scale, guidance.rescale, free, driver)

Not here: which passes of the networks that takes (conditioning.py).
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from dreamoving_cli.options import RenderOptions
from dreamoving_cli.windows import within

Span = tuple[float, float]  # shares of the steps between which something acts
ALWAYS: Span = (0.0, 1.0)


@dataclass(frozen=True)
class Guidance:
    """How strongly prompts and the driver guide, and when."""

    scale: float = 1.0  # classifier-free guidance
    span: Span = ALWAYS
    rescale: float = 0.0
    driver_scale: float = 1.0  # the same by the controls
    driver_span: Span = ALWAYS

    @classmethod
    def of(cls, options: RenderOptions) -> Self:
        """As the options say."""
        return cls(
            options.guidance_scale,
            (options.guidance_start, options.guidance_end),
            options.guidance_rescale,
            options.driver_guidance_scale,
            (options.driver_guidance_start, options.driver_guidance_end),
        )

    @property
    def branches(self) -> int:
        """Rows of prompts: (uncond, cond), or (cond,) alone."""
        return 2 if self.scale > 1 else 1

    def at(self, step: int, steps: int) -> tuple[float, float]:
        """Both scales at this step; 1 outside their spans."""
        return (
            self.scale if within(self.span, step, steps) else 1.0,
            self.driver_scale if within(self.driver_span, step, steps) else 1.0,
        )


def guide(
    noise: Tensor, scale: float, rescale: float = 0.0, free: Tensor | None = None, driver_scale: float = 1.0
) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022); noise: (g b) c f h w, uncond first if guided.

    rescale: how far each frame gets the unguided deviation back (Lin et al. 2023, eq. 14 to 16).
    free: b c f h w, cond without controls; the step from it to cond is taken `driver_scale` times, as
    InstructPix2Pix (Brooks et al. 2023) does it with its picture.
    """
    uncond, cond = noise.chunk(2) if scale != 1 else (None, noise)
    guided = cond if uncond is None else uncond + scale * (cond - uncond)
    if free is not None:
        guided = guided + (driver_scale - 1) * (cond - free)
    if not rescale or guided is cond:
        return guided
    was, now = (x.std((1, 3, 4), keepdim=True) for x in (cond, guided))
    return guided * (1 - rescale + rescale * was / now)
