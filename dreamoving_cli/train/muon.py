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


def orthogonalize(update: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrix, roughly: a quintic Newton-Schulz iteration. update: n m."""
    x = update.mT if update.shape[0] > update.shape[1] else update
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
    return x.mT if update.shape[0] > update.shape[1] else x


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
        updates = {n: torch.zeros_like(p) for n, p in self.weights.items()}
        rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for i, (name, p) in enumerate(self.weights.items()):
            assert p.grad is not None
            self.momentum[name].lerp_(p.grad, 1 - MOMENTUM)
            if i % workers == rank:
                nesterov = p.grad.lerp(self.momentum[name], MOMENTUM).flatten(1)
                scale = RMS * max(nesterov.shape) ** 0.5
                updates[name].copy_(scale * orthogonalize(nesterov).view_as(p))
        if workers > 1:
            flat = torch.cat([u.flatten() for u in updates.values()])
            dist.all_reduce(flat)
            parts = flat.split([u.numel() for u in updates.values()])
            updates = {n: part.view_as(u) for (n, u), part in zip(updates.items(), parts, strict=True)}
        for name, p in self.weights.items():
            p.mul_(1 - lr * self.weight_decay).add_(updates[name], alpha=-lr)
