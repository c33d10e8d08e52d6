"""What a plan counts is what a render takes: residuals that wait for the next window."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreamoving_cli.conditioning import Denoiser, ImagePrompts, encode_prompts
from dreamoving_cli.controls import Control
from dreamoving_cli.footprint import held_values, kernels
from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.load import Pack, build_pack
from dreamoving_cli.options import ControlOptions, RenderOptions
from dreamoving_cli.sampling import FrameNoise, Solver, denoise, make_scheduler
from dreamoving_cli.windows import SCHEDULES, Windows
from tests import checkpoints as public

FRAMES, STEPS, SIDE = 14, 3, 32

HERE = Path()  # any folder: what is asked is in the config


@pytest.fixture(scope="module")
def pack() -> Pack:
    """Two levels, a ControlNet without motion."""
    alone = {"controlnet_motion": False, "guider": {}, "image": None}
    return build_pack(public.config().model_copy(update=alone), seed=0)


class Pictures:
    """Black control pictures."""

    def read(self, frames: Sequence[int]) -> np.ndarray:
        """uint8 f h w c."""
        return np.zeros((len(frames), SIDE, SIDE, 3), np.uint8)


def asked(guidance: float) -> RenderOptions:
    return RenderOptions(
        controls=(ControlOptions(kind="pose"),), size=f"{SIDE}x{SIDE}", steps=STEPS, guidance_scale=guidance
    )


def most_bytes(pack: Pack, windows: Windows, options: RenderOptions) -> int:
    """Residuals held between two windows, at most."""
    scheduler = make_scheduler("ddim", STEPS, pack.config.scheduler.model_dump())
    prompts = encode_prompts(pack, options, ImagePrompts())
    model = Denoiser(pack, prompts, [Control("pose", Pictures())], scheduler.timesteps, windows)
    seen = []

    def predict(*given: Any) -> torch.Tensor:
        noise = model.predict_noise(*given)
        seen.append(sum(x.nbytes for known in model.shared._held.values() for x in known.levels))
        return noise

    cells = SIDE // pack.config.pixel_factor
    denoise(predict, Solver(scheduler, FrameNoise(5, (4, cells, cells)), FRAMES), windows)
    return max(seen)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize(("guidance", "window_batch"), [(1.0, 1), (3.0, 1), (1.0, 2)])
def test_residuals_held_are_those_that_are_counted(
    pack: Pack, schedule: str, guidance: float, window_batch: int
) -> None:
    windows, options = Windows(FRAMES, 8, 2, schedule=schedule, window_batch=window_batch), asked(guidance)
    counted, taken = 4 * held_values(HERE, pack.config, options, windows), most_bytes(pack, windows, options)
    assert counted > 0
    assert counted == taken or (window_batch > 1 and counted > taken)


def test_nothing_is_held_where_motion_mixes_frames_or_nothing_controls(pack: Pack) -> None:
    windows = Windows(FRAMES, 8, 2)

    def held(config: PackConfig, options: RenderOptions) -> int:
        return held_values(HERE, config, options, windows)

    assert held(pack.config, asked(1.0)) > 0
    for changes in ({"controlnet_motion": True}, {"resnet_norm": "clip"}):
        assert held(pack.config.model_copy(update=changes), asked(1.0)) == 0
    assert held(pack.config, asked(1.0).replace(controls=())) == 0
    assert held_values(HERE, pack.config, asked(1.0), Windows(FRAMES, FRAMES, 2)) == 0


def test_at_full_width_they_are_a_few_hundredths_of_a_window() -> None:
    """4 frames of 16, where borders do not move; a window counts as 30 tensors of the first level's width."""
    config = public.config("full").model_copy(update={"controlnet_motion": False})
    options = asked(1.0).replace(size="512x512", steps=1)
    held = held_values(HERE, config, options, Windows(100, 16, 4))
    assert held == 4 * 64 * 64 * (3 * 320 + (320 + 1280) // 4 + (640 + 2560) // 16 + (4 * 1280) // 64)
    assert held == pytest.approx(0.043 * 16 * 64 * 64 * 320 * 30, rel=0.01)


def test_wide_convolutions_take_memory_beside_the_windows() -> None:
    """As measured at full width: 0.375 GiB, whatever the window; narrow ones are computed as they are."""
    assert kernels(public.config("full")) == 3 * 2**27
    assert kernels(public.config("narrow")) == 0
