"""The sections of a benchmark: which contenders meet on which tasks, and what is made of their seconds.

Every section is plain values: --json is the whole truth, report.py only lays it out. No torch here.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from dreamoving_cli.bench.contenders import Job, Runs, compare, once
from dreamoving_cli.bench.sizes import WIDTHS, Task

GIB = 2**30
PARAMETERS = 1.8e9  # of what denoises at full width
ROOM = 1.6  # of the weights' bytes, for activations
LIBRARIES = 2**30  # bytes of a process before it builds anything
STEP_SHARES = ("unet", "motion", "control")
ONCE_A_FRAME = ("hint", "decode", "encode and write")
ONCE = ("text", "pictures")
WRITTEN_FRAMES, RENDER_STEPS = 100, 25  # of the render that stages are stated for
RENDERS = {"quality": (25, 2), "fast": (8, 1)}  # steps, branches of guidance
STARTUP = {
    "dreamoving --help": ("-m", "dreamoving_cli", "--help"),
    "import torch": ("-c", "import torch"),
    "import of everything that renders": ("-c", "import dreamoving_cli.render"),
}
STARTUP_RUNS = 3
WINDOW_BATCH = 4  # windows at once: more memory, still less than a pipeline that sees the whole clip


@dataclass(frozen=True)
class Bench:
    """What to measure, and how long to look."""

    task: Task  # one window
    long: Task  # several windows
    growing: Task  # whose length grows: on a CPU narrower than the others
    lengths: tuple[int, ...]
    rounds: int
    free_bytes: int  # of the CPU; decides whether contenders stay in memory together
    matmul_flops: float = 1.0  # the device's matrix rate, operations a second
    threads: int = 1
    compiled: bool = False  # whether both sides run compiled, too
    extracted: int | None = None  # frames of footage; None: all of the example
    strides: tuple[int, ...] = (4, 12)  # of FreeNoise: the usual one, and the one with our overlap


Section = Callable[[Bench], Any]
Row = dict[str, Any]


def window(bench: Bench) -> list[Row]:
    """One window: our loop against diffusers' as it comes, and with its own best settings; both compiled."""
    task = bench.task
    engines = ["dreamoving", "diffusers", "diffusers tuned"]
    engines += ["dreamoving compiled", "diffusers compiled"] if bench.compiled else []
    jobs = [Job(engine, task) for engine in engines]
    found = rows(compare(jobs, bench.rounds, fits(jobs, bench.free_bytes)))
    flop = once("work", width=task.width, frames=task.frames, size=task.size)
    nominal = task.branches * sum(flop[name] for name in STEP_SHARES)
    return [row | utilization(row, nominal, bench) for row in found]


def utilization(row: Row, flop: float, bench: Bench) -> dict[str, float]:
    """Operations a second, and their share of the matrix rate; flop: of a frame and step, nothing saved.

    On a CPU by the seconds of its processors: others may share them.
    """
    seconds = row["seconds_per_frame_step"]
    if bench.task.device == "cpu":
        seconds = row["cpu_seconds_per_frame_step"] / bench.threads
    return {"flop_per_frame_step": flop, "flops": flop / seconds, "mfu": flop / seconds / bench.matmul_flops}


def long_video(bench: Bench) -> list[Row]:
    """Several windows: ours, one at a time and several at once, against FreeNoise."""
    seen = f"windows of {bench.long.window}"
    more = replace(bench.long, window_batch=WINDOW_BATCH)
    jobs = [
        Job("dreamoving", bench.long, note=f"{seen}, overlap {bench.long.overlap}"),
        Job("dreamoving", more, note=f"the same, up to {WINDOW_BATCH} windows at once"),
        *(Job("diffusers", bench.long, hop, f"FreeNoise, {seen}, stride {hop}") for hop in bench.strides),
    ]
    return rows(compare(jobs, bench.rounds, fits(jobs, bench.free_bytes)))


def end_to_end(bench: Bench) -> list[Row]:
    """One window from words and control pictures to decoded pictures."""
    jobs = [Job(engine, replace(bench.task, pictures=True)) for engine in ("dreamoving", "diffusers")]
    found = rows(compare(jobs, bench.rounds, fits(jobs, bench.free_bytes)))
    return [row | {"frames_per_s": 1 / (row["seconds_per_frame_step"] * row["steps"])} for row in found]


def whole_clip(bench: Bench) -> list[Row]:
    """The same clip as one window, for both."""
    whole = replace(bench.long, window=None, overlap=0)
    jobs = [Job(engine, whole) for engine in ("dreamoving", "diffusers")]
    return rows(compare(jobs, bench.rounds, fits(jobs, bench.free_bytes)))


def length(bench: Bench) -> list[Row]:
    """Ours on clips of growing length: seconds for each frame of each window, and memory."""
    jobs = [Job("dreamoving", replace(bench.growing, frames=frames)) for frames in bench.lengths]
    found = compare(jobs, 1, fits(jobs, bench.free_bytes))
    return [
        {
            "frames": runs.job.task.frames,
            "window_frames": (seen := window_frames(runs.job.task)),
            "cpu_seconds_per_window_frame": runs.median_cpu_s / seen,
            "seconds_per_window_frame": runs.median_s / seen,
            "peak_gib": runs.peak_bytes / GIB,
        }
        for runs in found
    ]


def stages(bench: Bench) -> Row:
    """Seconds and shares of every stage of a render, and the work of its networks."""
    task = bench.task
    found = once("stages", task=asdict(task))
    seconds = found["seconds"]
    spent = render_seconds(seconds, RENDER_STEPS)
    total = sum(spent.values())
    rates = {
        name: WRITTEN_FRAMES / sum(render_seconds(seconds, steps * branches / task.branches).values())
        for name, (steps, branches) in RENDERS.items()
    }
    order = ("text", "pictures", "hint", "control", "unet", "motion", "decode", "encode and write")
    return {
        "frames": WRITTEN_FRAMES,
        "steps": RENDER_STEPS,
        "frames_per_s": rates,
        "share": {name: spent[name] / total for name in order},
        "seconds": {name: seconds[name] for name in order},
        "gflop_per_frame": {name: value / 1e9 for name, value in found["flop"].items()},
        "rate": {name: task.branches * found["flop"][name] / seconds[name] for name in ("unet", "control")},
    }


def render_seconds(seconds: dict[str, float], steps: float) -> dict[str, float]:
    """Seconds of each stage in a render, one after the other and no frame in two windows."""
    spent = {name: seconds[name] * steps * WRITTEN_FRAMES for name in STEP_SHARES}
    spent |= {name: seconds[name] * WRITTEN_FRAMES for name in ONCE_A_FRAME}
    return spent | {name: seconds[name] for name in ONCE}


def kernels(bench: Bench) -> Row:
    """What the device does in our denoise loop."""
    return once("kernels", task=asdict(bench.task))


def extraction(bench: Bench) -> Row:
    """How quickly poses and depth are found in footage, part by part; once where a card is what matters."""
    rounds = bench.rounds if bench.task.device == "cpu" else 1
    return once("extraction", frames=bench.extracted, rounds=rounds)


def startup(bench: Bench) -> list[Row]:
    """How long a process takes to be ready."""
    return [{"what": name, **started(words)} for name, words in STARTUP.items()]


def started(words: Sequence[str]) -> dict[str, float]:
    """Median seconds of a Python with these words: on the clock, and of the processor."""
    wall, cpu = [], []
    for _ in range(STARTUP_RUNS):
        start, before = time.perf_counter(), children_s()
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        wall.append(time.perf_counter() - start)
        cpu.append(children_s() - before)
    return {"seconds": median(wall), "cpu_seconds": median(cpu)}


def children_s() -> float:
    """Processor seconds of all finished child processes."""
    spent = os.times()
    return spent.children_user + spent.children_system


def rows(found: Sequence[Runs]) -> list[Row]:
    """One row a contender; ratios are of the first's time over each, so above 1 means that ours is faster."""
    first = found[0]
    return [
        {
            "contender": runs.job.name,
            "frames": runs.job.task.frames,
            "steps": runs.job.task.steps,
            "seconds_per_frame_step": runs.median_s / (runs.job.task.frames * runs.job.task.steps),
            "cpu_seconds_per_frame_step": runs.median_cpu_s / (runs.job.task.frames * runs.job.task.steps),
            "times_ours": runs.median_s / first.median_s,
            "cpu_times_ours": runs.median_cpu_s / first.median_cpu_s,
            "peak_gib": runs.peak_bytes / GIB,
            "first_run_s": runs.first_s,
            "compile_s": max(runs.first_s - runs.median_s, 0.0) if "compiled" in runs.job.engine else None,
            "runs": [round(seconds, 4) for seconds in runs.seconds],
        }
        for runs in found
    ]


def window_frames(task: Task) -> int:
    """Frames that the network sees in all steps: more than the clip's, where windows overlap."""
    from dreamoving_cli.windows import Windows

    seen = Windows(task.frames, task.window or task.frames, task.overlap)
    return sum(len(window) for step in range(task.steps) for window in seen.windows_at(step))


def fits(jobs: Sequence[Job], free_bytes: int) -> bool:
    """Whether all contenders can be in the CPU's memory at once; on CUDA they are in the card's."""
    itemsize = 4 if jobs[0].task.dtype == "fp32" else 2
    share = (WIDTHS[jobs[0].task.width][0] / WIDTHS["full"][0]) ** 2
    return len(jobs) * (LIBRARIES + PARAMETERS * share * itemsize * ROOM) < free_bytes


SECTIONS: dict[str, Section] = {
    "window": window,
    "long": long_video,
    "whole": whole_clip,
    "render": end_to_end,
    "length": length,
    "stages": stages,
    "kernels": kernels,
    "extraction": extraction,
    "startup": startup,
}
