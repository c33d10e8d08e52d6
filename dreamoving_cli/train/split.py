"""Weights in parts: each process holds an equal part of every weight, of its gradient, moments and average.

    split = Split(rank, workers, device)
    split.divide("unet", network)             # from now on `layer.weight` is gathered whenever it is read
    with split.forgetting():                  # whole weights that the backward pass needs are gathered again
        loss = ...
    split.whole(name, part)                   # for a file; `part_of` is the way back

A whole weight lives as long as the layer that reads it computes. As FSDP does it, layer by layer; ours,
because the walks of models/layers.py call layers one by one, never a block's own forward, and because each
process draws controls and prompts of its own: gathering needs all processes, hence `any_of`.
Vectors (biases, norms) are a thousandth of a model and stay whole.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils.parametrize import register_parametrization

# torch 2.14 renamed both.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

KEPT_WHOLE = ("vae",)  # small, and processes run it at different times: some find latents that others kept


def is_divided(network: str, weight: Tensor) -> bool:
    """Whether a weight of this network is held in parts."""
    return network not in KEPT_WHOLE and weight.ndim > 1


class Divided(nn.Module):
    """Makes the whole weight of its parts when a layer reads it; a parametrization of torch."""

    def __init__(self, weight: Tensor, computes_low: bool, rank: int, workers: int) -> None:
        """computes_low: autocast lets the layer compute in its precision, so no more is sent around."""
        super().__init__()
        self.shape, self.strides, self.count = weight.shape, weight.stride(), weight.numel()
        self.length = part_length(self.count, workers)
        self.computes_low, self.rank, self.workers = computes_low, rank, workers

    def forward(self, part: Tensor) -> Tensor:
        """The whole weight; its gradient is summed over all processes, each of which gets its part."""
        kind, dtype = part.device.type, part.dtype
        if self.computes_low and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        whole: Tensor = _Gather.apply(part, self, dtype)
        return _remembered(whole, _Whole(self, part, dtype))

    def part_of(self, weight: Tensor) -> Tensor:
        """This process's part of a weight, flat, as the weight lies in memory."""
        return self.flat(weight, weight.dtype).view(self.workers, self.length)[self.rank].clone()

    def flat(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """All parts one after the other, the last filled up with zeros."""
        flat = torch.zeros(self.workers * self.length, dtype=dtype, device=weight.device)
        flat.as_strided(self.shape, self.strides).copy_(weight)
        return flat

    def gathered(self, part: Tensor) -> Tensor:
        """The whole tensor from every process's part."""
        flat = part.new_empty(self.workers * self.length)
        _all_gather(flat, part)
        return flat.as_strided(self.shape, self.strides)

    def summed(self, whole: Tensor) -> Tensor:
        """This process's part of the sum of all processes' tensors."""
        part = torch.empty(self.length, device=whole.device)
        _reduce_scatter(part, self.flat(whole, torch.float32))
        return part


class _Gather(torch.autograd.Function):
    """A weight from its parts, differentiable."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, divided: Divided, dtype: torch.dtype) -> Tensor:
        ctx.divided = divided
        return divided.gathered(part.to(dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.divided.summed(gradient), None, None


@dataclass(frozen=True)
class _Whole:
    """How to gather a weight again."""

    divided: Divided
    part: Tensor
    dtype: torch.dtype


_alive: dict[int, tuple["weakref.ref[Tensor]", _Whole]] = {}  # by address, while the whole weight is there


def _remembered(weight: Tensor, whole: _Whole) -> Tensor:
    """The weight, known by where it lies in memory: what layers keep are views of it."""
    address = weight.untyped_storage().data_ptr()

    def forget(gone: "weakref.ref[Tensor]") -> None:
        if address in _alive and _alive[address][0] is gone:
            del _alive[address]

    _alive[address] = weakref.ref(weight, forget), whole
    return weight


def _keep(tensor: Tensor) -> Any:
    """What the backward pass keeps of a tensor: of a whole weight only which it is."""
    known = _alive.get(tensor.untyped_storage().data_ptr())
    if known is None or known[0]() is None:
        return tensor
    return known[1], tensor.shape, tensor.stride(), tensor.storage_offset()


def _find(kept: Any) -> Tensor:
    """The tensor that was kept."""
    if isinstance(kept, Tensor):
        return kept
    whole, *view = kept
    with torch.no_grad():
        return whole.divided.gathered(whole.part.to(whole.dtype)).as_strided(*view)


class Split:
    """The weights of a run that are held in parts; as long as there are none, nothing here does anything."""

    def __init__(self, rank: int = 0, workers: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.workers, self.device = rank, workers, device
        self.divided: dict[str, Divided] = {}

    def divide(self, network_name: str, network: nn.Module) -> dict[str, nn.Parameter]:
        """Replace the network's weights by this process's parts; all parameters by the names they had."""
        before = parameters_of(network_name, network)
        for name, weight in list(network.named_parameters()):
            if not is_divided(network_name, weight):
                continue
            at, _, own = name.rpartition(".")
            layer = network.get_submodule(at)
            low = isinstance(layer, nn.Linear | nn.Conv2d)
            divided = Divided(weight, low, self.rank, self.workers)
            layer.register_parameter(own, nn.Parameter(divided.part_of(weight.detach()), False))
            register_parametrization(layer, own, divided, unsafe=True)  # "unsafe": the shape changes
            self.divided[f"{network_name}.{name}"] = divided
        after = {plain(name): p for name, p in parameters_of(network_name, network).items()}
        return {name: after[name] for name in before}

    def sorted(self, parameters: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Those of which this process holds a part, and those that it holds whole."""
        parts = [p for name, p in parameters.items() if name in self.divided]
        return parts, [p for name, p in parameters.items() if name not in self.divided]

    def forgetting(self) -> AbstractContextManager[Any]:
        """Within it, layers keep no whole weights for the backward pass."""
        return saved_tensors_hooks(_keep, _find) if self.divided else nullcontext()

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Which of these are true in any process: what one runs, all must run, as they hold its parts."""
        if not self.divided:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    def norm(self, parts: Tensor, rest: Tensor) -> Tensor:
        """The length of a vector: parts n, of which every process has others, and a rest m that all have."""
        square = torch.linalg.vector_norm(parts).square()
        dist.all_reduce(square)
        return (square + torch.linalg.vector_norm(rest).square()).sqrt()

    def whole(self, name: str, part: Tensor) -> Tensor:
        """What belongs to a divided weight, from its parts, on the first process's CPU; else as it is."""
        if name not in self.divided:
            return part
        found = self.divided[name].gathered(part)
        return found.to("cpu", copy=True) if self.rank == 0 else part

    def part_of(self, name: str, whole: Tensor) -> Tensor:
        """The way back: this process's part; else as it is."""
        return self.divided[name].part_of(whole) if name in self.divided else whole

    def converted(self, names: Sequence[str], moments: Mapping[int, Any], way: Any) -> dict[int, Any]:
        """An optimizer's state of the weights `names`, in order; way: `whole` or `part_of`, for moments."""
        return {
            i: {key: way(names[i], value) if value.ndim else value for key, value in values.items()}
            for i, values in moments.items()
        }

    def tensors(
        self, networks: Mapping[str, nn.Module], instead: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Iterator[tuple[str, Tensor]]]]:
        """Each network's state, whole, tensor by tensor; of some weights other values."""
        for network, module in networks.items():
            named = ((plain(name), value) for name, value in module.state_dict().items())
            yield (
                network,
                (
                    (name, self.whole(full, instead.get(full, value)))
                    for full, name, value in ((f"{network}.{name}", name, value) for name, value in named)
                ),
            )


def parameters_of(network_name: str, network: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by their names, the network's first."""
    return {f"{network_name}.{name}": p for name, p in network.named_parameters()}


def plain(name: str) -> str:
    """A parameter's name before it was divided."""
    return name.replace("parametrizations.", "").removesuffix(".original")


def part_length(count: int, workers: int) -> int:
    """Values of a weight of `count` that one process holds; the last parts may be filled up."""
    return -(-count // workers)
