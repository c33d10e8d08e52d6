"""Devices by name, and out of memory in one sentence."""

import pytest
import torch

from dreamoving_cli.device import available_gib, choose_device, choose_dtype, memory_errors
from dreamoving_cli.errors import DeviceMemoryError, UsageError


@pytest.mark.parametrize("name", ["banana", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        choose_device(name)


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
    with pytest.raises(RuntimeError, match="ours"), memory_errors():
        raise RuntimeError("a bug of ours")
