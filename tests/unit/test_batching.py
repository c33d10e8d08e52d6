"""How many windows are computed at once: few rows together, many apart, never more than there are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamoving_cli.batching import CPU_NUMBERS, MOST, at_once
from dreamoving_cli.device import GIB
from dreamoving_cli.errors import DeviceMemoryError
from dreamoving_cli.memory import Mode, Sizes, choose, ladder, need
from dreamoving_cli.windows import Windows

LONG = Windows(200, 16, 4)


def test_a_cpu_computes_few_rows_together_and_many_apart() -> None:
    few, wide = CPU_NUMBERS // 64, 320
    assert at_once(None, LONG, few, 64, "cpu").counts == (4, 2, 1)
    assert at_once(None, LONG, few + 1, 64, "cpu").counts == (1,)
    assert at_once(None, LONG, few, wide, "cpu").counts == (1,)
    found = at_once(None, LONG, 4096, wide, "cpu")
    assert found.told(Mode("high", MOST, 8)) == "4 windows (4,096 rows each: a CPU is faster with several)"
    assert found.told(Mode("high", 2, 8)) == "2 windows (memory is short)"


@pytest.mark.parametrize(("device", "most"), [("cuda", MOST), ("mps", 1)])
def test_other_devices_do_not_ask_for_rows(device: str, most: int) -> None:
    for rows in (100, 10**7):
        assert at_once(None, LONG, rows, 320, device).counts[0] == most


def test_what_is_asked_for_is_what_is_tried() -> None:
    found = at_once(12, LONG, 10**9, 320, "cpu")
    assert (found.counts, found.told(Mode("high", 12, 8))) == ((12,), "12 windows (as asked)")
    assert found.told(Mode("low", 1, 8)) == "1 window (--vram low)"


@given(
    windows=st.builds(
        Windows, st.integers(1, 200), st.just(16), st.integers(0, 15),
        schedule=st.sampled_from(["static", "uniform", "loop"]), ranks=st.integers(1, 5),
    ),
    rows=st.integers(1, 40_000),
    device=st.sampled_from(["cpu", "cuda", "mps"]),
)  # fmt: skip
def test_no_more_are_tried_than_there_are(windows: Windows, rows: int, device: str) -> None:
    counts = at_once(None, windows, rows, 320, device).counts
    there = max(len(share) for step in range(4) for share in windows.shared_out(step))
    assert there == 0 or 1 <= counts[0] <= min(MOST, there)
    assert counts[-1] == 1
    assert list(counts) == sorted(set(counts), reverse=True)


@given(
    work=st.tuples(*[st.integers(1, 10**10)] * 4),
    free=st.integers(GIB, 40 * GIB),
    asked=st.sampled_from(["auto", "high", "low", "min"]),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_several_at_once_cost_no_mode_and_exceed_no_memory(
    work: tuple[int, int, int, int], free: int, asked: str, device: str
) -> None:
    latents, window, frame, held = work
    weights = {"unet": 10**9, "vae": 10**8, "text_encoder": 10**8}
    sizes = Sizes(weights, 4, latents, window, frame, 10**6, device == "cpu", held=held)
    counts = at_once(None, LONG, 100, 320, device).counts
    several, single = (ladder(asked, (each, 8), device, tiles=True, half=False) for each in (counts, (1,)))
    try:
        expected = choose(asked, single, sizes, free, device)[0]
    except DeviceMemoryError as refusal:
        with pytest.raises(DeviceMemoryError, match=str(refusal)[:30]):
            choose(asked, several, sizes, free, device)
        return
    mode = choose(asked, several, sizes, free, device)[0]
    assert (mode.name, mode.decode_batch) == (expected.name, expected.decode_batch)
    assert need(mode, sizes) <= free
    fit = [count for count in counts if need(Mode("high", count, 8), sizes) <= free]
    assert mode.window_batch == (max(fit) if mode.name == "high" else 1)
