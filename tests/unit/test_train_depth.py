"""The training of the light depth network: what it draws, that it learns, that it goes on bit for bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamoving_cli.extract.depth_networks import LIGHT_FILE
from dreamoving_cli.models.depth import DepthNet, load_depth_net
from dreamoving_cli.train import depth, depth_batch
from dreamoving_cli.train.depth import DepthRun, depth_loss, train_depth, unlikeness
from dreamoving_cli.train.depth_batch import (
    behind,
    blurred,
    draw_batch,
    framed,
    packed,
    with_second,
    with_thing,
)
from dreamoving_cli.train.depth_data import frames_job
from dreamoving_cli.train.depth_report import change, frame_errors, report_depth
from dreamoving_cli.train.depth_scenes import FAR, NEAREST, cast_scenes, into_ball, into_box
from dreamoving_cli.train.live import Dice, Pool

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made-up clips: a bright disk, the person, before darkness."""
    folder = tmp_path_factory.mktemp("clips")
    y, x = np.mgrid[:96, :64]
    for seed in range(2):
        person = np.stack([(x - 20 - 2 * k) ** 2 + (y - 50) ** 2 < 300 for k in range(6)])
        near = np.where(person, 180 + (y % 40), 30).astype(np.uint8)
        arrays = {
            "frames": np.where(person[..., None], 220, 30).astype(np.uint8).repeat(3, -1),
            "depth": near,
            "alpha": (person * 255).astype(np.uint8),
        }
        for name, array in arrays.items():
            np.save(folder / f"{seed}.{name}.npy", array)
        np.savez(folder / f"{seed}.npz", body=np.array(0))
    return folder


@pytest.fixture(scope="module")
def pool(clips: Path) -> Pool:
    _, rows = frames_job(clips, [0, 1])
    pool = Pool(rows, 2**26, CPU)
    pool.add(rows)
    return pool


def test_examples_are_what_a_network_takes(pool: Pool) -> None:
    batch = draw_batch(pool, Dice(CPU, 0), [(64, 96)], 12)
    assert batch.picture.shape == (12, 3, 64, 96)
    assert batch.near.shape == batch.person.shape == (12, 64, 96)
    for tensor in (batch.picture, batch.near, batch.person):
        assert tensor.dtype == torch.float32
        assert tensor.min() >= 0
        assert tensor.max() <= 1 + 1e-5
    again = draw_batch(pool, Dice(CPU, 0), [(64, 96)], 12)
    assert torch.equal(batch.picture, again.picture)


def test_what_spoils_pictures_leaves_depth_and_cover(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled = draw_batch(pool, Dice(CPU, 1), [(64, 64)], 8)
    monkeypatch.setattr(depth_batch, "spoiled", lambda dice, picture: picture)
    clean = draw_batch(pool, Dice(CPU, 1), [(64, 64)], 8)
    assert not torch.equal(spoiled.picture, clean.picture)
    assert torch.equal(spoiled.near, clean.near)
    assert torch.equal(spoiled.person, clean.person)


def test_a_cut_dancer_brings_nothing_of_its_background(pool: Pool) -> None:
    """The person's nearness goes with it to the rim; elsewhere there is the new scene's."""
    cut = framed(pool, Dice(CPU, 2), 8, 64, 64)
    scene, near = torch.ones(8, 3, 64, 64), torch.full((8, 64, 64), 0.25)
    placed = behind(Dice(CPU, 3), cut, scene, near)
    new = (placed.near == 0.25).any(2).any(1)
    assert 0 < new.sum() < 8
    inside = placed.person > 0.5
    assert (placed.near[new] == 0.25)[~inside[new]].all()
    assert placed.near[inside & new[:, None, None]].min() > 170 / 255  # 180 at least; the room behind has 30
    second = with_second(Dice(CPU, 4), placed, framed(pool, Dice(CPU, 5), 8, 64, 64, small=True))
    changed = second.near != placed.near
    assert changed.any()
    assert (second.person[changed] == 1).all()
    thing = with_thing(Dice(CPU, 6), second)
    assert (thing.near[thing.near != second.near] >= 0.9).all()


def test_cut_frames_stay_aligned(pool: Pool) -> None:
    """The bright disk of the picture is where the cover says, at any scale and turn."""
    cut = framed(pool, Dice(CPU, 7), 16, 64, 96).whole
    expected = (30 + 190 * cut.person) / 255
    assert (cut.picture[:, 0] - expected).abs().max() < 0.01


def test_cast_boxes_and_balls_are_where_geometry_says() -> None:
    start = torch.tensor([[[0.0, 0, -5]]])
    way = torch.tensor([[[0.0, 0, 1], [0.5, 0, 1], [0, 0.15, 1]]])
    boxes, normals = into_box(start, way)
    assert boxes.tolist() == [[4, FAR, 4]]
    assert normals[0, 0].tolist() == [0, 0, -1]
    balls, round_normals = into_ball(start, way)
    assert balls[0, 0] == pytest.approx(4)
    assert balls[0, 1] == FAR
    assert 4 < balls[0, 2] < 5
    assert round_normals[0, 0].tolist() == pytest.approx([0, 0, -1])


def test_scenes_are_behind_dancers_and_floors_come_nearer() -> None:
    picture, near = cast_scenes(Dice(CPU, 8), 24, 64, 48)
    assert picture.shape == (24, 3, 64, 48)
    assert 0 <= picture.min() <= picture.max() <= 1
    assert 0 <= near.min() <= near.max() <= NEAREST + 1e-6
    rows = near.mean((0, 2))
    assert rows[-8:].mean() > rows[24:40].mean() + 0.1
    flat = packed(torch.full((1, 3, 16, 16), 0.5), torch.tensor([0.01]))
    assert (flat - 0.5).abs().max() < 0.02
    assert torch.allclose(blurred(picture, torch.zeros(24)), picture, atol=1e-5)


def test_the_loss_is_zero_at_the_truth_only() -> None:
    near = torch.rand(2, 32, 32)
    person = (near > 0.6).float()
    assert depth_loss(near, near, person) == pytest.approx(0, abs=1e-5)
    assert unlikeness(0.5 * near + 0.2, near, person) == pytest.approx(0, abs=1e-4)
    assert unlikeness(-near, near, person) == pytest.approx(2, abs=1e-4)
    assert depth_loss(near + 0.1, near, person) > 0
    assert depth_loss(near.flip(-1), near, person) > depth_loss(near + 0.1, near, person)


def test_a_run_learns_and_goes_on_bit_for_bit(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depth, "SMALL", ((32, 32),))
    monkeypatch.setattr(depth, "LARGE", ((32, 32),))
    monkeypatch.setattr(depth, "SETTLING", 2)
    run = DepthRun(clips, tmp_path / "whole", steps=6, batch=2)
    path = train_depth(run)
    assert path.stat().st_size < 2_500_000
    assert isinstance(load_depth_net(path), DepthNet)
    parts = replace(run, out=tmp_path / "parts")
    parts.out.mkdir()
    first = depth.Trainer(parts)
    for _ in range(3):
        first.train_step()
    first.save()
    assert train_depth(parts).read_bytes() == path.read_bytes()
    losses = depth.Trainer(replace(run, steps=60))
    for _ in range(40):
        losses.train_step()
    assert torch.stack(losses.losses[-8:]).mean() < 0.8 * torch.stack(losses.losses[:8]).mean()


def test_errors_of_the_truth_and_of_nothing() -> None:
    rng = np.random.default_rng(0)
    near = np.tile(np.linspace(0.05, 0.3, 32, dtype=np.float32), (32, 1))
    person = np.zeros((32, 32), bool)
    person[8:24, 8:24] = True
    near[person] = 0.7 + 0.3 * rng.random(256, dtype=np.float32)
    told = frame_errors(near, near, person, rng)
    assert (told["mae"], told["ordering"]) == (0, 1)
    assert told["person_error"] < 1e-5
    assert told["person_relief"] == pytest.approx(1, abs=1e-4)
    shifted = frame_errors(0.5 * near + 0.1, near, person, rng)  # scale and shift are free inside the person
    assert shifted["person_error"] < 1e-5
    assert shifted["person_error_in_frame"] < 1e-5
    pressed = frame_errors(np.where(person, 0.3 * near, near), near, person, rng)
    assert pressed["person_error"] < 1e-5  # one scale for the person,
    assert pressed["person_error_in_frame"] > 0.1  # which is not the room's
    noise = frame_errors(rng.random((32, 32), dtype=np.float32), near, person, rng)
    assert noise["person_relief"] < 0.1
    assert 0.3 < noise["ordering"] < 0.7


def test_the_report_tells_errors_and_flicker_of_held_out_clips(clips: Path, tmp_path: Path) -> None:
    for path in clips.glob("0.*"):
        (tmp_path / path.name.replace("0", "1000000", 1)).symlink_to(path)
    told = report_depth(LIGHT_FILE, tmp_path)
    assert (told["frames"], told["still_clips"]) == (2, 1)
    assert told["still_picture"] > 1  # the camera's grain
    assert told["still_without_grain"] == 0  # the same picture twice is the same depth
    assert told["still_depth"] < told["still_depth_unsteadied"]
    assert told["adds_no_flicker"] is (told["still_depth"] <= told["still_picture"])
    assert told["error_bar_met"] is (max(told["person_error"], told["person_error_in_frame"]) <= 0.08)


def test_change_is_between_neighbors_and_inside() -> None:
    frames = np.zeros((3, 2, 2))
    frames[1, 0, 0], frames[2, 1, 1] = 4, 100
    assert change(frames, np.array([[True, False], [False, False]])) == 4
