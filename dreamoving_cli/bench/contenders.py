"""Contenders, each in a process of its own, timed in turn. No torch in this process: peaks are theirs alone.

found = compare([Job("dreamoving", task), Job("diffusers", task)], rounds=5, together=True)
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from dreamoving_cli.bench.sizes import Task
from dreamoving_cli.errors import DeviceMemoryError

SMALLER = "Give a smaller --width, --size or --frames."
WORKER = (sys.executable, "-m", "dreamoving_cli.bench.worker")


@dataclass(frozen=True)
class Job:
    """One contender on one task."""

    engine: str  # a key of worker.ENGINES
    task: Task
    stride: int | None = None  # FreeNoise's hop between windows
    note: str = ""  # what sets it apart in a table

    @property
    def name(self) -> str:
        return f"{self.engine}, {self.note}" if self.note else self.engine


@dataclass
class Runs:
    """What one contender took, run by run."""

    job: Job
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(
        default_factory=list
    )  # of all its threads: what a busy machine cannot stretch
    peak_bytes: int = 0  # beyond the libraries
    first_s: float = 0.0  # the first run, after building: warm-up, compilation

    def add(self, found: dict[str, Any]) -> None:
        self.seconds.append(found["seconds"])
        self.cpu_seconds.append(found["cpu_seconds"])
        self.peak_bytes = max(self.peak_bytes, found["peak_bytes"])

    @property
    def median_s(self) -> float:
        return median(self.seconds)

    @property
    def median_cpu_s(self) -> float:
        return median(self.cpu_seconds)


class Worker:
    """A process that holds one contender and runs it when asked."""

    def __init__(self, *words: str) -> None:
        self._process = subprocess.Popen(
            [*WORKER, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def answer(self) -> dict[str, Any]:
        """The next line the process has for us."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ended(self._process.wait())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def start(self) -> None:
        """One timed run; `answer` waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()

    def ask(self) -> dict[str, Any]:
        """One timed run, waited for."""
        self.start()
        return self.answer()

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.terminate()
        self._process.wait()


def ended(code: int) -> Exception:
    """Why a measuring process is gone: its memory, or a bug, whose traceback is on stderr."""
    if code == -signal.SIGKILL:
        return DeviceMemoryError("a measuring process was ended by the system", SMALLER)
    return RuntimeError(f"a measuring process ended with code {code}")


@contextmanager
def contender(runs: Runs) -> Iterator[Worker]:
    """A contender's process, which builds it from now on."""
    worker = Worker("contend", json.dumps(asdict(runs.job)))
    try:
        yield worker
    finally:
        worker.close()


def compare(jobs: Sequence[Job], rounds: int, together: bool) -> list[Runs]:
    """Every contender `rounds` times, in turn, so that a busy machine is busy for all of them.

    together: all stay in memory; else each is built anew for each of its runs.
    """
    found = [Runs(job) for job in jobs]
    if not together:
        for runs in found * rounds:
            with contender(runs) as worker:
                runs.first_s = worker.ask()["seconds"]
                runs.add(worker.ask())
        return found
    with ExitStack() as stack:
        workers = [stack.enter_context(contender(runs)) for runs in found]  # all are built at once
        warm_up(found, workers)
        for _ in range(rounds):
            for runs, worker in zip(found, workers, strict=True):
                runs.add(worker.ask())
    return found


def warm_up(found: Sequence[Runs], workers: Sequence[Worker]) -> None:
    """The first run of each; on a card all at once, since what takes long there is compiling, on the CPU."""
    if found[0].job.task.device == "cpu":
        for runs, worker in zip(found, workers, strict=True):
            runs.first_s = worker.ask()["seconds"]
        return
    for worker in workers:
        worker.start()
    for runs, worker in zip(found, workers, strict=True):
        runs.first_s = worker.answer()["seconds"]


def once(what: str, **values: Any) -> dict[str, Any]:
    """What a process of its own says of one thing: "machine", "stages", ..."""
    worker = Worker(what, json.dumps(values))
    try:
        return worker.answer()
    finally:
        worker.close()
