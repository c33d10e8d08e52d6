"""The error of decoded heads: squares lie where people are, the truth has none, and heads count more."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("numba", reason="the renderer needs the extra `train`")
from dreamoving_cli.models.load import Pack, build_pack
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.train.adversary import Adversary
from dreamoving_cli.train.data import Batch
from dreamoving_cli.train.decoded import anywhere, clean_guess, decoded_loss, heads

SIDE = 4


@pytest.fixture(scope="module")
def pack() -> Pack:
    return build_pack(tiny_config(), seed=0)


def cover(top: int, left: int, side: int = 2, size: tuple[int, int] = (20, 24)) -> Tensor:
    """One clip of two frames; the first shows something `side` cells wide: 1 1 2 h w."""
    x = torch.zeros(1, 1, 2, *size)
    x[:, :, 0, top : top + side, left : left + side] = 1
    return x


def batch(head: Tensor, person: Tensor) -> Batch:
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, *person.shape[2:], generator=draw)
    return Batch(latents, person, head, torch.zeros_like(head), {}, {}, [], {})


@given(st.integers(0, 18), st.integers(0, 22))
def test_a_square_lies_on_every_head_and_within_the_picture(top: int, left: int) -> None:
    head = cover(top, left)
    found = heads(head, SIDE)
    assert (found.row.tolist(), found.frame.tolist()) == ([0], [0])
    assert found.cut(head, SIDE).shape == (1, 1, SIDE, SIDE)
    assert float(found.cut(head, SIDE).sum()) == 4


@given(st.integers(0, 14), st.integers(0, 18), st.integers(0, 1000))
def test_the_other_square_shows_a_part_of_the_person(top: int, left: int, seed: int) -> None:
    person = cover(top, left, 6)
    one, again = (anywhere(person, SIDE, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert one.frame.tolist() == [0]
    assert float(one.cut(person, SIDE).sum()) > 0


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_the_right_prediction_stands_for_the_clean_latents(prediction: str) -> None:
    clean, noise = torch.randn(2, 1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    a, s = torch.tensor(0.6), torch.tensor(0.8)
    right = a * noise - s * clean if prediction == "v_prediction" else noise
    torch.testing.assert_close(clean_guess(a * clean + s * noise, right, a, s, prediction), clean)


def test_the_truth_has_no_error_and_heads_count_more(pack: Pack) -> None:
    person = cover(2, 2, 12)
    shown = batch(cover(4, 4, 3), person)

    @torch.no_grad()
    def loss(clean: Tensor, head: Tensor) -> float:
        draw, signal = torch.Generator().manual_seed(1), torch.ones(1)
        return float(decoded_loss(pack, clean, replace(shown, head=head), signal, None, draw))

    wrong = shown.latents + 0.3
    assert loss(shown.latents, shown.head) == pytest.approx(0, abs=1e-6)
    assert loss(wrong, shown.head) > loss(wrong, torch.zeros_like(shown.head)) > 0
    elsewhere = shown.latents.clone()
    elsewhere[:, :, 1] += 5  # a frame without anybody
    assert loss(elsewhere, shown.head) == pytest.approx(0, abs=1e-6)


def test_what_is_noise_alone_does_not_count_and_nobody_at_all_is_no_error(pack: Pack) -> None:
    shown = batch(cover(4, 4, 3), cover(2, 2, 12))
    draw = torch.Generator().manual_seed(1)
    wrong = (shown.latents + 0.3).requires_grad_(True)
    assert float(decoded_loss(pack, wrong, shown, torch.zeros(1), None, draw)) == 0
    nobody = batch(torch.zeros_like(shown.head), torch.zeros_like(shown.person))
    nothing = decoded_loss(pack, wrong, nobody, torch.ones(1), None, draw)
    nothing.backward()
    assert wrong.grad is not None
    assert not wrong.grad.any()


def test_the_judge_learns_from_clear_guesses_alone(pack: Pack) -> None:
    shown = batch(cover(4, 4, 3), cover(2, 2, 12))
    wrong = (shown.latents + 0.3).requires_grad_(True)
    torch.manual_seed(0)
    judge = Adversary(0.5, torch.device("cpu"))
    for signal, learns in ((0.1, False), (0.9, True)):
        draw = torch.Generator().manual_seed(1)
        loss = decoded_loss(pack, wrong, shown, torch.tensor([signal]), judge, draw)
        gradients = [p.grad for p in judge.judge.parameters() if p.grad is not None]
        assert gradients
        assert any(bool(g.any()) for g in gradients) == learns
        loss.backward()
        assert wrong.grad is not None
        assert bool(wrong.grad.isfinite().all())
