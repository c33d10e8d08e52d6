"""Devices by name, and out of memory in one sentence."""

import os
import subprocess
import sys

import pytest
import torch

from dreamoving_cli.device import (
    available_gib,
    choose_device,
    choose_devices,
    choose_dtype,
    memory_errors,
)
from dreamoving_cli.errors import DeviceMemoryError, UsageError


@pytest.mark.parametrize("name", ["banana", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        choose_device(name)


@pytest.mark.parametrize("names", ["0,1,0", "1,cuda:1", "cuda,cuda:0", "cpu,0", "auto,cpu", "cpu,", "0,99"])
def test_devices_that_cannot_share_a_render_are_refused(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError):
        choose_devices(names)


def test_several_devices_are_named_by_number_or_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (
        choose_devices("0,1")
        == choose_devices("cuda:0, cuda:1")
        == (torch.device("cuda:0"), torch.device("cuda:1"))
    )
    assert choose_devices("cpu,cpu") == (torch.device("cpu"),) * 2
    assert choose_devices("1") == (choose_device("cuda:1"),)


def test_the_cpu_renders_in_full_precision() -> None:
    assert choose_dtype(choose_device("cpu")) == torch.float32
    assert 0 < available_gib(torch.device("cpu")) < 1e6


def test_the_precision_can_be_chosen() -> None:
    assert choose_dtype(torch.device("cpu"), "bf16") == torch.bfloat16
    with pytest.raises(UsageError, match="auto, fp32, bf16, fp16"):
        choose_dtype(torch.device("cpu"), "fp8")


def test_out_of_memory_says_what_helps() -> None:
    with pytest.raises(DeviceMemoryError, match="--decode-batch"), memory_errors():
        torch.empty(2**50)
    with pytest.raises(DeviceMemoryError, match="device"), memory_errors():
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(DeviceMemoryError, match="device"), memory_errors():
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    with pytest.raises(DeviceMemoryError, match="CPU"), memory_errors():
        raise RuntimeError("could not create a primitive")  # oneDNN
    with pytest.raises(RuntimeError, match="ours"), memory_errors():
        raise RuntimeError("a bug of ours")


PAGES_MAPPED = """
import resource, torch
from concurrent.futures import ThreadPoolExecutor
from dreamoving_cli.device import free_memory, reuse_memory

LARGE = 1 << 26  # bytes: above what glibc keeps for itself

def pages_mapped(times, size=LARGE):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        bytearray(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

anew = pages_mapped(4)
reuse_memory(torch.device("cpu"))
pages_mapped(1)
kept = pages_mapped(4)
with ThreadPoolExecutor(1) as thread:
    shared = thread.submit(pages_mapped, 1, LARGE // 4).result()  # fits what a thread would have
free_memory()
print(LARGE // resource.getpagesize(), anew, kept, shared, pages_mapped(1))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have other allocators")
def test_freed_memory_serves_again_until_it_is_given_back() -> None:
    """In a process of its own, since it is for good."""
    if not os.confstr("CS_GNU_LIBC_VERSION"):
        pytest.skip("not glibc")
    told = subprocess.run([sys.executable, "-c", PAGES_MAPPED], capture_output=True, text=True, check=True)
    pages, anew, kept, shared, given_back = map(int, told.stdout.split())
    assert kept < pages // 4 < pages <= anew
    assert shared < pages // 16
    assert given_back > pages // 4
