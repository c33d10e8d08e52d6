"""The device under test: CUDA. `DREAMOVING_TEST_DEVICE=cpu` runs what a CPU can of the same tests."""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreamoving_cli.extract.keypoints import NUM_POINTS, Poses, save_poses
from dreamoving_cli.media.images import write_image
from dreamoving_cli.options import RenderOptions

FRAMES, HEIGHT, WIDTH = 12, 96, 64


@pytest.hookimpl(trylast=True)  # after the terminal is there
def pytest_configure(config: pytest.Config) -> None:
    """Failures are told at once: a run that crashes or is cut off has no summary."""
    if terminal := config.pluginmanager.get_plugin("terminalreporter"):
        config.pluginmanager.register(Told(terminal), "told-at-once")


class Told:
    """Prints a failure when it is there."""

    def __init__(self, terminal: Any) -> None:
        self.terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.terminal.write_line(f"\nFAILED {report.nodeid} ({report.when})\n{report.longreprtext}")
            self.terminal.flush()


@pytest.fixture(scope="session")
def device() -> str:
    name = os.environ.get("DREAMOVING_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return name


@pytest.fixture(scope="session")
def card(device: str) -> torch.device:
    """A device whose memory torch counts."""
    if device == "cpu":
        pytest.skip("a CPU's memory is not counted by torch")
    return torch.device(device)


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    """No TF32: what is compared with the CPU must be computed in fp32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Someone's poses and a picture."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    points = rng.uniform(5, 60, (1, 1, NUM_POINTS, 2)) + rng.normal(0, 2, (FRAMES, 1, NUM_POINTS, 2))
    scores = np.ones((FRAMES, 1, NUM_POINTS), np.float32)
    save_poses(folder / "pose.json", Poses(Fraction(24), HEIGHT, WIDTH, points.astype(np.float32), scores))
    write_image(folder / "cloth.png", rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
    return folder


@pytest.fixture(scope="session")
def options(inputs: Path) -> RenderOptions:
    """A render of the miniature with everything in it, in windows."""
    return RenderOptions(
        model="mini",
        pose=inputs / "pose.json",
        cloth=inputs / "cloth.png",
        size=f"{WIDTH}x{HEIGHT}",
        steps=4,
        guidance_scale=2.0,
        seed=5,
        codec="png",
        context={"context_frames": 8, "context_overlap": 2},
    )
