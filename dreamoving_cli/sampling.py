"""From noise to latents: noise that belongs to a frame, samplers, and the loop over steps and windows.

Everything that grows with the clip stays on the CPU in fp32: the latents, the sums over windows and the
scheduler's arithmetic. Only the windows of one batch visit the device.
"""

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from einops import rearrange
from torch import Tensor

from dreamoving_cli.errors import UsageError
from dreamoving_cli.options import SAMPLERS
from dreamoving_cli.windows import Window, Windows

PredictNoise = Callable[[Tensor, Tensor, Sequence[Window]], Tensor]  # x: b c f h w, one window per row of b
Look = Callable[[Tensor, Tensor, Window], None]  # x: 1 c f h w, of the anchor frames
BLOCK = 64  # frames that a scheduler steps at once: its temporaries stay this small
LCM_MAX_STEPS = 50  # the schedule it was distilled on


class FrameNoise:
    """Unit noise of (seed, frame, step), on the CPU in fp32: any frame, any step, in any order.

    `shared` is the share of variance that all frames of a step have in common (PYoCo, Ge et al. 2023).
    """

    def __init__(self, seed: int, shape: tuple[int, int, int], shared: float = 0.0) -> None:
        self.seed, self.shape, self.shared = seed, shape, shared  # shape: c h w

    def generator(self, frame: int, step: int) -> torch.Generator:
        """A fresh generator. Step 0 starts the clip; step k + 1 is drawn by sampler step k."""
        return torch.Generator().manual_seed(_mixed_seed(self.seed, frame, step))

    def own(self, frames: Sequence[int], step: int) -> Tensor:
        """The part that is each frame's own, with unit variance: f c h w."""
        drawn = [torch.randn(1, *self.shape, generator=self.generator(f, step)) for f in frames]
        return torch.cat(drawn)

    def mixed(self, frames: Sequence[int], step: int) -> Tensor:
        """Noise of these frames with its shared part, with unit variance: f c h w."""
        if not self.shared:
            return self.own(frames, step)
        own_share, shared_share = math.sqrt(1 - self.shared), math.sqrt(self.shared)
        return own_share * self.own(frames, step) + shared_share * self.own([_COMMON], step)


class DDIM(diffusers.DDIMScheduler):
    """DDIM whose every step ends where the next begins, also where the steps do not divide the schedule.

    diffusers' own subtracts num_train_timesteps // steps, which misses the next timestep of trailing spacing.
    """

    config: Any
    timesteps: Tensor
    alphas_cumprod: Tensor
    final_alpha_cumprod: Tensor

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **_: Any) -> tuple[Tensor]:
        """The deterministic update (Song et al. 2021, eq. 12 without noise)."""
        later = self.timesteps[self.timesteps < timestep]
        end = self.alphas_cumprod[later[0]] if len(later) else self.final_alpha_cumprod
        alpha, alpha_next = self.alphas_cumprod[timestep].double(), end.double()
        signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
        if self.config.prediction_type == "v_prediction":
            clean = signal * sample - sigma * model_output
            noise = signal * model_output + sigma * sample
        elif self.config.prediction_type == "sample":
            clean, noise = model_output, (sample - signal * model_output) / sigma
        else:
            clean, noise = (sample - sigma * model_output) / signal, model_output
        return (alpha_next.sqrt() * clean + (1 - alpha_next).sqrt() * noise,)


OWN_SCHEDULERS = {"DDIMScheduler": DDIM}


def make_scheduler(sampler: str, steps: int, config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler of this name, on the pack's noise schedule, with its timesteps set."""
    class_name, arguments = SAMPLERS[sampler]
    if sampler == "lcm" and steps > LCM_MAX_STEPS:
        raise UsageError(f"steps is {steps} with sampler 'lcm'", f"Choose 1 to {LCM_MAX_STEPS}.")
    if config.get("rescale_betas_zero_snr") and config.get("prediction_type", "epsilon") == "epsilon":
        raise UsageError(
            "the pack's schedule ends in pure noise (rescale_betas_zero_snr) and its model predicts noise",
            "A model of that schedule must predict v: set prediction_type to v_prediction.",
        )
    scheduler_class: Any = OWN_SCHEDULERS.get(class_name) or getattr(diffusers, class_name)
    known = inspect.signature(getattr(diffusers, class_name).__init__).parameters
    values = {"clip_sample": False, **config, **arguments}
    scheduler = scheduler_class(**{key: value for key, value in values.items() if key in known})
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "sigmas"):
        # Zero terminal SNR starts at sigma 4096: differences of its squares need more than fp32.
        scheduler.sigmas = scheduler.sigmas.double()
    return scheduler


class Solver:
    """A scheduler on a long clip, block by block, with noise drawn per frame and a history to save."""

    def __init__(self, scheduler: Any, noise: FrameNoise, num_frames: int) -> None:
        self.timesteps: Tensor = scheduler.timesteps
        self.init_noise_sigma = float(scheduler.init_noise_sigma)
        self.noise = noise
        self.blocks = [range(a, min(a + BLOCK, num_frames)) for a in range(0, num_frames, BLOCK)]
        self.schedulers = [_fork(scheduler) for _ in self.blocks]

    def resume(self, step: int, history: Mapping[str, Tensor]) -> None:
        """Continue before `step`, with the `history` of an earlier solver."""
        for k, scheduler in enumerate(self.schedulers):
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(step)
            if hasattr(scheduler, "lower_order_nums"):
                scheduler.lower_order_nums = min(step, scheduler.config.solver_order)
                scheduler.model_outputs[-1] = history.get(f"history.{k}")

    def history(self) -> dict[str, Tensor]:
        """What a multistep sampler remembers of its last step (others: nothing)."""
        outputs = [getattr(s, "model_outputs", [None])[-1] for s in self.schedulers]
        return {f"history.{k}": x for k, x in enumerate(outputs) if x is not None}

    def scale(self, latents: Tensor, step: int) -> Tensor:
        """What the model sees of these latents, any shape."""
        scaled: Tensor = self.schedulers[0].scale_model_input(latents, self.timesteps[step])
        return scaled

    def advance(self, latents: Tensor, noise: Tensor, step: int) -> Tensor:
        """The latents after this step, written over `noise`, the predicted noise; all 1 c f h w."""
        for scheduler, block in zip(self.schedulers, self.blocks, strict=True):
            at = slice(block.start, block.stop)
            now, predicted = (rearrange(x[:, :, at], "1 c f h w -> f c h w") for x in (latents, noise))
            scheduler.scale_model_input(now[:1], self.timesteps[step])  # Euler steps only after this call
            generators = [self.noise.generator(frame, step + 1) for frame in block]
            after = scheduler.step(
                predicted, self.timesteps[step], now, generator=generators, return_dict=False
            )[0]
            if self.noise.shared and (amount := _noise_amount(scheduler, step)):
                after += amount * (self.noise.mixed(block, step + 1) - self.noise.own(block, step + 1))
            noise[:, :, at] = rearrange(after, "f c h w -> 1 c f h w")
            _forget(scheduler)
        return noise


@dataclass
class DenoiseState:
    """Where a render stands after `step` steps; enough to continue bit for bit."""

    step: int
    latents: Tensor  # 1 c f h w, fp32, on the CPU
    history: dict[str, Tensor]


@torch.inference_mode()
def denoise(
    predict_noise: PredictNoise,
    solver: Solver,
    windows: Windows,
    state: DenoiseState | None = None,
    on_step: Callable[[DenoiseState], None] = lambda state: None,
    look: Look = lambda x, t, frames: None,
    summed: Callable[[Tensor, int], Tensor] = lambda share, step: share,
) -> Tensor:
    """Turn the noise of every frame into clean latents, 1 c f h w, window by window at every step.

    look: is shown the anchor frames, if there are any, before the windows of every step.
    summed: adds to this device's share of a step's noise, 1 c f h w, those of others.
    """
    state = state or DenoiseState(0, initial_latents(solver, windows.num_frames), {})
    solver.resume(state.step, state.history)
    for step in range(state.step, len(solver.timesteps)):
        if anchors := windows.anchors:
            look(solver.scale(state.latents[:, :, anchors], step), solver.timesteps[step], anchors)
        noise = summed(fused_noise(predict_noise, solver, state.latents, windows, step), step)
        latents = solver.advance(state.latents, noise, step)
        state = DenoiseState(step + 1, latents, solver.history())
        on_step(state)
    return state.latents


def initial_latents(solver: Solver, num_frames: int) -> Tensor:
    """Every frame's starting noise, scaled for the sampler: 1 c f h w."""
    noise = torch.cat([solver.noise.mixed([frame], 0) for frame in range(num_frames)])
    return rearrange(noise, "f c h w -> 1 c f h w") * solver.init_noise_sigma


def fused_noise(
    predict_noise: PredictNoise, solver: Solver, latents: Tensor, windows: Windows, step: int
) -> Tensor:
    """The predicted noise of the whole clip, 1 c f h w: the windows' predictions, averaged by weight.

    Of several ranks, each gives what its windows contribute.
    """
    total = torch.zeros_like(latents)
    for batch in windows.batches_at(step):
        frames = [window for window, _ in batch]
        x = solver.scale(torch.cat([latents[:, :, window] for window in frames]), step)
        predicted = predict_noise(x, solver.timesteps[step], frames).to(total)
        for (window, weights), noise in zip(batch, predicted, strict=True):
            total[:, :, window] += rearrange(torch.tensor(weights), "f -> 1 1 f 1 1") * noise
    return total


_COMMON = 2**20 - 1  # the frame number of the noise that all frames share


def _mixed_seed(seed: int, frame: int, step: int) -> int:
    """32 bits, all that torch's CPU generator looks at; never equal for two (frame, step) of one seed."""
    assert frame < 2**20, frame
    assert step < 2**12, step
    return _scramble(_scramble(frame << 12 | step) ^ _scramble(seed ^ 0x9E3779B9))


def _scramble(x: int) -> int:
    """A permutation of the 32-bit numbers whose every output bit depends on every input bit (MurmurHash3)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ x >> shift) * factor) & 0xFFFFFFFF
    return x ^ x >> 16


def _fork(scheduler: Any) -> Any:
    """A scheduler of its own state on the same tables."""
    fork = copy.copy(scheduler)
    if hasattr(fork, "model_outputs"):
        fork.model_outputs = list(fork.model_outputs)
    return fork


def _forget(scheduler: Any) -> None:
    """Drop what a multistep sampler of order 2 keeps but will not look at again."""
    if hasattr(scheduler, "model_outputs"):
        scheduler.model_outputs[:-1] = [None] * (len(scheduler.model_outputs) - 1)


def _noise_amount(scheduler: Any, step: int) -> float:
    """The factor by which a sampler that draws at this step multiplies its draw; 0 for the others."""
    kind = type(scheduler).__name__
    if kind == "EulerAncestralDiscreteScheduler":
        now, after = scheduler.sigmas[step : step + 2].tolist()
        return float(after * math.sqrt(1 - (after / now) ** 2))
    if kind == "LCMScheduler" and step + 1 < len(scheduler.timesteps):
        return math.sqrt(1 - scheduler.alphas_cumprod[scheduler.timesteps[step + 1]])
    return 0.0
