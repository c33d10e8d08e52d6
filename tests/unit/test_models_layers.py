"""Laws of the layers: attention over several prompts, frames merged into queries, norms over frames."""

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dreamoving_cli.models.config import Span
from dreamoving_cli.models.layers import (
    attend,
    cross_attend,
    feed_forward,
    fold,
    group_norm,
    pays_at_once,
    projected_at_once,
    prompt_keys,
    unfold,
)
from dreamoving_cli.residency import keep_in_half


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(
    b=st.integers(1, 3), c=st.integers(1, 3), f=st.integers(1, 4), h=st.integers(1, 4), w=st.integers(1, 4)
)
@settings(max_examples=25, deadline=None)
def test_unfold_undoes_fold(b: int, c: int, f: int, h: int, w: int) -> None:
    x = drawn(b, c, f, h, w)
    torch.testing.assert_close(unfold(fold(x), f), x, rtol=0, atol=0)


@given(alphas=st.lists(st.floats(0, 2), min_size=3, max_size=3))
@settings(max_examples=25, deadline=None)
def test_attention_is_the_weighted_sum_of_prompts(alphas: list[float]) -> None:
    q = drawn(2, 2, 5, 4)
    prompts = [
        (drawn(2, 2, n, 4, seed=n), drawn(2, 2, n, 4, seed=10 + n), a)
        for n, a in zip((3, 4, 6), alphas, strict=True)
    ]
    expected = sum(a * F.scaled_dot_product_attention(q, k, v) for k, v, a in prompts)
    torch.testing.assert_close(attend(q, prompts), expected + torch.zeros_like(q))


def test_a_prompt_of_strength_zero_is_not_computed() -> None:
    q, text = drawn(1, 2, 5, 4), (drawn(1, 2, 3, 4), drawn(1, 2, 3, 4), 1.0)
    poison = torch.full((1, 2, 3, 4), float("nan"))
    assert torch.equal(attend(q, [text, (poison, poison, 0.0)]), attend(q, [text]))
    assert attend(q, [(poison, poison, 0)]).abs().sum() == 0


def test_strengths_may_differ_within_a_batch() -> None:
    q, k, v = drawn(2, 2, 5, 4), drawn(2, 2, 3, 4, seed=1), drawn(2, 2, 3, 4, seed=2)
    out = attend(q, [(k, v, torch.tensor([0.0, 0.5]).view(2, 1, 1, 1))])
    assert out[0].abs().sum() == 0
    torch.testing.assert_close(out[1:], attend(q[1:], [(k[1:], v[1:], 0.5)]))


def test_one_prompt_serves_a_whole_batch() -> None:
    q, k, v = drawn(3, 2, 5, 4), drawn(1, 2, 3, 4, seed=1), drawn(1, 2, 3, 4, seed=2)
    repeated = [x.expand(3, -1, -1, -1) for x in (k, v)]
    torch.testing.assert_close(attend(q, [(k, v, 1.0)]), attend(q, [(*repeated, 1.0)]))


def test_frames_in_the_queries_equal_keys_repeated_per_frame() -> None:
    attention = Attention(8, 6, heads=2, dim_head=4).eval()
    x, text = drawn(2 * 3, 5, 8), drawn(2, 4, 6, seed=1)
    ours = cross_attend(attention, x, [(*prompt_keys(attention, text), 1.0)], num_frames=3)
    torch.testing.assert_close(ours, attention(x, text.repeat_interleave(3, dim=0)))


@pytest.mark.parametrize("span", ["frame", "clip"])
def test_norms_take_their_statistics_from_a_frame_or_the_clip(span: str) -> None:
    norm = nn.GroupNorm(2, 4)
    video = drawn(2, 4, 3, 5, 5) * torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 3, 1, 1)
    out = unfold(group_norm(norm, fold(video), 3, span), 3)  # type: ignore[arg-type]
    groups = out.unflatten(1, (2, 2))
    axes = (2, 4, 5) if span == "frame" else (2, 3, 4, 5)
    mean, spread = groups.mean(axes), groups.std(axes, correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
    torch.testing.assert_close(spread, torch.ones_like(spread), atol=1e-3, rtol=0)
    other = unfold(group_norm(norm, fold(video), 3, "clip" if span == "frame" else "frame"), 3)
    assert (out - other).abs().max() > 0.1


def test_both_norms_agree_on_one_frame() -> None:
    norm, x = nn.GroupNorm(2, 4), fold(drawn(2, 4, 1, 5, 5))
    torch.testing.assert_close(group_norm(norm, x, 1, "frame"), group_norm(norm, x, 1, "clip"))


@pytest.mark.parametrize("span", ["frame", "clip"])
def test_a_norm_learns_the_same_whatever_the_layout_of_an_input_without_gradient(span: Span) -> None:
    """As the first motion block that is trained over frozen layers; torch 2.11 alone ends the process."""
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        norm = nn.GroupNorm(4, 8)
        group_norm(norm, drawn(6, 8, 3, 2).to(memory_format=layout), 3, span).square().sum().backward()
        assert norm.weight.grad is not None
        gradients.append(norm.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("kind", ["geglu", "gelu"])
def test_a_feed_forward_in_two_products_is_the_feed_forward(kind: str) -> None:
    torch.manual_seed(0)
    ff, x = FeedForward(8, activation_fn=kind).half().float(), drawn(2, 5, 8)
    with torch.inference_mode():
        found = feed_forward(ff, x)
        torch.testing.assert_close(found, ff(x))
        keep_in_half(ff, torch.float32)
        assert torch.equal(feed_forward(ff, x), found)


def test_a_feed_forward_learns() -> None:
    ff, x = FeedForward(8, activation_fn="geglu"), drawn(2, 5, 8).requires_grad_()
    feed_forward(ff, x).sum().backward()
    assert x.grad is not None
    assert all(weight.grad is not None for weight in ff.parameters())


def test_projections_at_once_are_those_apart() -> None:
    torch.manual_seed(0)
    layers, x = [nn.Linear(6, width, bias=False) for width in (6, 6, 4)], drawn(2, 5, 6)
    with torch.inference_mode():
        for one, layer in zip(projected_at_once(layers, x), layers, strict=True):
            torch.testing.assert_close(one, layer(x))


def test_projections_are_joined_on_a_card_where_rows_are_many_and_weights_at_hand() -> None:
    """Meta tensors stand for the card's: a stand-in tells their device."""

    class Card(torch.Tensor):
        device = torch.device("cuda")  # type: ignore[assignment]

    def layers(device: str, dtype: torch.dtype = torch.float32, bias: bool = False) -> list[nn.Linear]:
        made = [nn.Linear(8, 8, bias=bias, device="meta", dtype=dtype) for _ in range(3)]
        if device == "cuda":
            for layer in made:
                layer.weight = nn.Parameter(layer.weight.data.as_subclass(Card))
        return made

    def pays(rows: int, *made: object, **how: bool) -> bool:
        return pays_at_once(layers(*made, **how), torch.empty(2, rows, 8, device="meta").as_subclass(Card))

    with torch.inference_mode():
        assert pays(13, "cuda")
        assert not pays(12, "cuda")  # joining 24 rows of weights costs as much
        assert not pays(13, "meta")  # streamed: still elsewhere
        assert not pays(13, "cuda", torch.float16)  # packed
        assert not pays(13, "cuda", torch.float32, True)
        assert not pays_at_once(layers("cuda"), torch.empty(2, 13, 8))
    assert not pays(13, "cuda")  # with gradients
