"""Sums over ranks, here threads of one process: the same bits for all, and no sum with another step's."""

import pickle
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor

from dreamoving_cli.errors import DeviceLostError, DeviceMemoryError, UserError
from dreamoving_cli.extract.depth import ClipDepth, DepthStore
from dreamoving_cli.extract.depth_tone import Limits
from dreamoving_cli.models.checkpoints.files import Part, Recipe
from dreamoving_cli.ranks import GIVEN_AHEAD, Helper, Ranks, Task, check, spread, take
from dreamoving_cli.sampling import FrameNoise, Solver, denoise, make_scheduler
from dreamoving_cli.windows import Windows

CONFIG = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}


def together(count: int, folder: Path, work: Callable[[Ranks], Any]) -> list[Any]:
    """What `work` gives for each of so many ranks, or the error that it ends in."""
    results: list[Any] = [None] * count

    def run(rank: int) -> None:
        try:
            results[rank] = work(Ranks(rank, count, str(folder / "store")))
        except Exception as error:  # noqa: BLE001 - told to the test
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return results


def predict_noise(x: Tensor, t: Tensor, windows: Any) -> Tensor:
    """Mixes the frames of a window, so that windows differ where they overlap."""
    return torch.sin(x + float(t)) + 0.1 * x.mean(2, keepdim=True)


def clip(ranks: Ranks, windows: Windows, predict: Any = predict_noise) -> Tensor:
    """A clip denoised by this rank together with the others."""
    solver = Solver(make_scheduler("euler-a", 3, CONFIG), FrameNoise(7, (2, 4, 4)), windows.num_frames)
    dealt = Windows(
        windows.num_frames,
        windows.context_frames,
        windows.context_overlap,
        rank=ranks.rank,
        ranks=ranks.count,
    )
    return denoise(predict, solver, dealt, summed=ranks.summed)


@pytest.mark.parametrize(("count", "overlap"), [(2, 4), (3, 4), (4, 0), (2, 6)])
def test_ranks_get_the_latents_of_one_device(count: int, overlap: int, tmp_path: Path) -> None:
    windows = Windows(30, 8, overlap)
    alone = clip(Ranks(), windows)
    shared = together(count, tmp_path, partial(clip, windows=windows))
    assert all(torch.equal(shared[0], x) for x in shared)
    if overlap <= windows.context_frames // 2:  # a frame's sum has two terms: their order does not count
        assert torch.equal(shared[0], alone)
    torch.testing.assert_close(shared[0], alone)


def test_ranks_without_windows_wait_for_the_others(tmp_path: Path) -> None:
    windows = Windows(8, 8, 2)
    shared = together(3, tmp_path, partial(clip, windows=windows))
    assert all(torch.equal(x, clip(Ranks(), windows)) for x in shared)


def test_a_retry_before_the_sum_is_waited_for(tmp_path: Path) -> None:
    def sum_after_retry(ranks: Ranks) -> Tensor:
        total = ranks.summed(torch.full((1, 1, 2, 1, 1), float(ranks.rank + 1)), 0)
        if ranks.rank:
            threading.Event().wait(0.3)  # computes its share of step 1 once more
        return total + 10 * ranks.summed(torch.full((1, 1, 2, 1, 1), float(ranks.rank + 1)), 1)

    for total in together(2, tmp_path, sum_after_retry):
        assert total.flatten().tolist() == [33.0, 33.0]


def test_a_retry_after_the_sum_is_refused(tmp_path: Path) -> None:
    def sum_twice(ranks: Ranks) -> None:
        ranks.summed(torch.ones(1, 1, 2, 1, 1), 0)
        ranks.summed(torch.ones(1, 1, 2, 1, 1), 0)

    for error in together(2, tmp_path, sum_twice):
        assert isinstance(error, DeviceMemoryError)


def test_a_lost_rank_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamoving_cli.ranks.LAST_WORDS_S", 0.1)

    def leave(ranks: Ranks) -> None:
        ranks.summed(torch.ones(1, 1, 2, 1, 1), 0)
        if ranks.rank:
            ranks._group = None  # as when its process ends
        else:
            ranks.summed(torch.ones(1, 1, 2, 1, 1), 1)

    error, _ = together(2, tmp_path, leave)
    assert isinstance(error, DeviceLostError)
    assert "--resume" in str(error)


def helper(monkeypatch: pytest.MonkeyPatch, script: str, rank: int = 1) -> Helper:
    """A helper whose process does this instead."""
    monkeypatch.setattr("dreamoving_cli.ranks.START", script)
    return Helper(cast(Task, SimpleNamespace(job=SimpleNamespace(device="cuda:1"))), rank, (2, "store"))


def fate(helpers: list[Helper]) -> UserError:
    """What the first process is told when one of them is gone."""
    try:
        helpers[0].process.wait(30)
        with pytest.raises(UserError) as told:
            check(helpers)
        return told.value
    finally:
        for one in helpers:
            one.end()


def test_a_failure_is_told_as_it_was_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [
        {"level": 30, "log": "out of memory: going on"},
        {"error": "DeviceMemoryError", "problem": "cuda:1 ran out of memory", "remedy": "Give less."},
    ]
    script = f"import json, sys; [print(json.dumps(x)) for x in {lines}]; sys.exit(5)"
    error = fate([helper(monkeypatch, script)])
    assert isinstance(error, DeviceMemoryError)
    assert str(error) == "cuda:1 ran out of memory. Give less."
    assert "cuda:1 (device 2 of 2): out of memory: going on" in caplog.text


def test_a_process_that_dies_is_named_with_how(monkeypatch: pytest.MonkeyPatch) -> None:
    error = fate([helper(monkeypatch, "import os; os.kill(os.getpid(), 9)")])
    assert isinstance(error, DeviceLostError)
    assert error.exit_code == 10
    assert "cuda:1 (device 2 of 2) was lost (its process was ended by signal 9)" in str(error)


def test_the_reason_is_that_of_the_first_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamoving_cli.ranks.OTHERS_S", 3.0)
    lonely = helper(monkeypatch, f"import sys; sys.exit({DeviceLostError.exit_code})")
    killed = helper(monkeypatch, "import os, time; time.sleep(0.5); os.kill(os.getpid(), 9)", 2)
    assert "device 3 of 2" in str(fate([lonely, killed]))


GIVING = """
import json, pickle, sys, threading
import numpy as np
sys.path[:] = json.loads(sys.argv[1])
from dreamoving_cli.ranks import Outlet
outlet = Outlet()
pickle.load(sys.stdin.buffer)
threading.Thread(target=outlet.obey, daemon=True).start()
for number in range(6):
    outlet.give(np.full((2, 3, 4, 3), number, np.uint8))
    outlet.tell({"level": 30, "log": f"gave {number}"})
sys.exit(5)
"""


def test_frames_come_in_order_and_few_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However late they are taken; then the process is gone."""
    giving = helper(monkeypatch, GIVING)
    try:
        assert take([giving], 1).tolist() == np.zeros((2, 3, 4, 3)).tolist()
        threading.Event().wait(0.5)
        assert giving.frames.qsize() <= GIVEN_AHEAD
        for number in range(1, 6):
            assert (take([giving], 1) == number).all()
        with pytest.raises(DeviceLostError, match="ended with code 5"):
            take([giving], 1)
    finally:
        giving.end()
    assert [record.message for record in caplog.records][-1].endswith("gave 5")


def test_a_process_that_dies_while_it_gives_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        """import os, sys; print('{"frames": [9, 9, 9, 3]}', flush=True); os.write(1, b'few'); sys.exit(9)"""
    )
    dying = helper(monkeypatch, script)
    try:
        with pytest.raises(DeviceLostError, match="ended with code 9"):
            take([dying], 1)
    finally:
        dying.end()


def test_whatever_ends_the_block_ends_the_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that do not listen."""
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    monkeypatch.setattr("dreamoving_cli.ranks.START", deaf)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.append(count))
    threads: list[int] = []
    job = SimpleNamespace(device="cpu", devices=["cpu"] * 3)
    task = cast(Task, SimpleNamespace(job=job, of_rank=lambda rank: SimpleNamespace(job=job)))
    before = set(psutil.Process().children())
    with suppress(KeyboardInterrupt), spread(task) as ranks:
        assert ranks.count == len(set(psutil.Process().children()) - before) + 1 == 3
        ranks.check()
        raise KeyboardInterrupt
    assert set(psutil.Process().children()) <= before
    assert not Path(ranks.store).parent.exists()
    assert threads == [max(1, torch.get_num_threads() // 3), torch.get_num_threads()]


def test_what_a_task_holds_travels(tmp_path: Path) -> None:
    """To another process: public files, and distances in a file that is opened there anew."""
    part = Part(tmp_path / "unet.safetensors")
    assert pickle.loads(pickle.dumps(Recipe("sd15", {"unet": part}))).parts == {"unet": part}
    store = DepthStore(tmp_path / "distances", (2, 3, 4))
    store.append(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    depth = pickle.loads(pickle.dumps(ClipDepth(store, Limits(0.0, 24.0))))
    assert np.array_equal(depth.store.read(0, 2), store.read(0, 2))
    store.close()
    depth.store.close()
