"""Training on a few tiny clips: what a stage changes, what a checkpoint keeps, what workers share."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba", reason="the renderer needs the extra `train`")
from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.models.load import Pack, load_pack
from dreamoving_cli.train import agreement, loop, losses, synth
from dreamoving_cli.train.data import ClipStore
from dreamoving_cli.train.latents import has_statistics, parse_shard, prepare_latents
from dreamoving_cli.train.loop import Run, Trainer, settings, train
from dreamoving_cli.train.losses import clip_noise, reconstruction_loss, sharpened
from dreamoving_cli.train.report import gradient_energy, person_box, psnr, report_autoencoder, report_poses
from dreamoving_cli.train.stages import STAGES
from dreamoving_cli.train.start import learn_words, require_clips
from dreamoving_cli.train.start import start as start_run
from dreamoving_cli.train.synth import HELD_OUT
from tests.clips import clips_config, random_pack, write_clips

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = (0, 2, 3, HELD_OUT)  # of two sizes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips with latents; one is held out."""
    return write_clips(tmp_path_factory.mktemp("clips"), SEEDS)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    assert random_pack(folder, data) == len(SEEDS)
    return folder


def trainer(stage: str, data: Path, out: Path, start: Path, rank: int = 0, **run: Any) -> Trainer:
    """A trainer of two-frame clips; steps and batch are small."""
    out.mkdir(exist_ok=True)
    values = {"steps": 4, "batch": 2, "seed": 3, **run}
    this = Run(stage, data, out, start, **values)
    wanted = settings(this)
    return Trainer(this, replace(wanted, frames=min(wanted.frames, 2)), load_pack(start), rank)


def weights(pack: Pack) -> dict[str, torch.Tensor]:
    return {f"{net}.{n}": v.clone() for net, m in pack.networks().items() for n, v in m.state_dict().items()}


# --- data


@given(st.lists(st.integers(0, 2 * HELD_OUT), max_size=20, unique=True))
def test_a_clip_is_for_training_or_held_out(seeds: list[int]) -> None:
    kept = [s for s in seeds if s < HELD_OUT]
    assert set(kept).isdisjoint(s for s in seeds if s >= HELD_OUT)
    assert all((s >= HELD_OUT) == (s not in kept) for s in seeds)


def test_training_never_sees_what_is_held_out(data: Path) -> None:
    training, held_out = ClipStore(data), ClipStore(data, held_out=True)
    assert training.seeds == [0, 2, 3]
    assert held_out.seeds == [HELD_OUT]
    assert HELD_OUT not in {s for bucket in training.buckets.values() for s in bucket}
    opened: set[int] = set()
    array = training.array
    training.array = lambda seed, name: opened.add(int(seed)) or array(seed, name)  # type: ignore[method-assign]
    for step in range(10):
        training.crops(np.random.default_rng(step), 4, side=32)
    assert opened == {0, 2, 3}


def test_a_clip_is_written_once_and_large_arrays_first(data: Path) -> None:
    when = (data / "0.npz").stat().st_mtime_ns
    assert synth.write_clip(data, [], 0) == data / "0.npz"
    assert (data / "0.npz").stat().st_mtime_ns == when
    for name in synth.LARGE:
        assert (data / f"0.{name}.npy").stat().st_mtime_ns <= when


def test_a_batch_is_of_one_size_and_drawn_from_its_generator(data: Path, start: Path) -> None:
    store = ClipStore(data)
    one, again = (store.batch(np.random.default_rng(1), 3, 2) for _ in range(2))
    assert one.latents.shape[:3] == (3, 4, 2)
    height, width = (16 * cells for cells in one.latents.shape[3:])
    assert one.controls["pose"].shape == one.controls["depth"].shape == (3, 3, 2, height, width)
    assert {kind: tuple(p.shape) for kind, p in one.pictures.items()} == dict.fromkeys(
        ("face", "cloth", "style"), (3, 3, 128, 128)
    )
    assert one.captions == again.captions
    torch.testing.assert_close(one.latents, again.latents, rtol=0, atol=0)
    for control in one.controls.values():
        assert control.min() >= 0
        assert control.max() <= 1


def test_latents_are_normalized_and_written_once(data: Path, start: Path) -> None:
    pack = load_pack(start)
    assert has_statistics(pack)
    assert prepare_latents(start, data) == 0
    store = ClipStore(data)
    cells = [np.moveaxis(store.array(s, "latents"), 1, 0).reshape(4, -1) for s in store.seeds]
    every = np.concatenate(cells, axis=1).astype(np.float32)
    np.testing.assert_allclose(every.mean(1), 0, atol=0.2)
    assert np.square(every).mean() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("shard", ["2/2", "x", "1", "-1/2", "1/0"])
def test_a_shard_is_k_of_n(shard: str) -> None:
    assert parse_shard("1/2") == (1, 2)
    with pytest.raises(UsageError, match=f"shard is '{shard}'"):
        parse_shard(shard)


def test_words_are_learned_from_the_captions(data: Path) -> None:
    wanted = clips_config().model_copy(update={"text": {**clips_config().text, "vocab_size": 560}})
    words = learn_words(data, wanted)
    assert 514 < len(words) <= 560
    assert words.model_max_length == 32
    caption = str(ClipStore(data).facts(0)["captions"][0])
    assert len(words(caption).input_ids) < len(caption)
    assert words.decode(words(caption).input_ids, skip_special_tokens=True).replace(
        " ", ""
    ) == caption.replace(" ", "")


def test_a_folder_without_clips_is_refused_with_the_command_that_makes_some(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no held-out clips in '.*'\. Render some: .* synth --first 1000000"
    ):
        require_clips(tmp_path, held_out=True)


def test_clips_without_latents_are_refused_with_the_command_that_makes_them(tmp_path: Path) -> None:
    write_clips(tmp_path, [0, 1])
    (tmp_path / "0.latents.npy").touch()
    with pytest.raises(InputError, match=r"1 of 2 clips in '.*' have no latents\. Run: .* latents --pack"):
        start_run(Run("picture", tmp_path, tmp_path / "out", tmp_path / "pack"))


@pytest.mark.parametrize(("stage", "needed"), [("correction", 5), ("long-frames", 16)])
def test_clips_too_short_for_a_stage_are_refused_with_the_flag_that_makes_longer_ones(
    stage: str, needed: int, tmp_path: Path
) -> None:
    write_clips(tmp_path, [0])
    wanted = rf"has the {needed} frames the stage needs; the longest has 4\. .* synth --frames {needed}"
    with pytest.raises(InputError, match=wanted):
        start_run(Run(stage, tmp_path, tmp_path / "out", tmp_path / "pack"))
    assert not (tmp_path / "out").exists()


def test_pictures_stray_by_every_distance(
    data: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, asked = trainer("correction", data, tmp_path / "run", start), set[int]()
    monkeypatch.setattr(made.store, "batch", lambda rng, count, length: asked.add(length) or made_batch)
    made_batch = ClipStore(data).batch(np.random.default_rng(0), 2, 4)
    for step in range(40):
        batch = made.batch(np.random.default_rng(step), 2)
        assert batch.latents.shape[2] == 1
        assert batch.other is not None
        assert batch.latents.shape == batch.other.shape
    assert asked == {2, 3, 4, 5}
    assert made.stage.longest_run == 5


# --- losses


def test_noise_of_a_clip_has_unit_variance_and_a_common_share() -> None:
    noise = clip_noise((1, 4, 8, 64, 64), torch.Generator().manual_seed(0), 0.5)
    assert noise.var().item() == pytest.approx(1, abs=0.02)
    shared = (noise[:, :, 0] * noise[:, :, 5]).mean().item()
    assert shared == pytest.approx(0.5, abs=0.03)
    still = clip_noise((4, 4, 1, 64, 64), torch.Generator().manual_seed(0), 0.5)
    assert still.var().item() == pytest.approx(1, abs=0.03)


# --- stages

TRAINED = {
    "autoencoder": {"vae"},
    "picture": {
        "unet.unet", "controlnet_pose.controlnet", "controlnet_depth.controlnet",
        "text_encoder", "guider", "image_encoder",
    },
    "content-guider": {"guider", "image_encoder"},
    "long-frames": {"unet.motion"},
    "video-controlnet": {"controlnet_pose", "controlnet_depth"},
    "expression": {"unet.motion"},
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_changes_its_parameters_and_nothing_else(
    stage: str, data: Path, start: Path, tmp_path: Path
) -> None:
    run = trainer(stage, data, tmp_path, start, lr=0.1, batch=4 if STAGES[stage].data == "picture" else 2)
    before = weights(run.pack)
    for _ in range(2):
        run.train_step()
    after = weights(run.pack)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    prefixes = TRAINED.get(stage, {prefix.rstrip(".") for prefix in STAGES[stage].trains})
    mine = {n for n in before if any(n.startswith(f"{prefix}.") for prefix in prefixes)}
    parameters = {f"{net}.{n}" for net, m in run.pack.networks().items() for n, _ in m.named_parameters()}
    assert set(run.trained) == mine & parameters
    assert changed <= set(run.trained)
    for prefix in prefixes:
        assert any(name.startswith(f"{prefix}.") for name in changed) or "depth" in prefix, prefix
    assert all(torch.isfinite(value).all() for value in after.values())
    assert np.isfinite(run.losses).all()


def test_the_public_part_stays_frozen_in_the_stages_of_the_paper() -> None:
    frozen = ("vae", "text_encoder", "unet.unet")
    for stage in ("content-guider", "long-frames", "video-controlnet", "expression"):
        assert not any(part.startswith(frozen) for part in STAGES[stage].trains)


def test_settings_take_the_runs_values_and_refuse_an_unknown_stage(tmp_path: Path) -> None:
    assert settings(Run("picture", tmp_path, tmp_path, steps=7, lr=0.5)).steps == 7
    assert settings(Run("picture", tmp_path, tmp_path)).lr == STAGES["picture"].lr
    with pytest.raises(UsageError, match="stage is 'pictures'"):
        settings(Run("pictures", tmp_path, tmp_path))


# --- checkpoints


def same(one: Any, other: Any) -> bool:
    """Bit for bit, through dicts and lists."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(v, other[k]) for k, v in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def state_of(out: Path) -> dict[str, Any]:
    return torch.load(out / "state.pt", weights_only=True)


def test_an_interrupted_run_ends_as_an_uninterrupted_one(data: Path, start: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run = Run("picture", data, whole, start, steps=4, batch=2, seed=3)
    assert train(run, clips_config()) == whole / "pack"
    first = trainer("picture", data, cut, start)
    for _ in range(2):
        first.train_step()
    first.save()
    train(replace(run, out=cut), clips_config())
    assert same(state_of(whole), state_of(cut))
    assert state_of(whole)["step"] == 4
    assert same(weights(load_pack(whole / "pack")), weights(load_pack(cut / "pack")))


def test_what_is_exported_is_the_average(data: Path, start: Path, tmp_path: Path) -> None:
    run = trainer("long-frames", data, tmp_path, start, lr=0.1)
    history = [{n: p.detach().clone() for n, p in run.trained.items()}]
    for _ in range(3):
        run.train_step()
        history.append({n: p.detach().clone() for n, p in run.trained.items()})
    expected = history[0]
    for step, values in enumerate(history[1:]):
        decay = min(run.stage.ema, (step + 1) / (step + 10))
        expected = {n: torch.lerp(expected[n], values[n], 1 - decay) for n in values}
    run.export()
    before, after = weights(load_pack(start)), weights(load_pack(tmp_path / "pack"))
    assert before.keys() == after.keys()
    for name, value in after.items():
        if name in expected:
            torch.testing.assert_close(value, expected[name].half().float(), rtol=1e-3, atol=1e-6)
        else:
            assert torch.equal(value, before[name])


def test_a_run_from_nothing_exports_a_pack_with_the_words_of_its_data(data: Path, tmp_path: Path) -> None:
    tokenizer = learn_words(data, clips_config())
    with pytest.raises(UsageError, match="nothing to start from"):
        train(Run("autoencoder", data, tmp_path / "out"), clips_config())
    pack = train(Run("autoencoder", data, tmp_path / "out", steps=2, batch=1), clips_config(), tokenizer)
    assert len(load_pack(pack).tokenizer) == len(tokenizer)
    report = report_autoencoder(pack, data)
    assert report["clips"] == 1
    assert 5 < report["psnr"] < 60
    assert report["gradient_energy"] >= 0


def test_the_report_tells_what_the_autoencoder_costs_the_detector(
    data: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector that knows every pose, but only in pictures that are as they were."""
    store = ClipStore(data, held_out=True)
    facts = store.facts(HELD_OUT) | {"framing": np.array("full body")}
    frames = np.asarray(store.array(HELD_OUT, "frames")[:16])
    monkeypatch.setattr(ClipStore, "facts", lambda *_: facts)

    def detect(seen: np.ndarray) -> agreement.Watched:
        shown = facts["scores"][:16] * float(np.array_equal(seen, frames))
        return agreement.watched(facts["points"][:16], shown, frames.shape[1:3])

    monkeypatch.setattr(agreement, "detected", detect)
    assert report_poses(start, data) == {"posed_clips": 1, "pck_of_frames": 1.0, "pck": 0.0}


def test_every_fiftieth_step_is_logged(data: Path, start: Path, tmp_path: Path) -> None:
    run = trainer("autoencoder", data, tmp_path, start, steps=60)
    for step in (48, 49, 50):
        run.step = step
        run.train_step()
    (line,) = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert line["step"] == 50
    assert line["loss"] > 0


def test_minutes_instead_of_steps_end_a_run_and_count_what_was_spent_before(
    data: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that gains six seconds a look: of six minutes, a run that spent three before has three left."""
    clock = iter(range(0, 10**6, 6))
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))
    whole = trainer("autoencoder", data, tmp_path, start, minutes=6.0, steps=10**6)
    while (progress := whole.progress()) < 0.5:
        whole.train_step(progress)
    whole.save()
    again = trainer("autoencoder", data, tmp_path, start, minutes=6.0, steps=10**6)
    again.resume()
    assert again.step == whole.step
    assert again.progress() == pytest.approx(0.5, abs=0.1)
    steps = again.step
    while (progress := again.progress()) < 1:
        again.train_step(progress)
    assert again.step > steps
    assert loop.learning_rate(whole.stage, 1000, 0.99) < 0.1 * loop.learning_rate(whole.stage, 1000, 0.0)


# --- workers


def test_the_mean_over_workers_is_the_gradient_of_the_whole_batch(data: Path, start: Path) -> None:
    """For equal pictures without noise; what is drawn depends on the rank, so whole runs see other data."""
    quiet = replace(STAGES["autoencoder"], latent_noise=0.0)
    pictures, head = ClipStore(data).crops(np.random.default_rng(0), 4, side=64)
    pack = load_pack(start)
    pack.vae.requires_grad_(True)

    def gradient(part: slice) -> torch.Tensor:
        pack.vae.zero_grad()
        reconstruction_loss(pack, pictures[part], head[part], torch.Generator(), quiet)[0].backward()
        return torch.cat([p.grad.flatten() for p in pack.vae.parameters() if p.grad is not None])

    mean = (gradient(slice(2)) + gradient(slice(2, 4))) / 2
    torch.testing.assert_close(mean, gradient(slice(4)), rtol=1e-4, atol=1e-6)


# --- report


def test_sharpened_targets_have_steeper_edges_and_the_same_surfaces() -> None:
    step = torch.full((1, 3, 16, 16), -0.5)
    step[..., 8:] = 0.5
    soft = torch.nn.functional.avg_pool2d(step, 3, 1, 1, count_include_pad=False)
    sharp = sharpened(soft, 0.3)
    assert sharp.diff(dim=-1).square().sum() > 1.1 * soft.diff(dim=-1).square().sum()
    torch.testing.assert_close(sharp[..., :5], soft[..., :5])
    assert sharpened(soft, 0.0) is soft


def test_measures_of_the_report_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert psnr(frames, frames) > 100
    assert psnr(np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)) == pytest.approx(0)
    blurred = frames.copy()
    blurred[:, 1:] = (frames[:, 1:].astype(int) + frames[:, :-1]) // 2
    assert gradient_energy(blurred) < 0.9 * gradient_energy(frames)
    mask = np.zeros((20, 20), np.uint8)
    assert person_box(mask) is None
    mask[3:13, 5:15] = 255
    assert person_box(mask) == (slice(3, 13), slice(5, 15))


def test_refitting_holds_the_latents_near_their_start(data: Path, start: Path, tmp_path: Path) -> None:
    """Ten steps with the anchor move the latents less than ten without; but they do move."""
    moved = {}
    crops, _ = ClipStore(data).crops(np.random.default_rng(9), 4, side=64)
    for anchor in (0.0, 100.0):
        stage = replace(STAGES["refit"], batch=4, steps=10, warmup=1, anchor=anchor)
        run = Run("refit", data, tmp_path / str(anchor), init=start, chosen=stage)
        before, after = load_pack(start).vae, load_pack(train(run)).vae
        with torch.no_grad():
            moved[anchor] = float(losses.drift(after, before, crops))
    assert 0 < moved[100.0] < 0.5 * moved[0.0]
