"""What the device does in a denoise loop, operation by operation, as torch's profiler sees it."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from dreamoving_cli.bench import ours
from dreamoving_cli.bench.attention import attentions, projections
from dreamoving_cli.bench.sizes import Task

MOST = 20  # rows of each list

Row = dict[str, Any]


def kernels(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one run, how long the device worked in it, and at what: torch's operations, CUDA's kernels.

    Profiling itself takes time: the difference between both sums is more than it is without.
    """
    height, width = task["size"]
    job = Task(**{**task, "size": (height, width)})
    on_cuda = job.device.startswith("cuda")
    run = ours.make(job)
    run()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]) as seen:
        start = time.perf_counter()
        run()
        if on_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    events = seen.key_averages()
    called = [event for event in events if event.device_type == DeviceType.CPU]
    launched = [event for event in events if event.device_type == DeviceType.CUDA]
    own = (
        (lambda event: event.self_device_time_total) if on_cuda else (lambda event: event.self_cpu_time_total)
    )
    return {
        "seconds": seconds,
        "busy_seconds": sum(map(own, launched if on_cuda else called)) / 1e6,
        "operations": most(called, own),
        "kernels": most(launched, own),
        "attention": attentions(job),
        "projections": projections(job),
    }


def most(events: Iterable[Any], own: Callable[[Any], float]) -> list[Row]:
    """The events that took longest, and their share of all; own: microseconds of an event."""
    spent = sorted(((float(own(event)), event) for event in events), key=lambda pair: -pair[0])
    total = sum(microseconds for microseconds, _ in spent)
    return [
        {"name": event.key, "calls": event.count, "seconds": each / 1e6, "share": each / total}
        for each, event in spent[:MOST]
        if each > 0
    ]
