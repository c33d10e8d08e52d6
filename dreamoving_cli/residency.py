"""Which networks are in memory and on the device, and what happens when memory runs out.

    residency = Residency(pack, modes, sizes, place)
    latents = residency.retried("denoise", lambda: ...)     # lowers the mode and tries again

Networks are read when their stage begins and forgotten when it ends; those that were made here and have no
file are moved instead.

Moving is diffusers' group offloading and layerwise casting, hooked into single layers: our U-Net walks the
blocks itself, so hooks of whole blocks would never run. Not here: which mode (memory.py).
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from diffusers.hooks import HookRegistry, apply_group_offloading, apply_layerwise_casting
from diffusers.hooks.layerwise_casting import apply_layerwise_casting_hook
from torch import Tensor, nn

from dreamoving_cli.conditioning import Place, put
from dreamoving_cli.device import FITS, free_memory, out_of_memory
from dreamoving_cli.errors import DeviceMemoryError
from dreamoving_cli.memory import Mode, Sizes, network_stage, stage_need
from dreamoving_cli.models.load import Pack, empty, fill
from dreamoving_cli.models.strict import is_empty
from dreamoving_cli.models.vae import stable_dtype

OFFLOADING = "group_offloading"  # diffusers' names of its hooks
CASTING = "layerwise_casting"
EIGHT_BIT = torch.float8_e4m3fn
KEPT = ("norm", "conv_in", "conv_out", "time_emb")  # layers that lose most in 8 bits, and are small

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class Residency:
    """The networks of one render, each on the device while its stage runs, as the mode says."""

    def __init__(
        self, pack: Pack, modes: Sequence[Mode], sizes: Sizes, place: Place, history: list[str] | None = None
    ) -> None:
        self.pack, self.place = pack, place
        self.sizes, self.vae_dtype = sizes, stable_dtype(place.dtype)
        self.mode, *self._lower = modes
        self.history = [] if history is None else history  # for the record
        self.history.append(str(self.mode))
        self._entered: tuple[str, Mode] | None = None

    def enter(self, stage: str) -> None:
        """Take all other networks off, then put those of this stage on the device."""
        if self._entered == (stage, self.mode):
            return
        self._entered = None
        for name, network in self.pack.networks().items():
            if network_stage(name) != stage:
                self._take_off(network)
        free_memory()
        self.read_stage(stage)
        self._entered = stage, self.mode

    def read_stage(self, stage: str) -> None:
        """Read what is not in memory of this stage's networks, and put them on the device."""
        for name, network in self.pack.networks().items():
            if network_stage(name) == stage:
                self._put(name, network)

    def retried(self, stage: str, attempt: Callable[[], Result]) -> Result:
        """What `attempt` gives, with the stage's networks on the device, in the highest mode that can."""
        while True:
            try:
                self.enter(stage)
                return attempt()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._lower_mode(stage, error)
            free_memory()  # here nothing holds what the attempt had

    def decode(self, latents: Tensor) -> Tensor:
        """1 c f h w -> video; in fp32 from the first picture on that is not finite in less."""
        video = self.pack.vae.decode(put(latents, Place(self.place.device, self.vae_dtype)))
        if self.vae_dtype == torch.float32 or video.isfinite().all():
            return video
        log.warning("the autoencoder overflowed in %s: decoding in fp32", self.vae_dtype)
        self.vae_dtype = torch.float32
        self.pack.vae.float()
        return self.decode(latents)

    def close(self) -> None:
        """Everything forgotten, or back on the CPU, without hooks that move it."""
        for network in self.pack.networks().values():
            self._take_off(network)
        free_memory()

    def _put(self, name: str, network: nn.Module) -> None:
        mode, denoises = self.mode, network_stage(name) == "denoise"
        streams = mode.name == "min" and denoises and self.place.device != torch.device("cpu")
        dtype = self.vae_dtype if name == "vae" else self.place.dtype
        if is_empty(network):
            small = denoises and (mode.eight_bit or mode.half)
            where = torch.device("cpu") if small or streams else self.place.device
            fill(self.pack, name, where, dtype, as_stored=small)
        if name == "vae":
            network.to(dtype)
        if mode.tiled and name == "vae":
            self.pack.vae.decode_in_tiles()
        if mode.eight_bit and denoises:
            keep_in_eight_bits(network, dtype)
        if mode.half and denoises and not _hooked(network, CASTING):
            keep_in_half(network, dtype)
        if streams and not _hooked(network, OFFLOADING):
            apply_group_offloading(network, self.place.device, offload_type="leaf_level")
        elif not streams:
            network.to(self.place.device)

    def _take_off(self, network: nn.Module) -> None:
        if _hooked(network, OFFLOADING):  # a hook holds on to the weights that it was made for
            HookRegistry.check_if_exists_or_initialize(network).remove_hook(OFFLOADING, recurse=True)
        if self.pack.weights is None:
            network.to("cpu")
        elif not is_empty(network):
            empty(network)

    def _lower_mode(self, stage: str, error: Exception) -> None:
        now = stage_need(self.mode, self.sizes, stage)
        while self._lower:
            mode, *self._lower = self._lower
            if stage_need(mode, self.sizes, stage) < now or mode.tiled > self.mode.tiled:
                log.warning("out of memory (%s): going on with --vram %s", stage, mode)
                self.mode = mode
                self.history.append(f"{mode}, after running out of memory ({stage})")
                return
        raise DeviceMemoryError(
            f"{self.place.device} ran out of memory, with --vram {self.mode.name} too", FITS
        ) from error


def keep_in_eight_bits(network: nn.Module, dtype: torch.dtype) -> None:
    """Keep the large layers in float8 between uses, also those that were kept in fp16."""
    if not _hooked(network, CASTING):
        apply_layerwise_casting(network, EIGHT_BIT, dtype, KEPT)
    for name, layer in network.named_modules():
        hook = _hook(layer, CASTING)
        if hook is not None and not any(kept in name for kept in KEPT):
            hook.storage_dtype = EIGHT_BIT
            layer.to(EIGHT_BIT)
        elif hook is None and any(w.dtype != dtype for w in layer.parameters(recurse=False)):
            layer.to(dtype)  # as its file holds it


def keep_in_half(network: nn.Module, dtype: torch.dtype) -> None:
    """Keep in fp16, between uses, the layers whose numbers fp16 holds exactly: no bit of a result changes."""
    for layer in network.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        if all(map(_fits_half, layer.parameters())):
            apply_layerwise_casting_hook(layer, torch.float16, dtype, non_blocking=False)
        else:
            layer.to(dtype)  # its file may hold it in bf16


def _fits_half(weights: Tensor) -> bool:
    return torch.equal(weights.half().to(weights), weights)


def _hooked(network: nn.Module, name: str) -> bool:
    return any(_hook(part, name) is not None for part in network.modules())


def _hook(module: nn.Module, name: str) -> Any:
    registry = getattr(module, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(name)
