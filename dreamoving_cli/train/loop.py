"""One training loop for every stage: data-parallel worker processes, EMA, resumable checkpoints, export.

A step's batch is made of shares, each drawn from (seed, step, share) alone: workers take them in turn,
and one worker that accumulates them sees the same batch. On a CPU workers hold one thread each, which on a
busy one beats many threads.
"""

import copy
import json
import math
import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from dreamoving_cli.device import DTYPES, choose_device
from dreamoving_cli.errors import UsageError
from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.load import Pack, build_pack, save_pack
from dreamoving_cli.train.adversary import Adversary
from dreamoving_cli.train.checkpoint import read_checkpoint, write_checkpoint
from dreamoving_cli.train.curve import Board, cut_log, draw_curve
from dreamoving_cli.train.data import Batch
from dreamoving_cli.train.live import Clock
from dreamoving_cli.train.losses import Facts, drift, noise_loss, reconstruction_loss, snr_schedule
from dreamoving_cli.train.muon import Muon, is_matrix
from dreamoving_cli.train.principal import start_from_components
from dreamoving_cli.train.shard_store import open_store
from dreamoving_cli.train.source import complete, extended, load_start, open_start
from dreamoving_cli.train.split import Split, parameters_of
from dreamoving_cli.train.stages import REACH, STAGES, Stage
from dreamoving_cli.train.stray import ends
from dreamoving_cli.train.validation import Validation, validate

LOG_EVERY = 50  # steps
PATIENCE = timedelta(hours=2)  # of workers that wait while the first one renders or writes


@dataclass(frozen=True)
class Run:
    """Where and how long one stage is trained."""

    stage: str
    data: Path
    out: Path  # checkpoint, log and, at the end, the pack
    init: Path | None = None  # a pack to start from; None = random weights
    steps: int | None = None
    batch: int | None = None
    frames: int | None = None
    lr: float | None = None
    workers: int = 1
    save_every_s: float = 120.0
    seed: int = 0
    chosen: Stage | None = None  # instead of the miniature's stage of that name
    accumulate: int = 1  # shares of the batch that one worker computes one after the other
    device: str = "cpu"
    dtype: str = "fp32"  # of what layers compute, a key of DTYPES; weights and their updates stay fp32
    split_weights: bool = False  # each worker holds a part of all weights and of what belongs to them
    recompute: bool = False  # activations again in the backward pass: less memory, a third more time
    cache_latents: bool = False
    max_steps: int | None = None  # stop here, before the stage's last step
    minutes: float | None = None  # instead of steps: the stage ends, and its rate has fallen, after this time
    follow: float = 0.0  # on CUDA: seconds after which newly rendered clips are taken in; 0 = never
    tensorboard: bool = False
    validation: Validation | None = None

    @property
    def shares(self) -> int:
        """Parts of a step's batch."""
        return self.workers * self.accumulate


def settings(run: Run) -> Stage:
    """The stage with this run's values."""
    if run.chosen is not None:
        return run.chosen
    if run.stage not in STAGES:
        raise UsageError(f"stage is '{run.stage}'", f"Choose one of {', '.join(STAGES)}.")
    given = {k: getattr(run, k) for k in ("steps", "batch", "lr", "frames") if getattr(run, k) is not None}
    return replace(STAGES[run.stage], **given)


def train(run: Run, config: PackConfig | None = None, tokenizer: Any = None) -> Path:
    """Train one stage to its last step, from its checkpoint if there is one; where the exported pack is."""
    run.out.mkdir(parents=True, exist_ok=True)
    if run.init is None and (tokenizer is None or config is None):
        raise UsageError("nothing to start from", "Give a pack to --init, or a tokenizer.")
    if run.workers == 1:
        work(0, run, config, tokenizer)
    else:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(29500 + os.getpid() % 1000))
        mp.spawn(work, args=(run, config, tokenizer), nprocs=run.workers)
    return run.out / "pack"


def work(rank: int, run: Run, config: PackConfig | None, tokenizer: Any) -> None:
    """One worker."""
    torch.set_num_threads(1 if run.workers > 1 else torch.get_num_threads())
    if run.workers > 1:
        backend = "nccl" if run.device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=run.workers, timeout=PATIENCE)
    stage = settings(run)
    if run.init is not None:
        pack = open_start(run.init, stage) if run.split_weights else load_start(run.init, stage)
    else:
        assert config is not None
        pack = build_pack(config, run.seed, tokenizer)
    trainer = Trainer(run, stage, pack, rank)
    if run.init is None and stage.data == "crop":
        crops, _ = trainer.store.crops(np.random.default_rng(run.seed), 300, side=128)
        start_from_components(pack.vae, crops)
    trainer.resume()
    while trainer.step < (run.max_steps or math.inf) and (progress := trainer.progress()) < 1:
        trainer.train_step(progress)
    trainer.check_frozen()
    if trainer.writes:
        trainer.save()
        trainer.export()
    if run.workers > 1:
        dist.destroy_process_group()


class Trainer:
    """The state of a run: networks, optimizer, averages, position in the data."""

    def __init__(self, run: Run, stage: Stage, pack: Pack, rank: int) -> None:
        self.run, self.stage, self.pack, self.rank, self.step = run, stage, pack, rank, 0
        self.device = choose_device(f"cuda:{rank}" if run.device == "cuda" else run.device)
        networks: dict[str, Any] = pack.networks()
        self.split = Split(rank, run.workers, self.device)
        named: dict[str, Tensor] = {}
        for name, network in networks.items():
            complete(pack, name, stage)
            network.to(memory_format=layout(self.device)).train()
            named |= self.split.divide(name, network) if run.split_weights else parameters_of(name, network)
            network.to(self.device)
            if hasattr(network, "recompute"):
                network.recompute = run.recompute
        pack.any_of = self.split.any_of
        for p in named.values():
            p.requires_grad_(False)
        self.trained = {n: p.requires_grad_(True) for n, p in named.items() if n.startswith(stage.trains)}
        self.frozen = {n: p for n, p in named.items() if n not in self.trained}
        self.before = sums(self.frozen)
        self.vae_at_start = copy.deepcopy(pack.vae).requires_grad_(False) if stage.anchor else None
        if not self.trained:
            parts = ", ".join(stage.trains)
            raise UsageError(f"the model has nothing that '{run.stage}' trains ({parts})", "Choose another.")
        tokens = pack.config.guider.get("face", {}).get("tokens", 0)
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(run.seed)
            self.facts = (
                Facts(pack.config.cross_attention_dim, tokens).to(self.device) if stage.facts else None
            )
            self.adversary = Adversary(stage.adversary, self.device) if stage.adversary else None
        extra = list(self.facts.parameters()) if self.facts else []
        mine, everyones = self.split.sorted(self.trained)
        self.parameters = [*mine, *everyones, *extra]
        self.gradient, self.own = flat_gradient(self.parameters), sum(p.numel() for p in mine)
        use_muon = stage.optimizer == "muon"
        matrices = {n: p for n, p in self.trained.items() if use_muon and is_matrix(n, p)}
        self.muon = Muon(matrices, stage.weight_decay)
        others = [*(p for n, p in self.trained.items() if n not in matrices), *extra]
        self.optimizer = torch.optim.AdamW(
            others, stage.lr, (0.9, 0.99 if use_muon else 0.999), weight_decay=stage.weight_decay, fused=True
        )
        self.average = {n: p.detach().clone() for n, p in self.trained.items()}  # moves quickly at first
        self.store = open_store(run.data, pack, stage, run.cache_latents, run.follow)
        self.alphas = snr_schedule(pack, stage.beta_schedule)
        self.board = Board(run.out) if run.tensorboard and rank == 0 else None
        self.saved_at, self.clock = time.monotonic(), Clock(stage.steps, run.minutes)
        self.losses: list[Tensor] = []

    def loss(self, turn: int = 0) -> Tensor:
        """The loss of one of this worker's shares of the batch; drawn from (seed, step, share) alone."""
        share = turn * self.run.workers + self.rank
        rng = np.random.default_rng((self.run.seed, self.step, share))
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        count = max(self.stage.batch // self.run.shares, 1)
        if self.stage.data == "crop":
            return self.crop_loss(rng, generator, count)
        batch = self.batch(rng, count)
        low = torch.autocast(self.device.type, DTYPES[self.run.dtype], enabled=self.run.dtype != "fp32")
        with low, self.split.forgetting():
            return noise_loss(
                self.pack, batch, generator, self.stage, self.facts, self.alphas, self.adversary
            )

    def batch(self, rng: np.random.Generator, count: int) -> Batch:
        """`count` samples; where the stage wants it, with the latents of other frames of each."""
        frames = self.stage.frames
        if not self.stage.stray:
            return self.store.batch(rng, count, frames).to(self.device)
        reach = int(rng.integers(1, REACH + 1))
        return ends(self.store.batch(rng, count, frames + reach).to(self.device), frames, rng)

    def crop_loss(self, rng: np.random.Generator, generator: torch.Generator, count: int) -> Tensor:
        """The autoencoder's loss on `count` crops."""
        crops, head = (x.to(self.device) for x in self.store.crops(rng, count, self.stage.side))
        loss, out = reconstruction_loss(self.pack, crops, head, generator, self.stage)
        if self.vae_at_start is not None:
            loss = loss + self.stage.anchor * drift(self.pack.vae, self.vae_at_start, crops)
        if self.adversary:
            wish = self.adversary.loss(loss, out, self.pack.vae.last_weight)
            self.adversary.learn(out, crops)
            loss = loss + wish
        return loss

    def progress(self) -> float:
        """Share of the stage that is done, 0..1, by the first worker's clock."""
        share = self.clock.share(self.step)
        if self.run.minutes is not None and self.run.workers > 1:
            agreed = torch.tensor(share, device=self.device)
            dist.broadcast(agreed, 0)
            share = float(agreed)
        return share

    def train_step(self, progress: float | None = None) -> None:
        """Forward, backward, averaged gradients, one update; the rate falls with the progress 0..1."""
        rate = learning_rate(self.stage, self.step, self.progress() if progress is None else progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for turn in range(self.run.accumulate):
            loss = self.loss(turn) / self.run.accumulate
            loss.backward()
            self.gradient[-1] += loss.detach()
        self.average_gradients()
        self.clip_gradients()
        self.optimizer.step()
        self.muon.step(rate)
        self.losses.append(self.gradient[-1].clone())
        self.gradient.zero_()
        decay = min(self.stage.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.trained.values()), 1 - decay)
        self.step += 1
        if self.rank == 0:
            self.log()
        if self.save_is_due():
            self.save()
        if self.writes:
            self.look()

    @property
    def writes(self) -> bool:
        """Whether this worker takes part in writing: the first, and all that hold parts of it."""
        return self.rank == 0 or self.run.split_weights

    def save_is_due(self) -> bool:
        """Whether the time for a checkpoint has come, by the first worker's clock."""
        due = self.rank == 0 and time.monotonic() - self.saved_at > self.run.save_every_s
        return self.split.any_of([due])[0]

    def check_frozen(self) -> None:
        """What the stage does not train has not moved by a bit."""
        moved = [name for name, value in sums(self.frozen).items() if value != self.before[name]]
        assert not moved, f"{self.run.stage} changed {moved[:3]}"

    def average_gradients(self) -> None:
        """Mean over workers, of the loss too; parameters that a batch did not touch count as zero.

        Gradients of divided weights were summed where they arose.
        """
        if self.run.workers > 1:
            dist.all_reduce(self.gradient[self.own :])
            self.gradient /= self.run.workers

    def clip_gradients(self) -> None:
        """All gradients together have a length of 1 at most."""
        if self.split.divided:
            norm = self.split.norm(self.gradient[: self.own], self.gradient[self.own : -1])
            self.gradient[:-1] *= (1 / (norm + 1e-6)).clamp(max=1)
        else:
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)

    def log(self) -> None:
        """A line every 50 steps."""
        if self.step % LOG_EVERY == 0:
            line = {
                "step": self.step,
                "loss": round(float(torch.stack(self.losses[-LOG_EVERY:]).mean()), 5),
                "s": round(self.clock.used_s, 1),
            }
            with (self.run.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            if self.board:
                self.board.add(line, float(self.optimizer.param_groups[0]["lr"]))
            del self.losses[:-LOG_EVERY]

    def look(self) -> None:
        """A render with the averaged weights, where the run asks for one at this step."""
        wanted = self.run.validation
        if wanted is None or self.step % wanted.every:
            return
        self.export(self.run.out / "validation" / "pack")
        if self.rank == 0:
            validate(wanted, self.run.out / "validation", self.step)

    def save(self) -> None:
        """Write the checkpoint, whole, and the curve of the losses so far."""
        self.saved_at = time.monotonic()
        write_checkpoint(self)
        if self.rank == 0:
            draw_curve(self.run.out)

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        read_checkpoint(self)
        if self.rank == 0:
            cut_log(self.run.out, self.step)

    def export(self, folder: Path | None = None) -> None:
        """The pack with averaged weights, in half precision; its window as long as a motion stage's runs."""
        states = self.split.tensors(self.pack.networks(), self.average)
        if self.rank:
            for _, tensors in states:
                deque(tensors, maxlen=0)  # others need this process's parts
            return
        config = extended(self.pack.config, self.stage)
        save_pack(replace(self.pack, config=config), folder or self.run.out / "pack", states=states)


def learning_rate(stage: Stage, step: int, progress: float) -> float:
    """A warm-up, then a cosine over the progress 0..1 to a twentieth of the rate, or the rate."""
    cosine = 0.05 + 0.475 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return stage.lr * min((step + 1) / stage.warmup, cosine if stage.schedule == "cosine" else 1.0)


def layout(device: torch.device) -> torch.memory_format:
    """Of images in memory: channels last on CUDA, where its matrix units want them."""
    return torch.channels_last if device.type == "cuda" else torch.preserve_format


def sums(parameters: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Two numbers of each parameter that any change would change."""
    values = {name: p.detach() for name, p in parameters.items()}
    return {n: (float(p.sum(dtype=torch.float64)), float(p.square().sum())) for n, p in values.items()}


def flat_gradient(parameters: list[Tensor]) -> Tensor:
    """One vector that holds all gradients, and last the loss: each `grad` is a view of it, in its layout.

    The fused optimizer walks memory, so a gradient of another layout would be paired with the wrong weights.
    """
    sizes = [p.numel() for p in parameters]
    flat = torch.zeros(sum(sizes) + 1, device=parameters[0].device)
    for p, part in zip(parameters, flat[:-1].split(sizes), strict=True):
        p.grad = part.as_strided(p.shape, p.stride())
    return flat
