"""What the device is and can do: its name, its matrix rate, and the work of one pass by torch's counter."""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dreamoving_cli.bench.sizes import CONTROL, WIDTHS, bench_config
from dreamoving_cli.device import DTYPES, GIB, available_gib, choose_device, choose_dtype
from dreamoving_cli.models.controlnet import VideoControlNet
from dreamoving_cli.models.unet import VideoUNet
from dreamoving_cli.models.vae import VAE

SIDES = {"cpu": 1024, "cuda": 8192}  # of the square matrices
REPEATS = 5
PACKAGES = ("torch", "diffusers", "transformers", "numpy")


def machine(device: str, dtype: str) -> dict[str, Any]:
    """What "auto" means here, the device's name, versions, and its matrix rate in operations a second."""
    chosen = choose_device(device)
    precision = choose_dtype(chosen, dtype)
    return {
        "name": device_name(chosen),
        "kind": "cuda" if chosen.type == "cuda" else "cpu",
        "device": str(chosen),
        "dtype": next(name for name, value in DTYPES.items() if value == precision),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "load_1m": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "free_bytes": int(available_gib(torch.device("cpu")) * GIB),
        "matmul_flops": matrix_rate(chosen, precision),
    }


def device_name(device: torch.device) -> str:
    """The processor's or the card's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} processors"


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product: the ceiling that networks are held against."""
    side = SIDES.get(device.type, SIDES["cpu"])
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / median(matrix_seconds(a, b) for _ in range(REPEATS + 1))


def matrix_seconds(a: Tensor, b: Tensor) -> float:
    """Seconds of one product; on the CPU of the processor, since other programs may share it."""
    if a.is_cuda:
        torch.cuda.synchronize()
        start = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    a @ b
    return (time.process_time() - start) / torch.get_num_threads()


def work(width: str, frames: int, size: tuple[int, int]) -> dict[str, float]:
    """Operations a frame, without guidance: unet, motion and control at every step, decode once."""
    config = bench_config(width)
    height, cells = size[0] // 8, size[1] // 8
    x = torch.empty(1, 4, frames, height, cells, device="meta")
    with init_empty_weights(include_buffers=True):
        unet = VideoUNet(config.unet, config.motion)
        control = VideoControlNet(config.controlnet(CONTROL))
        vae = VAE(config.vae)
    text = torch.empty(1, 77, config.cross_attention_dim, device="meta")
    prompts = [[(k, v, 1.0)] for k, v in unet.text_keys(text)]
    control_prompts = [[(k, v, 1.0)] for k, v in control.text_keys(text)]
    embedded = torch.empty(frames, WIDTHS[width][0], height, cells, device="meta")
    time_step = torch.zeros((), device="meta")

    def counted(run: Any) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
        return counter.get_total_flops() / frames

    flat = counted(lambda: unet(x, time_step, prompts, use_motion=False))
    return {
        "unet": flat,
        "motion": counted(lambda: unet(x, time_step, prompts)) - flat,
        "control": counted(lambda: control(x, time_step, control_prompts, embedded)),
        "decode": counted(lambda: vae.decode(x)),
    }
