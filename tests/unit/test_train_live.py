"""What both small trainers share: a pool that forgets the oldest, dice, a clock, helping processes."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreamoving_cli.train import live
from dreamoving_cli.train.live import Arrays, Clock, Dice, Feed, Pool, fresh_seeds

CPU = torch.device("cpu")


def made(number: int) -> tuple[str, Arrays]:
    return "numbers", {"n": np.array([number])}


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_a_full_pool_forgets_the_oldest(lengths: list[int]) -> None:
    rows = {"a": np.zeros((1, 2), np.float32)}
    pool = Pool(rows, 8 * 6, CPU)
    every = np.arange(sum(lengths), dtype=np.float32)
    for part in np.split(every, np.cumsum(lengths)[:-1]):
        pool.add({"a": np.stack([part, part], 1)})
    assert pool.count == min(len(every), 6)
    kept = sorted(pool.rows["a"][: pool.count, 1].tolist())
    assert kept == every[-6:].tolist()
    taken = pool.take(Dice(CPU, 0), 20)["a"]
    assert set(taken[:, 0].tolist()) <= set(kept)


def test_dice_are_their_seed_alone() -> None:
    first, again, other = Dice(CPU, 1, 2), Dice(CPU, 1, 2), Dice(CPU, 2, 1)
    numbers = first.uniform(2, 3, 100)
    assert torch.equal(numbers, again.uniform(2, 3, 100))
    assert not torch.equal(numbers, other.uniform(2, 3, 100))
    assert 2 <= numbers.min() <= numbers.max() < 3
    assert first.spread(0.5, 8, 100).min() >= 0.5
    assert first.host.integers(1000) == again.host.integers(1000)


def test_a_clock_counts_steps_or_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5.0
    monkeypatch.setattr(live.time, "monotonic", lambda: now)
    steps, minutes = Clock(10, None), Clock(10, 2.0)
    now = 65.0
    assert (steps.share(3), minutes.share(3)) == (0.3, 0.5)
    minutes.used_s += 30  # of an earlier start
    now = 66.0
    assert minutes.share(0) == pytest.approx(91 / 120)
    now = 1e4
    assert (steps.share(99), minutes.share(0)) == (1, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_jobs_come_in_order_and_later_ones_when_ready(workers: int) -> None:
    taken: list[int] = []
    feed = Feed(lambda name, arrays: taken.extend(arrays["n"].tolist()), workers)
    feed.run([partial(made, k) for k in range(5)])
    assert taken == list(range(5))

    def later() -> Iterator[live.Job | None]:
        yield None
        yield partial(made, 7)
        while True:
            yield None

    feed.follow(later())
    end = time.monotonic() + 30
    while workers and 7 not in taken and time.monotonic() < end:
        feed.poll()
    feed.poll()
    feed.close()
    assert taken == [*range(5), 7] if workers else taken == list(range(5))


def test_only_whole_training_clips_are_new(tmp_path: Path) -> None:
    for name in ("3.npz", "12.npz", "4.frames.npy", "1000000.npz", ".5.part.npz"):
        (tmp_path / name).touch()
    assert fresh_seeds(tmp_path, {3}) == [12]
