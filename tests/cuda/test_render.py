"""Whole renders of the miniature on CUDA: the CPU's picture, memory modes, full memory, going on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from typer.testing import CliRunner

from dreamoving_cli import render as rendering
from dreamoving_cli.cli import app
from dreamoving_cli.device import GIB, Machine, free_memory
from dreamoving_cli.errors import DeviceMemoryError
from dreamoving_cli.memory import NAMES, Mode, need
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.outputs import record_path
from dreamoving_cli.plan import prepare
from dreamoving_cli.render import render
from dreamoving_cli.resume import state_path
from tests.pictures import pixels

pytestmark = pytest.mark.gpu


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.square(a.astype(np.float64) - b).mean(), 1e-9)))


@pytest.fixture(scope="session")
def on_cpu(options: RenderOptions, tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, Tensor]:
    """The CPU's pictures and latents."""
    return rendered(options, tmp_path_factory.mktemp("cpu") / "out", Machine("cpu"))


def rendered(options: RenderOptions, out: Path, machine: Machine, **more: Any) -> tuple[np.ndarray, Tensor]:
    kept: list[Tensor] = []
    decoded = rendering.decoded

    def watched(residency: Any, latents: Tensor, *rest: Any) -> Any:
        kept.append(latents)
        return decoded(residency, latents, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "decoded", watched)
        render(options, out, machine, **more)
    return pixels(out), kept[0]


def modes_of(out: Path) -> list[str]:
    """The names of the memory modes that the record tells."""
    return [line.split(":")[0] for line in yaml.safe_load(record_path(out).read_text())["record"]["vram"]]


def test_fp32_gives_the_latents_of_the_cpu(
    options: RenderOptions, on_cpu: tuple[np.ndarray, Tensor], device: str, tmp_path: Path
) -> None:
    pictures, latents = rendered(options, tmp_path / "out", Machine(device, dtype="fp32"))
    apart = float((latents - on_cpu[1]).norm() / on_cpu[1].norm())
    print(f"fp32: latents {apart:.2e} apart, pictures {psnr(pictures, on_cpu[0]):.1f} dB")  # noqa: T201
    assert apart < 1e-3
    assert np.abs(pictures - on_cpu[0]).max() <= 3


@pytest.mark.parametrize(("dtype", "least"), [("bf16", 26.0), ("fp16", 32.0), ("auto", 26.0)])
def test_half_precision_is_near(
    options: RenderOptions,
    on_cpu: tuple[np.ndarray, Tensor],
    device: str,
    tmp_path: Path,
    dtype: str,
    least: float,
) -> None:
    pictures, _ = rendered(options, tmp_path / "out", Machine(device, dtype=dtype))
    print(f"{dtype}: {psnr(pictures, on_cpu[0]):.1f} dB")  # noqa: T201
    assert psnr(pictures, on_cpu[0]) > least


@pytest.mark.parametrize("sampler", ["dpm++2m", "euler-a", "lcm"])
def test_other_samplers_run_on_the_card(
    options: RenderOptions, device: str, tmp_path: Path, sampler: str
) -> None:
    wanted = options.replace(sampler=sampler, steps=2)
    ours, _ = rendered(wanted, tmp_path / "there", Machine(device, dtype="fp32"))
    theirs, _ = rendered(wanted, tmp_path / "here", Machine("cpu"))
    assert psnr(ours, theirs) > 45


def test_step_caching_is_the_cpu_s_wherever_features_are_kept(
    options: RenderOptions, device: str, tmp_path: Path
) -> None:
    """On the card in `high`, in main memory in `low`."""
    wanted = options.replace(cache_interval=2, steps=4)
    theirs = pixels(render(wanted, tmp_path / "here", Machine("cpu")))
    for name in ("high", "low"):
        ours = pixels(render(wanted, tmp_path / name, Machine(device, name, "fp32")))
        assert psnr(ours, theirs) > 45


def test_memory_modes_give_the_same_pictures(options: RenderOptions, device: str, tmp_path: Path) -> None:
    found = {name: rendered(options, tmp_path / name, Machine(device, name, "fp32"))[0] for name in NAMES}
    for name in NAMES[1:]:
        assert modes_of(tmp_path / name) == [name]
        print(f"{name}: {np.abs(found[name] - found['high']).max():g} of 255 from high at most")  # noqa: T201
        assert np.abs(found[name] - found["high"]).max() <= 1


def test_eight_bits_look_alike(
    options: RenderOptions, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = rendered(options, tmp_path / "plain", Machine(device, dtype="bf16"))
    mode = Mode("low", 1, 1, eight_bit=True)
    monkeypatch.setattr("dreamoving_cli.plan.choose_modes", lambda *_: [mode])
    small, _ = rendered(options, tmp_path / "small", Machine(device, dtype="bf16"))
    print(f"8-bit weights: {psnr(small, plain):.1f} dB")  # noqa: T201
    assert 18 < psnr(small, plain) < 60


def test_peaks_keep_to_the_plan_and_fall_from_mode_to_mode(
    options: RenderOptions, card: torch.device, tmp_path: Path
) -> None:
    peaks = {}
    for name in NAMES:
        machine = Machine(str(card), name, "fp32")
        free_memory()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job = prepare(options.replace(decode_batch=4), machine)
        render(options.replace(decode_batch=4), tmp_path / name, machine)
        peaks[name] = torch.cuda.max_memory_allocated() - before
        planned = need(job.modes[0], job.sizes)
        print(f"{name}: {peaks[name] / GIB:.3f} GiB, planned {planned / GIB:.3f}")  # noqa: T201
    assert peaks["min"] <= peaks["low"] <= peaks["high"]


def limit(card: torch.device, size: float) -> None:
    """Let torch take no more than this many bytes of the card."""
    free_memory()
    total = torch.cuda.get_device_properties(card).total_memory
    torch.cuda.set_per_process_memory_fraction(min(size / total, 1.0), card)


def test_full_memory_lowers_the_mode_and_loses_no_step(
    options: RenderOptions, card: torch.device, tmp_path: Path
) -> None:
    wide = {**options.context.model_dump(), "window_batch": 8, "context_frames": 4, "context_overlap": 2}
    wanted = options.replace(context=wide, size="192x288", num_frames=12)
    held = {}
    for name in ("high", "min"):
        free_memory()
        torch.cuda.reset_peak_memory_stats()
        held[name] = rendered(wanted, tmp_path / name, Machine(str(card), name, "fp32"))[0]
        held[name + " bytes"] = torch.cuda.max_memory_reserved()
    steps: list[int] = []
    limit(card, (held["high bytes"] + held["min bytes"]) / 2)
    try:
        render(
            wanted,
            tmp_path / "short",
            Machine(str(card), "auto", "fp32"),
            on_progress=lambda stage, done, n: steps.append(done) if stage == "denoise" else None,
        )
    finally:
        limit(card, float("inf"))
    print(f"high reserved {held['high bytes'] / GIB:.3f} GiB, min {held['min bytes'] / GIB:.3f}")  # noqa: T201
    assert modes_of(tmp_path / "short")[0] == "high"
    assert len(modes_of(tmp_path / "short")) > 1
    assert steps == sorted(set(steps))  # none is done twice
    assert psnr(pixels(tmp_path / "short"), held["high"]) > 50


def test_too_little_memory_for_any_mode_is_one_sentence_and_exit_code_5(
    options: RenderOptions, card: torch.device, inputs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["render", "--model", "mini", "--device", "cuda", "--pose", str(inputs / "pose.json")]
    words += ["--size", "192x288", "--steps", "2", "--seed", "1", "--codec", "png", "--out", str(out)]
    limit(card, 24e6)  # less than cuBLAS wants for itself
    try:
        refused = CliRunner().invoke(app, words)
        assert refused.exit_code == DeviceMemoryError.exit_code == 5, refused.output
        assert "ran out of memory" in refused.output
        assert not out.exists()
    finally:
        limit(card, float("inf"))
    print(refused.output[-600:])  # noqa: T201
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert out.is_dir()


def test_an_interrupted_render_goes_on_to_the_same_pictures(
    options: RenderOptions, device: str, tmp_path: Path
) -> None:
    machine = Machine(device, dtype="fp32")
    whole, _ = rendered(options, tmp_path / "whole", machine)

    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("denoise", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(options, tmp_path / "again", machine, on_progress=stop)
    assert state_path(tmp_path / "again").is_file()
    resumed, _ = rendered(options, tmp_path / "again", machine, resume=True)
    assert np.array_equal(whole, resumed)


def test_two_processes_share_the_windows(
    options: RenderOptions, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two cards where there are two; else both on one, which the command would refuse."""
    alone, _ = rendered(options, tmp_path / "alone", Machine(device, dtype="fp32"))
    names = ["cuda:0", f"cuda:{min(torch.cuda.device_count(), 2) - 1}"] if device == "cuda" else [device] * 2
    both = tuple(map(torch.device, names))
    monkeypatch.setattr("dreamoving_cli.plan.choose_devices", lambda asked: both)
    shared, _ = rendered(options, tmp_path / "shared", Machine(device, dtype="fp32"))
    print(f"{both}: {psnr(shared, alone):.1f} dB, {np.abs(shared - alone).max():g} of 255 apart")  # noqa: T201
    assert psnr(shared, alone) > 45  # the other process may take TF32
    assert not list(tmp_path.glob("*.state"))
