"""Clips held on a device: the same batches as from disk, wherever they lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numba", reason="the renderer needs the extra `train`")
from dreamoving_cli.models.load import Pack, build_pack
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.train.data import Batch, ClipStore, cover
from dreamoving_cli.train.device_store import DeviceStore
from dreamoving_cli.train.latents import encode_clips
from tests.clips import FRAMES, write_clips

SEEDS = (0, 2, 3)  # of two sizes


@pytest.fixture(scope="module")
def pack() -> Pack:
    return build_pack(tiny_config(), seed=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, pack: Pack) -> Path:
    folder = write_clips(tmp_path_factory.mktemp("clips"), SEEDS)
    encode_clips(pack, folder)
    return folder


def same_as_on_disk(batch: Batch, data: Path) -> list[int]:
    """The clips that a batch of whole clips shows; every tensor is compared with the files."""
    disk, shown = ClipStore(data), []
    for i, said in enumerate(batch.captions):
        pose = (batch.controls["pose"][i] * 255).round().byte().permute(1, 2, 3, 0).numpy()
        (seed,) = [s for s in SEEDS if np.array_equal(disk.array(s, "pose"), pose)]
        latents = torch.from_numpy(np.array(disk.array(seed, "latents"))).permute(1, 0, 2, 3)
        torch.testing.assert_close(batch.latents[i], latents.float(), rtol=1e-2, atol=1e-2)
        depth = (batch.controls["depth"][i, 0] * 255).round().byte().numpy()
        assert np.array_equal(depth, disk.array(seed, "depth"))
        words = [str(c) for c in disk.facts(seed)["captions"]]
        assert said in {*words, *(w.replace("a woman", "a person", 1) for w in words),
                        *(w.replace("a man", "a person", 1) for w in words)}  # fmt: skip
        np.testing.assert_allclose(batch.facts["skin"][i], disk.facts(seed)["skin"], atol=1e-6)
        share = disk.array(seed, "alpha").mean() / 255
        assert float(batch.person[i].mean()) == pytest.approx(share, abs=2e-3)
        points = torch.from_numpy(disk.facts(seed)["points"])
        box = cover(points, depth.shape[1:], tuple(latents.shape[2:]))
        for part, wanted in zip((batch.head, batch.arms), box, strict=True):
            torch.testing.assert_close(part[i, 0], wanted.float(), rtol=0, atol=2e-3)
        shown.append(seed)
    return shown


def test_a_batch_holds_what_the_files_hold(data: Path, pack: Pack) -> None:
    store, shown = DeviceStore(data, pack, pixels=False), set()
    for step in range(8):
        batch = store.batch(np.random.default_rng(step), 2, FRAMES)
        shown |= set(same_as_on_disk(batch, data))
        assert {kind: tuple(p.shape) for kind, p in batch.pictures.items()} == dict.fromkeys(
            ("face", "cloth", "style"), (2, 3, 128, 128)
        )
    assert shown == set(SEEDS)


def test_runs_lie_inside_their_clips(data: Path, pack: Pack) -> None:
    store = DeviceStore(data, pack, pixels=False)
    for shelf in store.shelves.values():
        first = np.concatenate([[0], np.cumsum(shelf.lengths)])
        clips = np.random.default_rng(0).integers(len(shelf.lengths), size=50)
        runs = shelf.runs(np.random.default_rng(1), clips, 2, 2)
        assert runs.shape == (50, 2)
        assert (runs >= first[clips][:, None]).all()
        assert (runs < first[clips + 1][:, None]).all()
        assert (np.diff(runs) == 2).all()


def test_crops_are_cut_from_the_frames(data: Path, pack: Pack) -> None:
    store = DeviceStore(data, pack, pixels=True)
    crops, head = store.crops(np.random.default_rng(5), 6, 48)
    assert crops.shape == (6, 3, 48, 48)
    assert head.shape == (6, 1, 48, 48)
    assert 0 <= float(head.min()) <= float(head.max()) <= 1
    assert float(head.max()) > 0.5
    frames = [np.array(ClipStore(data).array(s, "frames")) for s in SEEDS]
    for crop in ((crops + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy():
        assert any(contains(video, crop) for video in frames)


def contains(video: np.ndarray, crop: np.ndarray) -> bool:
    """Whether some frame holds the crop somewhere, by its first row."""
    side = crop.shape[0]
    for frame in video:
        windows = np.lib.stride_tricks.sliding_window_view(frame, (1, side), axis=(0, 1))[:, :, :, 0]
        for y, x in np.argwhere((windows == crop[0].T).all((-2, -1))):
            if np.array_equal(frame[y : y + side, x : x + side], crop):
                return True
    return False


def test_clips_rendered_meanwhile_are_taken_in(data: Path, pack: Pack, tmp_path: Path) -> None:
    def lay(seed: int) -> None:
        for path in data.glob(f"{seed}.*"):
            (tmp_path / path.name).symlink_to(path)

    lay(0)
    store = DeviceStore(tmp_path, pack, pixels=False, follow=1e-9)
    assert store.held == {0}
    lay(2)
    lay(3)
    shown: set[int] = set()
    for step in range(12):
        shown |= set(same_as_on_disk(store.batch(np.random.default_rng(step), 2, FRAMES), data))
    assert shown == store.held == set(SEEDS)


def test_a_batch_repeats_from_its_generator(data: Path, pack: Pack) -> None:
    store = DeviceStore(data, pack, pixels=False)

    def drawn() -> tuple[Any, ...]:
        batch = store.batch(np.random.default_rng(3), 3, 2)
        return batch.captions, batch.latents.sum().item(), batch.pictures["face"].sum().item()

    assert drawn() == drawn()
