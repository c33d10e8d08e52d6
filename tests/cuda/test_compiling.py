"""What is compiled, captured or joined for a card gives the numbers of the plain way there."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch._dynamo.testing import CompileCounterWithBackend

from dreamoving_cli.bench import ours
from dreamoving_cli.bench.sizes import Task
from dreamoving_cli.bench.weights import random_pack
from dreamoving_cli.compiling import compiled, lacks
from dreamoving_cli.device import Machine
from dreamoving_cli.graphs import on_cuda, recorded
from dreamoving_cli.models.layers import plainly, projected_at_once
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.outputs import record_path
from dreamoving_cli.render import render
from tests.pictures import pixels
from tests.unit.test_compiling import Blocks

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_compiled_blocks_give_the_same_numbers(device: str, dtype: torch.dtype, tolerance: float) -> None:
    if lacking := lacks(torch.device(device)):
        pytest.skip(f"this machine lacks {lacking}")
    counter, blocks = CompileCounterWithBackend("inductor"), Blocks(device, dtype)
    with compiled([], counter) as run:
        for rows, frames in ((2, 6), (2, 4)):
            plain, fast = blocks(plainly, rows, frames, 0.5), blocks(run, rows, frames, 0.5)
            for one, other in zip(plain, fast, strict=True):
                assert float((one - other).norm() / one.norm()) < tolerance
    assert run.failure is None
    assert counter.frame_count == 3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@torch.inference_mode()
def test_projections_at_once_are_those_apart(device: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, 64, bias=False, device=device, dtype=dtype) for _ in range(3)]
    x = torch.randn(4, 100, 64, device=device, dtype=dtype)
    for one, other in zip(projected_at_once(layers, x), [layer(x) for layer in layers], strict=True):
        assert float((one - other).norm() / other.norm()) < tolerance


@torch.inference_mode()
def test_replayed_passes_give_the_same_numbers(card: torch.device) -> None:
    """Of a whole U-Net that is not compiled, with windows of two lengths, times and latents of their own."""
    task = Task("tiny", 4, (64, 64), 1, guidance_scale=3.0, device=str(card))
    unet = ours.on_device(random_pack(task), task).unet
    prompts = ours.encode(ours.on_device(random_pack(task), task), task).unet
    torch.manual_seed(0)
    passes = [
        (torch.randn(1, 4, frames, 8, 8, device=card), torch.tensor(time, device=card))
        for frames, time in ((4, 900), (4, 500), (3, 500), (4, 100))
    ]
    plain = [unet(x, t, prompts) for x, t in passes]
    with recorded([unet], on_cuda()) as [way]:
        fast = [unet(x, t, prompts) for x, t in passes]
        assert way.failure is None
        assert len(way._graphs) == 2
    for one, other in zip(plain, fast, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_a_render_takes_graphs_and_looks_the_same(
    options: RenderOptions, card: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of blocks that are not compiled: all of a network's would take minutes."""
    if lacking := lacks(card):
        pytest.skip(f"this machine lacks {lacking}")
    monkeypatch.setattr(torch, "compile", lambda region, **how: region)
    wanted = options.replace(anchor_frames=0, steps=2)
    machine = Machine(str(card), dtype="fp32")
    plain = pixels(render(wanted, tmp_path / "plain", machine))
    fast = pixels(render(wanted, tmp_path / "fast", replace(machine, compile="graphs")))
    notes = yaml.safe_load(record_path(tmp_path / "fast").read_text())["record"]["notes"]
    assert not [note for note in notes if "failed" in note]
    assert abs(plain - fast).max() <= 3
