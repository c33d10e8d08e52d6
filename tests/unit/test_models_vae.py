"""The autoencoder's wrapper: sizes, normalization, chunks."""

import pytest
import torch

from dreamoving_cli.models.config import VaeConfig
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.models.vae import VAE
from dreamoving_cli.train.mini import mini_config

KL = VaeConfig(
    **{"class": "AutoencoderKL"},
    kwargs={
        "block_out_channels": [8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 4,
        "scaling_factor": 0.25,
    },
)


@pytest.mark.parametrize("config", [tiny_config().vae, KL, mini_config().vae], ids=["tiny", "kl", "mini"])
@torch.no_grad()
def test_sizes_follow_the_factor(config: VaeConfig) -> None:
    vae = VAE(config).eval()
    video = torch.rand(2, 3, 3, 32, 64) * 2 - 1
    latents = vae.encode(video)
    assert latents.shape == (2, config.channels, 3, 32 // config.factor, 64 // config.factor)
    assert vae.decode(latents).shape == video.shape


@torch.no_grad()
def test_chunks_change_nothing() -> None:
    vae = VAE(tiny_config().vae).eval()
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    latents = vae.encode(video)
    torch.testing.assert_close(vae.encode(video, batch=2), latents)
    torch.testing.assert_close(vae.decode(latents, batch=2), vae.decode(latents))


@torch.no_grad()
def test_statistics_normalize_and_are_undone() -> None:
    vae = VAE(tiny_config().vae).eval()
    video = torch.rand(4, 3, 2, 64, 64) * 2 - 1
    before = vae.decode(vae.encode(video))
    raw = vae.encode(video)
    vae.set_statistics(raw.mean((0, 2, 3, 4)), raw.std((0, 2, 3, 4)))
    latents = vae.encode(video)
    torch.testing.assert_close(latents.mean((0, 2, 3, 4)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3, 4)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(vae.decode(latents), before, atol=1e-4, rtol=1e-4)
    assert {"mean", "std"} <= set(vae.state_dict())


@torch.no_grad()
def test_the_scaling_factor_of_a_kl_autoencoder_is_its_statistics() -> None:
    vae = VAE(KL).eval()
    frame = torch.rand(1, 3, 1, 16, 16) * 2 - 1
    raw = vae.vae.encode(frame[:, :, 0]).latent_dist.mode()
    torch.testing.assert_close(vae.encode(frame)[:, :, 0], raw * 0.25)
    torch.testing.assert_close(vae.decode(vae.encode(frame))[:, :, 0], vae.vae.decode(raw).sample)


def test_an_autoencoder_can_be_trained_through_the_wrapper() -> None:
    torch.manual_seed(0)
    vae = VAE(tiny_config().vae)
    optimizer = torch.optim.AdamW(vae.parameters(), 1e-2)
    video = (torch.rand(1, 3, 2, 2, 2) * 2 - 1).repeat_interleave(16, 3).repeat_interleave(16, 4)
    losses = []
    for _ in range(40):
        loss = (vae.decode(vae.encode(video)) - video).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]
