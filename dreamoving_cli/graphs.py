"""A network's passes as CUDA graphs: recorded once for every shape, then replayed by a single launch.

    with recorded([unet], on_cuda()):
        ...                                  # the first pass of a shape is recorded

What a graph reads lies where it was recorded: given tensors are copied there, results are copied out at once,
so that no later replay changes them. Passes that take or keep more than tensors (anchors, step caching), and
shapes beyond the first few, run as without. Pays where a card waits for Python: small networks, few frames.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

MOST = 4  # graphs of a network: each holds what it was given, and all share their memory

Pass = Callable[[], Any]
Record = Callable[[Pass], tuple[Pass, Any]]  # a pass -> what runs it again, and its results, written anew
PLAIN = (bool, int, float, str, type(None))  # what may be given beside tensors; part of a graph's key

log = logging.getLogger(__name__)


def on_cuda() -> Record:
    """Records with torch.cuda.graph; all graphs share their memory, as none runs beside another."""
    pool = torch.cuda.graph_pool_handle()

    def record(run: Pass) -> tuple[Pass, Any]:
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # compiles, measures and allocates, which a recording must not
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            results = run()
        return graph.replay, results

    return record


@dataclass
class Recorded:
    """One graph."""

    inputs: list[Tensor]
    replay: Pass
    results: Any


class Replayed:
    """A network's forward, recorded and replayed."""

    def __init__(self, forward: Callable[..., Any], record: Record, most: int = MOST) -> None:
        self.forward, self.record, self.most = forward, record, most
        self.failure: str | None = None
        self._graphs: dict[Any, Recorded] = {}

    def __call__(self, *given: Any) -> Any:
        values, layout = tree_flatten(given)
        others = [value for value in values if not isinstance(value, Tensor)]
        if self.failure is not None or not all(isinstance(value, PLAIN) for value in others):
            return self.forward(*given)
        tensors = [value for value in values if isinstance(value, Tensor)]
        shapes = tuple((x.shape, x.stride(), x.dtype) for x in tensors)
        key = str(layout), tuple(others), shapes
        if key not in self._graphs:
            if len(self._graphs) == self.most:
                return self.forward(*given)
            graph = self._new(given, tensors)
            if graph is None:
                return self.forward(*given)
            self._graphs[key] = graph
        graph = self._graphs[key]
        for place, x in zip(graph.inputs, tensors, strict=True):
            place.copy_(x)
        graph.replay()
        return tree_map(_copied, graph.results)

    def _new(self, given: Sequence[Any], tensors: Sequence[Tensor]) -> Recorded | None:
        """A graph that reads copies of these tensors; None where it cannot be recorded."""
        inputs = [torch.empty_like(x).copy_(x) for x in tensors]
        places = iter(inputs)
        read = tree_map(lambda value: next(places) if isinstance(value, Tensor) else value, tuple(given))
        try:
            replay, results = self.record(lambda: self.forward(*read))
        except RuntimeError as error:  # also where memory is full: then without graphs it may do
            self.failure = str(error).partition("\n")[0]
            self._graphs.clear()
            log.warning("going on without CUDA graphs: %s", self.failure)
            return None
        return Recorded(inputs, replay, results)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


@contextmanager
def recorded(networks: Iterable[nn.Module], record: Record) -> Iterator[list[Replayed]]:
    """While the block runs, passes of these networks are recorded and replayed."""
    changed = list(networks)
    ways = [Replayed(network.forward, record) for network in changed]
    for network, way in zip(changed, ways, strict=True):
        network.__dict__["forward"] = way
    try:
        yield ways
    finally:
        for network in changed:
            del network.__dict__["forward"]
