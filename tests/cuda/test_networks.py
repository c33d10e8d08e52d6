"""Networks on CUDA: the goldens of the reference, diffusers at full width, depth, attention along time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamoving_cli.bench import ours, peer
from dreamoving_cli.bench.sizes import Task
from dreamoving_cli.device import free_memory
from dreamoving_cli.extract.depth_networks import LightNetwork
from dreamoving_cli.models.motion import MOST_ROWS, TimeAttention, sinusoid
from tests.goldens import check

pytestmark = pytest.mark.gpu

GOLDENS = Path(check.__file__).parent
FILES = sorted([*GOLDENS.glob("*.safetensors"), *GOLDENS.glob("*.json")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_networks_agree_with_the_reference(path: Path, device: str) -> None:
    assert check.check(path, device) == []


@torch.inference_mode()
def test_more_cells_attend_along_time_than_a_kernel_takes(device: str) -> None:
    torch.manual_seed(0)
    attention = TimeAttention(64, 8).eval().to(device)
    x = torch.randn(2 * MOST_ROWS + 5000, 4, 64, device=device)
    positions = sinusoid(4, 64, x.device)
    whole = attention(x, positions)
    rows = torch.tensor([0, 1, MOST_ROWS - 1, MOST_ROWS, 2 * MOST_ROWS, len(x) - 1], device=device)
    torch.testing.assert_close(whole[rows], attention(x[rows], positions), rtol=1e-4, atol=1e-4)


def test_depth_is_that_of_the_cpu(device: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 96, 64, 3), dtype=np.uint8)
    np.testing.assert_allclose(LightNetwork(device)(frames), LightNetwork("cpu")(frames), atol=1e-3)


@pytest.mark.parametrize("width", ["tiny", "full"])
def test_one_window_is_that_of_diffusers(width: str, device: str) -> None:
    """In fp32, with guidance, a control and two pictures; and bf16 is near it."""
    if width == "full" and device == "cpu":
        pytest.skip("the full width takes a CPU minutes")
    side = 256 if width == "full" else 128
    task = Task(width, 4, (side, side), 2, guidance_scale=3.0, norm="clip", device=device)
    made = ours.make(task)().cpu()
    free_memory()
    theirs = peer.make(task)().cpu()
    free_memory()
    half = ours.make(replace(task, dtype="bf16"))().cpu().float()
    free_memory()
    apart, rounded = (float((x - theirs).norm() / theirs.norm()) for x in (made, half))
    print(f"{width}: fp32 {apart:.2e} from diffusers' latents, bf16 {rounded:.2e}")  # noqa: T201
    assert apart < 1e-3
    assert rounded < 0.2
