"""Where clips may be cut: laws of the arithmetic; dissolves, fades and cuts in frames made on the spot."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamoving_cli.dataset.looks import blur, movement
from dreamoving_cli.dataset.shots import black_spans, clips_in, gradual_spans, histogram, runs, shots

FPS = Fraction(24)


@given(
    start=st.integers(0, 500), frames=st.integers(0, 2000), least=st.integers(1, 10), more=st.integers(0, 5)
)
def test_clips_lie_in_their_shot_and_have_the_wanted_length(
    start: int, frames: int, least: int, more: int
) -> None:
    shot, low, high = (start, start + frames), Fraction(least), Fraction(least + more)
    clips = list(clips_in(shot, FPS, low, high))
    assert all(start <= a < b <= shot[1] for a, b in clips)
    assert all(low * FPS <= b - a <= max(high * FPS, low * FPS) for a, b in clips)
    assert all(one[1] <= two[0] for one, two in pairwise(clips))
    assert len(clips) == 0 if frames < low * FPS else len(clips) >= 1
    assert frames - sum(b - a for a, b in clips) < max(low, 1) * FPS + len(clips)


def test_a_shot_of_the_paper_s_length_is_one_clip() -> None:
    assert list(clips_in((0, 216), FPS, Fraction(8), Fraction(10))) == [(0, 216)]
    assert len(list(clips_in((0, 24 * 60), FPS, Fraction(8), Fraction(10)))) == 6
    assert list(clips_in((0, 24 * 7), FPS, Fraction(8), Fraction(10))) == []


@given(
    st.integers(1, 60),
    st.lists(st.integers(0, 70), max_size=5),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=3),
)
def test_shots_are_all_that_no_transition_touches(
    num_frames: int, cuts: list[int], spans: list[tuple[int, int]]
) -> None:
    spans = [(a, a + length) for a, length in spans]
    found = shots(num_frames, cuts, spans)
    inside = {k for a, b in found for k in range(a, b)}
    hidden = {k for a, b in spans for k in range(a, b)}
    assert inside == set(range(num_frames)) - hidden
    assert not any(a < cut < b for a, b in found for cut in cuts)


def scene(seed: int) -> np.ndarray:
    """A small picture of a few flat colors, uint8 36 64 3."""
    colors = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return colors.repeat(12, 0).repeat(16, 1)


def dissolved(length: int) -> np.ndarray:
    """Two seconds of one scene, `length` frames of blending, two seconds of another."""
    weights = np.concatenate([np.zeros(48), np.linspace(0, 1, length), np.ones(48)])[:, None, None, None]
    return np.round(scene(1) * (1 - weights) + scene(2) * weights).astype(np.uint8)


def test_a_dissolve_is_found_where_it_is() -> None:
    frames = dissolved(12)
    [(start, end)] = gradual_spans(np.stack([histogram(f) for f in frames]), [], FPS)
    assert start <= 48
    assert end >= 60
    assert end - start < 60
    assert gradual_spans(np.stack([histogram(scene(1))] * 96), [], FPS) == []


def test_a_hard_cut_is_no_dissolve() -> None:
    frames = dissolved(0)
    histograms = np.stack([histogram(f) for f in frames])
    assert gradual_spans(histograms, [48], FPS) == []
    assert gradual_spans(histograms, [], FPS) != []


def test_a_fade_to_black_belongs_to_no_shot() -> None:
    brightness = np.concatenate(
        [np.full(30, 90.0), np.linspace(90, 0, 10), np.linspace(0, 90, 10), np.full(30, 90.0)]
    )
    [span] = black_spans(brightness)
    found = shots(len(brightness), [], [span])
    assert len(found) == 2
    assert found[0][1] <= 40 <= found[1][0]


def test_runs_of_a_mask() -> None:
    assert runs(np.array([1, 1, 0, 1, 0, 0, 1], bool)) == [(0, 2), (3, 4), (6, 7)]
    assert runs(np.zeros(3, bool)) == []


def test_blur_rises_with_the_width_of_the_blur_and_movement_with_the_way() -> None:
    import cv2

    rng = np.random.default_rng(0)
    sharp = cv2.resize(
        rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), (256, 256), interpolation=cv2.INTER_NEAREST
    )
    values = [blur(cv2.GaussianBlur(sharp, (0, 0), sigma) if sigma else sharp) for sigma in (0, 1, 2, 4)]
    assert values == sorted(values)
    assert values[0] < 0.4
    assert values[-1] > 0.7
    assert blur(np.full((64, 64, 3), 90, np.uint8)) == 1
    moved = [movement(sharp[:64, :64], np.roll(sharp, k, 1)[:64, :64]) for k in (0, 4)]
    assert moved[0] == 0 < moved[1]


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_a_small_dancer_before_a_still_wall_is_not_static(share: float) -> None:
    before = np.full((64, 64, 3), 120, np.uint8)
    after = before.copy()
    side = int(64 * share**0.5) + 8
    after[10 : 10 + side, 10 : 10 + side] = 30
    assert movement(before, after) > 3
