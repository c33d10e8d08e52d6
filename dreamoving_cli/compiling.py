"""Blocks that repeat, compiled by torch's inductor: once for every shape of weights, any number of frames.

    refuse("blocks", device)                 # before anything is loaded: is there a compiler?
    with compiled(networks) as run:
        ...                                  # the first calls compile
    run.failure                              # why it went on without, or None

Compiled are residual blocks, spatial transformers and motion blocks, each with its norms, activations and
sums in few kernels. Rows and frames are dynamic sizes, strengths and times are tensors: a shorter window,
other prompts, strengths or steps need nothing new. Another picture size does, and one row instead of several.
Graphs: whole passes of compiled blocks are replayed, too (graphs.py).
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import Tensor

from dreamoving_cli.errors import UsageError
from dreamoving_cli.graphs import on_cuda, recorded
from dreamoving_cli.memory import Mode
from dreamoving_cli.models.controlnet import VideoControlNet
from dreamoving_cli.models.layers import Prompt, plainly, residual_block, spatial_block
from dreamoving_cli.models.load import Pack
from dreamoving_cli.models.motion import along_time
from dreamoving_cli.models.unet import VideoUNet

NAMES = ("off", "blocks", "graphs")
CACHE = "TORCHINDUCTOR_CACHE_DIR"
MOST_SHAPES = 64  # of each kind of block; Stable Diffusion 1.5 has 14 residual ones

Network = VideoUNet | VideoControlNet
Region = Callable[..., Tensor]

log = logging.getLogger(__name__)


def refuse(asked: str, device: torch.device) -> None:
    """Say at once if `--compile asked` cannot be."""
    if asked not in NAMES:
        raise UsageError(f"compile is '{asked}'", f"Choose {', '.join(NAMES)}.")
    if asked == "off":
        return
    if device.type not in (("cuda",) if asked == "graphs" else ("cpu", "cuda")):
        fit = "a CUDA device" if asked == "graphs" else "a CPU or a CUDA device"
        raise UsageError(f"--compile {asked} needs {fit}, this is {device}", "Leave it out.")
    keep_kernels()
    if lacking := lacks(device):
        raise UsageError(f"--compile {asked} needs {lacking}", "Install it, or leave out --compile.")


def lacks(device: torch.device) -> str | None:
    """What inductor would miss here, if anything."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            return None if shutil.which(get_cpp_compiler()) else "a C++ compiler, such as g++"
        except InvalidCxxCompiler:
            return "a C++ compiler, such as g++"
    from torch.utils._triton import has_triton

    if not has_triton():
        return f"Triton, which is not here or does not know {torch.cuda.get_device_name(device)}"
    if not any(map(shutil.which, (os.environ.get("CC", "gcc"), "gcc", "clang", "cc"))):
        return "a C compiler, such as gcc, for Triton"
    return None


def keeps_still(mode: Mode, device: torch.device) -> bool:
    """Whether weights stay as they are in this memory mode, so that what reads them can be compiled."""
    streams = mode.name == "min" and device.type != "cpu"
    return not (mode.eight_bit or mode.half or streams)


def remarks(asked: str, mode: Mode, device: torch.device) -> Iterator[str]:
    """What the user should know of `--compile asked`."""
    if asked == "off":
        return
    if not keeps_still(mode, device):
        yield f"--compile {asked} does nothing in --vram {mode.name}: weights are moved or unpacked there"
    else:
        yield f"--compile {asked}: the first step takes minutes longer, less where it was compiled before"


class Compiled:
    """A way to run regions (`layers.Run`) that compiles each for what it is given; plain once that failed."""

    def __init__(self, backend: Any = "inductor") -> None:
        self.failure: str | None = None
        self._made = {
            region: torch.compile(region, backend=backend, fullgraph=True) for region in CHANGING_SIZES
        }

    def __call__(self, region: Region, block: Any, *given: Any) -> Tensor:
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        if self.failure is None:
            CHANGING_SIZES[region](*given)
            try:
                return self._made[region](block, *given)
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                cause = getattr(error, "inner_exception", error)
                self.failure = f"{type(cause).__name__}: {cause}".strip().partition("\n")[0]
                log.warning("going on without --compile, torch failed: %s", self.failure)
        return region(block, *given)


def keep_kernels() -> None:
    """Compiled code is kept in the user's cache, unless $TORCHINDUCTOR_CACHE_DIR says where.

    Importing torch's parts may have set that to a temporary folder.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(CACHE, "") in ("", default_cache_dir()):
        os.environ[CACHE] = str(user_cache_path("dreamoving-kernels"))


@contextmanager
def compiled(networks: Iterable[Network], backend: Any = "inductor") -> Iterator[Compiled]:
    """While the block runs, these networks run compiled."""
    import torch._dynamo

    keep_kernels()
    run, networks = Compiled(backend), list(networks)
    limits: dict[str, Any] = {"recompile_limit": MOST_SHAPES, "accumulated_recompile_limit": 4 * MOST_SHAPES}
    with torch._dynamo.config.patch({"automatic_dynamic_shapes": False, **limits}):
        for network in networks:
            network.run = run
        try:
            yield run
        finally:
            for network in networks:
                network.run = plainly


@contextmanager
def as_asked(asked: str, pack: Pack, mode: Mode, device: torch.device, notes: list[str]) -> Iterator[None]:
    """While the block runs, the networks that denoise run as `--compile` asked; failures join the notes."""
    if asked == "off" or not keeps_still(mode, device):
        for note in remarks(asked, mode, device):
            if note not in notes:  # memory ran out
                log.warning("%s", note)
                notes.append(note)
        yield
        return
    networks: list[Network] = [pack.unet, *pack.controlnets.values()]
    with ExitStack() as stack:
        run = stack.enter_context(compiled(networks))
        replays = stack.enter_context(recorded(networks, on_cuda())) if asked == "graphs" else []
        yield
    if run.failure is not None:
        notes.append(f"not compiled, torch failed: {run.failure}")
    notes += [f"not recorded, CUDA failed: {way.failure}" for way in replays if way.failure is not None]


def _of_residual(x: Tensor, time: Tensor, num_frames: int, span: str) -> None:
    _may_change(x, 0)
    _may_change(time, 0)


def _of_spatial(x: Tensor, prompts: Sequence[Sequence[Prompt] | None]) -> None:
    _may_change(x, 0, 1)
    for k, v, strength in (prompt for told in prompts for prompt in told or ()):
        _may_change(k, 0)
        _may_change(v, 0)
        if isinstance(strength, Tensor):
            _may_change(strength, 0, 2)


def _of_motion(x: Tensor, positions: Tensor) -> None:
    _may_change(x, 0, 1)
    _may_change(positions, 0)


def _may_change(x: Tensor, *dims: int) -> None:
    """These sizes may be others next time; torch always takes a size of 1 for a constant."""
    import torch._dynamo

    for dim in dims:
        if x.shape[dim] > 1:
            torch._dynamo.maybe_mark_dynamic(x, dim)


CHANGING_SIZES: dict[Region, Callable[..., None]] = {
    residual_block: _of_residual,
    spatial_block: _of_spatial,
    along_time: _of_motion,
}
