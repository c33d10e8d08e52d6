"""Laws of sharing: the same residuals with less computed, little held; nothing where motion mixes frames."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dreamoving_cli.conditioning import Denoiser, ImagePrompts, encode_prompts
from dreamoving_cli.controls import Control
from dreamoving_cli.models.controlnet import VideoControlNet
from dreamoving_cli.models.load import Pack
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.prompts import FrameTexts
from dreamoving_cli.sampling import FrameNoise, Solver, denoise, make_scheduler
from dreamoving_cli.sharing import SharedFrames
from dreamoving_cli.windows import SCHEDULES, Window, Windows
from tests.controls import NoisePictures, moving_pack

FRAMES, STEPS = 11, 3
SIDE = 4  # latent cells


class Counting:
    """Residuals of two levels that depend on the frame alone; knows which frames were asked for."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, x: Tensor, windows: Sequence[Window]) -> list[Tensor]:
        frames = [frame for window in windows for frame in window]
        self.seen += frames
        rows = x.transpose(1, 2).flatten(0, 1) + torch.tensor(frames).reshape(-1, 1, 1, 1)
        return [rows, torch.cat([rows.sin(), rows.cos()])]  # one alike for both branches, one not


@st.composite
def placed(draw: st.DrawFn) -> Windows:
    context, ranks = draw(st.integers(2, 12)), draw(st.integers(1, 3))
    return Windows(
        draw(st.integers(1, 60)),
        context,
        draw(st.integers(0, context - 1)),
        draw(st.integers(1, 3)),
        draw(st.sampled_from(sorted(SCHEDULES))),
        window_batch=draw(st.integers(1, 3)),
        cuts=tuple(draw(st.sets(st.integers(1, 59), max_size=3))),
        rank=draw(st.integers(0, ranks - 1)),
        ranks=ranks,
    )


@given(placed())
@settings(deadline=None, max_examples=60)
def test_any_windows_get_what_they_would_have_computed(windows: Windows) -> None:
    shared, latents = SharedFrames(windows), torch.randn(2, windows.num_frames, 1, 2)
    for step in range(3):
        for batch in windows.batches_at(step):
            frames = [window for window, _ in batch]
            x = torch.stack([latents[:, window] + step for window in frames])
            found = shared.residuals(x, step, frames, Counting())
            for a, b in zip(found, Counting()(x, frames), strict=True):
                assert torch.equal(a, b)
            assert len(shared._held) <= windows.context_frames // 2


@pytest.mark.parametrize("window_batch", [1, 3])
@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_no_frame_is_computed_twice_a_step(schedule: str, window_batch: int) -> None:
    windows = Windows(48, 16, 4, schedule=schedule, window_batch=window_batch)
    shared, compute = SharedFrames(windows), Counting()
    most = 0
    for batch in windows.batches_at(0):
        frames = [window for window, _ in batch]
        shared.residuals(torch.zeros(len(frames), 1, len(frames[0]), 1, 1), 0, frames, compute)
        most = max(most, len(shared._held))
    assert sorted(compute.seen) == list(range(48))
    # The last static window is moved back; on a ring the first frames wait for the last window.
    assert most <= (4 if schedule == "uniform" else 8)
    assert not shared._held


def test_other_latents_and_other_steps_are_computed_anew() -> None:
    windows = Windows(6, 4, 2, schedule="static")
    shared, compute = SharedFrames(windows), Counting()
    x = torch.zeros(1, 1, 4, 1, 1)
    shared.residuals(x, 0, [[0, 1, 2, 3]], compute)
    shared.residuals(x + 1, 0, [[2, 3, 4, 5]], compute)
    assert compute.seen == [0, 1, 2, 3, 2, 3, 4, 5]
    compute.seen.clear()
    for step in (1, 2):
        shared.residuals(x, step, [[0, 1, 2, 3]], compute)
    assert compute.seen == [0, 1, 2, 3] * 2


def test_what_is_held_does_not_hold_its_window() -> None:
    windows = Windows(6, 4, 2, schedule="static")
    shared = SharedFrames(windows)
    shared.residuals(torch.zeros(1, 1, 4, 8, 8), 0, [[0, 1, 2, 3]], Counting())
    for latents, levels in shared._held.values():
        for kept in (latents, *levels):
            assert kept.untyped_storage().nbytes() == kept.nbytes


@pytest.fixture(scope="module")
def pack() -> Pack:
    """A pose ControlNet without motion, a depth one with; all motion blocks move."""
    return moving_pack()


def rendered(pack: Pack, windows: Windows, **options: Any) -> tuple[Tensor, dict[str, int]]:
    """The latents, and how many frames each ControlNet computed."""
    texts = options.pop("texts", None)
    scheduler = make_scheduler("ddim", STEPS, pack.config.scheduler.model_dump())
    prompts = encode_prompts(pack, RenderOptions(prompt="a", **options), ImagePrompts(), told=texts)
    controls = [
        Control("pose", NoisePictures(16 * SIDE), 0.7, 0.0, 0.7),
        Control("depth", NoisePictures(16 * SIDE), 0.5),
    ]
    seen = {control.kind: 0 for control in controls}
    hooks = []
    for kind in seen:

        def count(module: Any, given: Any, out: Tensor, kind: str = kind) -> None:
            seen[kind] += len(out)

        hooks.append(pack.controlnets[kind].controlnet.conv_in.register_forward_hook(count))
    model = Denoiser(pack, prompts, controls, scheduler.timesteps, windows)
    solver = Solver(scheduler, FrameNoise(5, (pack.config.latent_channels, SIDE, SIDE)), FRAMES)
    latents = denoise(model.predict_noise, solver, windows, look=model.look)
    for hook in hooks:
        hook.remove()
    return latents, seen


TOLD = FrameTexts(("a man", "at night"), (0,) * 5 + (1,) * 6)


@pytest.mark.parametrize(
    ("placing", "options"),
    [
        ({}, {}),
        ({"window_batch": 2}, {"guidance_scale": 3.0}),
        ({"context_stride": 2, "schedule": "loop"}, {"guidance_scale": 3.0, "guidance_end": 0.5}),
        ({"anchor_frames": 2, "cuts": (4,)}, {"guidance_scale": 2.0, "texts": TOLD}),
    ],
)
def test_a_render_that_shares_is_the_render_that_does_not(
    pack: Pack, placing: dict[str, Any], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = Windows(FRAMES, 6, 3, **placing)
    shared, seen = rendered(pack, windows, **options)
    monkeypatch.setattr(VideoControlNet, "frame_by_frame", False)
    apart, seen_apart = rendered(pack, windows, **options)
    torch.testing.assert_close(shared, apart, rtol=1e-4, atol=1e-5)
    assert seen["depth"] == seen_apart["depth"]  # motion: a frame's residuals are its window's
    assert 2 * FRAMES <= seen["pose"] < seen_apart["pose"]  # it acts in two of three steps


def test_norms_over_the_clip_are_a_window_s_own(pack: Pack) -> None:
    nets = pack.controlnets
    assert (nets["pose"].frame_by_frame, nets["depth"].frame_by_frame) == (True, False)
    nets["pose"].resnet_norm = "clip"
    assert not nets["pose"].frame_by_frame
    nets["pose"].resnet_norm = "frame"
