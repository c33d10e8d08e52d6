"""Step caching: between full steps the U-Net computes its shallow part only (DeepCache, Ma et al. 2023).

    windows = Windows(..., full_steps=full_steps(options))      # which stand still between full steps
    model = Denoiser(..., cache=StepCache(windows.full_steps, options.steps, options.cache_branch_id))

What is kept belongs to a frame in its window, and its window comes again: nothing is averaged, and devices
that share windows exchange nothing. A render that goes on before a full step needs nothing of it, so states
are written there only. Not here: the walk through the U-Net (models/layers.py), where windows lie
(windows.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dreamoving_cli.models.layers import Deep
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.windows import Window, within

Key = tuple[bool, tuple[tuple[int, ...], ...]]  # whether motion acts; the windows computed together


def full_steps(options: RenderOptions) -> tuple[int, ...]:
    """The steps that are computed in full, 0 first; none where all are.

    Each cache_interval-th, and any at which guidance or a control begins or ends to act.
    """
    if options.cache_interval == 1:
        return ()

    def acting(step: int) -> list[bool]:
        spans = [(options.guidance_start, options.guidance_end)] if options.guidance_scale > 1 else []
        spans += [(c.control_start, c.control_end) for c in options.all_controls if c.control_scale]
        return [within(span, step, options.steps) for span in spans]

    found = [0]
    for step in range(1, options.steps):
        if step == found[-1] + options.cache_interval or acting(step) != acting(step - 1):
            found.append(step)
    return tuple(found)


@dataclass
class StepCache:
    """What the last full step has left for the steps after it."""

    full_steps: tuple[int, ...] = ()  # none: nothing is kept
    steps: int = 0
    branch: int = 0  # the skip connection up to which every step computes
    home: torch.device | None = None  # where it is kept; None: where it is made
    _kept: dict[Key, Tensor] = field(default_factory=dict)
    _since: int = -1  # the step of all that is kept

    @contextmanager
    def of(
        self, step: int, windows: Sequence[Window], use_motion: bool, device: torch.device
    ) -> Iterator[Deep | None]:
        """For one pass over these windows: what is known of it, or what is to be filled; None: neither."""
        full = not self.full_steps or step in self.full_steps
        if full and step != self._since:
            self._kept, self._since = {}, step
        key: Key = use_motion, tuple(map(tuple, windows))
        if not full:
            kept = self._kept.get(key)
            yield None if kept is None else Deep(self.branch, kept.to(device))
        elif step + 1 in (self.steps, *(self.full_steps or (step + 1,))):
            yield None
        else:
            deep = Deep(self.branch)
            yield deep
            assert deep.kept is not None
            self._kept[key] = deep.kept.to(self.home or device)
