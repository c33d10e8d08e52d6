"""Laws of noise, samplers and the denoise loop, with functions in place of a model."""

from collections.abc import Sequence
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dreamoving_cli.errors import UsageError
from dreamoving_cli.options import SAMPLERS
from dreamoving_cli.sampling import DenoiseState, FrameNoise, Solver, denoise, make_scheduler
from dreamoving_cli.windows import FUSIONS, SCHEDULES, Windows

SHAPE = (2, 3, 2)  # c h w
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
ZERO_SNR = {
    **SD,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def per_frame(x: Tensor, t: Tensor, windows: Sequence[Sequence[int]]) -> Tensor:
    """A model that looks at each frame alone."""
    return torch.sin(x) * (float(t) / 1000) + 0.1


def frame_aware(x: Tensor, t: Tensor, windows: Sequence[Sequence[int]]) -> Tensor:
    """A model whose answer depends on the neighbors in the window and on which frames these are."""
    marks = torch.tensor([list(w) for w in windows], dtype=x.dtype)[:, None, :, None, None]
    return torch.sin(x + 0.01 * marks) + 0.1 * x.mean(2, keepdim=True)


def solver(name: str = "ddim", steps: int = 5, frames: int = 40, **options: Any) -> Solver:
    config = options.pop("config", ZERO_SNR)
    return Solver(make_scheduler(name, steps, config), FrameNoise(7, SHAPE, **options), frames)


def one_window(frames: int) -> Windows:
    return Windows(frames, frames, 0)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("config", [SD, ZERO_SNR], ids=["epsilon", "v, zero snr"])
def test_a_per_frame_model_is_unchanged_by_windows(sampler: str, config: dict[str, Any]) -> None:
    whole = denoise(per_frame, solver(sampler, config=config), one_window(40))
    for schedule in SCHEDULES:
        for fusion in FUSIONS:
            windows = Windows(40, 16, 4, 2, schedule, fusion)
            pieces = denoise(per_frame, solver(sampler, config=config), windows)
            torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-4)


@settings(max_examples=20)
@given(st.integers(1, 50), st.integers(1, 17), st.data())
def test_a_per_frame_model_is_unchanged_by_any_window(frames: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    whole = denoise(per_frame, solver(steps=3, frames=frames), one_window(frames))
    pieces = denoise(per_frame, solver(steps=3, frames=frames), Windows(frames, size, overlap))
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_first_frames_do_not_depend_on_the_length(sampler: str) -> None:
    """Also for samplers that draw at every step, and across the blocks that a solver steps in."""
    short, long = (
        denoise(per_frame, solver(sampler, frames=frames, shared=0.3), one_window(frames))
        for frames in (40, 150)
    )
    torch.testing.assert_close(short, long[:, :, :40], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_window_batch_changes_nothing(sampler: str) -> None:
    results = [
        denoise(frame_aware, solver(sampler), Windows(40, 8, 2, window_batch=batch)) for batch in (1, 2, 5)
    ]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_anchor_frames_are_looked_at_before_the_windows_of_every_step(sampler: str) -> None:
    """As the windows see them: the same latents, scaled the same, at the same time."""
    shown: list[tuple[float, Tensor]] = []

    def look(x: Tensor, t: Tensor, frames: Sequence[int]) -> None:
        assert frames == [6, 20, 33]
        shown.append((float(t), x))

    def predict(x: Tensor, t: Tensor, windows: Sequence[Sequence[int]]) -> Tensor:
        time, anchors = shown[-1]
        assert time == float(t)
        for latents, window in zip(x, windows, strict=True):
            for k, frame in enumerate([6, 20, 33]):
                if frame in window:
                    same(latents[:, window.index(frame)], anchors[0, :, k])
        return per_frame(x, t, windows)

    windows = Windows(40, 16, 4, window_batch=2, anchor_frames=3)
    denoise(predict, solver(sampler), windows, look=look)
    assert len(shown) == 5


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_resumed_run_ends_bit_for_bit_equal(sampler: str, after: int) -> None:
    windows, saved = Windows(80, 16, 4), {}

    def save(state: DenoiseState) -> None:
        saved[state.step] = DenoiseState(
            state.step, state.latents.clone(), {k: v.clone() for k, v in state.history.items()}
        )

    whole = denoise(frame_aware, solver(sampler, 6, 80, shared=0.2), windows, None, save)
    resumed = denoise(frame_aware, solver(sampler, 6, 80, shared=0.2), windows, saved[after])
    same(whole, resumed)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("config", [SD, ZERO_SNR], ids=["epsilon", "v, zero snr"])
def test_every_number_of_steps_gives_finite_latents(sampler: str, config: dict[str, Any]) -> None:
    for steps in (1, 2, 3, 7, 24, 30, 50):
        latents = denoise(per_frame, solver(sampler, steps, 2, config=config), one_window(2))
        assert latents.isfinite().all()
        assert latents.abs().max() < 100


@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler-a", "dpm++2m"])
@pytest.mark.parametrize("steps", [10, 24, 30])
def test_samplers_find_the_clean_picture_of_an_exact_model(sampler: str, steps: int) -> None:
    """A model that knows the clean picture and answers in v leads every sampler to that picture."""
    clean = torch.linspace(-2, 2, 12).reshape(1, 2, 1, 3, 2)
    made = solver(sampler, steps, 1)
    alphas = made.schedulers[0].alphas_cumprod

    def exact(x: Tensor, t: Tensor, windows: Sequence[Sequence[int]]) -> Tensor:
        alpha = alphas[int(t)]
        noise = (x - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean

    torch.testing.assert_close(denoise(exact, made, one_window(1)), clean, rtol=0, atol=2e-3)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_ddim_equals_diffusers_where_steps_divide_the_schedule(spacing: str, prediction_type: str) -> None:
    config = {**SD, "timestep_spacing": spacing, "prediction_type": prediction_type}
    ours = solver("ddim", 20, 3, config=config)
    theirs = diffusers.DDIMScheduler(clip_sample=False, **config)
    theirs.set_timesteps(20)
    x = FrameNoise(7, SHAPE).mixed(range(3), 0)
    for t in theirs.timesteps:
        x = theirs.step(per_frame(x, t, []), t, x, return_dict=False)[0]
    latents = denoise(per_frame, ours, one_window(3))
    torch.testing.assert_close(latents[0].transpose(0, 1), x, rtol=1e-5, atol=1e-5)


def test_noise_belongs_to_seed_frame_and_step() -> None:
    noise = FrameNoise(7, SHAPE)
    same(noise.own([5, 3], 2)[1:], noise.own([3], 2))
    draws = [noise.own([3], 2), noise.own([3], 1), noise.own([4], 2), FrameNoise(8, SHAPE).own([3], 2)]
    assert all(not torch.equal(draws[0], other) for other in draws[1:])


def test_no_two_frames_or_steps_of_a_render_share_their_noise() -> None:
    noise = FrameNoise(7, SHAPE)
    seeds = {noise.generator(frame, step).initial_seed() for frame in range(1000) for step in range(26)}
    assert len(seeds) == 26000


@given(st.floats(0, 1))
@settings(max_examples=10)
def test_mixed_noise_has_unit_variance_and_the_shared_correlation(shared: float) -> None:
    noise = FrameNoise(7, (4, 40, 40), shared).mixed(range(4), 0).flatten(1)
    assert noise.var(1).mean() == pytest.approx(1, abs=0.05)
    assert torch.corrcoef(noise)[0, 1] == pytest.approx(shared, abs=0.05)


@pytest.mark.parametrize("sampler", ["euler-a", "lcm"])
def test_noise_drawn_per_step_has_the_shared_part_too(sampler: str) -> None:
    """With all noise shared, frames that the model treats alike stay alike through every step."""
    latents = denoise(per_frame, solver(sampler, 4, 3, shared=1.0), one_window(3))
    torch.testing.assert_close(latents[:, :, 0], latents[:, :, 2], rtol=1e-3, atol=1e-3)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="1 to 50"):
        make_scheduler("lcm", 51, SD)
    with pytest.raises(UsageError, match="v_prediction"):
        make_scheduler("ddim", 5, {**SD, "rescale_betas_zero_snr": True})
