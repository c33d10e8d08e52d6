"""Several devices for one render: each computes its share of a step's windows, and the shares are summed.

    with spread(task) as ranks:               # a process for every further device
        noise = ranks.summed(share, step)     # the same bits in every process
        frames = ranks.take(1)                # what that process decoded next, and gave: ranks.give(frames)

The first device, rank 0, is this process, which also writes and keeps the state. The others do what
`render.render_share` says and end with this process, however it ends. Sums are made on the CPU, where
latents are, by gloo on the loopback interface, so that any kind of device serves; frames come through a pipe.
Not here: whose windows (windows.py), whose frames (decoding.py).
"""

import json
import logging
import math
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dreamoving_cli import errors
from dreamoving_cli.conditioning import ImagePrompts
from dreamoving_cli.device import FITS, make_current
from dreamoving_cli.errors import DeviceLostError, DeviceMemoryError, UserError
from dreamoving_cli.extract.depth import ClipDepth
from dreamoving_cli.extract.keypoints import Poses
from dreamoving_cli.sampling import DenoiseState

if TYPE_CHECKING:
    from dreamoving_cli.plan import Job

CONNECTING = timedelta(seconds=60)  # all are there already
SUMMING = timedelta(days=20)  # a device may be slow; one that is gone is noticed otherwise
POLL_S = 0.001
FRAMES_POLL_S = 0.1
GIVEN_AHEAD = 2  # times that a process may give frames before the first takes any: memory is bounded
LAST_WORDS_S = 5.0  # for which the reason of a failure is waited
OTHERS_S = 0.5  # for which others may fail, who know the reason better
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from dreamoving_cli.ranks import main; main()"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What every device must know of a render."""

    job: "Job"
    pictures: ImagePrompts
    poses: Poses | None
    depth: ClipDepth | None
    state: DenoiseState | None  # where to go on

    def of_rank(self, rank: int) -> "Task":
        """The same, for the device of this rank."""
        windows = replace(self.job.windows, rank=rank)
        return replace(self, job=replace(self.job, devices=(self.job.devices[rank],), windows=windows))


@dataclass
class Ranks:
    """One of several processes that sum up their shares of each step; alone, it does nothing."""

    rank: int = 0
    count: int = 1
    store: str = ""  # a file by which they find each other
    check: Callable[[], None] = lambda: None  # raises when another process is gone
    take: Callable[[int], np.ndarray] = lambda rank: np.empty(0)  # the first: what that rank gave next
    give: Callable[[np.ndarray], None] = lambda frames: None  # every other: uint8 f h w c for the first
    _group: Any = None
    _last: int = -1  # the step that was summed last

    def summed(self, share: Tensor, step: int) -> Tensor:
        """The sum of all ranks' shares of this step, 1 c f h w fp32; waits for the slowest."""
        if self.count == 1:
            return share
        if step <= self._last:  # the others are a step further and would add another step's noise
            raise DeviceMemoryError("memory ran out between two steps, on one of several devices", FITS)
        total = rearrange(share, "1 c f h w -> f c h w").contiguous()  # as it mostly is
        try:
            self._group = self._group or self._connect()
            options = torch.distributed.AllreduceOptions()
            options.timeout = SUMMING
            work = self._group.allreduce([total], options)
            self._wait(work.is_completed)
            work.wait()
        except RuntimeError as error:
            self._wait(lambda: False, LAST_WORDS_S)
            raise DeviceLostError(*_lost("the connection to the other devices was", str(error))) from error
        self._last = step
        return rearrange(total, "f c h w -> 1 c f h w")

    def _connect(self) -> Any:
        """All ranks' connections to each other, once all are there."""
        from torch.distributed import FileStore, ProcessGroupGloo

        store = FileStore(self.store, self.count)
        store.set(f"ready.{self.rank}", "1")
        self._wait(lambda: store.check([f"ready.{rank}" for rank in range(self.count)]))
        gloo: Any = ProcessGroupGloo
        options = gloo._Options()  # the only way to keep to one interface
        options._timeout = CONNECTING
        options._devices = [gloo.create_device(hostname="127.0.0.1")]
        return gloo(store, self.rank, self.count, options)

    def _wait(self, done: Callable[[], bool], at_most_s: float = float("inf")) -> None:
        """Until it is done, awake: Ctrl-C and lost processes are noticed."""
        end = time.monotonic() + at_most_s
        while not done() and time.monotonic() < end:
            self.check()
            time.sleep(POLL_S)


@contextmanager
def spread(task: Task) -> Iterator[Ranks]:
    """The first of this render's devices, while one process works for each of the others."""
    count, threads = len(task.job.devices), torch.get_num_threads()
    if count == 1:
        yield Ranks()
        return
    with ExitStack() as stack:
        store = str(Path(stack.enter_context(TemporaryDirectory(prefix="dreamoving-"))) / "ranks")
        torch.set_num_threads(max(1, threads // count))
        stack.callback(torch.set_num_threads, threads)
        helpers: list[Helper] = []
        for rank in range(1, count):
            helpers.append(Helper(task.of_rank(rank), rank, (count, store)))
            stack.callback(helpers[-1].end)
        yield Ranks(0, count, store, partial(check, helpers), partial(take, helpers))


class Helper:
    """Another process of this render, as seen from the first."""

    def __init__(self, task: Task, rank: int, group: tuple[int, str]) -> None:
        """group: the number of ranks, their store."""
        self.name = f"{task.job.device} (device {rank + 1} of {group[0]})"
        self.failure: UserError | None = None
        self.frames: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()  # given and not yet taken
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the first process
        )
        level, threads = logging.getLogger("dreamoving_cli").level, torch.get_num_threads()
        told = pickle.dumps((task, rank, *group, threads, level))
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (partial(self._tell, told), self._listen)
        ]
        for thread in self._threads:
            thread.start()

    def more(self) -> None:
        """It may give frames once more."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # how it went is for `check` to say
            self.process.stdin.write(b"+")
            self.process.stdin.flush()

    def end(self) -> None:
        """Gone, whatever it does."""
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(LAST_WORDS_S)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def reason(self) -> UserError:
        """Why it is gone."""
        code = self.process.wait()
        how = (
            f"its process was ended by signal {-code}" if code < 0 else f"its process ended with code {code}"
        )
        return self.failure or DeviceLostError(*_lost(f"{self.name} was", how))

    def _tell(self, task: bytes) -> None:
        """Its task; the pipe stays open, and its end tells that this process is gone."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(task)
            self.process.stdin.flush()

    def _listen(self) -> None:
        """What it logs, the frames it gives, and its failure."""
        stdout = self.process.stdout
        assert stdout is not None
        for line in iter(stdout.readline, b""):
            said = json.loads(line)
            if "frames" in said:
                frames = np.frombuffer(bytearray(stdout.read(math.prod(said["frames"]))), np.uint8)
                if frames.size < math.prod(said["frames"]):
                    return  # it ended in the midst of them
                self.frames.put(frames.reshape(said["frames"]))
            elif "log" in said:
                log.log(said["level"], "%s: %s", self.name, said["log"])
            else:
                self.failure = getattr(errors, said["error"])(said["problem"], said["remedy"])


def check(helpers: list[Helper]) -> None:
    """Refuse to go on if one of them is gone, for the reason of the first that failed."""
    if all(helper.process.poll() is None for helper in helpers):
        return
    time.sleep(OTHERS_S)
    gone = [helper for helper in helpers if helper.process.poll() is not None]
    for helper in gone:
        helper._threads[1].join(LAST_WORDS_S)
    raise min(gone, key=lambda helper: (helper.failure is None, helper.process.returncode == LONELY)).reason()


def take(helpers: list[Helper], rank: int) -> np.ndarray:
    """The frames that this rank gave next, uint8 f h w c; waits for them, awake."""
    helper = helpers[rank - 1]
    while True:
        try:
            frames = helper.frames.get(timeout=FRAMES_POLL_S)
        except queue.Empty:
            check(helpers)
        else:
            helper.more()
            return frames


def _lost(what: str, how: str) -> tuple[str, str]:
    return f"{what} lost ({how})", "Give the same command with --resume, or with other --devices."


def main() -> None:
    """A helper's process: a task comes in on stdin, log lines, frames and a failure go out on stdout."""
    outlet = Outlet()
    try:
        task, rank, count, store, threads, level = pickle.load(sys.stdin.buffer)
    except EOFError:
        return
    threading.Thread(target=outlet.obey, daemon=True).start()
    logging.getLogger("dreamoving_cli").setLevel(level)
    logging.basicConfig(handlers=[outlet], level=logging.WARNING)
    torch.set_num_threads(threads)
    make_current(task.job.device)
    from dreamoving_cli.render import render_share

    try:
        render_share(task, Ranks(rank, count, store, give=outlet.give))
    except UserError as error:
        if not isinstance(error, DeviceLostError):
            outlet.tell({"error": type(error).__name__, "problem": error.problem, "remedy": error.remedy})
        os._exit(error.exit_code)
    threading.Event().wait()  # a connection that closes early might fail another rank's last sum


class Outlet(logging.Handler):
    """What a helper tells the first process: lines of JSON, and frames after such a line."""

    def __init__(self) -> None:
        super().__init__()
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # what libraries print is no report
        self._allowed = threading.Semaphore(GIVEN_AHEAD)

    def emit(self, record: logging.LogRecord) -> None:
        self.tell({"level": record.levelno, "log": self.format(record)})

    def give(self, frames: np.ndarray) -> None:
        """uint8 f h w c, as soon as the first process has room for more."""
        self._allowed.acquire()
        self.tell({"frames": frames.shape}, np.ascontiguousarray(frames).data)

    def tell(self, values: dict[str, Any], data: bytes | memoryview = b"") -> None:
        """One line, and what follows it."""
        self.acquire()
        try:
            with suppress(BrokenPipeError):  # the first process is gone, and so will this one be
                self._out.write(json.dumps(values).encode() + b"\n")
                self._out.write(data)
                self._out.flush()
        finally:
            self.release()

    def obey(self) -> None:
        """After the task each byte asks for frames; the end of the pipe is the end of the first process."""
        while os.read(0, 1):
            self._allowed.release()
        os._exit(1)


LONELY = DeviceLostError.exit_code  # of a process that failed because another one was gone
