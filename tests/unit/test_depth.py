"""Distances of a clip: limits over all of it, pictures on demand, a file that is gone on with."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dreamoving_cli.errors import InputError
from dreamoving_cli.extract.depth import ClipDepth, DepthStore, fill, find_depth
from dreamoving_cli.extract.depth_tone import (
    Limits,
    as_8_bit,
    as_16_bit,
    limits_of,
    quantiles,
    sortable,
    steadied,
)
from dreamoving_cli.media.video import open_clip
from dreamoving_cli.media.writer import write_video

NUMBERS = st.floats(-1e6, 1e6, width=32)


class Brightness:
    """A stand-in network: dark is near."""

    name = identity = "brightness"
    batch = 3

    def __init__(self, side: int = 32) -> None:
        self.side, self.seen = side, 0

    def size(self, height: int, width: int) -> tuple[int, int]:
        return self.side, self.side * 2

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        self.seen += len(frames)
        return 1 + frames.mean(-1, dtype=np.float32) / 255


@given(arrays(np.float32, st.integers(1, 80), elements=NUMBERS), st.integers(1, 9), st.floats(0, 1))
def test_quantiles_are_numpys(values: np.ndarray, pieces: int, share: float) -> None:
    [found] = quantiles(lambda: np.array_split(values, pieces), [share])
    assert found == pytest.approx(float(np.quantile(values.astype(np.float64), share)), rel=1e-5, abs=1e-5)


@given(arrays(np.float32, st.integers(2, 60), elements=NUMBERS))
def test_bits_sort_as_numbers(values: np.ndarray) -> None:
    np.testing.assert_array_equal(values[np.argsort(sortable(values))], np.sort(values))


@given(arrays(np.float32, (6, 5), elements=st.floats(0, 10, width=32)), st.floats(0, 10), st.floats(0, 10))
def test_nearer_is_never_darker(distances: np.ndarray, near: float, far: float) -> None:
    shown = Limits(near, far).nearness(distances).ravel()
    assert ((shown >= 0) & (shown <= 1)).all()
    assert (np.diff(shown[np.argsort(distances.ravel())]) <= 0).all()


def test_tones_reach_both_ends() -> None:
    near = np.array([0.0, 0.5, 1.0], np.float32)
    assert as_8_bit(near).tolist() == [0, 127, 255]
    assert as_16_bit(near).tolist() == [0, 32768, 65535]


def video(path: Path, frames: np.ndarray) -> Path:
    return write_video(path, [frames], Fraction(25), quality=1)


def ramp(count: int, height: int = 48, width: int = 96, seed: int = 0) -> np.ndarray:
    """A gray ramp from left to right with a dark square that moves; uint8 f h w c."""
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = np.linspace(40, 250, width)[None, None, :, None]
    for k in range(count):
        frames[k, 10:30, 4 + 2 * k : 24 + 2 * k] = 10
    return frames


@pytest.fixture
def look(tmp_path: Path) -> Iterator[Any]:
    """look(frames, **options of find_depth) -> ClipDepth, DepthReport."""
    stores = []

    def looked(frames: np.ndarray, **options: Any) -> Any:
        network = Brightness()
        with open_clip(video(tmp_path / f"{len(stores)}.mp4", frames)) as clip:
            shape = (clip.num_frames, *network.size(clip.height, clip.width))
            stores.append(DepthStore(tmp_path / f"{len(stores)}.state", shape))
            return find_depth(clip, network, stores[-1], **options)

    yield looked
    for store in stores:
        store.close()


def test_one_scale_for_the_whole_clip(look: Any) -> None:
    """What stands still keeps its value, whatever else comes and goes."""
    frames = ramp(12)
    frames[6:, 30:, 60:] = 0  # something near enters
    depth, report = look(frames, smooth=False)
    wall = depth.pictures(range(12), 48, 96)[:, 2:8, 50:90, 0].astype(int)
    assert np.ptp(wall, axis=0).max() <= 6
    assert report.frames == 12
    assert report.near < report.far
    every = np.concatenate(list(depth.store.blocks()))
    assert depth.limits.near == pytest.approx(np.percentile(every, 2), rel=1e-5)
    assert depth.limits.far == pytest.approx(np.percentile(every, 85), rel=1e-5)


def test_pictures_do_not_depend_on_what_else_is_read(look: Any) -> None:
    depth, _ = look(ramp(9))
    together = depth.pictures(range(9), 40, 50)
    for k in (8, 0, 4):
        np.testing.assert_array_equal(depth.pictures([k], 40, 50)[0], together[k])
    assert together.shape == (9, 40, 50, 3)
    assert together.dtype == np.uint8


def test_a_clip_of_one_distance_is_black(look: Any) -> None:
    depth, report = look(np.full((3, 48, 96, 3), 128, np.uint8))
    assert depth.pictures([0], 48, 96).max() == 0
    assert report.flicker == 0


def test_steadying_takes_noise_off_and_leaves_edges() -> None:
    rng = np.random.default_rng(0)
    clip = np.ones((9, 20, 30), np.float32)
    for k in range(9):
        clip[k, :, : 5 + 2 * k] = 3.0
    noisy = clip + rng.normal(0, 0.02, clip.shape).astype(np.float32)
    out = np.stack([steadied(lambda k: noisy[k], k, (0, 9), 0.08) for k in range(9)])
    before, after = (np.abs(x - clip).mean() for x in (noisy, out))
    assert after < 0.65 * before
    assert np.abs(out - clip).max() < 0.2  # an edge smeared over two frames would be off by 1


def test_steadying_stays_within_a_shot() -> None:
    values = {k: np.full((2, 2), float(k >= 3), np.float32) for k in range(6)}
    asked: list[int] = []

    def read(frame: int) -> np.ndarray:
        asked.append(frame)
        return values[frame]

    assert steadied(read, 3, (3, 6), 10.0).tolist() == np.ones((2, 2)).tolist()
    assert min(asked) == 3


def test_a_store_goes_on_where_it_ended(tmp_path: Path) -> None:
    path, made_from = tmp_path / "state", {"network": "a"}
    with open_clip(video(tmp_path / "in.mp4", ramp(10))) as clip:
        whole, network = DepthStore(tmp_path / "whole", (10, 32, 64), made_from), Brightness()
        fill(clip, network, whole, lambda done: None)

        def stop(done: int) -> None:
            if done == 6:
                raise KeyboardInterrupt

        first = DepthStore(path, (10, 32, 64), made_from)
        with pytest.raises(KeyboardInterrupt):
            fill(clip, Brightness(), first, stop)
        first.close()
        path.write_bytes(path.read_bytes() + b"half a frame")
        again, rest = DepthStore(path, (10, 32, 64), made_from, resume=True), Brightness()
        assert again.done == 6
        fill(clip, rest, again, lambda done: None)
    assert (network.seen, rest.seen) == (10, 4)
    np.testing.assert_array_equal(again.read(0, 10), whole.read(0, 10))
    again.close()
    whole.close()
    other = DepthStore(path, (10, 32, 64), {"network": "b"}, resume=True)
    assert other.done == 0  # made by another network: begun anew
    other.close()


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    class Broken(Brightness):
        def __call__(self, frames: np.ndarray) -> np.ndarray:
            return np.full((len(frames), 32, 64), np.nan, np.float32)

    store = DepthStore(tmp_path / "state", (3, 32, 64))
    with open_clip(video(tmp_path / "in.mp4", ramp(3))) as clip, pytest.raises(InputError, match="no finite"):
        fill(clip, Broken(), store, lambda done: None)
    store.close()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5))
def test_limits_do_not_depend_on_the_pieces(frames: int, pieces: int) -> None:
    values = np.random.default_rng(frames).normal(3, 1, (frames, 7, 5)).astype(np.float32)
    assert limits_of(lambda: np.array_split(values, pieces)) == limits_of(lambda: [values])


def test_cuts_are_found(tmp_path: Path, look: Any) -> None:
    rng = np.random.default_rng(0)
    shots = [rng.integers(0, 255, (1, 48, 96, 3), np.uint8).repeat(30, 0) for _ in range(2)]
    depth, report = look(np.concatenate(shots))
    assert isinstance(depth, ClipDepth)
    assert depth.cuts == (30,)
    assert report.cuts == 1
