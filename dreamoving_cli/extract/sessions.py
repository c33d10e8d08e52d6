"""ONNX networks through onnxruntime: on a GPU where it can, and never silently on the CPU beside one."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamoving_cli.errors import WeightsError

# Best first; the CPU's comes last by itself.
GPU_PROVIDERS = (
    "CUDAExecutionProvider",
    "ROCMExecutionProvider",
    "DmlExecutionProvider",
    "CoreMLExecutionProvider",
)
NVIDIA = Path("/proc/driver/nvidia/version")

logger = logging.getLogger(__name__)


class Session:
    """One network with one input, fp32 b c h w."""

    def __init__(self, path: Path) -> None:
        runtime = _runtime()
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # its errors come back as exceptions
        providers = providers_here(runtime.get_available_providers())
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:
            raise WeightsError(
                f"'{path}' cannot be run by onnxruntime ({str(error).splitlines()[0][:120]})",
                "Give a valid ONNX file, or fetch it again.",
            ) from error
        if complaint := unused_gpu(self._session.get_providers(), gpu_is_here()):
            logger.warning("%s", complaint)
        self.on_gpu = self._session.get_providers()[0] != "CPUExecutionProvider"
        [self._input, *others] = self._session.get_inputs()
        if others or len(self._input.shape) != 4:
            raise WeightsError(f"'{path}' does not take one picture as its input", "Is it the right file?")
        self.path = path
        self.batches = not isinstance(self._input.shape[0], int)  # whether it takes several at once

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the input; those given where the network takes any."""
        asked = self._input.shape[2:]
        sides = (h if isinstance(h, int) else other for h, other in zip(asked, (height, width), strict=True))
        first, second = sides
        return first, second

    def __call__(self, pictures: np.ndarray) -> list[np.ndarray]:
        """All outputs, in the network's order. pictures: float32 b c h w."""
        step = max(len(pictures), 1) if self.batches else 1
        parts = [
            self._session.run(None, {self._input.name: pictures[k : k + step]})
            for k in range(0, len(pictures), step)
        ]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def providers_here(available: Sequence[str]) -> list[str]:
    """The providers to ask for, best first."""
    return [*(name for name in GPU_PROVIDERS if name in available), "CPUExecutionProvider"]


def unused_gpu(used: Sequence[str], gpu: bool) -> str | None:
    """One loud sentence where a GPU lies idle; onnxruntime itself falls back without a word."""
    if not gpu or used[0] != "CPUExecutionProvider":
        return None
    return (
        "WARNING: this machine has an NVIDIA GPU, but onnxruntime runs on the CPU: expect 0.1 to 1 frames/s "
        "instead of 30. Replace the package: pip uninstall onnxruntime; pip install onnxruntime-gpu."
    )


def gpu_is_here() -> bool:
    """Whether there is an NVIDIA GPU with a driver, whatever the Python packages can do with it."""
    return NVIDIA.exists() or shutil.which("nvidia-smi") is not None


def gpu_is_usable() -> bool:
    """Whether onnxruntime is installed and says that it can use a GPU."""
    try:
        available = _runtime().get_available_providers()
    except WeightsError:
        return False
    return providers_here(available)[0] != "CPUExecutionProvider"


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise WeightsError("onnxruntime is not installed", "Install it: pip install onnxruntime.") from error
    return onnxruntime
