"""What is compiled, captured or joined for a card gives the numbers of the plain way there."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from dreamoving_cli.compiling import compiled, lacks
from dreamoving_cli.models.layers import plainly, projected_at_once
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
def test_projections_at_once_are_those_apart(device: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, 64, bias=False, device=device, dtype=dtype) for _ in range(3)]
    x = torch.randn(4, 100, 64, device=device, dtype=dtype)
    for one, other in zip(projected_at_once(layers, x), [layer(x) for layer in layers], strict=True):
        assert float((one - other).norm() / other.norm()) < tolerance
