"""Renders on two processes that share the windows of every step: the pixels of one, and none left behind."""

import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
import torch
import yaml

from dreamoving_cli.device import Machine
from dreamoving_cli.errors import DeviceLostError
from dreamoving_cli.extract.keypoints import NUM_POINTS, Poses, save_poses
from dreamoving_cli.models.load import build_pack, save_pack
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.render import plan, render
from dreamoving_cli.resume import state_path
from tests.pictures import pixels

pytestmark = pytest.mark.usefixtures("one_thread")

TWO = Machine("cpu,cpu")
FRAMES, STEPS = 20, 5


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> RenderOptions:
    """A render of several windows a step, with anchor frames, by a sampler that remembers its last step."""
    folder = tmp_path_factory.mktemp("ranks")
    save_pack(build_pack(tiny_config(), seed=0), folder / "pack")
    points = np.random.default_rng(0).uniform(4, 60, (FRAMES, 1, NUM_POINTS, 2)).astype(np.float32)
    scores = np.ones(points.shape[:3], np.float32)
    pose = save_poses(folder / "pose.json", Poses(Fraction(24), 64, 96, points, scores))
    return RenderOptions(
        model=str(folder / "pack"), pose=pose, prompt="a dancer", steps=STEPS, seed=5, codec="png",
        sampler="dpm++2m", anchor_frames=2,
        context={"context_frames": 8, "context_overlap": 4, "window_batch": 1}, decode_batch=3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(options: RenderOptions, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The pixels of one device."""
    return pixels(render(options, tmp_path_factory.mktemp("whole") / "out", "cpu"))


KILLED = """
import os, signal, sys
from pathlib import Path
import psutil
from dreamoving_cli.presets import load_preset
from dreamoving_cli.render import render

def kill(stage, done, total):
    if (stage, done) == ("denoise", 1):
        print(psutil.Process().children()[0].pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

render(load_preset(sys.argv[1], {}), Path(sys.argv[2]), "cpu,cpu", on_progress=kill)
"""


def test_a_render_survives_the_loss_of_any_process(
    options: RenderOptions, whole: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two devices whose first process is killed; two again, whose other is; one, which ends bit for bit."""
    output = tmp_path / "out"
    (tmp_path / "preset.yaml").write_text(yaml.safe_dump(options.model_dump(mode="json")))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "preset.yaml", output],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2], text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert gone(int(killed.stdout))
    assert step_of(output) == 1

    def kill_helper(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("denoise", 3):
            (helper,) = helpers()
            helper.kill()

    with pytest.raises(DeviceLostError, match=r"cpu \(device 2 of 2\) was lost \(.* by signal 9\)"):
        render(options, output, TWO, resume=True, on_progress=kill_helper)
    assert helpers() == []
    assert torch.get_num_threads() == 1
    assert step_of(output) == 3

    render(options, output, "cpu", resume=True)
    assert "going on with 1 device, before 2: last bits may differ" in caplog.text
    assert np.array_equal(pixels(output), whole)


def test_a_device_that_is_lost_while_frames_are_decoded_costs_no_step(
    options: RenderOptions, whole: np.ndarray, tmp_path: Path
) -> None:
    """Two devices decode in turn; one is killed after the first's first turn; two again, bit for bit."""
    output = tmp_path / "out"

    def kill_helper(stage: str, done: int, total: int) -> None:
        if stage == "decode":
            (helper,) = helpers()
            helper.kill()

    with pytest.raises(DeviceLostError, match=r"cpu \(device 2 of 2\) was lost \(.* by signal 9\)") as lost:
        render(options, output, TWO, on_progress=kill_helper)
    assert lost.value.exit_code == 10
    assert not output.exists()
    assert step_of(output) == STEPS
    seen: list[tuple[str, int]] = []
    render(options, output, TWO, resume=True, on_progress=lambda stage, done, n: seen.append((stage, done)))
    assert seen == [("denoise", STEPS), *(("decode", min(3 * k, FRAMES)) for k in range(1, 8))]
    assert np.array_equal(pixels(output), whole)


def helpers() -> list[psutil.Process]:
    """Our processes that work for further devices; libraries may have some of their own."""
    return [p for p in psutil.Process().children() if "dreamoving_cli.ranks" in " ".join(p.cmdline())]


def step_of(output: Path) -> int:
    """Steps done, says the state beside the output."""
    return int(torch.load(state_path(output), weights_only=True)["step"])


def gone(pid: int) -> bool:
    """Whether this process ends in time; nobody may be left to bury it."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_the_plan_says_who_computes_what(options: RenderOptions) -> None:
    told = plan(options, TWO)
    assert told.device == "cpu,cpu"
    assert "4 windows a step on 2 devices (cpu,cpu): 2, 2" in told.notes[-1]
    many = plan(options, Machine(",".join(["cpu"] * 7)))
    assert "at most 5 windows a step: 2 of the 7 devices will only decode" in many.notes[-1]
    assert many.available_gib < told.available_gib
