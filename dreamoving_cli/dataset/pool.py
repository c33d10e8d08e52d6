"""Jobs in worker processes: results as they come, no orphans; a job that kills its worker is one job."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Iterator[tuple[Job, Result | None]]:
    """(job, result) of every job, in any order; None where the worker died of it."""
    if workers == 1:
        yield from ((job, function(job)) for job in jobs)
        return
    left = list(jobs)
    try:
        for job, result in in_pool(function, left, workers):
            left.remove(job)
            yield job, result
    except BrokenProcessPool:
        for job in left:  # one of these did it; each alone, that one is found
            yield job, alone(function, job)


def in_pool(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Iterator[tuple[Job, Result]]:
    """(job, result) as they come; whatever ends it early ends the workers too."""
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=prepare_worker)
    try:
        futures: dict[Future[Result], Job] = {pool.submit(function, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in active_children():
            worker.terminate()
        raise


def alone(function: Callable[[Job], Result], job: Job) -> Result | None:
    """One job in a worker of its own."""
    try:
        return next(in_pool(function, [job], 1))[1]
    except BrokenProcessPool:
        return None


def prepare_worker() -> None:
    """One thread, deaf to Ctrl-C (whoever started it is not), and gone when that process is."""
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
