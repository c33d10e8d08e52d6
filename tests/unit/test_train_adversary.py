"""The judge of patches: it learns to tell blurred from sharp, and its wish is scaled."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamoving_cli.train.adversary import Adversary


def pictures(count: int, seed: int) -> Tensor:
    """Blocks of random colors with hard edges, n 3 32 32 in -1..1."""
    small = torch.rand((count, 3, 8, 8), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(small, scale_factor=4)


def blurred(sharp: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(sharp, (2, 2, 2, 2), mode="replicate"), 5, stride=1)


def test_the_judge_learns_to_tell_blur_from_edges() -> None:
    torch.manual_seed(0)
    adversary = Adversary(0.5, torch.device("cpu"))
    for step in range(60):
        sharp = pictures(8, step)
        adversary.learn(blurred(sharp), sharp)
    with torch.no_grad():
        unseen = pictures(32, 1000)
        real, fake = (adversary.judge(x).mean((1, 2, 3)) for x in (unseen, blurred(unseen)))
    assert float((real > fake).float().mean()) > 0.95


def test_the_wish_is_a_share_of_the_distance_at_the_last_layer() -> None:
    torch.manual_seed(0)
    adversary = Adversary(0.25, torch.device("cpu"))
    last = torch.randn(3, 3, 3, 3, requires_grad=True)
    sharp = pictures(2, 1)
    out = F.conv2d(blurred(sharp), last, padding=1)
    distance = (out - sharp).abs().mean()
    wish = adversary.loss(distance, out, last)
    (far,) = torch.autograd.grad(distance, last, retain_graph=True)
    (pull,) = torch.autograd.grad(wish, last)
    torch.testing.assert_close(pull.norm(), 0.25 * far.norm(), rtol=1e-3, atol=0)
    assert all(p.grad is None for p in adversary.judge.parameters())
    assert all(p.requires_grad for p in adversary.judge.parameters())


def test_a_checkpoint_brings_the_judge_back() -> None:
    torch.manual_seed(0)
    one, two = (Adversary(0.5, torch.device("cpu")) for _ in range(2))
    sharp = pictures(4, 3)
    one.learn(blurred(sharp), sharp)
    two.load(deepcopy(one.state()))
    for adversary in (one, two):
        adversary.learn(blurred(sharp), sharp)
    for a, b in zip(one.judge.parameters(), two.judge.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
