"""Whole renders in every memory mode: the same pixels, and no step lost when memory runs out."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dreamoving_cli import peaks
from dreamoving_cli.device import GIB, Machine
from dreamoving_cli.errors import DeviceMemoryError, UsageError
from dreamoving_cli.extract.keypoints import NUM_POINTS, Poses, save_poses
from dreamoving_cli.media.images import write_image
from dreamoving_cli.memory import NAMES, need
from dreamoving_cli.models.load import build_pack, save_pack
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.models.unet import VideoUNet
from dreamoving_cli.models.vae import VAE
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.outputs import record_path
from dreamoving_cli.plan import prepare
from dreamoving_cli.render import plan, render
from dreamoving_cli.resume import state_path
from tests import checkpoints as public
from tests.pictures import pixels

FRAMES, SIDE, STEPS = 6, 48, 3


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny pack, someone's poses and a picture."""
    folder = tmp_path_factory.mktemp("memory")
    save_pack(build_pack(tiny_config(), seed=0), folder / "pack")
    rng = np.random.default_rng(0)
    points = rng.uniform(5, 40, (FRAMES, 1, NUM_POINTS, 2)).astype(np.float32)
    scores = np.ones((FRAMES, 1, NUM_POINTS), np.float32)
    save_poses(folder / "pose.json", Poses(Fraction(24), SIDE, SIDE, points, scores))
    write_image(folder / "cloth.png", rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
    return folder


@pytest.fixture
def options(inputs: Path) -> RenderOptions:
    return RenderOptions(
        model=str(inputs / "pack"),
        pose=inputs / "pose.json",
        cloth=inputs / "cloth.png",
        steps=STEPS,
        seed=5,
        sampler="dpm++2m",
        codec="png",
        context={"context_frames": 4, "context_overlap": 1, "window_batch": 1},
    )


def told(folder: Path) -> list[str]:
    """What the record says of memory."""
    return list(yaml.safe_load(record_path(folder).read_text())["record"]["vram"])


def fail_in(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, calls: range) -> list[int]:
    """Make these calls of a method run out of memory; a list that counts all calls."""
    count: list[int] = []
    real = getattr(owner, method)

    def full(*args: Any, **more: Any) -> Any:
        count.append(len(count))
        if count[-1] in calls:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(*args, **more)

    monkeypatch.setattr(owner, method, full)
    return count


def calls_at(options: RenderOptions, step: int) -> int:
    """How often the U-Net is called in this step: for each window, and before them for anchor frames."""
    windows = prepare(options, "cpu").windows
    return len(windows.windows_at(step)) + bool(windows.anchors)


def test_every_mode_gives_the_same_pixels(options: RenderOptions, tmp_path: Path) -> None:
    results = {}
    for name in NAMES:
        render(options, tmp_path / name, Machine("cpu", vram=name))
        results[name] = pixels(tmp_path / name)
        assert [line.split(":")[0] for line in told(tmp_path / name)] == [name]
    assert results["high"].std() > 1
    assert np.array_equal(results["high"], results["low"])
    assert np.array_equal(results["high"], results["min"])


def test_a_step_that_runs_out_of_memory_is_taken_again_in_a_lower_mode(
    options: RenderOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    render(options, tmp_path / "whole", "cpu")
    per_step = calls_at(options, 0)
    calls = fail_in(monkeypatch, VideoUNet, "forward", range(per_step + 1, per_step + 2))
    steps: list[int] = []
    render(
        options,
        tmp_path / "again",
        "cpu",
        on_progress=lambda stage, done, n: steps.append(done) if stage == "denoise" else None,
    )
    assert steps == list(range(STEPS + 1))  # none is done twice
    total = sum(calls_at(options, step) for step in range(STEPS))
    assert len(calls) == total + 2  # the failed one and the one before it in that step
    assert np.array_equal(pixels(tmp_path / "whole"), pixels(tmp_path / "again"))
    assert "going on with --vram min" in caplog.text
    assert [line.split(":")[0] for line in told(tmp_path / "again")] == [
        "high",
        "min",
    ]  # one window at once: low saves nothing


def test_windows_are_computed_apart_where_memory_runs_out(
    options: RenderOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options.replace(context=options.context.replace(window_batch=None))
    count = prepare(options, "cpu").windows.window_batch
    assert count > 1
    fail_in(monkeypatch, VideoUNet, "forward", range(2, 3))
    render(options, tmp_path / "out", "cpu")
    assert [line.split(",")[0] for line in told(tmp_path / "out")] == [
        f"high: {count} windows denoised", "high: 6 frames decoded at once"
    ]  # fmt: skip


LIMITED = """
import re, resource, sys
from pathlib import Path
from dreamoving_cli import render as rendering
from dreamoving_cli.device import Machine, free_memory
from dreamoving_cli.presets import load_preset

def watch(stage, done, total):
    steps.extend([done] if stage == "denoise" else [])
    if (stage, done) == ("denoise", 1):
        free_memory()
        mapped = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (mapped + int(sys.argv[3]) * 2**20, -1))
    elif (stage, done) == ("denoise", total):
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))

steps = []
rendering.reuse_memory = lambda device: None  # what is freed goes back, so that the limit counts it
rendering.render(load_preset(sys.argv[1], {}), Path(sys.argv[2]), Machine("cpu"), on_progress=watch)
print(steps)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems limit memory in other ways")
def test_a_real_limit_of_memory_lowers_the_mode_in_the_midst(tmp_path: Path) -> None:
    """All windows at once do not fit into what the system allows from the second step on; one does."""
    settings = public.config().model_copy(update={"guider": {}, "image": None})
    save_pack(public.random_pack(settings), tmp_path / "pack")
    points = np.random.default_rng(0).uniform(5, 120, (34, 1, NUM_POINTS, 2)).astype(np.float32)
    scores = np.ones(points.shape[:3], np.float32)
    save_poses(tmp_path / "pose.json", Poses(Fraction(24), 128, 128, points, scores))
    windows = {"context_frames": 4, "context_overlap": 1, "window_batch": 12}
    options = RenderOptions(
        model=str(tmp_path / "pack"), pose=tmp_path / "pose.json", steps=2, seed=5, size="128x128",
        guidance_scale=2.0, codec="png", context=windows,
    )  # fmt: skip
    (tmp_path / "preset.yaml").write_text(yaml.safe_dump(options.model_dump(mode="json")))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path / "preset.yaml", tmp_path / "again", "44"],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2], text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0, 1, 2]"
    assert [line.split(":")[0] for line in told(tmp_path / "again")] == ["high", "low"]
    assert "out of memory (denoise): going on with --vram low" in done.stderr
    assert pixels(tmp_path / "again").shape == (34, 128, 128, 3)


def test_where_min_runs_out_too_the_state_is_kept(
    options: RenderOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    render(options, tmp_path / "whole", "cpu")
    with monkeypatch.context() as patched:
        fail_in(patched, VideoUNet, "forward", range(calls_at(options, 0), 1000))
        with pytest.raises(DeviceMemoryError, match="with --vram min too") as failure:
            render(options, tmp_path / "again", "cpu")
    assert failure.value.exit_code == 5
    assert not (tmp_path / "again").exists()
    assert torch.load(state_path(tmp_path / "again"), weights_only=True)["step"] == 1
    assert "--resume" in caplog.text
    render(options, tmp_path / "again", Machine("cpu", "min"), resume=True)
    assert np.array_equal(pixels(tmp_path / "whole"), pixels(tmp_path / "again"))
    assert [line.split(":")[0] for line in told(tmp_path / "again")] == [
        "high",
        "min",
        "min",
        "min",
    ]  # 16 bits, 8 bits, resumed


def test_decoding_that_runs_out_of_memory_goes_on_with_fewer_frames(
    options: RenderOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options.replace(decode_batch=2)
    render(options, tmp_path / "whole", "cpu")
    calls = fail_in(monkeypatch, VAE, "decode", range(1, 2))
    seen: list[int] = []
    render(
        options,
        tmp_path / "again",
        "cpu",
        on_progress=lambda stage, done, n: seen.append(done) if stage == "decode" else None,
    )
    assert seen == [2, 3, 4, 5, 6]
    assert len(calls) == 6
    apart = np.abs(pixels(tmp_path / "whole").astype(int) - pixels(tmp_path / "again"))
    assert apart.max() <= 1


def test_the_plan_names_the_mode_that_fits(
    options: RenderOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = prepare(options, "cpu")
    needs = {mode: need(mode, job.sizes) for mode in job.modes}
    assert next(iter(needs)).name == "high"
    for free in sorted(needs.values()):
        monkeypatch.setattr("dreamoving_cli.plan.available_gib", lambda _, free=free: free / GIB)
        assert plan(options, "cpu").vram == str(next(mode for mode in needs if needs[mode] <= free))
    assert len({plan(options, Machine("cpu", name)).vram for name in NAMES[1:]}) == 2
    monkeypatch.setattr("dreamoving_cli.plan.available_gib", lambda _: (min(needs.values()) - 1) / GIB)
    with pytest.raises(DeviceMemoryError):
        render(options, tmp_path / "out", "cpu")
    with pytest.raises(UsageError, match="auto, high, low, min"):
        plan(options, Machine("cpu", vram="tiny"))


def test_peaks_are_measured_stage_by_stage(inputs: Path) -> None:
    words = f"--pose {inputs / 'pose.json'} --cloth {inputs / 'cloth.png'} --model {inputs / 'pack'}"
    options = peaks.parse([*words.split(), "--device", "cpu", peaks.CHILD, "low", "--frames", "9", "4"])
    found = peaks.measure(options)
    assert found["frames"] == 4
    assert {"text", "pictures", "denoise", "decode"} <= found["peaks"].keys()
    assert all(peak > 0.1 for peak in found["peaks"].values())  # torch alone takes more
    assert 0 < found["each"] < found["seconds"]
    assert peaks.row(found).count("|") == peaks.HEADER.splitlines()[0].count("|")


def test_latents_that_are_not_finite_are_refused(
    options: RenderOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = VideoUNet.forward
    monkeypatch.setattr(VideoUNet, "forward", lambda *args, **more: real(*args, **more) * torch.inf)
    with pytest.raises(UsageError, match="--dtype fp32"):
        render(options, tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()
