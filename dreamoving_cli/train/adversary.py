"""A judge of patches: it learns to tell decoded pictures from real ones (PatchGAN).

What minimizes distances draws the mean of all details that fit, which is blur. The judge sees that. Its
gradient is scaled to a share of that of the distances: at the decoder's last layer (VQGAN eq. 7), or at the
latents that were decoded.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

WIDTHS = (48, 96, 192)  # each level halves the picture; a verdict sees 66 pixels a side
LR = 4e-4


class Judge(nn.Module):
    """Pictures n 3 h w in -1..1 -> one number for each patch, n 1 h/8 w/8: above 0, it looks real."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in WIDTHS:
            layers += [spectral_norm(nn.Conv2d(channels, width, 4, 2, 1)), nn.LeakyReLU(0.2)]
            layers += [spectral_norm(nn.Conv2d(width, width, 3, 1, 1)), nn.LeakyReLU(0.2)]
            channels = width
        layers.append(spectral_norm(nn.Conv2d(channels, 1, 3, 1, 1)))
        self.layers = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures)


class Adversary:
    """The judge and its optimizer, trained beside what it judges."""

    def __init__(self, weight: float, device: torch.device) -> None:
        self.weight = weight
        self.judge = Judge().to(device)
        self.optimizer = torch.optim.AdamW(self.judge.parameters(), LR, (0.5, 0.95), weight_decay=1e-2)

    def loss(self, distance: Tensor, out: Tensor, last: Tensor) -> Tensor:
        """The wish of `out`, n 3 h w, to look real, scaled by gradients at `last`; n may be 0."""
        self.judge.requires_grad_(False)
        wish = -mean(self.judge(out))
        self.judge.requires_grad_(True)
        (far,) = torch.autograd.grad(distance, last, retain_graph=True)
        (fake,) = torch.autograd.grad(wish, last, retain_graph=True)
        scale = (far.norm() / (fake.norm() + 1e-6)).clamp(max=1e3).detach()
        return self.weight * scale * wish

    def learn(self, out: Tensor, pictures: Tensor) -> None:
        """One update on decoded and real pictures, n 3 h w, by the hinge loss; n may be 0."""
        self.optimizer.zero_grad()
        real, fake = self.judge(pictures), self.judge(out.detach())
        (mean(F.relu(1 - real)) + mean(F.relu(1 + fake))).backward()
        if dist.is_initialized():
            for gradient in [p.grad for p in self.judge.parameters() if p.grad is not None]:
                dist.all_reduce(gradient)
                gradient /= dist.get_world_size()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"judge": self.judge.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.judge.load_state_dict(state["judge"])
        self.optimizer.load_state_dict(state["optimizer"])


def mean(x: Tensor) -> Tensor:
    """The mean; 0 of nothing."""
    return x.sum() / max(x.numel(), 1)
