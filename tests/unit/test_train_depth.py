"""The training of the light depth network: what it draws, that it learns, that it goes on bit for bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamoving_cli.models.depth import DepthNet, load_depth_net
from dreamoving_cli.train import depth
from dreamoving_cli.train.data import ClipStore
from dreamoving_cli.train.depth import DepthRun, depth_loss, train_depth
from dreamoving_cli.train.depth_data import draw_example
from dreamoving_cli.train.depth_report import frame_errors


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made-up clips: a bright disk, the person, before darkness."""
    folder = tmp_path_factory.mktemp("clips")
    y, x = np.mgrid[:96, :64]
    for seed in range(2):
        person = np.stack([(x - 20 - 2 * k) ** 2 + (y - 50) ** 2 < 300 for k in range(6)])
        near = np.where(person, 180 + (y % 40), 30).astype(np.uint8)
        arrays = {
            "frames": np.where(person[..., None], 220, 30).astype(np.uint8).repeat(3, -1),
            "depth": near,
            "alpha": (person * 255).astype(np.uint8),
        }
        for name, array in arrays.items():
            np.save(folder / f"{seed}.{name}.npy", array)
        np.savez(folder / f"{seed}.npz", body=np.array(0))
    return folder


def test_examples_are_what_a_network_takes(clips: Path) -> None:
    store, rng = ClipStore(clips), np.random.default_rng(0)
    for _ in range(12):
        example = draw_example(store, rng, 64, 96)
        for array, shape in zip(example.arrays(), ((64, 96, 3), (64, 96), (64, 96)), strict=True):
            assert array.shape == shape
            assert array.dtype == np.float32
            assert np.isfinite(array).all()
            assert array.min() >= -1e-6
            assert array.max() <= 1 + 1e-6


def test_the_loss_is_zero_at_the_truth_only() -> None:
    near = torch.rand(2, 32, 32)
    person = (near > 0.6).float()
    assert depth_loss(near, near, person) == 0
    assert depth_loss(near + 0.1, near, person) > 0
    assert depth_loss(near.flip(-1), near, person) > depth_loss(near + 0.1, near, person)


def test_a_run_learns_and_goes_on_bit_for_bit(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depth, "SMALL", ((32, 32),))
    monkeypatch.setattr(depth, "LARGE", ((32, 32),))
    monkeypatch.setattr(depth, "SETTLING", 2)
    run = DepthRun(clips, tmp_path / "whole", steps=6, batch=2)
    path = train_depth(run)
    assert path.stat().st_size < 2_500_000
    assert isinstance(load_depth_net(path), DepthNet)
    parts = replace(run, out=tmp_path / "parts")
    parts.out.mkdir()
    first = depth.Trainer(parts, ClipStore(clips))
    for _ in range(3):
        first.train_step()
    first.save()
    assert train_depth(parts).read_bytes() == path.read_bytes()
    losses = depth.Trainer(replace(run, steps=60), ClipStore(clips))
    for _ in range(40):
        losses.train_step()
    assert np.mean(losses.losses[-8:]) < 0.8 * np.mean(losses.losses[:8])


def test_errors_of_the_truth_and_of_nothing() -> None:
    rng = np.random.default_rng(0)
    near = np.tile(np.linspace(0.05, 0.3, 32, dtype=np.float32), (32, 1))
    person = np.zeros((32, 32), bool)
    person[8:24, 8:24] = True
    near[person] = 0.7 + 0.3 * rng.random(256, dtype=np.float32)
    told = frame_errors(near, near, person, rng)
    assert (told["mae"], told["ordering"]) == (0, 1)
    assert told["person_error"] < 1e-5
    assert told["person_relief"] == pytest.approx(1, abs=1e-4)
    shifted = frame_errors(0.5 * near + 0.1, near, person, rng)  # scale and shift are free inside the person
    assert shifted["person_error"] < 1e-5
    noise = frame_errors(rng.random((32, 32), dtype=np.float32), near, person, rng)
    assert noise["person_relief"] < 0.1
    assert 0.3 < noise["ordering"] < 0.7
