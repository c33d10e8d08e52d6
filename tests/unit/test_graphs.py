"""Recorded passes: each shape once, results that stay, and the plain way for what cannot be recorded.

A stand-in records as a card does: what runs again reads and writes where the first run did.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dreamoving_cli.graphs import MOST, Replayed, recorded


class Network(nn.Module):
    """Adds what it is given, and counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, x: Tensor, prompts: list[tuple[Tensor, float]], more: Any = None) -> list[Tensor]:
        self.passes += 1
        total = x + sum(strength * k for k, strength in prompts)
        return [total, total * 2]


def recording(run: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
    """Every replay writes its results over those of the recording."""
    results = run()

    def replay() -> None:
        for place, made in zip(tree_leaves(results), tree_leaves(run()), strict=True):
            place.copy_(made)

    return replay, results


def given(frames: int, seed: int, strength: float = 0.5) -> tuple[Tensor, list[tuple[Tensor, float]]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(frames, 3, generator=generator)
    return x, [(torch.randn(1, 3, generator=generator), strength)]


def test_replays_give_what_the_network_gives_and_keep_earlier_results() -> None:
    network, plain = Network(), Network()
    with recorded([network], recording) as [way]:
        found = [network(*given(frames, seed)) for seed, frames in enumerate((4, 4, 2, 4))]
        assert len(way._graphs) == 2
    for seed, frames in enumerate((4, 4, 2, 4)):
        for made, wanted in zip(found[seed], plain(*given(frames, seed)), strict=True):
            assert torch.equal(made, wanted)


def test_the_same_tensor_given_twice_is_read_twice() -> None:
    network = Network()
    x = torch.ones(1, 3)
    with recorded([network], recording):
        assert torch.equal(network(x, [(x, 2.0)])[0], 3 * x)
        y = 5 * x
        assert torch.equal(network(y, [(x, 2.0)])[0], y + 2 * x)


def test_further_shapes_and_what_is_no_tensor_run_as_without() -> None:
    network = Network()
    with recorded([network], recording) as [way]:
        for frames in range(1, MOST + 3):
            network(*given(frames, 0))
        assert len(way._graphs) == MOST
        before = network.passes
        network(*given(1, 0), object())
        network(*given(1, 0), lambda k, v: (k, v))
        assert network.passes == before + 2
        assert len(way._graphs) == MOST


def test_other_strengths_are_other_graphs() -> None:
    network = Network()
    with recorded([network], recording) as [way]:
        first, second = (network(*given(2, 0, strength))[0] for strength in (0.5, 1.0))
        assert len(way._graphs) == 2
    assert not torch.equal(first, second)


def test_a_network_is_itself_again_afterwards() -> None:
    network = Network()
    with pytest.raises(KeyError), recorded([network], recording):
        raise KeyError
    assert "forward" not in network.__dict__


def test_what_cannot_be_recorded_runs_as_without_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def refused(run: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    network = Network()
    with recorded([network], refused) as [way]:
        for seed in range(2):
            assert torch.equal(network(*given(2, seed))[0], Network()(*given(2, seed))[0])
        assert way.failure is not None
    assert len(caplog.records) == 1


def test_a_replayed_forward_needs_no_module() -> None:
    way = Replayed(lambda x: x + 1, recording)
    assert [float(way(torch.tensor(float(k)))) for k in range(3)] == [1.0, 2.0, 3.0]
