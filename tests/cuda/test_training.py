"""A step of every stage on CUDA: the loss of the CPU, and a step of the loop that is finite."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("numba", reason="the renderer needs the extra `train`")
from dreamoving_cli.models.load import load_pack
from dreamoving_cli.train import losses
from dreamoving_cli.train.data import ClipStore
from dreamoving_cli.train.loop import Run, Trainer
from dreamoving_cli.train.losses import noise_loss, snr_schedule
from dreamoving_cli.train.stages import STAGES
from tests.clips import random_pack, write_clips

pytestmark = pytest.mark.gpu

DENOISING = [name for name, stage in STAGES.items() if stage.data != "crop"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), (0, 2))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    random_pack(folder, data)
    return folder


@pytest.mark.parametrize("name", DENOISING)
def test_the_loss_and_its_gradient_are_those_of_the_cpu(
    name: str, data: Path, start: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the CPU's noise on both: a card draws its own, which differs from the same seed's on a CPU."""
    monkeypatch.setattr(losses, "generator_on", lambda device, generator: generator)
    stage = STAGES[name]
    found = []
    for place in (device, "cpu"):
        pack = load_pack(start, device=place)
        trained = [
            p.requires_grad_(True)
            for net, m in pack.networks().items()
            for n, p in m.named_parameters()
            if f"{net}.{n}".startswith(stage.trains)
        ]
        batch = ClipStore(data).batch(np.random.default_rng(1), 2, min(stage.frames, 2))
        generator = torch.Generator().manual_seed(2)
        alphas = snr_schedule(pack, stage.beta_schedule)
        loss = noise_loss(pack, batch.to(torch.device(place)), generator, stage, None, alphas)
        loss.backward()
        norms = [float(p.grad.norm()) for p in trained if p.grad is not None]
        found.append((float(loss.detach()), float(np.linalg.norm(norms))))
    print(f"{name}: loss and gradient {found[0]} there, {found[1]} on the CPU")  # noqa: T201
    np.testing.assert_allclose(found[0], found[1], rtol=2e-3)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", STAGES)
def test_a_step_of_the_loop_is_finite_and_goes_on(
    name: str, dtype: str, data: Path, start: Path, device: str, tmp_path: Path
) -> None:
    stage = replace(STAGES[name], frames=min(STAGES[name].frames, 2), batch=2, steps=4)
    run = Run(name, data, tmp_path, start, seed=3, device=device, dtype=dtype, chosen=stage)
    trainer = Trainer(run, stage, load_pack(start), 0)
    trainer.train_step()
    trainer.save()
    again = Trainer(run, stage, load_pack(start), 0)
    again.resume()
    for each in (trainer, again):
        each.train_step()
        each.check_frozen()
    assert again.step == 2
    for n, p in trainer.trained.items():
        assert p.isfinite().all()
        torch.testing.assert_close(again.trained[n], p, rtol=1e-3, atol=1e-4)
