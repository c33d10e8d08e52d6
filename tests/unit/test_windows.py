"""Laws of the context windows, for any length and any setting."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamoving_cli.errors import UsageError
from dreamoving_cli.windows import FUSIONS, SCHEDULES, Windows, spread


@st.composite
def settings(draw: st.DrawFn) -> Windows:
    num_frames = draw(st.integers(1, 150))
    context_frames = draw(st.integers(1, 70))
    return Windows(
        num_frames,
        context_frames,
        draw(st.integers(0, context_frames - 1)),
        draw(st.integers(1, 4)),
        draw(st.sampled_from(sorted(SCHEDULES))),
        draw(st.sampled_from(sorted(FUSIONS))),
        draw(st.integers(1, 5)),
        tuple(draw(st.lists(st.integers(0, 150), max_size=3))),
    )


steps = st.integers(0, 60)


@given(settings(), steps)
def test_every_frame_is_covered_and_no_window_holds_a_frame_twice(windows: Windows, step: int) -> None:
    at = windows.windows_at(step)
    assert {f for w in at for f in w} == set(range(windows.num_frames))
    assert all(len(set(w)) == len(w) <= windows.context_frames for w in at)


@given(settings(), steps)
def test_only_a_loop_joins_the_end_to_the_start(windows: Windows, step: int) -> None:
    if windows.schedule == "loop" and not windows.cuts:
        return
    stride = windows.context_stride if step % 2 else 1
    for window in windows.windows_at(step):
        assert window == list(range(window[0], window[-1] + 1, stride))


@given(settings(), steps)
def test_no_window_crosses_a_cut(windows: Windows, step: int) -> None:
    for window in windows.windows_at(step):
        assert not any(min(window) < cut <= max(window) for cut in windows.cuts)


@given(settings(), st.integers(0, 8))
def test_anchor_frames_are_spread_over_the_clip(windows: Windows, count: int) -> None:
    anchors = replace(windows, anchor_frames=count).anchors
    assert len(anchors) == min(count, windows.num_frames)
    gaps = [b - a for a, b in pairwise([-1, *anchors, windows.num_frames])]
    assert min(gaps) >= 1
    assert max(gaps) <= windows.num_frames / max(len(anchors), 1) + 1


@given(settings(), steps)
def test_normalized_weights_of_a_frame_sum_to_one(windows: Windows, step: int) -> None:
    total = [0.0] * windows.num_frames
    for window, weights in windows.weights_at(step):
        for frame, weight in zip(window, weights, strict=True):
            assert weight > 0
            total[frame] += weight
    assert total == pytest.approx([1.0] * windows.num_frames)


@given(settings(), steps)
def test_neighbors_share_the_overlap(windows: Windows, step: int) -> None:
    if windows.cuts or (windows.context_stride > 1 and step % 2) or windows.schedule == "loop":
        return
    at = windows.windows_at(step)
    assert all(len(set(a) & set(b)) >= windows.context_overlap for a, b in pairwise(at))


@given(st.integers(2, 80), st.integers(2, 30), st.integers(0, 60))
def test_a_loop_joins_the_end_to_the_start(num_frames: int, context_frames: int, step: int) -> None:
    loop = Windows(num_frames, context_frames, context_frames // 4 or 1, schedule="loop")
    pairs = [p for s in (step, step + 1) for w in loop.windows_at(s) for p in pairwise(w)]
    assert (num_frames - 1, 0) in pairs


def test_borders_move_and_fill_the_hop_evenly() -> None:
    windows = Windows(200, 64, 16)
    borders = {w[0] % 48 for step in range(16) for w in windows.windows_at(step)[1:-1]}
    assert len(borders) == 16
    assert [spread(k) for k in range(5)] == [0, 0.5, 0.25, 0.75, 0.125]


def test_moving_borders_cost_at_most_a_fifth_more_than_static_ones() -> None:
    for num_frames in (100, 200, 300, 1000):
        moving = Windows(num_frames, 64, 16)
        static = Windows(num_frames, 64, 16, schedule="static")
        work = [sum(len(w) for s in range(20) for w in x.windows_at(s)) for x in (moving, static)]
        assert work[0] <= 1.2 * work[1]


def test_a_short_clip_is_one_window() -> None:
    for schedule in SCHEDULES:
        assert [sorted(w) for w in Windows(10, 16, 4, schedule=schedule).windows_at(3)] == [list(range(10))]


@given(settings(), steps)
def test_batches_hold_every_window_once_and_equal_lengths(windows: Windows, step: int) -> None:
    batches = windows.batches_at(step)
    assert sorted(w for b in batches for w in b) == sorted(windows.weights_at(step))
    assert all(len(b) <= windows.window_batch and len({len(w) for w, _ in b}) == 1 for b in batches)


@given(settings(), steps, st.integers(1, 9))
def test_ranks_share_out_every_window_once_in_runs_of_neighbors(
    windows: Windows, step: int, ranks: int
) -> None:
    shares = [replace(windows, rank=rank, ranks=ranks).batches_at(step) for rank in range(ranks)]
    mine = [
        sorted((w for batch in share for w in batch), key=windows.weights_at(step).index) for share in shares
    ]
    assert [w for share in mine for w in share] == windows.weights_at(step)


@given(settings(), steps, st.integers(1, 9))
def test_ranks_have_about_as_many_frames_to_compute(windows: Windows, step: int, ranks: int) -> None:
    shares = replace(windows, ranks=ranks).shared_out(step)
    load = [sum(len(window) for window, _ in share) for share in shares]
    longest = max(len(window) for share in shares for window, _ in share)
    assert max(load) - sum(load) / ranks <= longest
    if len({len(window) for share in shares for window, _ in share}) == 1:
        counts = [len(share) for share in shares]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("overlap", [16, 20, -1])
def test_an_overlap_that_leaves_no_hop_is_refused(overlap: int) -> None:
    with pytest.raises(UsageError, match=r"overlap of 0 to 15"):
        Windows(40, 16, overlap)


@pytest.mark.shared
def test_static_windows_and_the_pyramid_are_those_of_the_field() -> None:
    """ComfyUI-AnimateDiff-Evolved's own answers (its other schedules wrap or repeat frames; ours do not)."""
    golden = Path(__file__).parents[2].parent / "shared/parity/goldens/B5_context_evolved.json"
    if not golden.is_file():
        pytest.skip(f"no reference windows at {golden}")
    reference = json.loads(golden.read_text())
    cases = [
        c for c in reference["windows"] if c["schedule"] == "standard_static" and c["context_stride"] == 1
    ]
    assert cases
    for case in cases:
        sizes = case["num_frames"], case["context_length"], case["context_overlap"]
        assert Windows(*sizes, schedule="static").windows_at(0) == case["windows_by_step"][0]
    for length, weights in reference["fuse_weights_by_length"].items():
        assert FUSIONS["pyramid"](int(length), 0) == weights["pyramid"]
