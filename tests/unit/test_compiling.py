"""Compiled blocks: the same numbers, compiled once for any number of frames; refusals; going on without."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from platformdirs import user_cache_path
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

from dreamoving_cli import compiling
from dreamoving_cli.compiling import CACHE, compiled, keep_kernels, keeps_still, lacks, refuse, remarks
from dreamoving_cli.errors import UsageError
from dreamoving_cli.memory import Mode
from dreamoving_cli.models.config import MotionConfig
from dreamoving_cli.models.layers import Pass, Run, plainly, prompt_keys, resnet, transform
from dreamoving_cli.models.motion import MotionBlock

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HIGH = Mode("high", 4, 8)


class Blocks:
    """One block of every kind that is compiled, and what a pass gives them."""

    def __init__(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.place: Any = {"device": device, "dtype": dtype}
        torch.manual_seed(0)
        self.residual = ResnetBlock2D(in_channels=16, out_channels=32, temb_channels=24, groups=8).eval()
        self.spatial: Any = Transformer2DModel(
            2, 8, in_channels=16, num_layers=1, cross_attention_dim=12, norm_num_groups=8
        ).eval()
        self.motion = MotionBlock(16, MotionConfig(heads=2, groups=8)).eval()
        torch.nn.init.normal_(self.motion.proj_out.weight)
        for block in (self.residual, self.spatial, self.motion):
            nn.Module.to(block, **self.place)  # diffusers warns of its own

    @torch.inference_mode()
    def __call__(self, way: Run, rows: int, frames: int, strength: float, parts: str = "rsm") -> list[Tensor]:
        """What they make of random frames; rows: windows times branches of guidance."""
        torch.manual_seed(rows)
        x = (
            torch.randn(rows * frames, 16, 4, 4)
            .to(**self.place)
            .contiguous(memory_format=torch.channels_last)
        )
        attention = self.spatial.transformer_blocks[0].attn2
        text, face = (
            prompt_keys(attention, torch.randn(rows, words, 12).to(**self.place)) for words in (7, 4)
        )
        told = iter([[(*text, 1.0), (*face, strength)]])
        step = Pass(torch.randn(rows, 24).to(**self.place), frames, told, rows=rows * frames, run=way)
        runs = {
            "r": lambda: resnet(self.residual, x, step),
            "s": lambda: transform(self.spatial, x, step),
            "m": lambda: self.motion(x, frames, way),
        }
        return [runs[part]() for part in parts]


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No code compiled by another test, or for the user."""
    monkeypatch.setenv(CACHE, str(tmp_path))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_windows_strengths_and_guidance_need_no_new_code() -> None:
    """With torch's tracing alone, which decides what is compiled anew."""
    counter, blocks = CompileCounterWithBackend("eager"), Blocks()
    with compiled([], counter) as run:
        for rows, frames, strength in ((2, 6, 0.5), (2, 4, 0.5), (3, 5, 0.7)):
            for plain, fast in zip(
                blocks(plainly, rows, frames, strength), blocks(run, rows, frames, strength), strict=True
            ):
                torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
        assert counter.frame_count == 3  # one for each kind of block
        for frames in (6, 5):  # one window without guidance: a size of 1 is a constant to torch
            blocks(run, 1, frames, 0.9)
        assert counter.frame_count == 5  # residual blocks see rows times frames and need none
    assert run.failure is None


@pytest.mark.skipif(lacks(CPU) is not None, reason="no C++ compiler")
def test_compiled_code_gives_the_same_numbers(tmp_path: Path) -> None:
    blocks = Blocks()
    with compiled([]) as run:
        [fast] = blocks(run, 2, 3, 1.0, "r")
    [plain] = blocks(plainly, 2, 3, 1.0, "r")
    assert run.failure is None
    assert list(tmp_path.iterdir())  # the code is kept where the user says
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_compiled_runs_as_before_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise ValueError("this card is unknown")

    blocks = Blocks()
    with compiled([], broken) as run:
        found = [blocks(run, 2, 3, 1.0, "r") for _ in range(2)]
    for [made] in found:
        assert torch.equal(made, blocks(plainly, 2, 3, 1.0, "r")[0])
    assert run.failure is not None
    assert "this card is unknown" in run.failure
    assert len([record for record in caplog.records if record.name == compiling.__name__]) == 1


def test_networks_run_plainly_again_afterwards() -> None:
    network: Any = type("Network", (), {"run": plainly})()
    with suppress(KeyError), compiled([network]) as run:
        assert network.run is run
        raise KeyError
    assert network.run is plainly


def test_a_missing_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse("off", CPU)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="--compile blocks needs a C\\+\\+ compiler"):
        refuse("blocks", CPU)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    with pytest.raises(UsageError, match="Triton"):
        refuse("blocks", CUDA)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    with pytest.raises(UsageError, match="C compiler, such as gcc, for Triton"):
        refuse("blocks", CUDA)


@pytest.mark.parametrize(
    ("asked", "device"), [("fast", CPU), ("graphs", CPU), ("blocks", torch.device("mps"))]
)
def test_what_is_not_offered_is_refused(asked: str, device: torch.device) -> None:
    with pytest.raises(UsageError, match=asked):
        refuse(asked, device)


@pytest.mark.parametrize(
    ("mode", "device", "still"),
    [
        (HIGH, CUDA, True),
        (Mode("low", 1, 1), CUDA, True),
        (Mode("low", 1, 1, eight_bit=True), CUDA, False),
        (Mode("min", 1, 1), CUDA, False),
        (Mode("min", 1, 1), CPU, True),
        (Mode("min", 1, 1, half=True), CPU, False),
    ],
)
def test_moved_and_packed_weights_are_not_compiled(mode: Mode, device: torch.device, still: bool) -> None:
    assert keeps_still(mode, device) is still
    [note] = remarks("blocks", mode, device)
    assert ("does nothing" in note) is not still
    assert list(remarks("off", mode, device)) == []


def test_memory_that_runs_out_ends_compiling_and_is_told_once() -> None:
    notes: list[str] = []
    pack: Any = None  # is not looked at
    for _ in range(2):
        with compiling.as_asked("blocks", pack, Mode("min", 1, 1), CUDA, notes):
            pass
    assert len(notes) == 1


def test_code_is_kept_for_the_user_unless_told_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told = os.environ[CACHE]  # the fixture's
    keep_kernels()
    assert os.environ[CACHE] == told
    monkeypatch.delenv(CACHE)
    cache_dir()  # torch's own way to set it, to a folder that does not last
    assert os.environ[CACHE] == default_cache_dir()
    keep_kernels()
    assert os.environ[CACHE] == cache_dir() == str(user_cache_path("dreamoving-kernels"))
