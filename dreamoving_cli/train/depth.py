"""Train the light depth network on synthetic people, and measure it on held-out ones.

    python -m dreamoving_cli.train depth --data data --out runs/depth

A run that was cut off goes on where its checkpoint is; every step's batch is drawn from (seed, step) alone.
With --minutes the schedule follows the clock, and clips that are written meanwhile are used too.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dreamoving_cli.models.depth import DepthNet
from dreamoving_cli.train.depth_batch import Batch, draw_batch
from dreamoving_cli.train.depth_data import frames_job
from dreamoving_cli.train.live import (
    Arrays,
    Clock,
    Dice,
    Feed,
    Job,
    Pool,
    autocast,
    fresh_seeds,
    settle_device,
)
from dreamoving_cli.train.muon import Muon, is_matrix
from dreamoving_cli.train.start import require_clips
from dreamoving_cli.train.synth import HELD_OUT
from dreamoving_cli.whole import whole_file

SMALL = ((96, 64), (96, 96), (64, 96), (128, 64))  # height, width; at first
LARGE = ((256, 160), (192, 192), (160, 256), (192, 128))  # about what it is used at
SMALL_SHARE = 0.7  # of the run
WARMUP = 50
EMA = 0.995
SETTLING = 16  # batches from which the norms' statistics are taken in the end
PERSON_WEIGHT, SHAPE_WEIGHT, EDGE_WEIGHT, LIKENESS_WEIGHT = 0.5, 2.0, 1.0, 0.1
POOL_BYTES = 5 * 2**30
CHUNK = 8  # clips that a job reads
LOOK_EVERY_S = 60.0  # seconds between two looks for new clips
SAVE_EVERY_S = 120.0
FILE = "depth.safetensors"


@dataclass(frozen=True)
class DepthRun:
    """Where and how long."""

    data: Path
    out: Path
    steps: int = 1200
    minutes: float | None = None  # instead of steps
    batch: int = 8
    lr: float = 2e-3
    workers: int = 0  # processes that read clips; 0: none, they are read before the first step
    device: str = "cpu"
    seed: int = 0


def train_depth(run: DepthRun) -> Path:
    """Train to the end; where the weights are."""
    require_clips(run.data)
    run.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(run)
    trainer.resume()
    trainer.train()
    return trainer.export()


def jobs_of(data: Path, seeds: list[int]) -> list[Job]:
    """What reads these clips."""
    return [partial(frames_job, data, seeds[at : at + CHUNK]) for at in range(0, len(seeds), CHUNK)]


def later_jobs(data: Path) -> Iterator[Job | None]:
    """Clips that are written from now on; endless, None while there are none."""
    known, looked = set(fresh_seeds(data, set())), time.monotonic()
    while True:
        if time.monotonic() - looked > LOOK_EVERY_S:
            looked = time.monotonic()
            seeds = fresh_seeds(data, known)
            known.update(seeds)
            yield from jobs_of(data, seeds)
        yield None


@torch.no_grad()
def settle_norms(network: DepthNet, pool: Pool, dice: Dice) -> None:
    """Measure the norms' statistics anew: those of the steps do not fit weights averaged over steps."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over what follows
    network.train()
    for _ in range(SETTLING):
        network(draw_batch(pool, dice, LARGE, 8).picture.contiguous(memory_format=torch.channels_last))
    network.eval()


class Trainer:
    """The state of a run: the network, its average, the optimizers."""

    def __init__(self, run: DepthRun) -> None:
        self.run, self.step, self.clock = run, 0, Clock(run.steps, run.minutes)
        self.device = settle_device(run.device)
        self.pool: Pool | None = None
        self.feed = Feed(self.add, run.workers)
        self.feed.run(jobs_of(run.data, fresh_seeds(run.data, set())))
        torch.manual_seed(run.seed)
        self.network = DepthNet().train().to(self.device).to(memory_format=torch.channels_last)
        named = dict(self.network.named_parameters())
        matrices = {n: p for n, p in named.items() if is_matrix(n, p) and not n.startswith("head")}
        self.muon = Muon(matrices, 1e-2)
        self.adam = torch.optim.AdamW([p for n, p in named.items() if n not in matrices], lr=run.lr)
        self.average = {n: v.detach().clone() for n, v in self.network.state_dict().items()}
        self.losses: list[Tensor] = []
        self.saved_at = time.monotonic()

    def add(self, _: str, arrays: Arrays) -> None:
        """Frames that a job has read."""
        self.pool = self.pool or Pool(arrays, POOL_BYTES, self.device)
        self.pool.add(arrays)

    def draw(self, sizes: tuple[tuple[int, int], ...]) -> Batch:
        """This step's examples."""
        assert self.pool is not None
        with torch.no_grad():
            return draw_batch(self.pool, Dice(self.device, self.run.seed, self.step), sizes, self.run.batch)

    def train(self) -> None:
        """To the end."""
        if self.run.minutes is not None:
            self.feed.follow(later_jobs(self.run.data))
        while self.clock.share(self.step) < 1:
            self.train_step()
            self.feed.poll()
        self.feed.close()
        self.save()

    def train_step(self) -> None:
        """Draw, forward, backward, update."""
        share = self.clock.share(self.step)
        rate = self.run.lr * min((self.step + 1) / WARMUP, 0.02 + 0.49 * (1 + math.cos(math.pi * share)))
        self.adam.param_groups[0]["lr"] = rate
        batch = self.draw(SMALL if share < SMALL_SHARE else LARGE)
        with autocast(self.device):
            made = self.network(batch.picture.contiguous(memory_format=torch.channels_last))
        loss = depth_loss(made.float(), batch.near, batch.person)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.adam.step()
        self.muon.step(rate)
        self.network.zero_grad(set_to_none=False)
        self.step += 1
        self.follow()
        self.losses.append(loss.detach())
        self.log()

    def follow(self) -> None:
        """Move the averages, those of the norms' statistics too."""
        decay = min(EMA, self.step / (self.step + 9))
        now = {n: v for n, v in self.network.state_dict().items() if v.is_floating_point()}
        torch._foreach_lerp_([self.average[name] for name in now], list(now.values()), 1 - decay)

    def log(self) -> None:
        """A line every 50 steps, a checkpoint now and then."""
        if self.step % 50 == 0:
            assert self.pool is not None
            line = {
                "step": self.step,
                "loss": round(torch.stack(self.losses[-50:]).mean().item(), 5),
                "frames": self.pool.count,
                "used_s": round(self.clock.used_s, 1),
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
            "step": self.step, "used_s": self.clock.used_s, "network": self.network.state_dict(),
            "average": self.average, "adam": self.adam.state_dict(), "momentum": self.muon.momentum,
        }  # fmt: skip
        with whole_file(self.run.out / "state.pt") as part:
            torch.save(state, part)

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        path = self.run.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location=self.device)
        self.step = state["step"]
        self.clock.used_s += state["used_s"]
        self.network.load_state_dict(state["network"])
        self.average = state["average"]
        self.adam.load_state_dict(state["adam"])
        for name, momentum in self.muon.momentum.items():
            momentum.copy_(state["momentum"][name])

    def export(self) -> Path:
        """The averaged weights in half precision."""
        from safetensors.torch import save_file

        assert self.pool is not None
        network = DepthNet().to(self.device).to(memory_format=torch.channels_last)
        network.load_state_dict(self.average)
        settle_norms(network, self.pool, Dice(self.device, self.run.seed, HELD_OUT))
        state = network.cpu().state_dict()
        halves = {n: v.half().contiguous() for n, v in state.items() if v.is_floating_point()}
        with whole_file(self.run.out / FILE) as part:
            save_file(halves, part)
        return self.run.out / FILE


def depth_loss(made: Tensor, near: Tensor, person: Tensor) -> Tensor:
    """How far off: everywhere, in the person's own relief, and at edges on three scales. All b h w."""
    off = made - near
    everywhere = (off.abs() * (1 + PERSON_WEIGHT * person)).mean()
    relief = shape_of(off, person)
    cover = person.sum((1, 2)).clamp(min=1)
    shape = ((relief.abs() * person).sum((1, 2)) / cover).mean()
    edges = off.new_zeros(())
    for scale in (1, 2, 4):
        coarse = off[:, ::scale, ::scale]
        edges = edges + coarse.diff(dim=1).abs().mean() + coarse.diff(dim=2).abs().mean()
    unlike = unlikeness(made, near, person)
    return everywhere + SHAPE_WEIGHT * shape + EDGE_WEIGHT * edges + LIKENESS_WEIGHT * unlike


def shape_of(values: Tensor, person: Tensor) -> Tensor:
    """Without their mean over the person; all b h w."""
    cover = person.sum((1, 2), keepdim=True).clamp(min=1)
    return values - (values * person).sum((1, 2), keepdim=True) / cover


def unlikeness(made: Tensor, near: Tensor, person: Tensor) -> Tensor:
    """One minus the correlation of both inside the person, whatever their size; 0 where it is flat."""
    one, other = (shape_of(each, person) * person for each in (made, near))
    size = ((one * one).sum((1, 2)) * (other * other).sum((1, 2)) + 1e-8).sqrt()
    likeness = (one * other).sum((1, 2)) / size
    shown = (other * other).sum((1, 2)) > 1e-3
    return ((1 - likeness) * shown).mean()
