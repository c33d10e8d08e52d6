"""How many windows of a step are computed at once when nobody says: as many as are faster together.

Not here: which of these numbers memory has room for (memory.py).
"""

from dataclasses import dataclass, replace

from dreamoving_cli.memory import Mode, halved
from dreamoving_cli.windows import Windows

MOST = 4  # windows at once; on CUDA not measured
CPU_NUMBERS = (
    16_384 * 160
)  # of one window, at the first width; on a CPU larger ones are no faster together: measured
STEPS_SEEN = 4  # windows of a length are one or two more or fewer as borders move


@dataclass(frozen=True)
class AtOnce:
    """Numbers of windows that memory mode `high` may compute at once, the most first, and why no more."""

    counts: tuple[int, ...]
    why: str

    def told(self, mode: Mode) -> str:
        """What a plan says of the number that this mode has."""
        count = mode.window_batch
        short = "memory is short" if mode.name == "high" else f"--vram {mode.name}"
        return f"{count} window{'s' if count > 1 else ''} ({self.why if count == self.counts[0] else short})"


def at_once(asked: int | None, windows: Windows, rows: int, width: int, device: str) -> AtOnce:
    """How many windows to compute at once; device: its type.

    rows: latent cells of all frames of one, in all branches of guidance; width: their channels at first.
    """
    if asked is not None:
        return AtOnce((asked,), "as asked")
    few = rows * width <= CPU_NUMBERS
    limits = {
        "cpu": (
            MOST if few else 1,
            f"{rows:,} rows each: a CPU is {'' if few else 'not '}faster with several",
        ),
        "cuda": (MOST, f"at most {MOST} where memory has room"),
    }
    most, why = limits.get(device, (1, f"several at once were not tried on {device}"))
    alike = most_alike(windows)
    if alike <= most:
        most, why = alike, "no more of a step are of a length"
    return AtOnce(tuple(halved(most)), why)


def most_alike(windows: Windows) -> int:
    """The most windows of one length that a device has in a step."""
    all_alike = replace(windows, window_batch=windows.num_frames)
    steps = [
        replace(all_alike, rank=rank).batches_at(step)
        for step in range(STEPS_SEEN)
        for rank in range(windows.ranks)
    ]
    return max(len(batch) for batches in steps for batch in batches)
