"""Step caching: between full steps the U-Net computes its shallow part only (DeepCache, Ma et al. 2023).

    windows = Windows(..., full_steps=full_steps(options))      # which stand still between full steps
    model = Denoiser(..., cache=StepCache(windows.full_steps, options.steps, options.cache_branch_id))

What is kept belongs to a frame in its window, and its window comes again: nothing is averaged, and devices
that share windows exchange nothing. A render that goes on before a full step needs nothing of it, so states
are written there only. Not here: the walk through the U-Net (models/layers.py), where windows lie
(windows.py).
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dreamoving_cli.errors import UsageError
from dreamoving_cli.guidance import Guidance
from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.controlnet import VideoControlNet
from dreamoving_cli.models.layers import Deep
from dreamoving_cli.models.unet import VideoUNet
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.windows import Window, within

Key = tuple[Hashable, tuple[tuple[int, ...], ...]]  # which pass; the windows computed together


def full_steps(options: RenderOptions) -> tuple[int, ...]:
    """The steps that are computed in full, 0 first; none where all are.

    Each cache_interval-th, and any at which guidance or a control begins or ends to act.
    """
    if options.cache_interval == 1:
        return ()

    def acting(step: int) -> list[bool]:
        guidance = Guidance.of(options)
        spans = [guidance.span] * (guidance.scale > 1) + [guidance.driver_span] * (guidance.driver_scale > 1)
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
        self, step: int, windows: Sequence[Window], asked: Hashable, device: torch.device
    ) -> Iterator[Deep | None]:
        """For one pass over these windows: what is known of it, or what is to be filled; None: neither.

        asked: what tells the passes of a step apart.
        """
        full = not self.full_steps or step in self.full_steps
        if full and step != self._since:
            self._kept, self._since = {}, step
        key: Key = asked, tuple(map(tuple, windows))
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


def entering(config: PackConfig, branch: int) -> tuple[int, int]:
    """Channels and level (0 is the widest picture) of what is kept; refuses a branch that is not there."""
    widths = [*config.unet.get("block_out_channels", (320, 640, 1280, 1280))]
    layers = config.unet.get("layers_per_block", 2) + 1  # of a block on the way up
    if branch >= (count := layers * len(widths)):
        raise UsageError(
            f"cache_branch_id is {branch}, model '{config.name}' has {count} skip connections",
            f"Choose 0 to {count - 1}.",
        )
    block, place = divmod(count - 1 - branch, layers)
    level = len(widths) - 1 - (block if place else max(block - 1, 0))  # kept before it is enlarged
    return widths[level], level


def shallow_share(config: PackConfig, kinds: Sequence[str], branch: int) -> float:
    """The work of a step that is not computed in full, of one that is: U-Net and ControlNets, one frame."""
    side = 2 ** (len(config.unet.get("block_out_channels", range(4))) - 1) * 4
    x = torch.empty(1, config.latent_channels, 1, side, side, device="meta")
    text, t = torch.empty(1, 77, config.cross_attention_dim, device="meta"), torch.zeros((), device="meta")
    with init_empty_weights(include_buffers=True):
        unet = VideoUNet(config.unet, config.motion)
        motion = config.motion if config.controlnet_motion else None
        nets = [VideoControlNet(config.controlnet(kind), motion) for kind in kinds]
    heard = [[(k, v, 1.0)] for k, v in unet.text_keys(text)]
    told = [[[(k, v, 1.0)] for k, v in net.text_keys(text)] for net in nets]
    embedded = torch.empty(1, unet.unet.conv_in.out_channels, side, side, device="meta")
    deep, flops = Deep(branch), list[int]()
    for at in (None, branch):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            for net, prompts in zip(nets, told, strict=True):
                net(x, t, prompts, embedded, branch=at)
            unet(x, t, heard, deep=deep)
        flops.append(counter.get_total_flops())
    return flops[1] / flops[0]


def told(options: RenderOptions, config: PackConfig, kept_bytes: int, frames: int) -> str:
    """What is computed in full and what is kept, for the plan; kept_bytes: of all frames."""
    full = full_steps(options)
    if not full:
        return "off: every step is computed in full"
    kinds = [control.kind for control in options.all_controls if control.control_scale]
    share = shallow_share(config, kinds, options.cache_branch_id)
    work = (len(full) + (options.steps - len(full)) * share) / options.steps
    return (
        f"{len(full)} of {options.steps} steps in full, the others {share:.0%} of one: {work:.0%} of the "
        f"work; {kept_bytes / frames / 2**20:.2f} MiB a frame are kept"
    )
