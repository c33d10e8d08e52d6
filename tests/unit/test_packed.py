"""Packed control pictures: the same pictures, drawn once, and no more memory than allowed."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamoving_cli.packed import Packed, pack, unpack


class Drawn:
    """A frame's picture is of its number; every drawing is counted."""

    def __init__(self, noisy: Sequence[int] = ()) -> None:
        self.asked: list[int] = []
        self.noisy = noisy

    def read(self, frames: Sequence[int]) -> np.ndarray:
        self.asked += frames
        return np.stack([self.picture(frame) for frame in frames])

    def picture(self, frame: int) -> np.ndarray:
        if frame in self.noisy:
            return np.random.default_rng(frame).integers(0, 256, (24, 16, 3), dtype=np.uint8)
        picture = np.zeros((24, 16, 3), np.uint8)
        picture[frame % 24, :, frame % 3] = 200
        return picture


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=6))
def test_pictures_are_those_of_the_source_and_are_drawn_once(reads: list[list[int]]) -> None:
    plain, drawn = Drawn(), Drawn()
    packed = Packed(drawn, 1000)
    for frames in reads:
        assert np.array_equal(packed.read(frames), plain.read(frames))
    assert sorted(drawn.asked) == sorted({frame for frames in reads for frame in frames})


def test_pictures_that_do_not_pack_are_drawn_again_and_take_no_memory() -> None:
    drawn = Drawn(noisy=[1])
    packed = Packed(drawn, 500)
    for _ in range(3):
        assert np.array_equal(packed.read([0, 1, 2]), Drawn(noisy=[1]).read([0, 1, 2]))
    assert drawn.asked == [0, 1, 2, 1, 1]
    assert all(len(held) <= 500 for held in packed._held.values())


@pytest.mark.parametrize("gray", [True, False])
def test_gray_pictures_are_packed_as_one_channel(gray: bool) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 6, 1 if gray else 3), dtype=np.uint8)
    picture = np.broadcast_to(picture, (8, 6, 3))
    assert np.array_equal(unpack(pack(picture), (8, 6, 3)), picture)
    assert (len(pack(picture)) < 8 * 6 * 2) is gray
