"""Laws of the benchmark: what is counted, compared and laid out. Nothing depends on how fast anything is."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from dreamoving_cli.bench import contenders, sections
from dreamoving_cli.bench.contenders import Job, Runs
from dreamoving_cli.bench.report import report
from dreamoving_cli.bench.sizes import WIDTHS, Task, bench_config
from dreamoving_cli.bench.stopwatch import Stopwatch, replaced
from dreamoving_cli.cli import app
from dreamoving_cli.windows import Windows

TINY = Task("tiny", 2, (64, 64), 1)


def runs(engine: str, seconds: list[float], cpu: float = 1.0) -> Runs:
    return Runs(Job(engine, TINY), seconds, [cpu] * len(seconds), 2**30, 0.5)


def test_ratios_are_of_medians_and_above_one_where_ours_is_faster() -> None:
    ours, theirs = sections.rows([runs("dreamoving", [1, 1, 9]), runs("diffusers", [3, 2, 90], 4.0)])
    assert ours["times_ours"] == 1
    assert theirs["times_ours"] == 3
    assert theirs["cpu_times_ours"] == 4
    assert theirs["seconds_per_frame_step"] == 3 / (TINY.frames * TINY.steps)
    assert theirs["peak_gib"] == 1


def test_frames_of_all_windows_are_counted_as_the_engine_places_them() -> None:
    task = replace(TINY, frames=40, steps=3, window=16, overlap=4)
    placed = Windows(40, 16, 4)
    assert sections.window_frames(task) == sum(len(w) for s in range(3) for w in placed.windows_at(s))
    assert sections.window_frames(replace(TINY, steps=5)) == TINY.frames * 5


def test_contenders_stay_in_memory_together_only_where_they_fit() -> None:
    jobs = [Job(engine, replace(TINY, width="full")) for engine in ("dreamoving", "diffusers")]
    assert not sections.fits(jobs, 16 * 2**30)
    assert sections.fits(jobs, 64 * 2**30)
    assert sections.fits([Job("dreamoving", TINY)] * 3, 4 * 2**30)
    assert not sections.fits([Job("dreamoving", TINY)] * 3, 2**30)  # libraries alone take more
    assert not sections.fits([Job("dreamoving", replace(TINY, width="half"))] * 5, 16 * 2**30)


def test_shares_of_a_render_weigh_steps_and_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (*sections.STEP_SHARES, *sections.ONCE_A_FRAME, *sections.ONCE)
    flop = {"unet": 8e9, "motion": 1e9, "control": 2e9, "decode": 3e9}
    told = {"seconds": dict.fromkeys(names, 0.5), "flop": flop}
    monkeypatch.setattr(sections, "once", lambda what, **values: told)
    found = sections.stages(sections.Bench(TINY, TINY, TINY, (), 1, 0))
    assert sum(found["share"].values()) == pytest.approx(1)
    assert found["share"]["unet"] == pytest.approx(found["steps"] * found["share"]["decode"])
    assert found["share"]["decode"] == pytest.approx(found["frames"] * found["share"]["text"])
    assert found["rate"]["unet"] == pytest.approx(16e9)
    every, each, once = 0.5 * len(sections.STEP_SHARES), 0.5 * len(sections.ONCE_A_FRAME), 1.0
    assert found["frames_per_s"]["fast"] == pytest.approx(100 / (8 * 100 * every + 100 * each + once))
    assert found["frames_per_s"]["quality"] == pytest.approx(100 / (50 * 100 * every + 100 * each + once))
    guided = sections.Bench(replace(TINY, guidance_scale=3.0), TINY, TINY, (), 1, 0)  # seconds are of two
    slower, faster = (
        sections.stages(bench)["frames_per_s"] for bench in (replace(guided, task=TINY), guided)
    )
    assert faster["quality"] == pytest.approx(100 / (25 * 100 * every + 100 * each + once))
    assert faster["fast"] > slower["fast"]


@pytest.mark.parametrize(
    ("device", "order"), [("cpu", "start end start end"), ("cuda", "start start end end")]
)
def test_contenders_warm_up_together_on_a_card_only(device: str, order: str) -> None:
    heard: list[str] = []

    class Stand:
        def start(self) -> None:
            heard.append("start")

        def answer(self) -> dict[str, float]:
            heard.append("end")
            return {"seconds": 7.0}

        ask = contenders.Worker.ask

    found = [Runs(Job("dreamoving", replace(TINY, device=device))) for _ in range(2)]
    stands: Any = [Stand(), Stand()]
    contenders.warm_up(found, stands)
    assert heard == order.split()
    assert [runs.first_s for runs in found] == [7.0, 7.0]


def test_utilization_is_of_the_processors_own_seconds_on_a_cpu() -> None:
    bench = sections.Bench(TINY, TINY, TINY, (), 1, 0, matmul_flops=8e9, threads=2)
    row = {"seconds_per_frame_step": 4.0, "cpu_seconds_per_frame_step": 1.0}
    assert sections.utilization(row, 2e9, bench)["mfu"] == pytest.approx(0.5)
    card = replace(bench, task=replace(TINY, device="cuda"))
    assert sections.utilization(row, 16e9, card)["mfu"] == pytest.approx(0.5)


def test_full_width_is_stable_diffusion() -> None:
    """The counts of the public files: U-Net 859.5 M, motion module v2 454.4 M less its stored tables."""
    from accelerate import init_empty_weights

    from dreamoving_cli.models.motion import MotionBlock
    from dreamoving_cli.models.unet import VideoUNet

    config = bench_config("full")
    with init_empty_weights():
        net = VideoUNet(config.unet, config.motion)
    assert sum(p.numel() for p in net.unet.parameters()) == 859_520_964
    assert net.motion is not None
    widths = [block.proj_in.out_features for block in net.motion.modules() if isinstance(block, MotionBlock)]
    tables = 2 * 32 * sum(widths)  # two attentions a block, 32 frames
    assert sum(p.numel() for p in net.motion.parameters()) + tables == 454_417_600


def test_the_counter_sees_the_work_grow_with_the_picture() -> None:
    """Convolutions and projections grow with the cells, attention faster; counted without any weights."""
    from dreamoving_cli.bench.machine import work

    small, large = work("tiny", 2, (64, 64)), work("tiny", 2, (128, 128))
    assert set(small) == {"unet", "motion", "control", "decode"}
    for name in small:
        assert 3 < large[name] / small[name] < 8
    assert all(width in WIDTHS for width in ("full", "half", "tiny"))


def test_parts_share_out_all_time_and_none_twice() -> None:
    """Parts in parts, generators that feed each other, and what is in none: it adds up to the clock."""
    now = [0.0]

    def spend(seconds: float) -> float:
        now[0] += seconds
        return seconds

    def values() -> Iterator[float]:
        yield from map(spend, (1, 2))
        spend(4)

    watch = Stopwatch(clock=lambda: now[0])
    inner = watch.stream("inner", values)
    outer = watch.stream("outer", lambda: (each + spend(10) for each in inner()))
    spend(100)
    with watch.part("whole"):
        assert [each + spend(1000) for each in outer()] == [1011, 1012]
    assert watch.call("call", spend)(5000) == 5000
    with pytest.raises(ZeroDivisionError), watch.part("failed"):
        spend(1 / 0)
    assert watch.stop() == {"rest": 100, "inner": 7, "outer": 20, "whole": 2000, "call": 5000, "failed": 0}


def test_what_is_replaced_is_put_back() -> None:
    class Owner:
        name = "there"

    with replaced([(Owner, "name", str.upper), (Owner, "name", lambda name: name + "!")]):
        assert Owner.name == "THERE!"
    assert Owner.name == "there"
    with pytest.raises(ZeroDivisionError), replaced([(Owner, "name", str.upper)]):
        raise ZeroDivisionError
    assert Owner.name == "there"


def test_a_bar_is_met_or_missed() -> None:
    row = {"what": "pose", "frames": 5, "size": "96x64", "frames_per_s": 3.0, "loading_s": 0.1}
    rows = [row | {"frames_per_cpu_s": rate, "bar": 15.0, "share": {"a": 1.0}} for rate in (15.0, 14.9)]
    text = report({"extraction": {"threads": 2, "rows": rows, "missing": {"depth, zoe": "depth"}}})
    assert "15: met" in text
    assert "15: missed" in text
    assert "depth, zoe (dreamoving models pull depth)" in text


def test_every_section_has_a_table() -> None:
    row = {"seconds_per_window_frame": 1.0, "cpu_seconds_per_window_frame": 1.0, "peak_gib": 0.1}
    found: dict[str, Any] = {
        "machine": {"name": "some processor", "matmul_flops": 2e9, "packages": {"torch": "2"}},
        "settings": {"width": "tiny"},
        "window": sections.rows([runs("dreamoving", [1.0]), runs("diffusers", [2.0])]),
        "length": [{"frames": 16, "window_frames": 20, **row}],
        "startup": [{"what": "--help", "seconds": 0.1, "cpu_seconds": 0.1}],
    }
    text = report(found)
    assert "| diffusers | 1.0000 |" in text
    assert "| matrix rate | 2 GFLOP/s |" in text
    assert text.count("\n|---") == len(found)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "widow"], "section is 'widow'. Choose window"),
        (["--rounds", "0"], "rounds is 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["bench", *words])
    assert result.exit_code == 2
    assert said in result.output
