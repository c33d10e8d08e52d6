"""Laws of the anchor frames: seen by all, whatever the windows; seeing oneself twice changes nothing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamoving_cli.conditioning import Denoiser, ImagePrompts, encode_prompts
from dreamoving_cli.controls import Control
from dreamoving_cli.models.anchors import Anchors
from dreamoving_cli.models.load import Pack, build_pack
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.sampling import FrameNoise, Solver, denoise, make_scheduler
from dreamoving_cli.windows import Windows

FRAMES, TIMESTEPS = 6, torch.tensor([800, 400])


class Pictures:
    """A control picture of noise for each frame."""

    def read(self, frames: Sequence[int]) -> np.ndarray:
        """uint8 f h w c."""
        drawn = [np.random.default_rng(f).integers(0, 255, (64, 64, 3), dtype=np.uint8) for f in frames]
        return np.stack(drawn)


@pytest.fixture(scope="module")
def pack() -> Pack:
    """Its motion blocks are the identity as they were never trained, so each frame is for itself."""
    return build_pack(tiny_config(), seed=0)


@pytest.fixture(scope="module")
def latents(pack: Pack) -> Tensor:
    return torch.randn(
        1, pack.config.latent_channels, FRAMES, 4, 4, generator=torch.Generator().manual_seed(1)
    )


def denoiser(pack: Pack, guidance_scale: float = 3.0) -> Denoiser:
    options = RenderOptions(prompt="a dancer", guidance_scale=guidance_scale)
    prompts = encode_prompts(pack, options, ImagePrompts())
    return Denoiser(pack, prompts, [Control("pose", Pictures())], TIMESTEPS, Windows(FRAMES, FRAMES, 0))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_frame_that_sees_itself_twice_is_unchanged(
    pack: Pack, latents: Tensor, guidance_scale: float
) -> None:
    model, t = denoiser(pack, guidance_scale), TIMESTEPS[0]
    alone = model.predict_noise(latents[:, :, 2:3], t, [[2]])
    model.look(latents[:, :, 2:3], t, [2])
    close(model.predict_noise(latents[:, :, 2:3], t, [[2]]), alone)


def test_all_frames_see_the_anchors_and_nothing_else_of_one_another(pack: Pack, latents: Tensor) -> None:
    model, t = denoiser(pack), TIMESTEPS[0]
    plain = model.predict_noise(latents, t, [list(range(FRAMES))])
    model.look(latents[:, :, [0, 3]], t, [0, 3])
    whole = model.predict_noise(latents, t, [list(range(FRAMES))])
    changes = (whole - plain).abs().amax((0, 1, 3, 4))
    assert changes.min() > 1e-4
    for frame in range(FRAMES):
        close(model.predict_noise(latents[:, :, [frame]], t, [[frame]]), whole[:, :, [frame]])
    model.look(latents[:, :, [0, 4]], t, [0, 4])
    assert not torch.allclose(model.predict_noise(latents, t, [list(range(FRAMES))]), whole, atol=1e-4)


def test_the_windows_of_a_batch_see_the_anchors_of_their_own_branch(pack: Pack, latents: Tensor) -> None:
    model, t = denoiser(pack), TIMESTEPS[0]
    model.look(latents[:, :, [1, 4]], t, [1, 4])
    windows = [[0, 1, 2], [3, 4, 5]]
    both = model.predict_noise(torch.cat([latents[:, :, w] for w in windows]), t, windows)
    for noise, window in zip(both, windows, strict=True):
        close(model.predict_noise(latents[:, :, window], t, [window])[0], noise)


@pytest.mark.parametrize("schedule", ["static", "uniform", "loop"])
def test_with_anchors_too_windows_change_nothing_for_a_model_without_motion(
    pack: Pack, schedule: str
) -> None:
    config: dict[str, Any] = pack.config.scheduler.model_dump()
    results = []
    for size, overlap in ((FRAMES, 0), (3, 1)):
        scheduler = make_scheduler("ddim", 2, config)
        solver = Solver(scheduler, FrameNoise(5, (pack.config.latent_channels, 4, 4)), FRAMES)
        options = RenderOptions(prompt="a dancer", guidance_scale=2.0)
        prompts = encode_prompts(pack, options, ImagePrompts())
        windows = Windows(FRAMES, size, overlap, schedule=schedule, anchor_frames=2)
        model = Denoiser(pack, prompts, [Control("pose", Pictures())], scheduler.timesteps, windows)
        results.append(denoise(model.predict_noise, solver, windows, look=model.look))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)


def test_every_self_attention_has_its_own_anchors(pack: Pack, latents: Tensor) -> None:
    anchors, t = Anchors(2), TIMESTEPS[0]
    text = pack.encode_text(["a dancer"])
    prompts = [[(k, v, 1.0)] for k, v in pack.unet.text_keys(text)]
    with torch.inference_mode():
        pack.unet(latents[:, :, :2], t, prompts, use_motion=False, widen=anchors.collect)
        assert len(anchors.kept) == len(prompts)
        widen = anchors.shown(1)
        pack.unet(latents, t, prompts, widen=widen)
        with pytest.raises(StopIteration):
            widen(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
