"""One training loop for every stage: data-parallel worker processes, EMA, resumable checkpoints, export.

Workers hold one thread each and average their gradients, which on a busy CPU beats many threads.
"""

import json
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from dreamoving_cli.errors import UsageError
from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.load import Pack, build_pack, load_pack, save_pack
from dreamoving_cli.train.data import ClipStore
from dreamoving_cli.train.losses import Facts, noise_loss, reconstruction_loss, snr_schedule
from dreamoving_cli.train.muon import Muon, is_matrix
from dreamoving_cli.train.principal import start_from_components
from dreamoving_cli.train.stages import STAGES, Stage
from dreamoving_cli.whole import whole_file

WARMUP = 100  # steps
EMA = 0.998


@dataclass(frozen=True)
class Run:
    """Where and how long one stage is trained."""

    stage: str
    data: Path
    out: Path  # checkpoint, log and, at the end, the pack
    init: Path | None = None  # a pack to start from; None = random weights
    steps: int | None = None
    batch: int | None = None
    lr: float | None = None
    workers: int = 1
    save_every_s: float = 120.0
    seed: int = 0


def settings(run: Run) -> Stage:
    """The stage with this run's values."""
    if run.stage not in STAGES:
        raise UsageError(f"stage is '{run.stage}'", f"Choose one of {', '.join(STAGES)}.")
    given = {k: getattr(run, k) for k in ("steps", "batch", "lr") if getattr(run, k) is not None}
    return replace(STAGES[run.stage], **given)


def train(run: Run, config: PackConfig, tokenizer: Any = None) -> Path:
    """Train one stage to its last step, from its checkpoint if there is one; where the exported pack is."""
    run.out.mkdir(parents=True, exist_ok=True)
    if run.init is None and tokenizer is None:
        raise UsageError("nothing to start from", "Give a pack to --init, or a tokenizer.")
    if run.workers == 1:
        work(0, run, config, tokenizer)
    else:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(29500 + os.getpid() % 1000))
        mp.spawn(work, args=(run, config, tokenizer), nprocs=run.workers)
    return run.out / "pack"


def work(rank: int, run: Run, config: PackConfig, tokenizer: Any) -> None:
    """One worker."""
    torch.set_num_threads(1 if run.workers > 1 else torch.get_num_threads())
    if run.workers > 1:
        dist.init_process_group("gloo", rank=rank, world_size=run.workers)
    stage = settings(run)
    pack = build_pack(config, run.seed, tokenizer) if run.init is None else load_pack(run.init)
    trainer = Trainer(run, stage, pack, rank)
    if run.init is None and stage.data == "crop":
        crops, _ = trainer.store.crops(np.random.default_rng(run.seed), 300, side=128)
        start_from_components(pack.vae, crops)
    trainer.resume()
    while trainer.step < stage.steps:
        trainer.train_step()
    if rank == 0:
        trainer.save()
        trainer.export()
    if run.workers > 1:
        dist.destroy_process_group()


class Trainer:
    """The state of a run: networks, optimizer, averages, position in the data."""

    def __init__(self, run: Run, stage: Stage, pack: Pack, rank: int) -> None:
        self.run, self.stage, self.pack, self.rank, self.step = run, stage, pack, rank, 0
        named = {f"{net}.{name}": p for net, m in pack.networks().items() for name, p in m.named_parameters()}
        for p in named.values():
            p.requires_grad_(False)
        self.trained = {n: p.requires_grad_(True) for n, p in named.items() if n.startswith(stage.trains)}
        for network in pack.networks().values():
            network.train()
        tokens = pack.config.guider.get("face", {}).get("tokens", 0)
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(run.seed)
            self.facts = Facts(pack.config.cross_attention_dim, tokens) if stage.facts else None
        extra = list(self.facts.parameters()) if self.facts else []
        self.parameters = [*self.trained.values(), *extra]
        self.gradient = flat_gradient(self.parameters)
        matrices = {n: p for n, p in self.trained.items() if is_matrix(n, p)}
        self.muon = Muon(matrices, stage.weight_decay)
        rest = [*(p for n, p in self.trained.items() if n not in matrices), *extra]
        self.optimizer = torch.optim.AdamW(
            rest, lr=stage.lr, betas=(0.9, 0.99), weight_decay=stage.weight_decay, fused=True
        )
        self.average = {n: p.detach().clone() for n, p in self.trained.items()}  # moves quickly at first
        self.store, self.alphas = ClipStore(run.data), snr_schedule(pack)
        self.saved_at, self.started = time.monotonic(), time.monotonic()
        self.losses: list[float] = []

    def loss(self) -> Tensor:
        """The loss of this worker's share of the step's batch; drawn from (seed, step, rank) alone."""
        rng = np.random.default_rng((self.run.seed, self.step, self.rank))
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        count = max(self.stage.batch // self.run.workers, 1)
        if self.stage.data == "crop":
            crops, head = self.store.crops(rng, count, side=64)
            return reconstruction_loss(self.pack, crops, head, generator, self.stage.sharpness)
        batch = self.store.batch(rng, count, self.stage.frames)
        return noise_loss(self.pack, batch, generator, self.stage, self.facts, self.alphas)

    def train_step(self) -> None:
        """Forward, backward, averaged gradients, one update."""
        share = self.step / self.stage.steps
        rate = self.stage.lr * min((self.step + 1) / WARMUP, 0.05 + 0.475 * (1 + math.cos(math.pi * share)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.loss()
        loss.backward()
        self.average_gradients()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.muon.step(rate)
        self.gradient.zero_()
        decay = min(EMA, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.trained.values()), 1 - decay)
        self.step += 1
        self.losses.append(float(loss.detach()))
        if self.rank == 0:
            self.log()

    def average_gradients(self) -> None:
        """Mean over workers; parameters that a batch did not touch count as zero."""
        if self.run.workers > 1:
            dist.all_reduce(self.gradient)
            self.gradient /= self.run.workers

    def log(self) -> None:
        """A line every 50 steps, a checkpoint now and then."""
        if self.step % 50 == 0:
            line = {
                "step": self.step,
                "loss": round(float(np.mean(self.losses[-50:])), 5),
                "s": round(time.monotonic() - self.started, 1),
            }
            with (self.run.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            del self.losses[:-50]
        if time.monotonic() - self.saved_at > self.run.save_every_s:
            self.save()

    def save(self) -> None:
        """Write the checkpoint, whole."""
        self.saved_at = time.monotonic()
        state = {
            "stage": self.run.stage, "step": self.step,
            "optimizer": self.optimizer.state_dict(), "momentum": self.muon.momentum,
            "trained": {n: p.detach() for n, p in self.trained.items()}, "average": self.average,
            "facts": self.facts.state_dict() if self.facts else None,
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
        self.optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for n, p in self.trained.items():
                p.copy_(state["trained"][n])
                self.average[n].copy_(state["average"][n])
            for n, m in self.muon.momentum.items():
                m.copy_(state["momentum"][n])
        if self.facts:
            self.facts.load_state_dict(state["facts"])

    def export(self) -> None:
        """The pack with averaged weights, in half precision."""
        with torch.no_grad():
            for n, p in self.trained.items():
                p.copy_(self.average[n])
        save_pack(self.pack, self.run.out / "pack")


def flat_gradient(parameters: list[Tensor]) -> Tensor:
    """One vector that holds all gradients: each `grad` is a view of it, in its parameter's layout.

    The fused optimizer walks memory, so a gradient of another layout would be paired with the wrong weights.
    """
    flat = torch.zeros(sum(p.numel() for p in parameters))
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.as_strided(p.shape, p.stride())
    return flat
