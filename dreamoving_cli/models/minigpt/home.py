"""Where a captioner's weights are and in how many bits, and how they get there: layer by layer.

Tensors of files are mapped and not read before their layer's turn, so that no more is in memory at once than
the captioner as it will be, and one layer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dreamoving_cli.errors import UsageError

if TYPE_CHECKING:
    from dreamoving_cli.models.minigpt.model import Captioner

BITS = {8: 1.0, 4: 0.52}  # -> bytes a number, with the scales of its block
LAYERS = ("visual_encoder.blocks.", "llama_model.model.layers.")
OUTLIER = 6.0  # activations from here on are multiplied unrounded, as LLM.int8 has it (Dettmers et al. 2022)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Home:
    """On which device and in which precision a captioner computes, and how its weights are kept."""

    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    bits: int | None = None  # 8 or 4: of the language model's layers
    offload: bool = False  # layers wait in the CPU's memory, and one at a time is on the device

    def __post_init__(self) -> None:
        if self.bits is not None and self.bits not in BITS:
            raise UsageError(f"bits is {self.bits}", "Give 8 or 4, or leave it out.")
        if self.offload and self.device.type == "cpu":
            raise UsageError("--offload is given for the CPU", "It is for --device cuda; leave it out.")
        if self.bits and self.offload:
            raise UsageError(f"--offload is given beside --bits {self.bits}", "Give one of them.")
        if self.bits and self.device.type not in ("cpu", "cuda"):
            raise UsageError(f"--bits is given for {self.device}", "It works on cuda and cpu.")
        if self.bits and find_spec("bitsandbytes") is None:
            raise UsageError(
                f"--bits {self.bits} needs bitsandbytes, which is not installed",
                "Run: pip install 'dreamoving[caption]', or leave --bits out.",
            )

    def __str__(self) -> str:
        kept = f"{self.bits}-bit weights, " if self.bits else ""
        waiting = ", layers waiting in the CPU's memory" if self.offload else ""
        return f"{kept}{str(self.dtype).removeprefix('torch.')} on {self.device}{waiting}"


@dataclass(frozen=True)
class Bytes:
    """What a captioner's weights take: on its device, and of the CPU's memory beside it."""

    device: int
    host: int = 0


def weight_bytes(state: Mapping[str, Tensor], home: Home) -> Bytes:
    """Of the weights with these names and shapes, in this home."""
    layers: dict[str, int] = {}
    rest = 0
    for name, value in state.items():
        size = int(value.numel() * (BITS[home.bits] if home.bits and is_small(name) else home.dtype.itemsize))
        prefix = next((prefix for prefix in LAYERS if name.startswith(prefix)), None)
        if prefix is None:
            rest += size
        else:
            key = prefix + name.removeprefix(prefix).split(".")[0]
            layers[key] = layers.get(key, 0) + size
    if home.offload:
        return Bytes(rest + max(layers.values()), sum(layers.values()))
    return Bytes(rest + sum(layers.values()))


def is_small(name: str) -> bool:
    """Whether `bits` is of these weights: matrices of the language model's layers."""
    return name.startswith(LAYERS[1]) and name.endswith("_proj.weight")


def settle(model: "Captioner", home: Home) -> "Captioner":
    """The captioner at home, one layer after the other."""
    words = model.llama_model.model.layers
    for layer in [*model.visual_encoder.blocks, *words]:
        if home.bits and layer in words:
            keep_small(layer, home)
        move(layer.named_parameters(), CPU if home.offload else home.device, home.dtype)
        move(layer.named_buffers(), home.device)
        if home.offload:
            wait_on_cpu(layer, home.device)
    move(((n, p) for n, p in model.named_parameters() if not n.startswith(LAYERS)), home.device, home.dtype)
    move(model.named_buffers(), home.device)  # rotary tables stay in fp32
    return model.eval().requires_grad_(False)


def move(
    tensors: Iterable[tuple[str, Tensor]], device: torch.device, dtype: torch.dtype | None = None
) -> None:
    """Put tensors there, in place, in this precision or as they are; whole numbers are there already."""
    for _, tensor in tensors:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype or tensor.dtype).to(device)


def wait_on_cpu(layer: nn.Module, device: torch.device) -> None:
    """Keep a layer's weights on the CPU but while it computes."""
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(layer, device, CPU, "block_level", num_blocks_per_group=1)


def keep_small(layer: nn.Module, home: Home) -> None:
    """Keep the matrices of one layer of the language model in 8 or 4 bits."""
    linears = [(name, part) for name, part in layer.named_modules() if isinstance(part, nn.Linear)]
    for name, linear in linears:
        parent, _, own = name.rpartition(".")
        setattr(layer.get_submodule(parent), own, small_linear(linear, home))


def small_linear(linear: nn.Linear, home: Home) -> nn.Module:
    """The same map with rounded weights: whole numbers with a scale a row, or NF4 with one a block of 64."""
    import bitsandbytes

    parts: Any = bitsandbytes.nn
    weight = linear.weight.data.to(home.dtype)
    sizes = linear.in_features, linear.out_features, False
    if home.bits == 8:
        small = parts.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=OUTLIER, device="meta")
        kept = parts.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        small = parts.Linear4bit(*sizes, compute_dtype=home.dtype, quant_type="nf4", device="meta")
        small.support_avx512bf16_for_cpu = False  # its packing there fails for widths like the miniature's
        kept = parts.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
    small.weight = kept.to(home.device)  # rounded here
    return small
