"""Which device a render runs on, in which dtype, and its memory. Nothing else asks torch about CUDA."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dreamoving_cli.errors import DeviceMemoryError, UsageError

GIB = 2**30
FITS = "Give a smaller --size, fewer --context-frames or a smaller --decode-batch."
CGROUP = Path("/sys/fs/cgroup")  # where a container's own limit is
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # glibc's names, from its malloc.h
FULL = (  # what messages say where there is no class of errors for it; libraries take memory too
    "MPS backend out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED", "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)  # fmt: skip
FULL_CPU = (  # the second is oneDNN's, which gives no reason
    "DefaultCPUAllocator", "could not create a primitive",
)  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """What a render runs on, in the words of the flags; no part of its look."""

    device: str = "auto"  # or several, with commas between
    vram: str = "auto"  # or a name of memory.NAMES
    dtype: str = "auto"  # or a key of DTYPES
    compile: str = "off"  # or another of compiling.NAMES


def choose_device(asked: str = "auto") -> torch.device:
    """The device by name (cpu, cuda, cuda:1 or 1, mps); auto: CUDA where there is one, else the CPU."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(f"cuda:{asked}" if asked.isdecimal() else asked)
    except RuntimeError as error:
        raise UsageError(f"device is '{asked}'", "Give auto, cpu, cuda, cuda:N, N or mps.") from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        raise UsageError(f"there is no device '{asked}' here", "Give --device cpu or leave it out.")
    return device


def choose_devices(asked: str = "auto") -> tuple[torch.device, ...]:
    """One device, or several of a kind with commas between: 0,1,2 or cuda:0,cuda:1 or, to try it, cpu,cpu."""
    if "," not in asked:
        return (choose_device(asked),)
    names = [name.strip() for name in asked.split(",")]
    if "auto" in names:
        raise UsageError(f"device is '{asked}'", "Name each of several devices: 0,1.")
    devices = tuple(map(choose_device, names))
    if len({device.type for device in devices}) > 1:
        raise UsageError(
            f"device is '{asked}'", "Several devices must be of one kind: they share the work evenly."
        )
    numbers = [device.index or 0 for device in devices]
    if devices[0].type != "cpu" and len(set(numbers)) < len(numbers):
        raise UsageError(f"device is '{asked}'", "Name each device once.")
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        raise UsageError(f"device is '{asked}', and this PyTorch has no gloo", "Give one device.")
    return devices


def choose_dtype(device: torch.device, asked: str = "auto") -> torch.dtype:
    """The precision by name; auto: fp32 on the CPU and mps, on CUDA bf16 where it is fast, else fp16."""
    if asked != "auto":
        if asked not in DTYPES:
            raise UsageError(f"dtype is '{asked}'", f"Give auto, {', '.join(DTYPES)}.")
        return DTYPES[asked]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def make_current(device: torch.device) -> None:
    """Let this process take memory of this one GPU only."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def reuse_memory(device: torch.device) -> None:
    """On the CPU, let freed memory serve again at once instead of going back to the system.

    glibc maps every block above 32 MB anew, page by page, which costs as much as many a layer; and it gives
    each thread memory of its own in pieces of 64 MB, in which the decoder's blocks leave holes: call this
    before threads are started. Other allocators decide for themselves.
    """
    if device.type == "cpu" and (libc := _glibc()):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_ARENA_MAX, 1)


def free_memory() -> None:
    """Give what is no longer used back to the device, and the CPU's to the system."""
    gc.collect()
    if libc := _glibc():
        libc.malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def available_gib(device: torch.device) -> float:
    """Memory that a render can still take on this device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GIB
    if device.type == "mps":
        return (torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()) / GIB
    import psutil  # type: ignore[import-untyped]

    return min(int(psutil.virtual_memory().available), _container_left()) / GIB


@contextmanager
def memory_errors() -> Iterator[None]:
    """Out of memory, on any device, becomes one sentence with what helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        where = "CPU" if _on_cpu(error) else "device"
        raise DeviceMemoryError(f"the {where} ran out of memory", FITS) from error


def out_of_memory(error: Exception) -> bool:
    """Whether this is how torch, Python or a library of CUDA say that memory is full, on any device."""
    full = isinstance(error, torch.OutOfMemoryError) or _on_cpu(error)
    return full or any(words in str(error) for words in FULL)


def _glibc() -> Any:
    """The C library where it is glibc, else None."""
    try:
        return ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None
    except OSError:
        return None


def _on_cpu(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in FULL_CPU)


def _container_left() -> int:
    """Bytes left under a container's limit; a huge number where there is none."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return int(limit) - used + int(stat["inactive_file"])  # file pages are given up when needed
    except (OSError, ValueError, KeyError):
        return 2**62
