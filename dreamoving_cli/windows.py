"""Which frames the model sees together at each step, and how the frames that windows share are averaged.

Pure Python, no tensors. A window never joins the last frame to the first unless the schedule is `loop`, and
never reaches over a cut.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from dreamoving_cli.errors import UsageError

Window = list[int]
Weighted = tuple[Window, list[float]]  # a window and the weight of each of its frames
Schedule = Callable[[int, int, int, int], list[Window]]


@dataclass(frozen=True)
class Windows:
    """The windows of every step of one render; build it with resolved numbers."""

    num_frames: int
    context_frames: int
    context_overlap: int
    context_stride: int = 1  # above 1: every second step looks at each context_stride-th frame
    schedule: str = "uniform"  # a key of SCHEDULES
    fusion: str = "pyramid"  # a key of FUSIONS
    window_batch: int = 1  # windows that the model computes at once
    cuts: tuple[int, ...] = ()  # first frames of new shots: no window holds frames of both sides
    anchor_frames: int = 0  # frames that all windows see beside their own
    rank: int = 0  # whose windows `batches_at` gives, of so many devices that share a step's windows
    ranks: int = 1
    full_steps: tuple[int, ...] = ()  # those at which windows move, 0 first; none: they move at every step

    def __post_init__(self) -> None:
        if not 0 <= self.context_overlap < self.context_frames:
            raise UsageError(
                f"context_overlap is {self.context_overlap}, the window {self.context_frames} frames",
                f"Choose an overlap of 0 to {self.context_frames - 1}.",
            )

    @property
    def anchors(self) -> Window:
        """The anchor frames: each in the middle of its share of the clip."""
        count = min(self.anchor_frames, self.num_frames)
        return [(2 * k + 1) * self.num_frames // (2 * count) for k in range(count)]

    def windows_at(self, step: int) -> list[Window]:
        """The windows of one step (0 is the first); together they hold every frame."""
        step = bisect_right(self.full_steps, step) - 1 if self.full_steps else step
        place = SCHEDULES["uniform" if self.schedule == "loop" and self.cuts else self.schedule]
        return [
            [frames[position] for position in window]
            for frames in self._sequences(step)
            for window in place(len(frames), self.context_frames, self.context_overlap, step)
        ]

    def fuse(self, window: Window) -> list[float]:
        """How much each frame of a window counts, before the sum over all windows is normalized to 1."""
        return FUSIONS[self.fusion](len(window), self.context_overlap)

    def weights_at(self, step: int) -> list[Weighted]:
        """The windows of one step with normalized weights: those of any frame sum to 1."""
        total = [0.0] * self.num_frames
        windows = self.windows_at(step)
        for window in windows:
            for frame, weight in zip(window, self.fuse(window), strict=True):
                total[frame] += weight
        return [(w, [x / total[f] for f, x in zip(w, self.fuse(w), strict=True)]) for w in windows]

    def shared_out(self, step: int) -> list[list[Weighted]]:
        """The weighted windows of one step, rank by rank: neighbors, of about as many frames for each.

        Neighbors, since what is kept of a frame serves all windows of one device that hold it.
        """
        shares: list[list[Weighted]] = [[] for _ in range(self.ranks)]
        windows = self.weights_at(step)
        total, before = sum(len(window) for window, _ in windows), 0
        for window, weights in windows:
            middle = 2 * before + len(window)  # in half frames
            shares[middle * self.ranks // (2 * total)].append((window, weights))
            before += len(window)
        return shares

    def batches_at(self, step: int) -> list[list[Weighted]]:
        """This rank's weighted windows of one step in batches; only windows of one length share a batch."""
        batches: list[list[Weighted]] = []
        for window, weights in sorted(self.shared_out(step)[self.rank], key=lambda w: -len(w[0])):
            if batches and len(batches[-1]) < self.window_batch and len(batches[-1][0][0]) == len(window):
                batches[-1].append((window, weights))
            else:
                batches.append([(window, weights)])
        return batches

    def _sequences(self, step: int) -> list[range]:
        """The runs of frames that are windowed each for itself: one a shot, or one a phase of the stride."""
        borders = sorted({0, self.num_frames, *(c for c in self.cuts if 0 < c < self.num_frames)})
        shots = [range(a, b) for a, b in pairwise(borders)]
        # Only windows of neighbors keep neighbors alike, so a stride never has all the steps to itself.
        stride = self.context_stride if step % 2 else 1
        return [shot[phase::stride] for shot in shots for phase in range(min(stride, len(shot)))]


def within(span: tuple[float, float], step: int, steps: int) -> bool:
    """Whether all of this step (0 is the first) lies between these shares of all steps."""
    start, end = span
    return start <= step / steps and (step + 1) / steps <= end


def static(num_frames: int, context_frames: int, context_overlap: int, step: int) -> list[Window]:
    """The same windows at every step; the last one is moved back to end on the last frame."""
    hop = context_frames - context_overlap
    last = max(num_frames - context_frames, 0)
    starts = sorted({min(start, last) for start in range(0, last + hop, hop)})
    return [list(range(s, min(s + context_frames, num_frames))) for s in starts]


def uniform(num_frames: int, context_frames: int, context_overlap: int, step: int) -> list[Window]:
    """Windows whose borders move from step to step; the outer two may be cut short, to half a window."""
    if num_frames <= context_frames:
        return [list(range(num_frames))]
    hop = context_frames - context_overlap
    shift = int(spread(step) * hop)
    windows = {}
    for start in range(-shift, num_frames, hop):
        first, end = max(start, 0), min(start + context_frames, num_frames)
        if end - first < min(context_frames // 2, context_frames - 1):  # too little to see motion in
            first = min(first, num_frames - context_frames)
            end = first + context_frames
        windows[first, end] = list(range(first, end))
        if end == num_frames:
            break
    return list(windows.values())


def loop(num_frames: int, context_frames: int, context_overlap: int, step: int) -> list[Window]:
    """Windows on a ring: the last frame is followed by the first; borders move from step to step."""
    context_frames = min(context_frames, num_frames)
    hop = num_frames if context_frames == num_frames else context_frames - context_overlap
    shift = int(spread(step) * hop)
    return [
        [(start + k) % num_frames for k in range(context_frames)]
        for start in range(shift, shift + num_frames, hop)
    ]


def spread(step: int) -> float:
    """Numbers that fill 0..1 evenly as steps go on: 0, 1/2, 1/4, 3/4, 1/8, ... (van der Corput)."""
    value, share = 0.0, 0.5
    while step:
        value += share * (step % 2)
        step, share = step // 2, share / 2
    return value


def flat(length: int, overlap: int) -> list[float]:
    """All frames of a window count alike."""
    return [1.0] * length


def pyramid(length: int, overlap: int) -> list[float]:
    """The middle of a window counts most, falling evenly to its ends."""
    return [float(min(k + 1, length - k)) for k in range(length)]


def overlap_linear(length: int, overlap: int) -> list[float]:
    """Full weight but for the overlap at each end, where one window fades into the next."""
    return [min(k + 1, length - k, overlap + 1) / (overlap + 1) for k in range(length)]


SCHEDULES: dict[str, Schedule] = {"static": static, "uniform": uniform, "loop": loop}
FUSIONS: dict[str, Callable[[int, int], list[float]]] = {
    "flat": flat,
    "pyramid": pyramid,
    "overlap-linear": overlap_linear,
}
