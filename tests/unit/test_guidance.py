"""Guidance by prompts and by the driver: what is extrapolated, when, and what it costs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dreamoving_cli.conditioning import Denoiser, ImagePrompts, encode_prompts
from dreamoving_cli.controls import Control
from dreamoving_cli.errors import UsageError
from dreamoving_cli.guidance import Guidance, guide
from dreamoving_cli.models.load import Pack
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.windows import Windows
from tests.controls import NoisePictures, moving_pack

SIDE = 8
TIMESTEPS = torch.tensor([800, 600, 400, 200])
X = torch.randn(1, 4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pack() -> Pack:
    return moving_pack()


def predicted(pack: Pack, scale: float = 1.0, anchors: bool = False, **options: Any) -> list[Tensor]:
    """The noise at each of four steps, with a pose of this scale; 0: without."""
    controls = [Control("pose", NoisePictures(16 * SIDE), scale)] if scale else []
    prompts = encode_prompts(pack, RenderOptions(prompt="a", **options), ImagePrompts())
    model, noise = Denoiser(pack, prompts, controls, TIMESTEPS, Windows(3, 3, 0)), []
    for t in TIMESTEPS:
        if anchors:
            model.look(X[:, :, :2], t, [0, 1])
        noise.append(model.predict_noise(X, t, [[0, 1, 2]]))
    return noise


def test_guidance_moves_from_uncond_towards_cond() -> None:
    noise = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1, 1)
    assert guide(noise, 2.0).item() == 5.0
    assert guide(noise, 1.0) is noise


def test_guidance_by_the_driver_moves_away_from_what_has_no_control() -> None:
    noise = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1, 1)
    free = torch.full((1, 1, 1, 1, 1), 2.0)
    assert guide(noise[1:], 1.0, 0.0, free, 1.5).item() == 3.5
    assert guide(noise, 2.0, 0.0, free, 1.5).item() == 5.5  # both


def test_rescaled_guidance_keeps_each_frame_s_deviation() -> None:
    drawn = torch.randn(3, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    noise, free = drawn[:2], drawn[2:]
    for given in ((), (free, 3.0)):
        plain, half, whole = (guide(noise, 4.0, rescale, *given) for rescale in (0.0, 0.5, 1.0))
        torch.testing.assert_close(whole.std((1, 3, 4)), noise[1:].std((1, 3, 4)))
        torch.testing.assert_close(half, (plain + whole) / 2)
    torch.testing.assert_close(guide(noise[:, :, 1:2], 4.0, 1.0), guide(noise, 4.0, 1.0)[:, :, 1:2])


def test_each_acts_in_its_own_span() -> None:
    guidance = Guidance(3.0, (0.0, 0.5), driver_scale=1.5, driver_span=(0.5, 1.0))
    assert [guidance.at(step, 4) for step in range(4)] == [(3.0, 1.0)] * 2 + [(1.0, 1.5)] * 2


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("anchors", [False, True])
def test_the_step_from_no_control_to_control_is_taken_longer(
    pack: Pack, guidance_scale: float, anchors: bool
) -> None:
    """With anchor frames both passes see those with controls: there is no such pass to compare with."""
    options = {"guidance_scale": guidance_scale, "anchors": anchors}
    plain = predicted(pack, **options)
    twice, thrice = (
        predicted(pack, driver_guidance_scale=d, driver_guidance_start=0.5, **options) for d in (2.0, 3.0)
    )
    for step in (0, 1):
        assert torch.equal(twice[step], plain[step])
    for step in (2, 3):
        assert not torch.allclose(twice[step], plain[step], atol=1e-3)
        torch.testing.assert_close(thrice[step] - plain[step], 2 * (twice[step] - plain[step]))
    if not anchors:
        cond, free = (predicted(pack, scale, guidance_scale=1.0)[3] for scale in (1.0, 0.0))
        torch.testing.assert_close(twice[3] - plain[3], cond - free)


def test_the_driver_guides_only_where_it_is_asked_to_and_acts(pack: Pack) -> None:
    """Else nothing is computed for it; where it does, the U-Net runs twice and the ControlNet once."""
    rows: dict[str, list[int]] = {"unet": [], "pose": []}
    layers = {"unet": pack.unet.unet.conv_out, "pose": pack.controlnets["pose"].controlnet.conv_in}
    hooks = [
        layer.register_forward_hook(lambda *seen, name=name: rows[name].append(len(seen[-1])))
        for name, layer in layers.items()
    ]
    predicted(pack, scale=0.0, guidance_scale=1.0, driver_guidance_scale=2.0)
    assert rows == {"unet": [3] * 4, "pose": []}
    rows["unet"].clear()
    predicted(pack, guidance_scale=1.0, driver_guidance_scale=2.0, driver_guidance_end=0.5)
    assert rows == {"unet": [3, 3, 3, 3, 3, 3], "pose": [3] * 4}
    for hook in hooks:
        hook.remove()


def test_a_span_that_is_empty_is_refused() -> None:
    with pytest.raises(UsageError, match=r"driver_guidance_start is 0\.5, driver_guidance_end 0\.5"):
        RenderOptions(driver_guidance_start=0.5, driver_guidance_end=0.5)
