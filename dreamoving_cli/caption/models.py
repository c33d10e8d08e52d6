"""Which captioner runs, on what, and whether it fits: MiniGPT-v2 from public files, or the miniature."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dreamoving_cli.errors import DeviceMemoryError, UsageError, WeightsError
from dreamoving_cli.paths import MINI_CAPTIONER
from dreamoving_cli.weights import entry, weight_paths

if TYPE_CHECKING:
    from dreamoving_cli.models.minigpt.checkpoint import PublicFiles
    from dreamoving_cli.models.minigpt.home import Home
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
    home: "Home"
    note: str

    @property
    def is_mini(self) -> bool:
        return self.name == MINI


@dataclass(frozen=True)
class Machine:
    """What a captioner runs on, in the words of the flags."""

    device: str = "auto"
    dtype: str = "auto"
    bits: int | None = None
    offload: bool = False


def choose_captioner(asked: str = "auto", machine: Machine = Machine()) -> Chosen:
    """The captioner by name; auto: MiniGPT-v2 where its files and CUDA are, else the miniature."""
    home = home_of(machine)
    if (Path(asked) / "config.json").is_file():
        return Chosen(Path(asked).name, Path(asked), home, f"model: {asked}")
    if asked not in ("auto", FULL, MINI):
        raise UsageError(f"model is '{asked}'", f"Choose auto, {FULL}, {MINI}, or a captioner's folder.")
    why = ""
    if asked == "auto":
        asked, why = automatic(home.device.type)
    if asked == FULL:
        files = public_files()
        return Chosen(FULL, files, home, f"model: {FULL}, {fits(files, home)}")
    if not has_mini():
        raise WeightsError(
            f"the miniature captioner is not in this installation{why}",
            "Run: dreamoving models pull caption; or train one (docs/training.md) for --model FOLDER.",
        )
    return Chosen(MINI, MINI_CAPTIONER, home, f"model: {MINI}, {MINI_NOTE}{why}")


def home_of(machine: Machine) -> "Home":
    """Where the captioner is to be; refuses what cannot be."""
    from dreamoving_cli.device import choose_device, choose_dtype
    from dreamoving_cli.models.minigpt.home import Home

    on = choose_device(machine.device)
    return Home(on, choose_dtype(on, machine.dtype), machine.bits, machine.offload)


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


def fits(files: "PublicFiles", home: "Home") -> str:
    """What the model takes of memory, in words; refused where that is more than is free."""
    from dreamoving_cli.device import GIB, available_gib
    from dreamoving_cli.models.minigpt.checkpoint import assembled_shapes
    from dreamoving_cli.models.minigpt.home import CPU, weight_bytes

    shapes = assembled_shapes(files)
    free, beside = available_gib(home.device), available_gib(CPU)

    def needs(way: "Home") -> tuple[float, float]:
        """GiB of the device and of the CPU's memory beside it."""
        size = weight_bytes(shapes, way)
        return size.device / GIB + WORKING_GIB, size.host / GIB

    needed, waiting = needs(home)
    if needed > free or waiting > beside:
        short = f"{needed:.1f} GiB, and {free:.1f} GiB are free on {home.device}"
        if needed <= free:
            short = f"{waiting:.1f} GiB of the CPU's memory, and {beside:.1f} GiB are free there"
        ways = [(flag, needs(way)) for flag, way in smaller(home)]
        told = [f"{flag} ({need[0]:.1f} GiB)" for flag, need in ways if need[0] <= free and need[1] <= beside]
        raise DeviceMemoryError(
            f"{FULL} ({home}) needs {short}",
            f"Give {', '.join([*told, 'another --device'])}, or --model {MINI}.",
        )
    more = f", {waiting:.1f} GiB of the CPU's memory ({beside:.1f} GiB free)" if waiting else ""
    return f"{home}: {needed:.1f} GiB ({free:.1f} GiB free){more}"


def smaller(home: "Home") -> list[tuple[str, "Home"]]:
    """Homes that take less, each with the flags that lead there, the most exact first."""
    import torch

    from dreamoving_cli.models.minigpt.home import Home

    wide = home.dtype.itemsize == 4
    half = torch.bfloat16 if wide else home.dtype
    flags, found = ("--dtype bf16 " if wide else ""), []
    if wide:
        found.append(("--dtype bf16", Home(home.device, half)))
    if home.device.type == "cuda" and not home.offload:
        found.append((f"{flags}--offload", Home(home.device, half, offload=True)))
    if home.device.type in ("cpu", "cuda"):
        found += [
            (f"{flags}--bits {bits}", Home(home.device, half, bits))
            for bits in (8, 4)
            if bits < (home.bits or 16) and has_bits()
        ]
    return found


def has_bits() -> bool:
    """Whether weights of 8 and 4 bits can be had."""
    return find_spec("bitsandbytes") is not None


def load_chosen(chosen: Chosen) -> "Captioner":
    """The networks."""
    from dreamoving_cli.models.minigpt.checkpoint import assemble_captioner
    from dreamoving_cli.models.minigpt.load import load_captioner

    if isinstance(chosen.source, Path):
        return load_captioner(chosen.source, chosen.home)
    return assemble_captioner(chosen.source, chosen.home)
