"""Where the time of a render goes, stage by stage, with every network at its real size for the width."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor

from dreamoving_cli.bench.machine import work
from dreamoving_cli.bench.ours import NEGATIVE_PROMPT, PROMPT, Pictures, encode, on_device
from dreamoving_cli.bench.sizes import CONTROL, GUIDED, Task
from dreamoving_cli.bench.weights import fill, random_pack, random_vae
from dreamoving_cli.device import DTYPES
from dreamoving_cli.media.writer import write_video
from dreamoving_cli.models.encoders import build_image_encoder, build_text_encoder
from dreamoving_cli.models.load import Pack

REPEATS = 3
DECODED = 4  # frames at once
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
IMAGE = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}


def stages(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each stage: text and pictures once, decode and write a frame, the rest a frame and step."""
    height, width = task["size"]
    job = Task(**{**task, "size": (height, width)})
    with torch.inference_mode():
        found = measure(job)
    return {"seconds": found, "flop": work(job.width, job.frames, job.size)}


def measure(task: Task) -> dict[str, float]:
    """Median seconds of each stage."""
    pack = on_device(whole_pack(task), task)
    device, dtype = torch.device(task.device), DTYPES[task.dtype]
    prompts = encode(pack, task)
    shape = (1, 4, task.frames, task.size[0] // 8, task.size[1] // 8)
    x, t = torch.randn(shape, device=device).to(dtype), torch.tensor(500, device=device)
    pictures = torch.from_numpy(Pictures(task.size).read(range(task.frames))).to(device)
    hints = (pictures.permute(3, 0, 1, 2)[None] / 255).to(dtype)
    net = pack.controlnets[CONTROL]
    embedded = net.embed_control(hints)
    residuals = net(x, t, prompts.controls[CONTROL], embedded)
    frames = np.zeros((DECODED, *task.size, 3), np.uint8) + Pictures(task.size).read(range(DECODED))
    flat = timed(device, lambda: pack.unet(x, t, prompts.unet, residuals, use_motion=False))
    moving = timed(device, lambda: pack.unet(x, t, prompts.unet, residuals))
    return {
        "text": timed(device, lambda: pack.encode_text([NEGATIVE_PROMPT, PROMPT])),
        "pictures": timed(device, lambda: see(pack, task)),
        "hint": timed(device, lambda: net.embed_control(hints)) / task.frames,
        "control": timed(device, lambda: net(x, t, prompts.controls[CONTROL], embedded)) / task.frames,
        "unet": flat / task.frames,
        "motion": max(moving - flat, 0.0) / task.frames,
        "decode": timed(device, lambda: pack.vae.decode(x[:, :, :DECODED])) / min(DECODED, task.frames),
        "encode and write": timed(device, lambda: write(frames)) / DECODED,
    }


def whole_pack(task: Task) -> Pack:
    """The task's networks with an autoencoder and, at full width, the encoders of the public packs."""
    pack = random_pack(task)
    dtype, config = DTYPES[task.dtype], pack.config
    share = 1.0 if task.width == "full" else 0.1
    image: dict[str, Any] = {**IMAGE, "num_hidden_layers": max(round(32 * share), 2), "image_size": 224}
    with init_empty_weights(include_buffers=False):
        seen = build_image_encoder({**image, "patch_size": 14, "projection_dim": 1024})
        text = build_text_encoder({**config.text, **TEXT}) if task.width == "full" else pack.text_encoder
    pack = replace(pack, vae=random_vae(config, dtype), image_encoder=fill(seen, dtype))
    return replace(pack, text_encoder=fill(text, dtype)) if task.width == "full" else pack


def see(pack: Pack, task: Task) -> None:
    """All image prompts, as a render with guidance sees them: each picture, and no picture."""
    for kind in GUIDED:
        for _ in range(task.branches):
            pack.guider.keys(kind, pack.guider.tokens(kind, pack.no_image()))


def write(frames: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder) / "out.mp4", iter([frames]), Fraction(24))


def timed(device: torch.device, run: Callable[[], Tensor | Any]) -> float:
    """Median seconds after a first run; on the CPU of the processor, since other programs may share it."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds = []
    for _ in range(REPEATS + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - start)
    return median(seconds[1:])
