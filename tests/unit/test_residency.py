"""Networks on the device only while their stage runs, and what follows when its memory is full.

The device is the CPU under another name (cpu:0), so that moving is seen and the arithmetic is real.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from torch import Tensor, nn

from dreamoving_cli.conditioning import ImagePrompts, Place, encode_prompts
from dreamoving_cli.errors import DeviceMemoryError
from dreamoving_cli.memory import NAMES, STAGES, Mode, Sizes, network_stage
from dreamoving_cli.models.load import Pack, build_pack, open_pack, save_pack
from dreamoving_cli.models.strict import is_empty
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.residency import EIGHT_BIT, KEPT, Residency

DEVICE = torch.device("cpu", 0)
SIZES = Sizes({"unet": 100, "vae": 10}, 4, 1, 1000, 1000, 64, False)
HIGH, LOW, LEAST = Mode("high", 2, 2), Mode("low", 1, 1), Mode("min", 1, 1)
OPTIONS = RenderOptions(prompt="a dancer", guidance_scale=2.0)
SHOWN = ImagePrompts({"cloth": [np.zeros((40, 40, 3), np.uint8)]})


@pytest.fixture
def pack() -> Pack:
    pack = build_pack(tiny_config(), seed=0)
    for network in pack.networks().values():
        network.eval().requires_grad_(False)
    return pack


def resident(pack: Pack, *modes: Mode, dtype: torch.dtype = torch.float32) -> Residency:
    return Residency(pack, modes, SIZES, Place(DEVICE, dtype))


@pytest.fixture
def placed(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The names of the networks that are on the device, at any time."""
    names = {id(network): name for name, network in pack.networks().items()}
    there: set[str] = set()
    move = nn.Module.to

    def to(self: nn.Module, *where: Any, **more: Any) -> nn.Module:
        if id(self) in names and where and where[0] == DEVICE:
            there.add(names[id(self)])
        elif id(self) in names and where and where[0] == "cpu":
            there.discard(names[id(self)])
        return move(self, *where, **more)

    monkeypatch.setattr(nn.Module, "to", to)
    yield there
    monkeypatch.undo()


@torch.inference_mode()
def noise_of(residency: Residency) -> Tensor:
    """What the U-Net makes of a clip."""
    prompts = encode_prompts(residency.pack, OPTIONS, SHOWN, residency.enter)
    x = torch.randn(2, 4, 4, 4, 6, generator=torch.Generator().manual_seed(3))
    return residency.pack.unet(x, torch.tensor(7), prompts.unet)


@pytest.mark.parametrize("mode", [HIGH, LOW, LEAST], ids=NAMES)
def test_modes_move_weights_and_change_no_bit(pack: Pack, mode: Mode) -> None:
    with torch.inference_mode():
        x = torch.randn(2, 4, 4, 4, 6, generator=torch.Generator().manual_seed(3))
        plain = pack.unet(x, torch.tensor(7), encode_prompts(pack, OPTIONS, SHOWN).unet)
    residency = resident(pack, mode)
    assert torch.equal(noise_of(residency), plain)
    residency.close()
    with torch.inference_mode():
        assert torch.equal(pack.unet(x, torch.tensor(7), encode_prompts(pack, OPTIONS, SHOWN).unet), plain)


@pytest.mark.parametrize("mode", [HIGH, LOW], ids=["high", "low"])
def test_one_stage_is_on_the_device(pack: Pack, placed: set[str], mode: Mode) -> None:
    residency = resident(pack, mode)
    for stage in STAGES:
        residency.enter(stage)
        assert placed == {name for name in pack.networks() if network_stage(name) == stage}


@pytest.mark.parametrize("mode", [HIGH, LOW, LEAST, Mode("min", 1, 1, half=True)], ids=str)
def test_networks_are_read_when_their_stage_begins_and_forgotten_when_it_ends(
    pack: Pack, mode: Mode, tmp_path: Path
) -> None:
    save_pack(pack, tmp_path)
    opened = open_pack(tmp_path)
    assert all(map(is_empty, opened.networks().values()))
    residency = resident(opened, mode)
    for stage in (*STAGES, *STAGES):  # a stage that is entered again is read again
        residency.enter(stage)
        there = {name for name, network in opened.networks().items() if not is_empty(network)}
        assert there == {name for name in opened.networks() if network_stage(name) == stage}
    for network in pack.networks().values():
        network.half().float()  # as the files hold them
    assert torch.equal(noise_of(residency), noise_of(resident(pack, HIGH)))
    residency.close()
    assert all(map(is_empty, opened.networks().values()))


def test_min_holds_one_layer_of_the_denoisers(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: dict[int, int] = {}
    peaks: list[int] = []
    load, unload = ModuleGroup._onload_from_memory, ModuleGroup._offload_to_memory

    def size(group: ModuleGroup) -> int:
        own = [p for module in group.modules for p in module.parameters()]
        return sum(p.nbytes for p in [*own, *group.parameters, *group.buffers])

    def onload(group: ModuleGroup) -> None:
        loaded[id(group)] = size(group)
        peaks.append(sum(loaded.values()))
        load(group)

    def offload(group: ModuleGroup) -> None:
        loaded.pop(id(group), None)
        unload(group)

    monkeypatch.setattr(ModuleGroup, "_onload_from_memory", onload)
    monkeypatch.setattr(ModuleGroup, "_offload_to_memory", offload)
    residency = resident(pack, LEAST)
    noise_of(residency)
    layers = [sum(p.nbytes for p in part.parameters(recurse=False)) for part in pack.unet.modules()]
    assert max(peaks) == max(layers)
    assert not loaded


def test_eight_bits_are_what_it_says(pack: Pack) -> None:
    residency = resident(pack, Mode("low", 1, 1, eight_bit=True), LEAST)
    result = noise_of(residency)
    small = {name for name, p in residency.pack.unet.named_parameters() if p.dtype == EIGHT_BIT}
    assert len(small) > 50
    assert not any(kept in name for name in small for kept in KEPT)
    reference = build_pack(tiny_config(), seed=0)
    for name, p in reference.unet.named_parameters():
        if name in small:
            p.data = p.data.to(EIGHT_BIT).float()
    expected = noise_of(resident(reference, HIGH))
    assert torch.equal(result, expected)
    residency.mode = LEAST
    assert torch.equal(noise_of(residency), expected)  # layer by layer, still in 8 bits


def test_eight_bits_follow_sixteen(pack: Pack, tmp_path: Path) -> None:
    save_pack(pack, tmp_path)
    half, eight = (Mode("min", 1, 1, half=True), Mode("min", 1, 1, eight_bit=True))
    first = resident(open_pack(tmp_path), half, eight)
    exact = noise_of(first)
    first.mode = eight  # as where memory ran out
    lowered = noise_of(first)
    assert torch.equal(lowered, noise_of(resident(open_pack(tmp_path), eight)))
    layers = [module for module in first.pack.unet.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert sum(layer.weight.dtype == EIGHT_BIT for layer in layers) > len(layers) // 2
    assert 0 < (lowered - exact).abs().max() < exact.abs().max()


def test_half_keeps_what_fp16_holds_and_changes_no_bit(pack: Pack) -> None:
    for network in (pack.unet, *pack.controlnets.values()):
        network.half().float()  # as loaded from fp16 files
    odd = pack.unet.unet.conv_in.weight
    odd.data[0, 0, 0, 0] = 1 + 2**-20
    expected = noise_of(resident(pack, HIGH))
    result = noise_of(resident(pack, Mode("min", 1, 1, half=True)))
    assert torch.equal(result, expected)
    assert odd.dtype == torch.float32
    bytes_now = sum(p.nbytes for p in pack.unet.parameters())
    assert bytes_now < 0.6 * 4 * sum(p.numel() for p in pack.unet.parameters())


def test_half_takes_files_of_any_precision(pack: Pack, tmp_path: Path) -> None:
    half = Mode("min", 1, 1, half=True)
    for dtype in (torch.bfloat16, torch.float32):
        save_pack(pack, tmp_path / str(dtype), dtype)
        plain, kept = (open_pack(tmp_path / str(dtype)) for _ in range(2))
        assert torch.equal(noise_of(resident(kept, half)), noise_of(resident(plain, HIGH)))


def test_a_full_memory_lowers_the_mode_once(pack: Pack, caplog: pytest.LogCaptureFixture) -> None:
    residency = resident(pack, HIGH, LOW, LEAST)
    seen: list[str] = []

    def attempt() -> int:
        seen.append(residency.mode.name)
        if len(seen) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 7

    assert residency.retried("denoise", attempt) == 7
    assert seen == ["high", "low"]
    assert "going on with --vram low" in caplog.text
    assert len(residency.history) == 2


def test_a_memory_that_is_always_full_ends_at_min(pack: Pack) -> None:
    residency = resident(pack, HIGH, LOW, LEAST)
    seen: list[str] = []

    def attempt() -> None:
        seen.append(residency.mode.name)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceMemoryError, match="ran out of memory, with --vram min too"):
        residency.retried("denoise", attempt)
    assert seen == ["high", "low", "min"]


def test_modes_that_save_nothing_in_this_stage_are_passed_over(pack: Pack) -> None:
    residency = resident(pack, Mode("low", 1, 8), Mode("low", 1, 4), LEAST)
    seen: list[Mode] = []

    def attempt() -> None:
        seen.append(residency.mode)
        if len(seen) == 1:
            raise torch.OutOfMemoryError

    residency.retried("denoise", attempt)
    assert seen == [Mode("low", 1, 8), LEAST]


def test_other_errors_lower_nothing(pack: Pack) -> None:
    residency = resident(pack, HIGH, LOW)
    with pytest.raises(RuntimeError, match="ours"):
        residency.retried("text", lambda: (_ for _ in ()).throw(RuntimeError("ours")))
    assert residency.mode is HIGH


def test_an_overflowing_autoencoder_decodes_again_in_fp32(
    pack: Pack, caplog: pytest.LogCaptureFixture
) -> None:
    latents = torch.randn(1, 4, 2, 4, 6, generator=torch.Generator().manual_seed(3))
    decode, dtypes = pack.vae.decode, []

    def overflowing(x: Tensor) -> Tensor:
        dtypes.append(x.dtype)
        video = decode(x)
        return video if x.dtype == torch.float32 else video * torch.inf

    residency = resident(pack, HIGH, dtype=torch.bfloat16)
    pack.vae.decode = overflowing  # type: ignore[method-assign]
    with torch.inference_mode():
        video = residency.retried("decode", lambda: residency.decode(latents))
        residency.decode(latents)
    assert dtypes == [torch.bfloat16, torch.float32, torch.float32]
    assert video.isfinite().all()
    assert torch.equal(video, decode(latents))
    assert "decoding in fp32" in caplog.text


def test_fp16_decodes_in_fp32(pack: Pack) -> None:
    assert resident(pack, HIGH, dtype=torch.float16).vae_dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [Mode("low", 1, 1, eight_bit=True), LEAST], ids=str)
def test_cuda_holds_less_than_high(pack: Pack, mode: Mode) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    place = Place(torch.device("cuda"), torch.float32)
    results, peaks = [], []
    for each in (HIGH, mode):
        torch.cuda.reset_peak_memory_stats()
        residency = Residency(build_pack(tiny_config(), seed=0), [each], SIZES, place)
        prompts = encode_prompts(residency.pack, OPTIONS, SHOWN, residency.enter)
        x = torch.randn(2, 4, 4, 4, 6, generator=torch.Generator().manual_seed(3)).cuda()
        with torch.inference_mode():
            results.append(residency.pack.unet(x, torch.tensor(7), prompts.unet).cpu())
        peaks.append(torch.cuda.max_memory_allocated())
        residency.close()
    tolerance = 0.5 if mode.eight_bit else 1e-5
    torch.testing.assert_close(results[1], results[0], atol=tolerance, rtol=tolerance)
    assert peaks[1] < peaks[0]
