"""Orthogonal updates: what they are, which weights get them, and that they descend."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamoving_cli.train.data import cover, head_cover
from dreamoving_cli.train.losses import ARMS, HEAD, PERSON, noise_levels, weighted_mean
from dreamoving_cli.train.muon import Muon, is_matrix, orthogonalize

SIDES = st.integers(2, 24)


@settings(max_examples=30, deadline=None)
@given(SIDES, SIDES, st.integers(0, 1000))
def test_an_update_is_nearly_orthogonal_and_keeps_its_directions(rows: int, columns: int, seed: int) -> None:
    update = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    u, s, vt = torch.linalg.svd(update, full_matrices=False)
    inside = u.T @ orthogonalize(update) @ vt.T
    large = s > 0.1 * s[0]
    assert ((inside.diagonal() > 0.5) & (inside.diagonal() < 1.3))[large].all()
    assert (inside - inside.diagonal().diag()).abs().max() < 1e-3


def test_maps_between_hidden_features_are_matrices() -> None:
    weight = torch.zeros(4, 4, 3, 3)
    assert is_matrix("unet.unet.mid_block.resnets.0.conv1.weight", weight)
    assert not is_matrix("unet.unet.mid_block.resnets.0.conv1.bias", weight[0, 0, 0])
    assert not is_matrix("unet.unet.conv_in.weight", weight)
    assert not is_matrix("text_encoder.text_model.embeddings.token_embedding.weight", weight[0, 0])


def test_a_linear_map_is_learned() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted, x = torch.randn(8, 6, generator=generator), torch.randn(64, 6, generator=generator)
    weight = torch.zeros(8, 6, requires_grad=True)
    muon = Muon({"map": weight}, weight_decay=0.0)
    losses = []
    for step in range(200):
        loss = (x @ (weight - wanted).T).square().mean()
        (weight.grad,) = torch.autograd.grad(loss, weight)
        muon.step(0.1 * (1 - step / 200))
        losses.append(float(loss.detach()))
    assert losses[-1] < 1e-2 * losses[0]


@pytest.mark.parametrize(("noise", "share"), [("high", 0.75), ("even", 0.5), ("low", 0.25)])
def test_noise_is_drawn_as_wanted(noise: str, share: float) -> None:
    drawn = noise_levels(20000, 1000, torch.Generator().manual_seed(0), noise)
    assert int(drawn.min()) >= 0
    assert 950 < int(drawn.max()) <= 999
    assert float((drawn >= 500).float().mean()) == pytest.approx(share, abs=0.02)


def test_errors_on_the_person_its_head_and_forearms_count_more() -> None:
    covered = {"person": [1, 1, 1, 0], "head": [1, 0, 0, 0], "arms": [1, 1, 0, 1]}
    batch = SimpleNamespace(**{n: torch.tensor(c).float().view(1, 1, 1, 1, 4) for n, c in covered.items()})
    for cell, weight in enumerate((HEAD, ARMS, PERSON, 1)):
        errors = torch.zeros(1, 2, 1, 1, 4)
        errors[..., cell] = 1.0
        assert float(weighted_mean(errors, batch)) == pytest.approx(weight / (HEAD + ARMS + PERSON + 1))
    assert float(weighted_mean(torch.ones(1, 2, 1, 1, 4), batch)) == pytest.approx(1.0)


def test_the_boxes_of_forearms_cover_cells_by_their_share() -> None:
    points = torch.full((134, 2), 200.0)
    points[3:5] = torch.tensor([[4.0, 24.0], [14.0, 34.0]])  # with its margin 1..17, 21..37
    points[6:8] = torch.tensor([[32.0, 0.0], [48.0, 0.0]])  # 27.2..52.8, the upper half outside: 0..4.8
    head, arms = cover(points, (64, 64), (4, 4))
    assert not head.any()
    assert arms.sum().item() * 256 == pytest.approx(16 * 16 + 25.6 * 4.8)
    assert arms[1, 0].item() * 256 == pytest.approx(15 * 11)
    assert arms[0, 2].item() * 256 == pytest.approx(16 * 4.8)


def test_the_box_of_the_head_covers_cells_by_their_share() -> None:
    points = torch.full((134, 2), 200.0)
    points[24:92] = torch.tensor([20.0, 40.0])
    points[24], points[25] = (
        torch.tensor([13.0, 40.0]),
        torch.tensor([23.0, 50.0]),
    )  # with its margin 10..26, 37..53
    cover = head_cover(points, (64, 64), (4, 4))
    assert cover.sum().item() * 256 == pytest.approx(16 * 16)
    assert cover[2].tolist() == pytest.approx([6 / 16 * 11 / 16, 10 / 16 * 11 / 16, 0, 0])
