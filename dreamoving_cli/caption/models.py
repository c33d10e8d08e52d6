"""Which captioner runs, on what, and whether it fits: MiniGPT-v2 from public files, or the miniature."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreamoving_cli.errors import DeviceMemoryError, UsageError, WeightsError
from dreamoving_cli.paths import MINI_CAPTIONER
from dreamoving_cli.weights import entry, weight_paths

if TYPE_CHECKING:
    import torch

    from dreamoving_cli.models.minigpt.checkpoint import PublicFiles
    from dreamoving_cli.models.minigpt.model import Captioner

FULL, MINI = "minigpt-v2", "mini"
EVA, ADAPTER = "eva_vit_g", "minigptv2.checkpoint"
LLAMA = ("llama2-7b-chat.model-00001-of-00002.safetensors", "llama2-7b-chat.model-00002-of-00002.safetensors")
TOKENIZER = "llama2-7b-chat.tokenizer.model"
MINI_NOTE = "a miniature taught on synthetic people: of real ones it tells backgrounds and main colors"
WORKING_GIB = 1.5  # of MiniGPT-v2 beside its weights: what it remembers of one frame, activations


@dataclass(frozen=True)
class Chosen:
    """A captioner that is here and fits."""

    name: str
    source: "Path | PublicFiles"
    device: "torch.device"
    dtype: "torch.dtype"
    note: str

    @property
    def is_mini(self) -> bool:
        return self.name == MINI


def choose_captioner(asked: str = "auto", device: str = "auto", dtype: str = "auto") -> Chosen:
    """The captioner by name; auto: MiniGPT-v2 where its files and CUDA are, else the miniature."""
    from dreamoving_cli.device import choose_device, choose_dtype

    on = choose_device(device)
    precision = choose_dtype(on, dtype)
    if (Path(asked) / "config.json").is_file():
        return Chosen(Path(asked).name, Path(asked), on, precision, f"model: {asked}")
    if asked not in ("auto", FULL, MINI):
        raise UsageError(f"model is '{asked}'", f"Choose auto, {FULL}, {MINI}, or a captioner's folder.")
    why = ""
    if asked == "auto":
        asked, why = automatic(on.type)
    if asked == FULL:
        files = public_files()
        return Chosen(FULL, files, on, precision, f"model: {FULL}, {fits(files, on, precision)}")
    if not has_mini():
        raise WeightsError(
            f"the miniature captioner is not in this installation{why}",
            "Run: dreamoving models pull caption; or train one (docs/training.md) for --model FOLDER.",
        )
    return Chosen(MINI, MINI_CAPTIONER, on, precision, f"model: {MINI}, {MINI_NOTE}{why}")


def automatic(device: str) -> tuple[str, str]:
    """The captioner of `auto`, and why it is the miniature; without one, MiniGPT-v2 runs on the CPU too."""
    installed = is_installed()
    lacks = [] if installed else ["its files are not here"]
    lacks += [] if device == "cuda" else ["there is no CUDA device"]
    if not lacks or (installed and not has_mini()):
        return FULL, ""
    return MINI, f" ({FULL}: {' and '.join(lacks)})"


def has_mini() -> bool:
    """Whether the miniature is in this installation."""
    return (MINI_CAPTIONER / "config.json").is_file()


def is_installed() -> bool:
    """Whether all files of MiniGPT-v2 are here."""
    try:
        weight_paths([EVA, *LLAMA, TOKENIZER, ADAPTER])
    except WeightsError:
        return False
    return True


def public_files() -> "PublicFiles":
    """The public files, verified; those that are missing are named together."""
    from dreamoving_cli.models.minigpt.checkpoint import PublicFiles
    from dreamoving_cli.recipes import locked_part

    paths = weight_paths([EVA, *LLAMA, TOKENIZER, ADAPTER])
    parts = {name: locked_part(entry(name), path) for name, path in paths.items()}
    return PublicFiles(parts[EVA], [parts[name] for name in LLAMA], parts[ADAPTER], paths[TOKENIZER])


def fits(files: "PublicFiles", device: "torch.device", dtype: "torch.dtype") -> str:
    """What the model takes of the device's memory, in words; refused where that is more than is free."""
    from dreamoving_cli.device import GIB, available_gib
    from dreamoving_cli.models.minigpt.checkpoint import count_weights

    needs = count_weights(files) * dtype.itemsize / GIB + WORKING_GIB
    free = available_gib(device)
    name = str(dtype).removeprefix("torch.")
    if needs > free:
        half = "--dtype bf16 (half as much), " if dtype.itemsize == 4 else ""
        raise DeviceMemoryError(
            f"{FULL} needs {needs:.1f} GiB in {name}, and {free:.1f} GiB are free on {device}",
            f"Give {half}another --device, or --model {MINI}.",
        )
    return f"{needs:.1f} GiB in {name} on {device} ({free:.1f} GiB free)"


def load_chosen(chosen: Chosen) -> "Captioner":
    """The networks."""
    from dreamoving_cli.models.minigpt.checkpoint import assemble_captioner
    from dreamoving_cli.models.minigpt.load import load_captioner

    if isinstance(chosen.source, Path):
        return load_captioner(chosen.source, chosen.device, chosen.dtype)
    return assemble_captioner(chosen.source, chosen.device, chosen.dtype)
