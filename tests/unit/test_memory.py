"""Memory modes: what each needs by estimate, which one is chosen, and what is refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamoving_cli.device import GIB
from dreamoving_cli.errors import DeviceMemoryError
from dreamoving_cli.memory import NAMES, STAGES, Mode, Sizes, choose, ladder, need, network_stage, stage_need

COUNTS = {  # of Stable Diffusion 1.5 with a motion module, two ControlNets and an IP-Adapter
    "unet": 1_313_000_000,
    "controlnet_pose": 361_000_000,
    "controlnet_depth": 361_000_000,
    "guider": 50_000_000,
    "vae": 84_000_000,
    "text_encoder": 123_000_000,
    "image_encoder": 632_000_000,
}
CELLS = 64 * 64


def full_size(device: str, frames: int = 16) -> Sizes:
    """512x512 in 16 bits, in fp32 on the CPU."""
    itemsize = 4 if device == "cpu" else 2
    return Sizes(
        weights=COUNTS,
        itemsize=itemsize,
        latents=frames * 4 * CELLS * 4,
        window=2 * 16 * CELLS * 320 * itemsize * 30,
        frame=512 * 512 * 768 * itemsize,
        frame_pixels=512 * 512,
        on_cpu=device == "cpu",
    )


def modes_of(asked: str, device: str = "cuda", frames: int = 8) -> list[Mode]:
    return ladder(asked, ((2,), frames), device, tiles=True, half=True)


@given(
    weights=st.fixed_dictionaries({name: st.integers(1, 10**9) for name in COUNTS}),
    work=st.tuples(*[st.integers(1, 10**10)] * 3),
    device=st.sampled_from(["cpu", "cuda", "mps"]),
    frames=st.integers(1, 64),
)
def test_no_mode_needs_more_than_the_one_above_it(
    weights: dict[str, int], work: tuple[int, int, int], device: str, frames: int
) -> None:
    latents, window, frame = work
    sizes = Sizes(weights, 4 if device == "cpu" else 2, latents, window, frame, 10**6, device == "cpu")
    for asked in ("auto", "low", "min"):
        needs = [need(mode, sizes) for mode in modes_of(asked, device, frames)]
        assert needs == sorted(needs, reverse=True)


def test_every_network_has_one_stage() -> None:
    assert {network_stage(name) for name in COUNTS} == set(STAGES)


@pytest.mark.parametrize(
    ("free_gib", "expected"),
    [(80, "high"), (8, "low"), (7, "low"), (5.2, "low: 1 frame decoded at once, 8-bit"), (3.5, "min")],
)
def test_auto_takes_the_highest_mode_that_fits(free_gib: float, expected: str) -> None:
    chosen = choose("auto", modes_of("auto"), full_size("cuda"), int(free_gib * GIB), "cuda")
    assert str(chosen[0]).startswith(expected)
    assert need(chosen[0], full_size("cuda")) <= free_gib * GIB
    assert chosen[-1].name == "min"  # to fall back on


def test_frames_are_decoded_by_as_many_as_fit() -> None:
    sizes = full_size("cuda")
    batches = [
        choose("low", modes_of("low", frames=32), sizes, int(gib * GIB), "cuda")[0].decode_batch
        for gib in (80, 10, 7)
    ]
    assert batches == sorted(batches, reverse=True)
    assert batches[0] == 32
    assert batches[-1] < 32


@pytest.mark.parametrize("asked", NAMES)
def test_a_mode_asked_for_by_name_is_kept_or_refused(asked: str) -> None:
    for device in ("cpu", "cuda"):
        sizes = full_size(device)
        assert choose(asked, modes_of(asked, device), sizes, 80 * GIB, device)[0].name == asked
        with pytest.raises(DeviceMemoryError, match=r"1\.0 GiB free") as refusal:
            choose(asked, modes_of(asked, device), sizes, GIB, device)
        assert refusal.value.exit_code == 5
        assert ("--vram" in str(refusal.value)) is True


def test_low_holds_one_stage_and_min_one_layer() -> None:
    sizes = full_size("cuda")
    high, low, least = (Mode(name, 1, 1) for name in NAMES)
    for stage in STAGES:
        assert stage_need(least, sizes, stage) <= stage_need(low, sizes, stage)
        assert stage_need(low, sizes, stage) == stage_need(high, sizes, stage)
    saved = stage_need(low, sizes, "denoise") - stage_need(least, sizes, "denoise")
    denoisers = sum(COUNTS[name] for name in ("unet", "controlnet_pose", "controlnet_depth"))
    assert saved > 0.9 * 2 * denoisers


def test_latents_are_all_that_grows_with_the_clip() -> None:
    for device in ("cpu", "cuda"):
        mode = Mode("low", 1, 1)
        grown = need(mode, full_size(device, 1000)) - need(mode, full_size(device, 100))
        assert grown == 900 * 4 * CELLS * 4
        assert grown < 0.05 * need(mode, full_size(device, 100))


def test_half_keeps_as_many_bytes_as_the_files_hold_in_16_bits() -> None:
    """The usual files: all in fp16 but the motion blocks, 454 million numbers of the U-Net's 1,313."""
    sizes = full_size("cpu")
    assert not sizes.half_saves
    motion = 454_000_000
    kept = {name: 2 * n for name, n in COUNTS.items() if name.startswith(("unet", "controlnet_"))}
    usual = replace(sizes, kept=kept | {"unet": kept["unet"] + 2 * motion})
    assert usual.half_saves
    half, whole = Mode("min", 1, 1, half=True), Mode("min", 1, 1)
    saved = stage_need(whole, usual, "denoise") - stage_need(half, usual, "denoise")
    assert saved == sum(kept.values()) - 2 * motion
    assert stage_need(half, usual, "text") == stage_need(whole, usual, "text")
