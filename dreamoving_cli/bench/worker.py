"""`python -m`: the measuring process, which builds what its command line says and answers in JSON lines.

Not here: what is compared with what (sections.py) and in which order (contenders.py).
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch

from dreamoving_cli.bench import ours, peer
from dreamoving_cli.bench.extraction import measure_extraction
from dreamoving_cli.bench.kernels import kernels
from dreamoving_cli.bench.machine import machine, work
from dreamoving_cli.bench.ours import Run
from dreamoving_cli.bench.sizes import Task
from dreamoving_cli.bench.stages import stages

# name -> what builds it from a task; a stride only for those with FreeNoise
ENGINES: dict[str, Callable[..., Run]] = {
    "dreamoving": ours.make,
    "diffusers": peer.make,
    "diffusers tuned": partial(peer.make, tuned=True),
    "dreamoving compiled": partial(ours.make, fast=True),
    "diffusers compiled": partial(peer.make, tuned=True, fast=True),
}
ABOUT: dict[str, Callable[..., dict[str, Any]]] = {
    "machine": machine, "stages": stages, "work": work, "kernels": kernels, "extraction": measure_extraction,
}  # fmt: skip
STATUS = Path("/proc/self/status")  # Linux; elsewhere the peak is ru_maxrss


def main(words: list[str]) -> None:
    """Do what the first word says with the JSON that follows it."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print; answers are ours alone
    for name in ("diffusers", "dreamoving_cli.extract"):  # hints for those who want the result
        logging.getLogger(name).setLevel(logging.ERROR)
    what, values = words[0], json.loads(words[1])
    if what == "contend":
        contend(values, answers)
    else:
        say(answers, ABOUT[what](**values))


def contend(job: dict[str, Any], answers: TextIO) -> None:
    """Build one contender, then run it for every line on stdin; its first run warms it up."""
    task = task_of(job["task"])
    extra = {} if job["stride"] is None else {"stride": job["stride"]}
    before = resident()
    run = ENGINES[job["engine"]](task, **extra)
    for _ in sys.stdin:
        say(answers, timed(run, task.device, before))


def task_of(values: dict[str, Any]) -> Task:
    """A task from its JSON."""
    height, width = values["size"]
    return Task(**{**values, "size": (height, width)})


def timed(run: Run, device: str, before: int) -> dict[str, Any]:
    """One run: seconds on the clock and of the processor, and the peak of memory so far."""
    finish(device)
    start, cpu = time.perf_counter(), time.process_time()
    run()
    finish(device)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak(device, before)}


def finish(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak(device: str, before: int) -> int:
    """Most bytes so far: of the device's allocator, on the CPU of the process less what it held before."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resident("VmHWM") - before


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most so far."""
    if STATUS.is_file():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(lines[field].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def say(answers: TextIO, found: dict[str, Any]) -> None:
    answers.write(json.dumps(found) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(0)  # nothing is left to be done, and freeing gigabytes takes seconds
