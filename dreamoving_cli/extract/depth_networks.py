"""The depth networks behind one interface, and which of them is taken.

Both are torch networks (models/), imported when a clip is about to be looked at.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamoving_cli.errors import UsageError, WeightsError
from dreamoving_cli.extract.depth import DepthNetwork
from dreamoving_cli.paths import PACKAGE
from dreamoving_cli.weights import Entry, entry, file_sha256, list_weights, weight_paths

DETECTORS = ("auto", "zoe", "light")
PUBLIC = ("depth.zoe-n-hf", "depth.zoe-nk-hf", "depth.zoe-n", "depth.zoe-nk")  # best first
LIGHT_FILE = PACKAGE / "models" / "depth.safetensors"
LIGHT_AREA, LIGHT_STEP = 160 * 256, 32  # pixels that the light network sees; its sides are multiples
ZOE_SIDE, ZOE_STEP = 512, 64  # its pictures' shorter side, and of what their sides are multiples

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DepthOptions:
    """How depth is found in footage."""

    detector: str = "auto"  # of DETECTORS
    network: str = ""  # ZoeDepth's: an id in models.lock, a file or a folder; empty: the best that is here
    smooth: bool = True  # steady over time
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.detector not in DETECTORS:
            raise UsageError(f"detector is '{self.detector}'", f"Choose one of: {', '.join(DETECTORS)}.")
        if self.network and self.detector == "light":
            raise UsageError(
                f"network is '{self.network}', and the light detector has its own",
                "Leave out --detector light.",
            )


def open_network(options: DepthOptions) -> DepthNetwork:
    """The network asked for; auto: ZoeDepth where its weights and a GPU are here, else the light one."""
    from dreamoving_cli.device import choose_device

    device = choose_device(options.device)
    if options.detector == "zoe" or options.network:
        return ZoeNetwork(options.network or best_public(), device)
    if options.detector == "auto" and (here := public_here()):
        if device.type != "cpu":
            return ZoeNetwork(here[0], device)
        logger.warning("the light depth network is used: ZoeDepth takes a minute a frame without a GPU")
    logger.warning("the light depth network finds a dancer and guesses the room: look at its maps first")
    return LightNetwork(device)


def public_here() -> list[str]:
    """ZoeDepth's files that can be used without fetching anything, best first."""
    here = {each.id for each, present in list_weights() if present}
    return [name for name in PUBLIC if name in here]


def best_public() -> str:
    """The best of ZoeDepth's files that is here."""
    found = public_here()
    if not found:
        raise WeightsError(
            "ZoeDepth's weights are not here",
            "Run: dreamoving models pull depth; or choose --detector light.",
        )
    return found[0]


class LightNetwork:
    """The small network that ships with the package: knows what is nearer, not by how many meters."""

    name, batch = "light", 4

    def __init__(self, device: Any, weights: Path = LIGHT_FILE) -> None:
        from dreamoving_cli.models.depth import load_depth_net

        self._network = load_depth_net(weights).to(device)
        self._device = device
        self.identity = f"light {file_sha256(weights)[:16]}"

    @staticmethod
    def size_of(height: int, width: int) -> tuple[int, int]:
        """Multiples of 32, about as many pixels as it was trained on."""
        scale = (LIGHT_AREA / (height * width)) ** 0.5
        first, second = (max(round(scale * side / LIGHT_STEP), 1) * LIGHT_STEP for side in (height, width))
        return first, second

    def size(self, height: int, width: int) -> tuple[int, int]:
        """As `size_of`."""
        return self.size_of(height, width)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """float32 f h w of uint8 f h w c: 0 nearest, 1 farthest."""
        import torch

        with torch.inference_mode():
            return (1 - self._network(as_tensor(frames, self._device))).float().cpu().numpy()


class ZoeNetwork:
    """ZoeDepth, in meters."""

    batch = 1

    def __init__(self, weights: str, device: Any) -> None:
        from dreamoving_cli.models.zoe import hold_head, load_zoe

        path, known = locate(weights)
        self._network = load_zoe(path, part_of(path, known)).to(device)
        hold_head(self._network)
        self._device = device
        self.name = f"zoe ({weights})"
        self.identity = f"zoe {known.sha256 if known else fingerprint(path)}"

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The shorter side 512, both in steps of 64, as the official extractor."""
        scale = ZOE_SIDE / min(height, width)
        first, second = (max(round(scale * side / ZOE_STEP), 1) * ZOE_STEP for side in (height, width))
        return first, second

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """float32 f h w of uint8 f h w c: meters."""
        import torch

        from dreamoving_cli.models.zoe import distances

        with torch.inference_mode():
            seen = distances(self._network, as_tensor(frames, self._device))
        return seen[:, 0].float().cpu().numpy()


def as_tensor(frames: np.ndarray, device: Any) -> Any:
    """uint8 f h w c as float32 b 3 h w in 0..1."""
    import torch
    from einops import rearrange

    return rearrange(torch.from_numpy(frames).to(device), "f h w c -> f c h w").float() / 255


def locate(weights: str) -> tuple[Path, Entry | None]:
    """Where the weights are, and what the lock knows of them: an id, or a file or folder of one's own."""
    if Path(weights).exists():
        return Path(weights), None
    if "/" in weights or Path(weights).suffix in (".pt", ".safetensors"):
        raise UsageError(f"there is no file {weights}", "Give a file, a folder, or an id of models.lock.")
    known = entry(weights)
    if known.kind != "zoedepth":
        raise UsageError(
            f"'{weights}' is a {known.kind}, not a ZoeDepth", f"Choose one of: {', '.join(PUBLIC)}."
        )
    return weight_paths([weights])[weights], known


def part_of(path: Path, known: Entry | None) -> Any:
    """What is known of the file before it is opened; a pickle only opens if its hash was checked."""
    from dreamoving_cli.models.checkpoints.files import Part

    return Part(path, known.id if known else "", trusted=known is not None)


def fingerprint(path: Path) -> str:
    """The hash of a file, or of the weights in a folder."""
    return file_sha256(path / "model.safetensors" if path.is_dir() else path)
