"""The quick convolution: equal to the plain one for every shape, and taken only where it pays."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dreamoving_cli.models import convolution
from dreamoving_cli.models.convolution import QuickConv2d, plain_convolutions, quick_convolutions, winograd
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.models.unet import VideoUNet
from dreamoving_cli.residency import keep_in_half

CONFIG = tiny_config()


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every convolution that has a quick way takes it; the rows of each."""
    calls: list[int] = []

    def counted(x: Tensor, *weights: Any) -> Tensor:
        calls.append(len(x))
        return winograd(x, *weights)

    monkeypatch.setattr(convolution, "LEAST_CHANNELS", 1)
    monkeypatch.setattr(convolution, "LEAST_TILES", 1)
    monkeypatch.setattr(convolution, "winograd", counted)
    return calls


@given(
    rows=st.integers(1, 3), channels=st.integers(1, 6), outputs=st.integers(1, 6),
    height=st.integers(1, 11), width=st.integers(1, 11), bias=st.booleans(),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_every_shape_gives_what_torch_gives(
    rows: int, channels: int, outputs: int, height: int, width: int, bias: bool
) -> None:
    """In fp64, so that nothing but a wrong sum could show."""
    x, weight = drawn(rows, channels, height, width), drawn(outputs, channels, 3, 3, seed=1)
    add = drawn(outputs, seed=2) if bias else None
    found = winograd(x, weight, add)
    torch.testing.assert_close(found, F.conv2d(x, weight, add, padding=1), atol=1e-11, rtol=0)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_in_fp32_only_rounding_is_left() -> None:
    x, weight, bias = drawn(4, 256, 9, 14), drawn(192, 256, 3, 3, seed=1), drawn(192, seed=2)
    exact = F.conv2d(x, weight, bias, padding=1)
    quick = winograd(x.float(), weight.float(), bias.float())
    assert quick.dtype == torch.float32
    assert apart(quick.double(), exact) < 5e-6  # 2e-6 when written; torch's own is 1e-6


def test_pieces_of_rows_and_of_outputs_make_the_same_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = drawn(5, 7, 6, 9), drawn(11, 7, 3, 3, seed=1), drawn(11, seed=2)
    whole = winograd(x, weight, bias)
    monkeypatch.setattr(convolution, "TILE_BYTES", 2 * 36 * 2 * 3 * 7 * 4)  # two rows
    monkeypatch.setattr(convolution, "KERNEL_BYTES", 4 * 36 * 7 * 4)  # four outputs
    torch.testing.assert_close(winograd(x, weight, bias), whole, atol=1e-12, rtol=0)


def test_only_plain_wide_convolutions_have_a_quick_way() -> None:
    wide = {"in_channels": 128, "out_channels": 256, "kernel_size": 3, "padding": 1}
    others: list[dict[str, Any]] = [
        {"kernel_size": 1, "padding": 0}, {"stride": 2}, {"padding": 0}, {"dilation": 2, "padding": 2},
        {"groups": 2}, {"padding_mode": "reflect"}, {"in_channels": 64}, {"out_channels": 4},
    ]  # fmt: skip
    network = quick_convolutions(nn.Sequential(*(nn.Conv2d(**{**wide, **more}) for more in [{}, *others])))
    assert [type(conv) for conv in network] == [QuickConv2d] + [nn.Conv2d] * len(others)
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in network)
    plain = plain_convolutions(network)
    assert {type(conv) for conv in plain} == {nn.Conv2d}
    assert plain[0].weight.is_contiguous()


def test_it_is_left_where_it_would_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    network = quick_convolutions(nn.Sequential(nn.Conv2d(128, 128, 3, padding=1)))
    conv, x = network[0], drawn(8, 128, 8, 8, dtype=torch.float32)

    def refused(*seen: Any) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(convolution, "winograd", refused)
    conv(x).sum().backward()  # with gradients
    assert conv.weight.grad is not None
    with torch.no_grad():
        conv(x[:7])  # 28 tiles
        conv.bfloat16()(x.bfloat16())
        conv.to("meta", torch.float32)(x.to("meta"))
        with pytest.raises(AssertionError):
            network.to_empty(device="cpu")(x)


@torch.no_grad()
def test_a_whole_network_gives_the_same(eager: list[int]) -> None:
    """Its weights keep their names; hooks that keep weights in 16 bits still run."""
    plain = VideoUNet(CONFIG.unet, CONFIG.motion).eval()
    quick = quick_convolutions(VideoUNet(CONFIG.unet, CONFIG.motion)).eval()
    for weight in plain.parameters():
        weight.copy_(weight.half())
    quick.load_state_dict(plain.state_dict())
    x, text = drawn(1, 4, 3, 6, 5, dtype=torch.float32), drawn(1, 6, 32, dtype=torch.float32)
    prompts = [[(k, v, 1.0)] for k, v in plain.text_keys(text)]
    expected = plain(x, torch.tensor(7), prompts)
    assert eager == []
    assert 0 < apart(quick(x, torch.tensor(7), prompts), expected) < 1e-5
    assert len(eager) > 5
    keep_in_half(quick, torch.float32)
    assert {
        w.dtype for conv in quick.modules() if isinstance(conv, QuickConv2d) for w in conv.parameters()
    } == {torch.float16}
    assert apart(quick(x, torch.tensor(7), prompts), expected) < 1e-5
