"""Train the light depth network on synthetic people, and measure it on held-out ones.

    python -m dreamoving_cli.train depth --data data --out runs/depth

A run that was cut off goes on where its checkpoint is; every step's batch is drawn from (seed, step) alone.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dreamoving_cli.models.depth import DepthNet
from dreamoving_cli.train.data import ClipStore
from dreamoving_cli.train.depth_data import Example, draw_example
from dreamoving_cli.train.muon import Muon, is_matrix
from dreamoving_cli.train.start import require_clips
from dreamoving_cli.train.synth import HELD_OUT
from dreamoving_cli.whole import whole_file

SMALL = ((96, 64), (96, 96), (64, 96), (128, 64))  # height, width; at first
LARGE = ((160, 96), (192, 128), (96, 160), (128, 192))
SMALL_SHARE = 0.8  # of the steps
WARMUP = 50
EMA = 0.995
SETTLING = 16  # batches from which the norms' statistics are taken in the end
PERSON_WEIGHT, SHAPE_WEIGHT, EDGE_WEIGHT = 0.5, 2.0, 1.0
SAVE_EVERY_S = 120.0
FILE = "depth.safetensors"


@dataclass(frozen=True)
class DepthRun:
    """Where and how long."""

    data: Path
    out: Path
    steps: int = 1200
    batch: int = 8
    lr: float = 2e-3
    seed: int = 0


def train_depth(run: DepthRun) -> Path:
    """Train to the last step; where the weights are."""
    cv2.setNumThreads(1)
    run.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(run, require_clips(run.data))
    trainer.resume()
    while trainer.step < run.steps:
        trainer.train_step()
    trainer.save()
    return trainer.export()


def draw_batch(
    store: ClipStore, rng: np.random.Generator, sizes: Sequence[tuple[int, int]], count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures b 3 h w, nearness b h w and persons b h w, all of one of the sizes."""
    height, width = sizes[int(rng.integers(len(sizes)))]
    pictures, near, person = stacked([draw_example(store, rng, height, width) for _ in range(count)])
    return pictures.contiguous(memory_format=torch.channels_last), near, person


@torch.no_grad()
def settle_norms(network: DepthNet, store: ClipStore, seed: int) -> None:
    """Measure the norms' statistics anew: those of the steps do not fit weights averaged over steps."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over what follows
    rng = np.random.default_rng((seed, HELD_OUT))
    network.train()
    for _ in range(SETTLING):
        network(draw_batch(store, rng, LARGE, 8)[0])
    network.eval()


class Trainer:
    """The state of a run: the network, its average, the optimizers."""

    def __init__(self, run: DepthRun, store: ClipStore) -> None:
        self.run, self.store, self.step = run, store, 0
        torch.manual_seed(run.seed)
        self.network = DepthNet().train().to(memory_format=torch.channels_last)
        named = dict(self.network.named_parameters())
        matrices = {n: p for n, p in named.items() if is_matrix(n, p) and not n.startswith("head")}
        self.muon = Muon(matrices, 1e-2)
        self.adam = torch.optim.AdamW([p for n, p in named.items() if n not in matrices], lr=run.lr)
        self.average = {n: v.detach().clone() for n, v in self.network.state_dict().items()}
        self.losses: list[float] = []
        self.saved_at = self.started = time.monotonic()

    def train_step(self) -> None:
        """Draw, forward, backward, update."""
        share = self.step / self.run.steps
        rate = self.run.lr * min((self.step + 1) / WARMUP, 0.02 + 0.49 * (1 + math.cos(math.pi * share)))
        self.adam.param_groups[0]["lr"] = rate
        rng = np.random.default_rng((self.run.seed, self.step))
        sizes = SMALL if share < SMALL_SHARE else LARGE
        pictures, near, person = draw_batch(self.store, rng, sizes, self.run.batch)
        loss = depth_loss(self.network(pictures), near, person)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.adam.step()
        self.muon.step(rate)
        self.network.zero_grad(set_to_none=False)
        self.step += 1
        self.follow()
        self.losses.append(float(loss.detach()))
        self.log()

    def follow(self) -> None:
        """Move the averages, those of the norms' statistics too."""
        decay = min(EMA, self.step / (self.step + 9))
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value.detach(), 1 - decay)

    def log(self) -> None:
        """A line every 50 steps, a checkpoint now and then."""
        if self.step % 50 == 0:
            line = {
                "step": self.step,
                "loss": round(float(np.mean(self.losses[-50:])), 5),
                "s": round(time.monotonic() - self.started, 1),
                "cpu_s": round(time.process_time(), 1),
            }
            with (self.run.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            del self.losses[:-50]
        if time.monotonic() - self.saved_at > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the checkpoint, whole."""
        self.saved_at = time.monotonic()
        state = {
            "step": self.step, "network": self.network.state_dict(), "average": self.average,
            "adam": self.adam.state_dict(), "momentum": self.muon.momentum,
        }  # fmt: skip
        with whole_file(self.run.out / "state.pt") as part:
            torch.save(state, part)

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        path = self.run.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.average = state["average"]
        self.adam.load_state_dict(state["adam"])
        for name, momentum in self.muon.momentum.items():
            momentum.copy_(state["momentum"][name])

    def export(self) -> Path:
        """The averaged weights in half precision."""
        from safetensors.torch import save_file

        network = DepthNet().to(memory_format=torch.channels_last)
        network.load_state_dict(self.average)
        settle_norms(network, self.store, self.run.seed)
        state = network.state_dict()
        halves = {n: v.half().contiguous() for n, v in state.items() if v.is_floating_point()}
        with whole_file(self.run.out / FILE) as part:
            save_file(halves, part)
        return self.run.out / FILE


def stacked(examples: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures b 3 h w, nearness b h w and persons b h w of examples of one size."""
    pictures = np.stack([e.picture for e in examples])
    near, person = (np.stack([getattr(e, n) for e in examples]) for n in ("near", "person"))
    tensors = (torch.from_numpy(a).float() for a in (rearrange(pictures, "b h w c -> b c h w"), near, person))
    first, second, third = tensors
    return first, second, third


def depth_loss(made: Tensor, near: Tensor, person: Tensor) -> Tensor:
    """How far off: everywhere, in the person's own relief, and at edges on three scales. All b h w."""
    off = made - near
    everywhere = (off.abs() * (1 + PERSON_WEIGHT * person)).mean()
    cover = person.sum((1, 2), keepdim=True).clamp(min=1)
    relief = off - (off * person).sum((1, 2), keepdim=True) / cover
    shape = ((relief.abs() * person).sum((1, 2)) / cover[:, 0, 0]).mean()
    edges = off.new_zeros(())
    for scale in (1, 2, 4):
        coarse = off[:, ::scale, ::scale]
        edges = edges + coarse.diff(dim=1).abs().mean() + coarse.diff(dim=2).abs().mean()
    return everywhere + SHAPE_WEIGHT * shape + EDGE_WEIGHT * edges
