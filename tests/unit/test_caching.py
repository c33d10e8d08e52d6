"""Laws of step caching: off it is nothing, on it is DeepCache; what is deep does not run in between."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dreamoving_cli.caching import StepCache, entering, full_steps, shallow_share
from dreamoving_cli.conditioning import Denoiser, ImagePrompts, encode_prompts
from dreamoving_cli.controls import Control
from dreamoving_cli.errors import UsageError
from dreamoving_cli.footprint import deep_values
from dreamoving_cli.models.layers import Deep
from dreamoving_cli.models.load import Pack
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.models.unet import VideoUNet
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.sampling import FrameNoise, Solver, denoise, make_scheduler
from dreamoving_cli.windows import SCHEDULES, Windows
from tests.controls import NoisePictures, moving_pack

FRAMES, SIDE = 9, 4
BRANCHES = range(4)  # the tiny U-Net's skip connections


@pytest.fixture(scope="module")
def pack() -> Pack:
    """A pose ControlNet without motion, a depth one with; nothing in them is the identity."""
    return moving_pack()


# ---- which steps


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ()),
        ({"cache_interval": 3}, (0, 3, 6)),
        ({"cache_interval": 10}, (0,)),
        ({"cache_interval": 3, "guidance_end": 0.5}, (0, 3, 4, 7)),  # guidance acts in steps 0 to 3
        ({"cache_interval": 3, "guidance_end": 0.5, "guidance_scale": 1.0}, (0, 3, 6)),
        ({"cache_interval": 3, "driver_guidance_scale": 1.5, "driver_guidance_start": 0.5}, (0, 3, 4, 7)),
        ({"cache_interval": 3, "driver_guidance_start": 0.5}, (0, 3, 6)),
        ({"cache_interval": 5, "pose": "p.mp4", "pose_scale": 0.0}, (0, 5)),
        (
            {"cache_interval": 5, "controls": [{"kind": "canny", "file": "c.mp4", "control_start": 0.25}]},
            (0, 2, 7),
        ),
    ],
)
def test_steps_are_full_where_something_begins_or_ends(options: Any, expected: tuple[int, ...]) -> None:
    assert full_steps(RenderOptions(steps=8, **options)) == expected


@given(
    st.builds(
        Windows,
        st.integers(1, 60),
        st.integers(8, 20),
        st.integers(0, 7),
        st.integers(1, 3),
        st.sampled_from(sorted(SCHEDULES)),
    ),
    st.integers(2, 5),
)
@settings(deadline=None, max_examples=40)
def test_windows_move_at_full_steps_only_and_as_ever(windows: Windows, interval: int) -> None:
    full = tuple(range(0, 12, interval))
    still = replace(windows, full_steps=full)
    for step in range(12):
        assert still.windows_at(step) == windows.windows_at(step // interval)


# ---- one pass


def reached(unet: VideoUNet) -> tuple[list[str], list[Any]]:
    """Names of the 2D and motion layers that run, noted while hooks last."""
    seen: list[str] = []
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: seen.append(name))
        for name, layer in unet.named_modules()
        if name.endswith((".conv1", ".proj_in", ".conv_in"))
    ]
    return seen, hooks


@pytest.mark.parametrize("branch", BRANCHES)
@torch.no_grad()
def test_a_shallow_pass_with_its_own_deep_part_is_the_full_one(pack: Pack, branch: int) -> None:
    """With two branches of guidance and a ControlNet whose deeper residuals are not computed."""
    x, t = torch.randn(2, 4, 3, SIDE, SIDE), torch.tensor(300)
    net, text = pack.controlnets["depth"], torch.randn(4, 5, 32)
    prompts, told = ([[(k, v, 1.0)] for k, v in model.text_keys(text)] for model in (pack.unet, net))
    embedded = torch.randn(6, 32, SIDE, SIDE)
    residuals = net(x, t, told, embedded)
    deep = Deep(branch)
    whole = pack.unet(x, t, prompts, residuals, deep=deep)
    assert torch.equal(whole, pack.unet(x, t, prompts, residuals))
    few = net(x, t, told, embedded, branch=branch)
    assert len(few) == branch + 1
    assert all(torch.equal(a, b) for a, b in zip(few, residuals, strict=False))
    seen, hooks = reached(pack.unet)
    assert torch.equal(pack.unet(x, t, prompts, few, deep=deep), whole)
    for hook in hooks:
        hook.remove()
    assert not [name for name in seen if "mid_block" in name]
    assert len({name for name in seen if name.endswith(".conv1") and "up_blocks" in name}) == branch + 1


@pytest.mark.parametrize("branch", BRANCHES)
@torch.no_grad()
def test_what_is_kept_is_known_before(pack: Pack, branch: int) -> None:
    """Channels and size, from the config alone."""
    deep = Deep(branch)
    prompts = [[(k, v, 1.0)] for k, v in pack.unet.text_keys(torch.randn(1, 5, 32))]
    pack.unet(torch.randn(1, 4, 3, SIDE, SIDE), torch.tensor(300), prompts, deep=deep)
    channels, level = entering(pack.config, branch)
    assert deep.kept is not None
    assert deep.kept.shape == (3, channels, SIDE // 2**level, SIDE // 2**level)


def test_the_plan_knows_the_work() -> None:
    """The deeper the branch, the less is saved; of a ControlNet that is cut short nearly nothing is left."""
    config = tiny_config()
    least, most = (shallow_share(config, ["pose"], branch) for branch in (0, 3))
    assert 0 < shallow_share(config, ["pose", "depth"], 0) < least < most < 1


def test_a_branch_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'tiny' has 4 skip connections\. Choose 0 to 3\."):
        entering(tiny_config(), 4)


# ---- a clip


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"window_batch": 2, "schedule": "static"}, {"guidance_scale": 3.0}),
    ({"context_stride": 2, "schedule": "loop"}, {"guidance_scale": 3.0, "guidance_end": 0.5}),
    ({"anchor_frames": 2, "cuts": (4,)}, {"guidance_scale": 2.0, "steps": 7}),
]


def rendered(pack: Pack, windows: Windows, options: RenderOptions, cache: StepCache | None = None) -> Tensor:
    """The latents of a clip that follows two controls, one of which ends early."""
    scheduler = make_scheduler("dpm++2m", options.steps, pack.config.scheduler.model_dump())
    prompts = encode_prompts(pack, options, ImagePrompts())
    controls = [
        Control("pose", NoisePictures(16 * SIDE), 0.7, 0.0, 0.7),
        Control("depth", NoisePictures(16 * SIDE), 0.5),
    ]
    model = Denoiser(pack, prompts, controls, scheduler.timesteps, windows, None, cache)
    solver = Solver(scheduler, FrameNoise(5, (pack.config.latent_channels, SIDE, SIDE)), FRAMES)
    return denoise(model.predict_noise, solver, windows, look=model.look)


def asked(interval: int, **options: Any) -> RenderOptions:
    controls = [{"kind": "pose", "control_end": 0.7}, {"kind": "depth"}]
    return RenderOptions(
        **{"prompt": "a", "steps": 5, "cache_interval": interval, "controls": controls, **options}
    )


@contextmanager
def replaced_inside(unet: VideoUNet, branch: int, full: Sequence[int], per_step: list[int]) -> Iterator[None]:
    """DeepCache done from outside: all is computed, then what enters the branch's layer is exchanged.

    per_step: how many passes each step has, the same from one full step to the next.
    """
    layers = [block for level in unet.unet.up_blocks for block in level.resnets]
    layer, kept, calls = layers[-1 - branch], list[Tensor](), iter(np.repeat(range(len(per_step)), per_step))
    where = {"index": 0, "step": -1}

    def begin(*_: Any) -> None:
        step = int(next(calls))
        if step != where["step"]:
            where.update(index=0, step=step)
            if step in full:
                kept.clear()
        else:
            where["index"] += 1

    def exchanged(_: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        channels = given[0].shape[1] - skip_channels(unet, branch)
        deep, skip = given[0][:, :channels], given[0][:, channels:]
        if where["step"] in full:
            kept[where["index"] :] = [deep]
        return (torch.cat([kept[where["index"]], skip], 1),)

    hooks = [unet.register_forward_pre_hook(begin)]
    hooks += [part.register_forward_pre_hook(exchanged) for part in (layer.norm1, layer.conv_shortcut)]
    yield
    for hook in hooks:
        hook.remove()


def skip_channels(unet: VideoUNet, branch: int) -> int:
    return [32, 32, 32, 64][branch]


@pytest.mark.parametrize(
    ("placing", "options", "branch"), [(*c, b) for c, b in zip(CASES, (3, 0, 1, 0), strict=True)]
)
def test_a_clip_is_the_one_whose_deep_part_is_exchanged(
    pack: Pack, placing: dict[str, Any], options: dict[str, Any], branch: int
) -> None:
    wanted = asked(2, **options)
    full = full_steps(wanted)
    windows = replace(Windows(FRAMES, 6, 3, **placing), full_steps=full)
    found = rendered(pack, windows, wanted, StepCache(full, wanted.steps, branch))
    passes = [len(windows.batches_at(s)) + bool(windows.anchors) for s in range(wanted.steps)]
    with replaced_inside(pack.unet, branch, full, passes):
        expected = rendered(pack, windows, wanted)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, rendered(pack, windows, wanted), atol=1e-3)  # it is no small thing


@pytest.mark.parametrize(("placing", "options"), CASES[1::2])
def test_interval_1_is_off(
    pack: Pack, placing: dict[str, Any], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = asked(1, **options)
    windows = Windows(FRAMES, 6, 3, **placing)
    before = rendered(pack, windows, wanted)
    monkeypatch.setattr(Deep, "__init__", lambda *_, **__: pytest.fail("something was kept"))
    full = full_steps(wanted)
    found = rendered(pack, replace(windows, full_steps=full), wanted, StepCache(full, wanted.steps, 0))
    assert torch.equal(found, before)


def test_what_is_deep_runs_at_full_steps_only(pack: Pack) -> None:
    wanted = asked(3, guidance_scale=3.0, steps=8, controls=[])
    full = full_steps(wanted)
    windows = Windows(FRAMES, 6, 3, anchor_frames=2, full_steps=full)
    counts = {"deep": 0, "shallow": 0, "control": 0}
    networks = {
        "deep": pack.unet.unet.mid_block.resnets[0].conv1,
        "shallow": pack.unet.unet.conv_in,
        "control": pack.controlnets["depth"].controlnet.mid_block.resnets[0].conv1,
    }

    def count(name: str) -> Any:
        return networks[name].register_forward_hook(lambda *_: counts.update({name: counts[name] + 1}))

    hooks = [count(name) for name in networks]
    rendered(pack, windows, wanted, StepCache(full, wanted.steps, 0))
    for hook in hooks:
        hook.remove()
    passes = [len(windows.batches_at(step)) + 1 for step in range(wanted.steps)]
    assert full == (0, 3, 6)
    assert counts["shallow"] == sum(passes)
    assert counts["deep"] == counts["control"] == sum(passes[step] for step in full)


@pytest.mark.parametrize(
    "guidance", [{}, {"guidance_scale": 1.0, "driver_guidance_scale": 1.5}, {"driver_guidance_scale": 1.5}]
)
def test_the_plan_knows_how_much_is_kept(pack: Pack, guidance: dict[str, float]) -> None:
    pixels = SIDE * pack.config.pixel_factor
    wanted = asked(4, size=f"{pixels}x{pixels}", **guidance)
    full = full_steps(wanted)
    windows = Windows(FRAMES, 6, 3, anchor_frames=2, full_steps=full)
    planned = deep_values(pack.config, wanted, windows)
    without_windows = replace(windows, anchor_frames=0)
    rendered(pack, windows, wanted, cache := StepCache(full, wanted.steps, 0))
    found = sum(kept.numel() for kept in cache._kept.values())
    looks = planned - deep_values(pack.config, wanted, without_windows)
    assert found <= planned
    assert planned - found <= looks  # anchor frames are looked at in a pass of their own, without the third


def test_no_more_is_kept_than_the_next_steps_need(pack: Pack) -> None:
    """Nothing after the last full step before another one, and one group of steps at a time."""
    cache, device = StepCache((0, 1, 4), 5, 0), torch.device("cpu")
    held = []
    for step in range(5):
        for windows in ([[0, 1]], [[1, 2]]):
            with cache.of(step, windows, True, device) as deep:
                if deep is not None and deep.kept is None:
                    deep.kept = torch.full((2, 1), float(step))
        held.append([float(x[0]) for x in cache._kept.values()])
    assert held == [[], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0], []]


def test_windows_nobody_announced_are_computed_in_full() -> None:
    cache, device = StepCache((0,), 3, 0), torch.device("cpu")
    with cache.of(0, [[0, 1]], True, device) as deep:
        assert deep is not None
        deep.kept = torch.zeros(2, 1)
    for windows, use_motion in (([[0, 2]], True), ([[0, 1]], False)):
        with cache.of(1, windows, use_motion, device) as deep:
            assert deep is None
