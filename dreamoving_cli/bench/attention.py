"""Attention at the shapes of our networks: torch's own choice, and each of its ways beside it.

Queries, keys and values lie in memory as our layers leave them. Also: one product for the three projections
of self-attention against three products.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dreamoving_cli.bench.sizes import WIDTHS, Task
from dreamoving_cli.bench.stages import timed
from dreamoving_cli.device import DTYPES
from dreamoving_cli.models.layers import projected_at_once
from dreamoving_cli.models.motion import MOST_ROWS

HEADS, WORDS = 8, 77
WAYS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
MOST_SCORES = 2**31  # bytes; the plain way holds several times as many

Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """One kind of attention in one level."""

    name: str
    rows: int
    queries: int
    keys: int
    width: int  # of a head


def shapes(task: Task) -> Iterator[Shape]:
    """Those of a U-Net's levels: cells of a frame, cells with the text, frames of a cell."""
    frames, sides = task.frames * task.branches, [side // 8 for side in task.size]
    for level, channels in enumerate(WIDTHS[task.width]):
        height, width = (side >> level for side in sides)
        cells, head = height * width, channels // HEADS
        where = f"{channels} channels, {width}x{height} cells"
        yield Shape(f"cells, {where}", frames, cells, cells, head)
        yield Shape(f"text, {where}", task.branches, task.frames * cells, WORDS, head)
        yield Shape(f"frames, {where}", min(task.branches * cells, MOST_ROWS), task.frames, task.frames, head)


@torch.inference_mode()
def attentions(task: Task) -> list[Row]:
    """Seconds of torch's own choice for each shape, and of each way over them; None: not for this shape."""
    device, dtype = torch.device(task.device), DTYPES[task.dtype]
    found = []
    for shape in shapes(task):
        q, k, v = (
            torch.randn(shape.rows, length, HEADS, shape.width, device=device).to(dtype).transpose(1, 2)
            for length in (shape.queries, shape.keys, shape.keys)
        )
        chosen = timed(device, lambda x=(q, k, v): F.scaled_dot_product_attention(*x))  # type: ignore[misc]
        scores = shape.rows * HEADS * shape.queries * shape.keys * dtype.itemsize
        ways = [name for name in WAYS if name != "math" or scores < MOST_SCORES]
        times = {name: seconds((q, k, v), WAYS[name], device) for name in ways}
        ratios = {name: None if (took := times.get(name)) is None else took / chosen for name in WAYS}
        found.append({"name": shape.name, "seconds": chosen, **ratios})
    return found


def seconds(given: tuple[Tensor, Tensor, Tensor], way: SDPBackend, device: torch.device) -> float | None:
    """Seconds of one way; None where it does not take these shapes."""
    with warnings.catch_warnings(), sdpa_kernel(way):
        warnings.simplefilter("ignore")  # torch says why a way is none
        try:
            return timed(device, lambda: F.scaled_dot_product_attention(*given))
        except RuntimeError:
            return None


@torch.inference_mode()
def projections(task: Task) -> list[Row]:
    """Seconds of three products for queries, keys and values, and of one over them."""
    device, dtype = torch.device(task.device), DTYPES[task.dtype]
    found = []
    for level, channels in enumerate(WIDTHS[task.width]):
        rows = task.frames * task.branches * (task.size[0] * task.size[1] // 64 >> 2 * level)
        x = torch.randn(1, rows, channels, device=device).to(dtype)
        layers = [nn.Linear(channels, channels, False, device=device, dtype=dtype) for _ in range(3)]
        three = timed(device, lambda x=x, layers=layers: [layer(x) for layer in layers])  # type: ignore[misc]
        one = timed(device, lambda x=x, layers=layers: projected_at_once(layers, x))  # type: ignore[misc]
        found.append({"name": f"{rows} rows of {channels}", "seconds": three, "one": one / three})
    return found
