"""Whole renders on a tiny random pack: real files in, a real mp4 out, and the laws that hold for them."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dreamoving_cli import paths
from dreamoving_cli.errors import InputError, OutputError, UsageError, WeightsError
from dreamoving_cli.extract.keypoints import NUM_POINTS, Poses, save_poses
from dreamoving_cli.media.images import write_image
from dreamoving_cli.media.video import open_clip, probe
from dreamoving_cli.media.writer import write_video
from dreamoving_cli.models.load import Pack, build_pack, open_pack, save_pack
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.options import SAMPLERS, RenderOptions
from dreamoving_cli.outputs import record_path
from dreamoving_cli.presets import load_preset
from dreamoving_cli.record import record_matches
from dreamoving_cli.render import plan, render
from dreamoving_cli.resume import state_path

FRAMES, HEIGHT, WIDTH = 14, 64, 96
NTSC = Fraction(30000, 1001)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of random weights in which nothing is zero, so that every input changes the picture."""
    pack = build_pack(tiny_config(), seed=0)
    generator = torch.Generator().manual_seed(1)
    for network in pack.networks().values():
        for weights in network.parameters():
            if not weights.any():
                weights.data = 0.1 * torch.randn(weights.shape, generator=generator)
    folder = tmp_path_factory.mktemp("packs") / "tiny"
    save_pack(pack, folder)
    return folder


@lru_cache
def opened(folder: Path, controls: tuple[str, ...]) -> Pack:
    """A pack is not changed by rendering: each is built once, and read again by every render."""
    return open_pack(folder, controls)


@pytest.fixture(autouse=True)
def tiny_pack(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(paths, "MINI", tiny_folder)
    monkeypatch.setattr(
        "dreamoving_cli.render.open_pack",
        lambda folder, controls: opened(folder, tuple(sorted(controls))),
    )
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def poses(tmp_path: Path) -> Path:
    """A keypoints file: one person whose points wander."""
    rng = np.random.default_rng(0)
    start = rng.uniform(10, 60, (1, 1, NUM_POINTS, 2))
    drift = rng.normal(0, 1, (FRAMES, 1, NUM_POINTS, 2)).cumsum(0)
    points = (start + drift).clip(2, 60).astype(np.float32)
    scores = np.ones((FRAMES, 1, NUM_POINTS), np.float32)
    return save_poses(tmp_path / "pose.json", Poses(NTSC, HEIGHT, WIDTH, points, scores))


@pytest.fixture
def depth(tmp_path: Path) -> Path:
    """A depth map video: a ramp that moves."""
    ramp = np.linspace(0, 255, WIDTH, dtype=np.uint8)
    frames = np.stack([np.roll(np.broadcast_to(ramp, (HEIGHT, WIDTH)), 4 * k, 1) for k in range(FRAMES)])
    tags = {"dreamoving_kind": "depth"}
    return write_video(tmp_path / "depth.mp4", [np.stack([frames] * 3, -1)], NTSC, metadata=tags)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    return write_image(path, np.random.default_rng(1).integers(0, 255, (60, 40, 3), dtype=np.uint8))


def options(pose: Path | None, **values: Any) -> RenderOptions:
    context = {"context_frames": 8, "context_overlap": 2, **values.pop("context", {})}
    return RenderOptions(
        **{
            "pose": pose,
            "model": "mini",
            "steps": 3,
            "seed": 5,
            "context": context,
            "prompt": "a dancer",
            **values,
        }
    )


def pixels(path: Path) -> np.ndarray:
    with open_clip(path) as clip:
        return clip.read(range(clip.num_frames))


def difference(a: Path, b: Path) -> int:
    """The largest difference of any pixel."""
    return int(np.abs(pixels(a).astype(int) - pixels(b)).max())


def render_png(asked: RenderOptions, output: Path, **how: Any) -> np.ndarray:
    """Lossless pixels of a render: f h w c."""
    folder = render(asked.replace(codec="png"), output, "cpu", **how)
    return np.concatenate([pixels(file) for file in sorted(folder.glob("*.png"))])


def test_a_video_comes_out_with_the_drivers_rate_length_and_shape(poses: Path, tmp_path: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    path = render(options(poses), tmp_path / "out.mp4", "cpu", on_progress=lambda *s: stages.append(s))
    info = probe(path)
    assert (info.fps, info.num_frames, info.height, info.width) == (NTSC, FRAMES, HEIGHT, WIDTH)
    assert stages[0] == ("denoise", 0, 3)
    assert ("denoise", 3, 3) in stages
    assert stages[-1] == ("decode", FRAMES, FRAMES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mp4", "out.mp4.dreamoving.yaml", "pose.json"]
    assert pixels(path).std() > 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_interrupted_render_goes_on_bit_for_bit(sampler: str, poses: Path, tmp_path: Path) -> None:
    steps = 2
    asked = options(poses, sampler=sampler, steps=4, shared_noise=0.2)
    whole = render_png(asked, tmp_path / "whole")

    def interrupt(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("denoise", steps):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_png(asked, tmp_path / "again", on_progress=interrupt)
    assert state_path(tmp_path / "again").is_file()
    assert not (tmp_path / "again").exists()
    seen: list[tuple[str, int]] = []
    again = render_png(
        asked, tmp_path / "again", resume=True, on_progress=lambda s, d, n: seen.append((s, d))
    )
    assert seen[0] == ("denoise", steps)
    assert np.array_equal(whole, again)
    assert not state_path(tmp_path / "again").exists()


def test_a_render_interrupted_while_decoding_only_decodes_again(poses: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "decode":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(options(poses), tmp_path / "out.mp4", "cpu", on_progress=interrupt)
    assert not (tmp_path / "out.mp4").exists()
    seen: list[tuple[str, int]] = []
    render(
        options(poses, decode_batch=3),  # only touches the decoding
        tmp_path / "out.mp4",
        "cpu",
        resume=True,
        on_progress=lambda s, d, n: seen.append((s, d)),
    )
    assert seen[0] == ("denoise", 3)


def test_a_changed_render_is_not_gone_on_with(poses: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(options(poses), tmp_path / "out.mp4", "cpu", on_progress=interrupt)
    with pytest.raises(UsageError, match="prompt a dancer, now it is a singer"):
        render(options(poses, prompt="a singer"), tmp_path / "out.mp4", "cpu", resume=True)


def test_a_resumed_render_keeps_the_seed_that_was_drawn(poses: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    asked = options(poses, seed=None)
    with pytest.raises(KeyboardInterrupt):
        render(asked, tmp_path / "out.mp4", "cpu", on_progress=interrupt)
    drawn = torch.load(state_path(tmp_path / "out.mp4"))["fixed"]["seed"]
    output = render(asked, tmp_path / "out.mp4", "cpu", resume=True)
    assert yaml.safe_load(record_path(output).read_text())["seed"] == drawn


def test_the_record_is_a_preset_that_repeats_the_render(poses: Path, picture: Path, tmp_path: Path) -> None:
    asked = options(poses, seed=None, cloth=picture)
    first = render_png(asked, tmp_path / "first")
    again = render_png(load_preset(record_path(tmp_path / "first")), tmp_path / "second")
    assert np.array_equal(first, again)


def test_the_record_knows_its_render(poses: Path, picture: Path, tmp_path: Path) -> None:
    asked = options(poses, seed=None, cloth=picture)
    output = render(asked, tmp_path / "out.mp4", "cpu")
    seed = yaml.safe_load(record_path(output).read_text())["seed"]
    assert record_matches(output, asked)
    assert record_matches(output, asked.replace(seed=seed))
    assert not record_matches(output, asked.replace(seed=seed ^ 1))
    assert not record_matches(output, asked.replace(prompt="a singer"))
    write_image(picture, np.zeros((60, 40, 3), np.uint8), overwrite=True)
    assert not record_matches(output, asked)


def test_the_result_does_not_depend_on_the_window_batch(poses: Path, depth: Path, tmp_path: Path) -> None:
    results = [
        render_png(options(poses, depth=depth, context={"window_batch": batch}), tmp_path / str(batch))
        for batch in (1, 3, None)
    ]
    assert np.abs(results[0].astype(int) - results[1]).max() <= 1
    assert np.abs(results[0].astype(int) - results[2]).max() <= 1


def test_the_plan_chooses_how_many_windows_at_once(
    poses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says the number and why, and the record's preset has it; a state goes on with its own."""
    asked = options(poses, seed=5)

    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    whole = render_png(asked, tmp_path / "whole")
    record = yaml.safe_load(record_path(tmp_path / "whole").read_text())
    count = record["context"]["window_batch"]
    assert count > 1
    assert plan(asked, "cpu").at_once.startswith(f"{count} windows (")
    assert record["record"]["vram"][0].startswith(f"high: {count} windows denoised")
    assert record["record"]["requested"]["context"]["window_batch"] is None
    with pytest.raises(KeyboardInterrupt):
        render_png(asked, tmp_path / "again", on_progress=interrupt)
    monkeypatch.setattr("dreamoving_cli.batching.CPU_NUMBERS", 1)  # as for larger pictures
    assert plan(asked, "cpu").at_once.startswith("1 window (")
    assert np.array_equal(render_png(asked, tmp_path / "again", resume=True), whole)
    assert record_matches(tmp_path / "again", asked.replace(codec="png"))


def test_the_result_does_not_depend_on_the_decode_batch(poses: Path, tmp_path: Path) -> None:
    results = [render_png(options(poses, decode_batch=n), tmp_path / str(n)) for n in (1, 7)]
    assert np.abs(results[0].astype(int) - results[1]).max() <= 1


CHANGES: list[dict[str, Any]] = [
    {"prompt": "a singer"},
    {"seed": 6},
    {"pose_scale": 0.5},
    {"guidance_scale": 1.0},
    {"shared_noise": 0.5},
    {"anchor_frames": 2},
    {"cloth_strength": 0.4},
    {"style_strength": 0.4},
    {"context": {"schedule": "static"}},
    {"context": {"schedule": "loop"}},
]


def test_every_option_changes_the_picture(poses: Path, picture: Path, tmp_path: Path) -> None:
    base = {"cloth": picture, "style": picture, "steps": 2}
    plain = render_png(options(poses, **base), tmp_path / "plain")
    for k, change in enumerate(CHANGES):
        changed = render_png(options(poses, **base, **change), tmp_path / str(k))
        assert not np.array_equal(plain, changed), change


def test_strength_and_scale_zero_cost_and_change_nothing(
    poses: Path, depth: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = render_png(options(poses), tmp_path / "plain")
    monkeypatch.setattr(Pack, "image_tokens", lambda *_: pytest.fail("a picture of strength 0 was encoded"))
    off = options(poses, depth=depth, depth_scale=0.0, style=picture, style_strength=0.0)
    assert np.array_equal(plain, render_png(off, tmp_path / "off"))


def test_a_control_acts_between_its_start_and_end(poses: Path, depth: Path, tmp_path: Path) -> None:
    def with_depth(name: str, **control: float) -> np.ndarray:
        controls = ({"kind": "depth", "file": depth, **control},)
        return render_png(options(poses, controls=controls, steps=4), tmp_path / name)

    never = with_depth("never", control_start=0.9, control_end=0.95)
    early, late = with_depth("early", control_end=0.5), with_depth("late", control_start=0.5)
    assert np.array_equal(never, render_png(options(poses, steps=4), tmp_path / "plain"))
    assert not np.array_equal(early, late)
    assert not np.array_equal(early, never)


def test_face_cloth_and_style_work_together(
    poses: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The face detector needs a face, and a random picture has none: it is cut by hand here."""
    monkeypatch.setattr("dreamoving_cli.extract.face.crop_face", lambda image, name: image[:32, :32])
    shown = {"face": picture, "cloth": picture, "style": picture}
    all_three = render_png(options(poses, **shown), tmp_path / "all")
    without_face = render_png(options(poses, **shown, face_strength=0.0), tmp_path / "two")
    assert not np.array_equal(all_three, without_face)


def test_a_pose_map_video_drives_as_its_keypoints_do(poses: Path, tmp_path: Path) -> None:
    from dreamoving_cli.extract.keypoints import load_poses
    from dreamoving_cli.extract.pose import pose_maps

    tags = {"dreamoving_kind": "pose"}
    maps = write_video(tmp_path / "map.mp4", pose_maps(load_poses(poses)), NTSC, metadata=tags)
    from_map, from_json = (render_png(options(source), tmp_path / source.stem) for source in (maps, poses))
    assert from_map.shape == from_json.shape
    assert np.abs(from_map.astype(int) - from_json).mean() < 8


def test_sound_rate_and_stretch_follow_the_driver(make_video: Callable[..., Path], tmp_path: Path) -> None:
    driver = make_video("ntsc.mp4", 36, height=64, width=96, sound_s=1.2)
    asked = options(driver, pose_kind="map")
    whole = probe(render(asked, tmp_path / "whole.mp4", "cpu"))
    assert (whole.fps, whole.num_frames, whole.has_audio) == (NTSC, 36, True)
    part = probe(render(asked.replace(start_s="0.5", num_frames=9), tmp_path / "part.mp4", "cpu"))
    assert (part.num_frames, part.has_audio) == (9, True)
    silent = probe(render(asked.replace(audio=False, fps="10"), tmp_path / "silent.mp4", "cpu"))
    assert (silent.fps, silent.num_frames, silent.has_audio) == (10, 12, False)


def test_a_fast_driver_is_halved_and_said(
    make_video: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver = make_video("fast.mp4", 24, height=64, width=96, fps=Fraction(60))
    asked = options(driver, pose_kind="map")
    assert probe(render(asked, tmp_path / "half.mp4", "cpu")).fps == 30
    assert "--fps source" in caplog.text
    assert plan(asked.replace(fps="source"), "cpu").fps == "60"


def test_the_plan_tells_what_a_render_will_do(poses: Path, depth: Path) -> None:
    told = plan(options(poses, depth=depth, model="auto", context={"context_frames": None}), "cpu")
    assert (told.model, told.size, told.frames, told.fps) == ("tiny", "96x64", FRAMES, "30000/1001")
    middle = FRAMES // 2
    assert told.windows == f"1 of 16 frames, overlap 2, uniform, pyramid, anchor frames {middle}"
    assert 0.1 < told.memory_gib < 2
    assert any("miniature" in note for note in told.notes)
    assert len(told.controls) == 2


def refused(asked: RenderOptions, folder: Path) -> str:
    with pytest.raises((UsageError, InputError, WeightsError, OutputError)) as refusal:
        render(asked, folder / "out.mp4", "cpu")
    assert not list(folder.glob("*out*"))
    return str(refusal.value)


def test_what_cannot_be_done_is_refused_before_anything_is_loaded(
    poses: Path,
    depth: Path,
    make_video: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    video = make_video("video.mp4", 20)
    monkeypatch.setattr("dreamoving_cli.render.open_pack", lambda *_, **__: pytest.fail("a pack was loaded"))
    assert "nothing to follow" in refused(options(None), tmp_path)
    assert "nothing to follow" in refused(options(poses, pose_scale=0.0), tmp_path)
    assert "96x64 is near" in refused(options(poses, size="100x70"), tmp_path)
    assert "has no control 'canny'" in refused(
        options(poses, controls=({"kind": "canny", "file": video},)), tmp_path
    )
    assert "sd15" in refused(options(poses, model="sd15"), tmp_path)
    assert "overlap" in refused(
        options(poses, context={"context_frames": None, "context_overlap": 16}), tmp_path
    )
    assert "holds depth pictures" in refused(options(depth), tmp_path)
    assert "none.png" in refused(options(poses, cloth=tmp_path / "none.png"), tmp_path)
    assert "none.mp4" in refused(options(tmp_path / "none.mp4"), tmp_path)
    assert "1 to 50" in refused(options(poses, sampler="lcm", steps=60), tmp_path)
    assert "start is 9 s" in refused(options(poses, start_s="9"), tmp_path)
    assert "GiB" in refused_for_memory(options(poses), tmp_path, monkeypatch)


def refused_for_memory(asked: RenderOptions, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    from dreamoving_cli.errors import DeviceMemoryError

    monkeypatch.setattr("dreamoving_cli.plan.available_gib", lambda device: 0.01)
    with pytest.raises(DeviceMemoryError) as refusal:
        render(asked, folder / "out.mp4", "cpu")
    return str(refusal.value)


def test_a_control_that_ends_too_early_is_refused(
    poses: Path, make_video: Callable[..., Path], tmp_path: Path
) -> None:
    short = make_video("short.mp4", 10, height=64, width=96)
    assert "ends 0.13 s before" in refused(
        options(poses, controls=({"kind": "depth", "file": short},)), tmp_path
    )


def test_an_existing_output_is_kept_unless_told(poses: Path, tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_bytes(b"precious")
    with pytest.raises(OutputError, match="already exists"):
        render(options(poses), tmp_path / "out.mp4", "cpu")
    assert (tmp_path / "out.mp4").read_bytes() == b"precious"
    render(options(poses, num_frames=3), tmp_path / "out.mp4", "cpu", overwrite=True)
    assert probe(tmp_path / "out.mp4").num_frames == 3
