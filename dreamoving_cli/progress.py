"""Progress on stderr: a live bar on a terminal, plain lines elsewhere; stage, step, time left.

Not here: what the stages are; whoever works calls `on_progress(stage, done, total)`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

OnProgress = Callable[[str, int, int], None]
MB = 10**6
QUIET_S = 10.0  # plain lines of one stage are at least this far apart


@contextmanager
def progress() -> Iterator[OnProgress]:
    """What to call with (stage, done, total); the bar is gone when the block ends."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield plain_lines(lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))
        return
    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield live_bar(bar)


def live_bar(bar: Progress) -> OnProgress:
    """One row a stage, in the order in which the stages begin."""
    rows: dict[str, TaskID] = {}

    def on_progress(stage: str, done: int, total: int) -> None:
        if stage not in rows:
            rows[stage] = bar.add_task(stage, total=total)
        bar.update(rows[stage], completed=done, total=total)

    return on_progress


def plain_lines(write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> OnProgress:
    """The first and last step of each stage; between them, every ten seconds, a line with the time left."""
    begun: dict[str, tuple[float, int]] = {}
    written: dict[str, float] = {}

    def on_progress(stage: str, done: int, total: int) -> None:
        now = clock()
        start, first = begun.setdefault(stage, (now, done))
        if stage in written and done < total and now - written[stage] < QUIET_S:
            return
        written[stage] = now
        left = (now - start) / (done - first) * (total - done) if first < done < total else None
        write(f"{stage}: {done}/{total}" + (f", {clock_time(left)} left" if left is not None else ""))

    return on_progress


def in_megabytes(on_progress: OnProgress, whole_bytes: int) -> OnProgress:
    """What to call with (name, bytes, bytes in all): a row for each large file, and one for all."""
    done: dict[str, int] = {}

    def on_file(name: str, here: int, total: int) -> None:
        done[name] = here
        if max(here, total) >= MB:
            on_progress(f"{name}, MB", here // MB, max(here, total) // MB)
            on_progress("all files, MB", sum(done.values()) // MB, max(sum(done.values()), whole_bytes) // MB)

    return on_file


def clock_time(duration_s: float) -> str:
    """Minutes and seconds, hours where needed: 0:07, 12:30, 1:02:03."""
    minutes, seconds = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
