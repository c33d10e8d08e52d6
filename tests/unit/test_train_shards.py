"""Training on shards: what a batch shows, one worker or two, cut off or not, and the file that says how."""

import json
import os
import signal
import socket
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from dreamoving_cli.cli import app
from dreamoving_cli.dataset.shards import write_shard
from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.media.video import open_clip
from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.load import build_pack, load_pack, save_pack
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.train import loop
from dreamoving_cli.train.losses import Dropped, control_residuals, draw_dropped, snr_weights
from dreamoving_cli.train.options import as_run, chosen_stage, defaults_yaml, load_train_options
from dreamoving_cli.train.shard_store import ShardStore, decode
from dreamoving_cli.train.source import extended, load_start
from dreamoving_cli.train.stages import PAPER, STAGES
from tests.shards import FPS, make_sample, options, same, state_of, talking_pack

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards with two clips each."""
    parts, out = tmp_path_factory.mktemp("parts"), tmp_path_factory.mktemp("shards")
    samples = [make_sample(parts / f"s{k}", f"k{k}", k) for k in range(4)]
    write_shard(out / "clips-000000.tar", samples[:2])
    write_shard(out / "clips-000001.tar", samples[2:])
    return out


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talking_pack(tmp_path_factory.mktemp("pack"))


# --- what a batch shows


def store(data: Path, start: Path, **stage: Any) -> ShardStore:
    wanted = replace(PAPER["expression"], size=(32, 64), images=True, fps=6.0, **stage)
    return ShardStore(data, load_pack(start), wanted)


def test_a_batch_has_the_fields_and_sizes_of_synthetic_ones(data: Path, start: Path) -> None:
    batch = store(data, start).batch(np.random.default_rng(0), 2, 3)
    assert batch.latents.shape == (2, 4, 3, 2, 4)
    assert batch.person.shape == batch.head.shape == (2, 1, 3, 2, 4)
    assert batch.controls["pose"].shape == (2, 3, 3, 32, 64)
    assert "depth" not in batch.controls
    assert {k: tuple(p.shape) for k, p in batch.pictures.items()} == dict.fromkeys(
        ("face", "cloth", "style"), (2, 3, 32, 32)
    )
    assert batch.pictures["face"].any()
    assert not batch.pictures["cloth"].any()  # none of the samples has one: "no picture"
    assert all(caption.startswith("dancer ") for caption in batch.captions)
    again = store(data, start).batch(np.random.default_rng(0), 2, 3)
    assert torch.equal(batch.latents, again.latents)
    assert batch.captions == again.captions


@pytest.mark.parametrize("crop", ["center", "random"])
def test_poses_lie_on_the_pictures_they_belong_to(crop: str, data: Path, start: Path) -> None:
    found = store(data, start, crop=crop)
    sample, rng = found.samples[0], np.random.default_rng(3)
    for _ in range(4):
        cut = found._cut(rng, sample, (64, 64), 3)
        shown = sample.frames(cut)
        points = sample.poses().points[cut.picks] - (cut.left, cut.top)
        assert (np.diff(cut.picks) == 2).all()  # 6 of 12 frames a second
        for picture, at in zip(shown, points[:, 0], strict=True):
            inside = at[(at >= 2).all(-1) & (at < 62).all(-1)].astype(int)
            assert all(picture[y, x].mean() > 180 for x, y in inside)


def test_decoding_starts_anywhere_and_gives_the_source_s_frames(
    data: Path, start: Path, tmp_path: Path
) -> None:
    content = store(data, start).samples[2].members["mp4"].read()
    (tmp_path / "c.mp4").write_bytes(content)
    with open_clip(tmp_path / "c.mp4") as clip:
        for picks in ([0], [0, 5, 13], [7, 8], [13]):
            for mine, theirs in zip(decode(content, picks, FPS), clip.read(picks), strict=True):
                assert np.abs(mine.astype(int) - theirs).mean() < 1
    with pytest.raises(InputError, match="lacks its frames"):
        decode(content, [13, 14], FPS)


def test_kept_latents_are_those_of_the_moment(data: Path, start: Path) -> None:
    wanted = replace(PAPER["long-frames"], size=(32, 64), fps=6.0)
    fresh = ShardStore(data, load_pack(start), wanted)
    kept = ShardStore(data, load_pack(start), wanted, cache=True)
    for _ in range(2):  # written, then read
        one, other = (s.batch(np.random.default_rng(5), 2, 3).latents for s in (fresh, kept))
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)
    with pytest.raises(UsageError, match="crop 'random'"):
        ShardStore(data, load_pack(start), replace(wanted, crop="random"), cache=True)


def test_clips_that_are_too_short_are_refused(data: Path, start: Path) -> None:
    with pytest.raises(InputError, match="no sample is 64 frames long"):
        store(data, start).batch(np.random.default_rng(0), 1, 64)


# --- one loop


@pytest.mark.parametrize("stage", PAPER)
def test_a_stage_of_the_paper_trains_its_parameters_alone(
    stage: str, data: Path, start: Path, tmp_path: Path
) -> None:
    more = {"frames": 1, "fps": None} if stage == "content-guider" else {}
    run = as_run(
        stage, options(data, tmp_path, start, lr=0.05, accumulate=2, recompute=True, dtype="bf16", **more)
    )
    pack = load_pack(loop.train(run))
    before = load_pack(start)
    changed = set()
    for (name, one), two in zip(before.networks().items(), pack.networks().values(), strict=True):
        pairs = zip(one.named_parameters(), two.parameters(), strict=True)
        changed |= {f"{name}.{n}" for (n, p), q in pairs if not torch.equal(p.half(), q.half())}
    assert changed
    assert all(name.startswith(PAPER[stage].trains) for name in changed)
    assert state_of(tmp_path)["step"] == 2


def test_what_is_frozen_is_watched(data: Path, start: Path, tmp_path: Path) -> None:
    run = as_run("long-frames", options(data, tmp_path, start))
    trainer = loop.Trainer(run, loop.settings(run), load_pack(start), 0)
    trainer.check_frozen()
    with torch.no_grad():
        first = next(trainer.pack.vae.parameters())
        first[(0,) * first.ndim] += 1e-3
    with pytest.raises(AssertionError, match=r"long-frames changed \['vae"):
        trainer.check_frozen()


def test_two_workers_have_the_losses_of_one_that_accumulates(
    data: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    one = as_run("long-frames", options(data, tmp_path / "one", start, scale="mini", accumulate=2))
    two = as_run("long-frames", options(data, tmp_path / "two", start, scale="mini", workers=2))
    for run in (one, two):
        loop.train(run)
    alone, shared = (state_of(run.out) for run in (one, two))
    np.testing.assert_allclose(alone["losses"], shared["losses"], rtol=1e-5)
    torch.testing.assert_close(alone["trained"], shared["trained"], rtol=1e-3, atol=1e-5)


def test_recomputed_activations_give_the_same_gradients(data: Path, start: Path, tmp_path: Path) -> None:
    gradients = []
    for recompute in (False, True):
        run = as_run("expression", options(data, tmp_path, start, recompute=recompute))
        trainer = loop.Trainer(run, loop.settings(run), load_pack(start), 0)
        trainer.loss().backward()
        gradients.append(trainer.gradient)
    assert gradients[0].any()
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("stage", PAPER)
def test_a_killed_run_ends_as_an_uninterrupted_one(
    stage: str, data: Path, start: Path, tmp_path: Path
) -> None:
    """kill -9 right after a checkpoint and a step; also what was logged is the same."""
    more = {"frames": 1, "fps": None} if stage == "content-guider" else {}
    whole, cut = (as_run(stage, options(data, tmp_path / n, start, **more)) for n in ("whole", "cut"))
    loop.train(whole)

    def doomed() -> None:
        trainer = loop.Trainer(cut, loop.settings(cut), load_pack(start), 0)
        cut.out.mkdir()
        trainer.train_step()
        trainer.save()
        trainer.train_step()  # lost
        os.kill(os.getpid(), signal.SIGKILL)

    process = get_context("fork").Process(target=doomed)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert state_of(cut.out)["step"] == 1
    loop.train(cut)
    assert same(state_of(whole.out), state_of(cut.out))
    packs = [sorted((run.out / "pack").rglob("*.safetensors")) for run in (whole, cut)]
    assert packs[0]
    assert [p.read_bytes() for p in packs[0]] == [p.read_bytes() for p in packs[1]]


def test_max_steps_stops_early_and_the_next_run_goes_on(data: Path, start: Path, tmp_path: Path) -> None:
    whole, short = (options(data, tmp_path / name, start) for name in ("whole", "short"))
    loop.train(as_run("long-frames", whole))
    loop.train(as_run("long-frames", short, max_steps=1))
    assert state_of(short.out)["step"] == 1
    assert (short.out / "pack" / "config.json").exists()
    loop.train(as_run("long-frames", short))
    assert same(state_of(whole.out), state_of(short.out))
    with pytest.raises(UsageError, match="was begun with"):
        loop.train(as_run("long-frames", short.replace(seed=9)))


def test_longer_runs_make_the_window_longer() -> None:
    tiny = tiny_config()
    config = tiny.model_copy(update={"motion": tiny.motion.model_copy(update={"max_length": 16})})  # type: ignore[union-attr]
    longer = extended(config, PAPER["long-frames"])
    assert (longer.motion.max_length, longer.context_frames) == (64, 64)  # type: ignore[union-attr]
    assert longer.scheduler.beta_schedule == "linear"
    assert extended(config, PAPER["content-guider"]) == config
    assert PackConfig.model_validate_json(longer.to_json()) == longer


def test_control_nets_without_motion_blocks_get_some_that_do_nothing_yet(tmp_path: Path) -> None:
    bare = build_pack(tiny_config().model_copy(update={"controlnet_motion": False}), seed=0)
    save_pack(bare, tmp_path / "bare", torch.float32)
    assert load_start(tmp_path / "bare", PAPER["long-frames"]).controlnets["pose"].motion is None
    pack = load_start(tmp_path / "bare", PAPER["video-controlnet"])
    added = pack.controlnets["pose"].motion
    assert added is not None
    assert not any(p.any() for n, p in added.named_parameters() if ".proj_out." in n)
    save_pack(pack, tmp_path / "whole", torch.float32)
    assert load_pack(tmp_path / "whole").controlnets["pose"].motion is not None


def test_a_stage_of_control_nets_alone_always_sees_a_control(data: Path, start: Path) -> None:
    found = store(data, start)
    batch, text = found.batch(np.random.default_rng(0), 1, 2), torch.zeros(1, 32, 32)
    rare = next(s for s in range(999) if torch.rand((), generator=torch.Generator().manual_seed(s)) > 0.97)
    given = {"pack": found.pack, "batch": batch, "x": batch.latents, "t": torch.tensor([5]), "text": text}
    for stage, seen in (("video-controlnet", True), ("expression", False)):
        generator = torch.Generator().manual_seed(rare)
        residuals = control_residuals(**given, settings=PAPER[stage], generator=generator)
        assert (residuals is not None) == seen


# --- arithmetic of the losses


def test_prompts_are_dropped_as_often_as_the_stage_says() -> None:
    drawn: Dropped = draw_dropped(20_000, PAPER["content-guider"], torch.Generator().manual_seed(0))
    both = drawn.text * drawn.images
    assert both.mean().item() == pytest.approx(0.05, abs=0.01)
    assert drawn.text.mean().item() == pytest.approx(0.10, abs=0.01)
    assert drawn.images.mean().item() == pytest.approx(0.10, abs=0.01)
    ours = draw_dropped(20_000, STAGES["picture"], torch.Generator().manual_seed(0))
    assert torch.equal(ours.text, ours.images)


def test_min_snr_weights() -> None:
    alphas = torch.tensor([0.999, 0.5, 0.01])
    snr = alphas / (1 - alphas)
    epsilon, velocity = (snr_weights(alphas, 5.0, p).flatten() for p in ("epsilon", "v_prediction"))
    torch.testing.assert_close(epsilon, torch.minimum(snr, torch.tensor(5.0)) / snr)
    torch.testing.assert_close(velocity, torch.minimum(snr, torch.tensor(5.0)) / (snr + 1))
    assert snr_weights(alphas, 0.0, "epsilon").eq(1).all()


# --- the file and the command


def write_config(folder: Path, **values: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_paper_s_numbers_are_the_defaults(tmp_path: Path) -> None:
    found = load_train_options(write_config(tmp_path, data="d", out="o"))
    assert (found.data, found.out) == (tmp_path / "d", tmp_path / "o")
    numbers = {n: (s.size, s.batch, s.steps, s.lr) for n, s in ((n, chosen_stage(n, found)) for n in PAPER)}
    assert numbers == {
        "content-guider": ((512, 512), 128, 100_000, 1e-4), "long-frames": ((256, 256), 1, 10_000, 1e-4),
        "video-controlnet": ((352, 352), 1, 25_000, 1e-4), "expression": ((512, 512), 1, 20_000, 5e-5),
    }  # fmt: skip
    mini = found.replace(scale="mini", steps=7)
    assert chosen_stage("expression", mini) == replace(STAGES["expression"], steps=7)


@pytest.mark.parametrize("scale", ["paper", "mini"])
def test_printed_defaults_are_a_file_that_changes_nothing(scale: str, tmp_path: Path) -> None:
    for name in PAPER:
        (tmp_path / "d.yaml").write_text(defaults_yaml(name, scale))
        stages = PAPER if scale == "paper" else STAGES
        assert chosen_stage(name, load_train_options(tmp_path / "d.yaml")) == stages[name]


@pytest.mark.parametrize(
    ("values", "code", "words"),
    [
        ({"data": "d", "out": "o", "stepz": 3}, 2, "Did you mean 'steps'?"),
        ({"out": "o"}, 2, "data is missing"),
        ({"data": "d", "out": "o", "lr": -1}, 2, "lr is -1"),
        ({"data": "d", "out": "o", "batch": 3, "workers": 2}, 2, "does not divide"),
        ({"data": "d", "out": "o", "validation": {"every": 5, "pose": "p", "poze": "x"}}, 2, "poze"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(
    values: dict[str, Any], code: int, words: str, tmp_path: Path
) -> None:
    result = CliRunner().invoke(
        app, ["train", "long-frames", "--config", str(write_config(tmp_path, **values))]
    )
    assert result.exit_code == code
    assert words in result.stderr
    assert CliRunner().invoke(app, ["train", "long-frames"]).exit_code == 2
    assert "unknown stage" in CliRunner().invoke(app, ["train", "long-frame", "--defaults"]).stderr


def test_the_command_trains_draws_the_curve_and_its_pack_renders(
    data: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    poses = tmp_path / "pose.json"
    poses.write_bytes(
        ShardStore(data, load_pack(start), PAPER["long-frames"]).samples[0].members["pose.json"].read()
    )
    shown = {"every": 2, "pose": str(poses), "frames": 2, "steps": 1, "size": "64x32"}
    values = json.loads(
        options(data, tmp_path / "out", start, tensorboard=True).model_dump_json(exclude_none=True)
    )
    config = write_config(tmp_path, **values, validation=shown)
    plan = CliRunner().invoke(app, ["train", "long-frames", "--config", str(config), "--dry-run", "--json"])
    assert json.loads(plan.stdout)["trains"] == ["unet.motion"]
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(app, ["train", "long-frames", "--config", str(config)])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'out' / 'pack'}\n"
    assert (tmp_path / "out" / "loss.png").is_file()
    assert list((tmp_path / "out" / "tensorboard").iterdir())
    assert [
        json.loads(line)["step"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    ] == [1, 2]
    with open_clip(tmp_path / "out" / "validation" / "step-000002.mp4") as clip:
        assert (clip.num_frames, clip.height, clip.width) == (2, 32, 64)
