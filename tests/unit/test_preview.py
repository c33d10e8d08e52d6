"""Previews: what is clean in noisy latents, and the sheet that shows it."""

from pathlib import Path

import pytest
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from dreamoving_cli.models.config import VaeConfig
from dreamoving_cli.models.vae import VAE
from dreamoving_cli.options import SAMPLERS
from dreamoving_cli.preview import CELLS, COLUMNS, Previews, clean_latents, noise_levels, preview_path
from dreamoving_cli.sampling import DenoiseState, FrameNoise, Solver, make_scheduler

STEPS, FRAMES = 6, 12
CLEAN = torch.randn(1, 4, FRAMES, 2, 3, generator=torch.Generator().manual_seed(1))


def states(sampler: str, scheduler: object) -> list[DenoiseState]:
    """A render whose model knows the clean latents: the state after each step."""
    solver = Solver(scheduler, FrameNoise(3, (4, 2, 3), 0.0), FRAMES)
    levels = noise_levels(scheduler)
    noise = rearrange(solver.noise.mixed(range(FRAMES), 0), "f c h w -> 1 c f h w")
    x = levels[0][0] * CLEAN + levels[0][1] * noise
    found = []
    for step, (signal, level) in enumerate(levels[:-1]):
        x = solver.advance(x, (x - signal * CLEAN) / level, step)
        found.append(DenoiseState(step + 1, x.clone(), {}))
    return found


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_model_that_knows_is_seen_through(sampler: str) -> None:
    scheduler = make_scheduler(sampler, STEPS, {})
    after = states(sampler, scheduler)
    picks = [0, 5, FRAMES - 1]
    seen = [
        clean_latents(state, before, scheduler, picks)
        for before, state in zip([None, *after], after, strict=False)
    ]
    torch.testing.assert_close(seen[-1], CLEAN[:, :, picks], atol=0.05, rtol=0.01)
    if sampler in ("ddim", "euler", "dpm++2m"):
        for each in seen[1:]:
            torch.testing.assert_close(each, CLEAN[:, :, picks], atol=0.05, rtol=0.01)
    assert (seen[0] - CLEAN[:, :, picks]).abs().max() > 0.5  # one state alone shows noise


def decoder() -> VAE:
    kwargs = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        return VAE(VaeConfig(**{"class": "AutoencoderTiny", "kwargs": kwargs | blocks})).eval()


def test_the_sheet_shows_frames_of_the_whole_clip_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    vae = decoder()
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda x: seen.append(x) or decode(x))
    previews = Previews(preview_path(tmp_path / "out.mp4"), vae)
    scheduler = make_scheduler("ddim", STEPS, {})
    previews.show(states("ddim", scheduler)[-1], scheduler)
    with Image.open(tmp_path / "out.mp4.preview.png") as sheet:
        size = sheet.size
    factor = vae.decode(CLEAN[:, :, :1]).shape[-1] // CLEAN.shape[-1]
    assert size == (COLUMNS * 3 * factor, CELLS // COLUMNS * 2 * factor)
    assert torch.equal(
        seen[CELLS - 1], clean_latents(states("ddim", scheduler)[-1], None, scheduler, [FRAMES - 1])
    )
    previews.remove()
    assert not list(tmp_path.iterdir())


def test_a_sheet_that_would_slow_the_render_down_is_left_out(tmp_path: Path) -> None:
    previews = Previews(tmp_path / "sheet.png", decoder())
    scheduler = make_scheduler("ddim", STEPS, {})
    first, second = states("ddim", scheduler)[:2]
    previews.show(first, scheduler)
    previews.path.unlink()
    previews._took = 1000.0
    previews.show(second, scheduler)
    assert not previews.path.exists()
    previews._took = 0.0
    previews.show(second, scheduler)
    assert previews.path.exists()
