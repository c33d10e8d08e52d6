"""Muon (Jordan et al., 2024): momentum whose update is an orthogonal matrix, for weights that are matrices.

A few hundred small steps on a CPU are all that a stage of the miniature gets; here Muon needs about half the
steps of AdamW. Workers share the orthogonalizing: each does some of the matrices, then updates are summed.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

MOMENTUM = 0.95
RMS = 0.2  # size of an update's entries, as large as AdamW's, so that both take the same learning rate
APART = ("embed", "conv_in", "conv_out", "latents", "position")  # not maps between hidden features


def is_matrix(name: str, p: Tensor) -> bool:
    """Whether a weight maps hidden features to hidden features; a convolution's counts as `out (in h w)`."""
    return p.ndim >= 2 and not any(word in name for word in APART)


def orthogonalize(updates: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly, by quintic Newton-Schulz steps. updates: ... n m."""
    tall = updates.shape[-2] > updates.shape[-1]
    x = updates.mT if tall else updates
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
    return x.mT if tall else x


class Muon:
    """Updates `weights` (names to parameters) from their `grad`; its state is one momentum each."""

    def __init__(self, weights: Mapping[str, Tensor], weight_decay: float) -> None:
        self.weights, self.weight_decay = weights, weight_decay
        self.momentum = {n: torch.zeros_like(p) for n, p in weights.items()}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update with learning rate `lr`."""
        if not self.weights:
            return
        gradients = [p.grad for p in self.weights.values() if p.grad is not None]
        assert len(gradients) == len(self.weights)
        torch._foreach_lerp_(list(self.momentum.values()), gradients, 1 - MOMENTUM)
        updates = self._updates(gradients)
        weights = list(self.weights.values())
        torch._foreach_mul_(weights, 1 - lr * self.weight_decay)
        torch._foreach_add_(weights, updates, alpha=-lr)

    def _updates(self, gradients: list[Tensor]) -> list[Tensor]:
        """One update a weight; matrices of one size are made orthogonal together, workers share them."""
        rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        nesterov = torch._foreach_lerp(gradients, list(self.momentum.values()), MOMENTUM)
        alike: dict[torch.Size, list[int]] = {}
        for i in range(rank, len(gradients), workers):
            alike.setdefault(gradients[i].shape, []).append(i)
        updates = [torch.zeros_like(g) for g in gradients] if workers > 1 else gradients[:]
        for shape, places in alike.items():
            stack = torch.stack([nesterov[i] for i in places]).flatten(2)
            scale = RMS * max(stack.shape[1:]) ** 0.5
            found = orthogonalize(stack.bfloat16() if stack.is_cuda else stack).float() * scale
            for i, update in zip(places, found.view(-1, *shape).unbind(), strict=True):
                updates[i] = update
        if workers > 1:
            flat = torch.cat([u.flatten() for u in updates])
            dist.all_reduce(flat)
            parts = flat.split([u.numel() for u in updates])
            updates = [part.view(u.shape) for u, part in zip(updates, parts, strict=True)]
        return updates
