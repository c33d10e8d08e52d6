"""Renders that cache from step to step: resumed, short of memory, on two devices, planned."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreamoving_cli.caching import StepCache
from dreamoving_cli.device import GIB, Machine
from dreamoving_cli.errors import DeviceMemoryError, UsageError
from dreamoving_cli.extract.keypoints import NUM_POINTS, Poses, save_poses
from dreamoving_cli.models.load import build_pack, save_pack
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.models.unet import VideoUNet
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.plan import choose_modes, prepare
from dreamoving_cli.render import plan, render
from dreamoving_cli.resume import state_path
from tests.pictures import pixels

pytestmark = pytest.mark.usefixtures("one_thread")

FRAMES, STEPS, FULL = 14, 6, (0, 3, 4)  # guidance ends after the fourth step


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> RenderOptions:
    """Several windows a step, anchor frames, guidance in some steps, a sampler with a memory."""
    folder = tmp_path_factory.mktemp("caching")
    save_pack(build_pack(tiny_config(), seed=0), folder / "pack")
    points = np.random.default_rng(0).uniform(4, 60, (FRAMES, 1, NUM_POINTS, 2)).astype(np.float32)
    scores = np.ones(points.shape[:3], np.float32)
    pose = save_poses(folder / "pose.json", Poses(Fraction(24), 64, 64, points, scores))
    return RenderOptions(
        model=str(folder / "pack"), pose=pose, prompt="a dancer", steps=STEPS, seed=5, codec="png",
        sampler="dpm++2m", anchor_frames=2, cache_interval=3, guidance_end=0.7,
        context={"context_frames": 8, "context_overlap": 4, "window_batch": 1},
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(options: RenderOptions, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return pixels(render(options, tmp_path_factory.mktemp("whole") / "out", "cpu"))


@pytest.mark.parametrize(("interrupted", "kept"), [(1, None), (2, None), (3, 3), (4, 4), (5, 4)])
def test_a_render_goes_on_at_a_full_step(
    options: RenderOptions, whole: np.ndarray, tmp_path: Path, interrupted: int, kept: int | None
) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("denoise", interrupted):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(options, tmp_path / "out", "cpu", on_progress=interrupt)
    path = state_path(tmp_path / "out")
    assert (torch.load(path, weights_only=True)["step"] if path.is_file() else None) == kept
    render(options, tmp_path / "out", "cpu", resume=True)
    assert np.array_equal(pixels(tmp_path / "out"), whole)


def test_memory_that_runs_out_in_between_costs_the_steps_since_the_full_one(
    options: RenderOptions, whole: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps, failures = VideoUNet.forward, list[int](), [6]

    def full(self: VideoUNet, *given: Any, **more: Any) -> Any:
        if steps and steps[-1] == 5 and failures and failures.pop():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, *given, **more)

    monkeypatch.setattr(VideoUNet, "forward", full)

    def note(stage: str, done: int, total: int) -> None:
        if stage == "denoise":
            steps.append(done)

    render(options, tmp_path / "out", "cpu", on_progress=note)
    assert steps == [0, 1, 2, 3, 4, 5, 5, 6]  # the last full step, 4, is taken again
    apart = np.abs(pixels(tmp_path / "out").astype(int) - whole)
    assert apart.max() <= 1  # networks that were read again lie elsewhere: last bits of products differ


def test_two_devices_need_nothing_of_each_other_s(
    options: RenderOptions, whole: np.ndarray, tmp_path: Path
) -> None:
    assert np.array_equal(pixels(render(options, tmp_path / "out", Machine("cpu,cpu"))), whole)


@pytest.mark.parametrize("vram", ["low", "min"])
def test_memory_modes_give_the_same_pixels(
    options: RenderOptions, whole: np.ndarray, tmp_path: Path, vram: str
) -> None:
    assert np.array_equal(pixels(render(options, tmp_path / "out", Machine("cpu", vram=vram))), whole)


@pytest.mark.parametrize("branch", [0, 3])
def test_the_plan_counts_what_is_kept(
    options: RenderOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, branch: int
) -> None:
    asked = options.replace(cache_branch_id=branch, context={"context_frames": 8, "schedule": "static"})
    most, real = [0], StepCache.of

    def watched(self: StepCache, *given: Any) -> Any:
        most[0] = max(most[0], sum(kept.nbytes for kept in self._kept.values()))
        return real(self, *given)

    monkeypatch.setattr(StepCache, "of", watched)
    render(asked, tmp_path / "out", "cpu")
    job, alone = prepare(asked, "cpu"), prepare(asked.replace(cache_interval=1), "cpu")
    assert job.windows.full_steps == FULL
    assert job.sizes.deep == most[0]
    assert alone.sizes.deep == 0


def test_what_main_memory_cannot_hold_is_refused(
    options: RenderOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a lower mode keeps it there, beside a card that is full."""
    job, card = prepare(options, "cpu"), torch.device("cuda", 0)
    free = {"cuda": 4.0, "cpu": 2.0}
    monkeypatch.setattr("dreamoving_cli.plan.available_gib", lambda device: free[device.type])
    sizes = replace(job.sizes, on_cpu=False, latents=3 * GIB)

    def mode_for(kept: float) -> str:
        kept_too = replace(sizes, deep=int(kept * GIB))
        return choose_modes("auto", ((1,), 1), job.config, kept_too, [card])[0].name

    assert (mode_for(0.5), mode_for(1.5)) == ("high", "low")
    with pytest.raises(DeviceMemoryError, match=r"keeps 2\.5 GiB in main memory, which has 2\.0 GiB free"):
        mode_for(2.5)


def test_the_plan_says_what_is_saved(options: RenderOptions) -> None:
    told = plan(options, "cpu").cache
    assert told.startswith("3 of 6 steps in full, the others 1")
    assert told.endswith("MiB a frame are kept")
    assert plan(options.replace(cache_interval=1), "cpu").cache == "off: every step is computed in full"
    with pytest.raises(UsageError, match="cache_branch_id is 9, model 'tiny' has 4 skip connections"):
        prepare(options.replace(cache_branch_id=9), "cpu")
