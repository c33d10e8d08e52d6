"""Tensors of a weight file, safetensors or pickle, told apart by their first bytes; not what they mean.

A pickle can run code, so it is opened only if its hash was known (`Part.trusted`), with `weights_only`, and
once: from then on its safetensors copy is read.
"""

import json
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamoving_cli.errors import WeightsError
from dreamoving_cli.whole import whole_file, writing

MAX_HEADER = 100 * 2**20  # bytes; safetensors' own limit
PICKLES = (b"PK\x03\x04", b"\x80")  # torch.save today, and before version 1.6
WRAPPERS = ("state_dict", "controlnet", "model")  # names under which files keep their weights
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}


@dataclass(frozen=True)
class Part:
    """One file of a recipe, and what is known of it beside its content."""

    path: Path
    id: str = ""  # of its entry in models.lock, where its hash is known
    trusted: bool = False  # its hash was checked, so a pickle may be opened
    converted: Path | None = None  # where a pickle's safetensors copy is kept
    kind: str = ""  # what its keys do not tell: faceid-plus, faceid-plus-v2
    trained_frames: int | None = None  # this and the rest: of a motion module, where its entry says so
    resnet_norm: str | None = None  # "frame" or "clip"
    motion_scale: float = 1.0
    beta_schedule: str = "linear"
    sampler: str = ""  # that it was made for; empty: any

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.id} ({self.path})" if self.id else str(self.path)

    @property
    def files(self) -> list[Path]:
        """The weights in it: itself, or what a folder holds."""
        if not self.path.is_dir():
            return [self.path]
        return sorted(self.path.glob("*/*.safetensors")) or sorted(self.path.glob("*/*.bin"))

    @property
    def source(self) -> Path:
        """The file to read: a pickle's copy where there is one."""
        return self.converted if self.converted is not None and self.converted.is_file() else self.path


@dataclass(frozen=True, eq=False)
class Recipe:
    """The files that make one pack, by what they are for; only those that a render needs.

    parts: base (a diffusers folder or a single file) or unet, vae, text_encoder; vocabulary, merges; motion;
    image_encoder; face, cloth, style. controls: by kind.
    """

    name: str
    parts: Mapping[str, Part]
    controls: Mapping[str, Part] = field(default_factory=dict)
    context_frames: int | None = None  # None: what the motion module was trained at

    @property
    def files(self) -> list[Part]:
        """Every file once."""
        return list({part.path: part for part in (*self.parts.values(), *self.controls.values())}.values())


def read_tensors(part: Part) -> dict[str, Tensor]:
    """All tensors of the file, on the CPU, mapped and not yet read; a pickle is converted first."""
    if is_safetensors(part.source):
        return _load_safetensors(part.source)
    if part.converted is None:
        return _unpickled(part, "cpu")
    convert_pickle(part, part.converted)
    return _load_safetensors(part.converted)


def read_shapes(part: Part) -> dict[str, Tensor]:
    """The same names with empty tensors of the same shape (meta device); reads no weights."""
    if not is_safetensors(part.source):
        return _unpickled(part, "meta")
    try:
        with part.source.open("rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(min(size, MAX_HEADER)))
    except (OSError, struct.error, ValueError) as error:
        raise _unreadable(part.source, error) from error
    return {
        name: torch.empty(entry["shape"], dtype=DTYPES.get(entry["dtype"], torch.float32), device="meta")
        for name, entry in header.items()
        if name != "__metadata__"
    }


def convert_pickle(part: Part, target: Path) -> None:
    """Write the pickle's tensors as safetensors; the copy appears whole."""
    state = dict(apart(_unpickled(part, "cpu")))
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as scratch:
        save_file(state, scratch)


def apart(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors that share no storage, as safetensors asks; those that share none are not copied."""
    seen = set()
    for name, value in state.items():
        storage = value.untyped_storage()
        alone = storage.nbytes() == value.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        yield name, value.contiguous() if alone else value.contiguous().clone()


def is_safetensors(path: Path) -> bool:
    """Whether the file is safetensors (True) or a pickle (False); refuses what is neither."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise _unreadable(path, error) from error
    if (
        start[4:] == b"\0\0\0\0{"
    ):  # a length below 4 GiB, then JSON; first, for a length may begin like a pickle
        return True
    if start.startswith(PICKLES):
        return False
    raise WeightsError(
        f"{path} is neither safetensors nor a PyTorch checkpoint", "Is it fetched completely? Fetch it again."
    )


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:
        raise _unreadable(path, error) from error


def _unpickled(part: Part, device: str) -> dict[str, Tensor]:
    if not part.trusted:
        raise WeightsError(
            f"{part.path} is a pickle, which can run code, and its hash is not in models.lock",
            f"If you trust it, convert it once: dreamoving models convert '{part.path}' --allow-pickle",
        )
    mapped = device == "cpu" and zipfile.is_zipfile(part.path)  # torch's old format can only be read
    try:
        content = torch.load(part.path, map_location=device, weights_only=True, mmap=mapped)
    except Exception as error:
        raise WeightsError(
            f"{part.path} cannot be read: it holds more than tensors, or is damaged ({type(error).__name__})",
            "Use its safetensors form, or fetch it again.",
        ) from error
    return dict(_flat(content))


def _flat(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested dicts by dotted names, without the wrapper that some files have around all."""
    if not isinstance(content, Mapping):
        return
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield str(name), value
        else:
            yield from ((f"{name}.{inner}", tensor) for inner, tensor in _flat(value))


def _unreadable(path: Path, error: Exception) -> WeightsError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return WeightsError(f"{path} cannot be read: {reason}", "Check the path, or fetch the file again.")
