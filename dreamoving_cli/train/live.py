"""What the small trainers share: examples kept on the device, processes that bring them, dice; and a clock.

The loop of the miniature's stages (loop.py) takes the clock alone; its clips are held by device_store.py.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamoving_cli.device import choose_device
from dreamoving_cli.train.synth import HELD_OUT

WAITING = 2  # jobs for each process that are handed over ahead
Arrays = dict[str, np.ndarray]
Job = Callable[[], tuple[str, Arrays]]  # which pool, and rows for it


class Pool:
    """Rows of named tensors on a device; when it is full, the oldest rows make room."""

    def __init__(self, example: Mapping[str, np.ndarray], size: int, device: torch.device) -> None:
        """example: arrays as `add` takes them; size: bytes that the pool may fill."""
        rows = {name: torch.from_numpy(array[:1]) for name, array in example.items()}
        self.room = size // sum(row.nbytes for row in rows.values())
        self.rows = {
            n: torch.empty((self.room, *row.shape[1:]), dtype=row.dtype, device=device)
            for n, row in rows.items()
        }
        self.added = 0

    @property
    def count(self) -> int:
        return min(self.added, self.room)

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Append rows; all arrays have the same length."""
        length = len(next(iter(arrays.values())))
        at = torch.arange(self.added, self.added + length) % self.room
        for name, array in arrays.items():
            kept = self.rows[name]
            kept[at.to(kept.device)] = torch.from_numpy(array).to(kept.device)
        self.added += length

    def take(self, dice: "Dice", count: int, evenly: str | None = None) -> dict[str, Tensor]:
        """Any rows, with repetition; evenly: every class of these numbers is as likely."""
        if evenly is None:
            at = dice.integers(self.count, count)
        else:
            classes = self.rows[evenly][: self.count]
            at = dice.weighted(1 / classes.bincount()[classes].double(), count)
        return {name: rows[at] for name, rows in self.rows.items()}


class Dice:
    """Random numbers on a device, by a seed of several whole numbers."""

    def __init__(self, device: torch.device, *seed: int) -> None:
        self.device = device
        self.host = np.random.default_rng(seed)  # for what the device need not know
        self.generator = torch.Generator(device)
        self.generator.manual_seed(int(self.host.integers(2**63)))

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers from low to high."""
        return torch.rand(shape, generator=self.generator, device=self.device) * (high - low) + low

    def spread(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers from low to high, evenly on a logarithmic scale."""
        return self.uniform(float(np.log(low)), float(np.log(high)), *shape).exp()

    def normal(self, size: float, *shape: int) -> Tensor:
        """Numbers about 0."""
        return torch.randn(shape, generator=self.generator, device=self.device) * size

    def chance(self, share: float, *shape: int) -> Tensor:
        """True with this probability."""
        return torch.rand(shape, generator=self.generator, device=self.device) < share

    def weighted(self, weights: Tensor, count: int) -> Tensor:
        """Places in `weights`, each as likely as its weight, with repetition."""
        return torch.multinomial(weights, count, replacement=True, generator=self.generator)

    def integers(self, end: int, *shape: int) -> Tensor:
        """0 .. end - 1."""
        return torch.randint(end, shape, generator=self.generator, device=self.device)


class Clock:
    """How much of a run is over, 0..1: by its steps, or by the minutes it took, over all its starts."""

    def __init__(self, steps: int, minutes: float | None) -> None:
        self.steps, self.minutes, self.used_s = steps, minutes, 0.0
        self._seen = time.monotonic()

    def share(self, step: int) -> float:
        """Counts the time since the last call, too."""
        now = time.monotonic()
        self.used_s, self._seen = self.used_s + now - self._seen, now
        return min(step / self.steps if self.minutes is None else self.used_s / (60 * self.minutes), 1.0)


class Feed:
    """Runs jobs in processes and hands over what they make; without processes, here and at once."""

    def __init__(self, take: Callable[[str, Arrays], None], workers: int) -> None:
        self.take, self.workers = take, workers
        self.jobs: Iterator[Job | None] = iter(())
        self.running: list[Future[tuple[str, Arrays]]] = []
        self.processes = ProcessPoolExecutor(workers, get_context("spawn")) if workers else None

    def run(self, jobs: Sequence[Job]) -> None:
        """All of them, in order, before anything else happens."""
        if self.processes is None:
            made: Iterator[tuple[str, Arrays]] = (job() for job in jobs)
        else:
            made = self.processes.map(_call, jobs)
        for name, arrays in made:
            self.take(name, arrays)

    def follow(self, jobs: Iterator[Job | None]) -> None:
        """Work on these from now on (None: nothing to do just now); `poll` takes what is ready."""
        self.jobs = jobs

    def poll(self) -> None:
        """Take at most one result that is ready, and hand over new work; never waits."""
        if self.processes is None:
            return
        while len(self.running) < WAITING * self.workers and (job := next(self.jobs, None)):
            self.running.append(self.processes.submit(job))
        ready = next((future for future in self.running if future.done()), None)
        if ready is not None:
            self.running.remove(ready)
            self.take(*ready.result())

    def close(self) -> None:
        """Give up what is not ready."""
        if self.processes is not None:
            self.processes.shutdown(cancel_futures=True)


def _call(job: Job) -> Any:
    return job()


def fresh_seeds(folder: Path, known: set[int]) -> list[int]:
    """Training clips in a folder that are whole (their npz is written last) and not yet known."""
    seeds = {int(path.stem) for path in folder.glob("[0-9]*.npz")}
    return sorted(seed for seed in seeds - known if seed < HELD_OUT)


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on CUDA; on a CPU nothing changes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def settle_device(name: str) -> torch.device:
    """The device by name; on a CPU one thread, as both networks are small."""
    device = choose_device(name)
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")
    return device
