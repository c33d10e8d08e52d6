"""Noisy pictures that stray: from where, how far, and what the model is asked for."""

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("numba", reason="the renderer needs the extra `train`")
from dreamoving_cli.train.data import Batch
from dreamoving_cli.train.stray import MOST, ends, error_of_clean, strayed

COUNT = 400


def runs(frames: int, count: int = 2) -> Batch:
    """Runs whose frames are their numbers."""
    numbers = torch.arange(frames, dtype=torch.float32).reshape(1, 1, -1, 1, 1)

    def of(*sizes: int) -> Tensor:
        return numbers.expand(count, sizes[0], -1, *sizes[1:]).clone()

    parts = [of(1, 3, 2) for _ in range(3)]
    return Batch(of(4, 3, 2), *parts, {"pose": of(3, 48, 32)}, {}, [""] * count, {})


@pytest.mark.parametrize(("frames", "reach"), [(1, 1), (1, 4), (12, 3)])
def test_a_sample_is_one_end_of_a_run_and_the_other_end_strays(frames: int, reach: int) -> None:
    rng, seen = np.random.default_rng(0), set()
    for _ in range(20):
        batch = ends(runs(frames + reach), frames, rng)
        assert batch.other is not None
        assert batch.latents.shape == batch.other.shape == (2, 4, frames, 3, 2)
        here = batch.latents[0, 0, :, 0, 0]
        assert (here.diff() == 1).all()
        for shown in (batch.latents, batch.person, batch.head, batch.arms, batch.controls["pose"]):
            assert (shown[0, 0, :, 0, 0] == here).all()  # all tell of the same frames
        seen |= set((batch.other - batch.latents).flatten().tolist())
    assert seen == {-reach, reach}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_samples_strays_and_each_by_another_part(share: float) -> None:
    batch = ends(runs(2, COUNT), 1, np.random.default_rng(1))
    assert batch.other is not None
    seen = strayed(batch, share, torch.Generator().manual_seed(0))
    parts = ((seen - batch.latents) / (batch.other - batch.latents)).flatten(1)
    assert (parts == parts[:, :1]).all()
    far = parts[:, 0]
    assert float((far > 0).float().mean()) == pytest.approx(share, abs=0.08)
    assert float(far.max()) <= MOST
    if share:
        assert float(far[far > 0].mean()) == pytest.approx(MOST / 2, abs=0.06)


def test_without_another_frame_nothing_strays() -> None:
    batch = runs(1)
    assert strayed(batch, 1.0, torch.Generator()) is batch.latents


def test_the_wanted_picture_has_no_error_and_little_noise_no_great_one() -> None:
    clean = torch.randn(3, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    s = torch.tensor([1.0, 0.5, 0.1]).reshape(3, 1, 1, 1, 1)
    assert not error_of_clean(clean, clean, s).any()
    off = error_of_clean(clean + 1, clean, s)[:, 0, 0, 0, 0]
    torch.testing.assert_close(off, torch.tensor([1.0, 2.0, 2.5]))
