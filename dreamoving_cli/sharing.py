"""What the windows of a step have in common: ControlNets' residuals of a frame, where it sees no other frame.

They are computed for the first window that asks and held while a later window of the step will ask again: a
few frames, however long the clip. Not here: the networks, and which windows there are (windows.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from dreamoving_cli.windows import Weighted, Window, Windows

Compute = Callable[[Tensor, Sequence[Window]], list[Tensor]]  # x: b c f h w -> of every level (g b f) c h w

STEPS_SEEN = 32  # borders move by ever smaller parts of a window; later ones held no more in any trial


class Known(NamedTuple):
    """One frame's residuals, and what they were computed from."""

    latents: Tensor  # c h w
    levels: list[Tensor]  # g h w c each; g: branches of guidance, 1 where they do not differ


class SharedFrames:
    """Residuals frame by frame, of one step at a time."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self.most_held = limit(windows)
        self._step, self._batch = -1, 0
        self._last: dict[int, int] = {}  # the last batch of the step that asks for a frame
        self._held: dict[int, Known] = {}

    def residuals(self, x: Tensor, step: int, windows: Sequence[Window], compute: Compute) -> list[Tensor]:
        """What compute(x, windows) gives, no frame computed twice; x: b c f h w.

        A frame has the same latents in all windows of one call; those held from earlier calls are compared.
        """
        if step != self._step:
            self._begin(step)
        asked = [frame for window in windows for frame in window]
        latents = dict(zip(asked, rearrange(x, "b c f h w -> (b f) c h w"), strict=True))
        known = {
            f: of for f, of in self._held.items() if f not in latents or torch.equal(of.latents, latents[f])
        }
        new = [frame for frame in latents if frame not in known]
        made = compute(torch.stack([latents[f] for f in new], 1)[None], [new]) if new else []
        for number, frame in enumerate(new):
            known[frame] = Known(latents[frame], [_of_frame(level, number, len(new)) for level in made])
        self._held = {f: known[f] if f in self._held else _copied(known[f]) for f in self._wanted(known)}
        self._batch += 1
        if new == asked:
            return made
        return [_rows(level) for level in zip(*(known[f].levels for f in asked), strict=True)]

    def _begin(self, step: int) -> None:
        self._step, self._batch, self._held = step, 0, {}
        self._last = last_batches(self.windows.batches_at(step))

    def _wanted(self, known: dict[int, Known]) -> list[int]:
        """The frames that a later batch will ask for."""
        wanted = [f for f in known if self._last.get(f, 0) > self._batch]
        return sorted(wanted, key=self._last.__getitem__)[: self.most_held]


def most_held(windows: Windows, steps: int) -> int:
    """The most frames whose residuals wait for a later batch at any step, when windows come one by one.

    In larger batches no more wait.
    """
    one_by_one, most = replace(windows, window_batch=1), 0
    for step in range(min(steps, STEPS_SEEN)):
        batches = one_by_one.batches_at(step)
        last, seen = last_batches(batches), set[int]()
        for number, batch in enumerate(batches):
            seen = {f for f in seen.union(*(window for window, _ in batch)) if last[f] > number}
            most = max(most, len(seen))
    return min(most, limit(windows))


def last_batches(batches: Sequence[Sequence[Weighted]]) -> dict[int, int]:
    """The last batch of a step that asks for a frame."""
    return {f: number for number, batch in enumerate(batches) for window, _ in batch for f in window}


def limit(windows: Windows) -> int:
    """Frames whose residuals are held; more are computed again: memory is bounded."""
    return windows.context_frames // 2


def _of_frame(level: Tensor, number: int, frames: int) -> Tensor:
    """(g f) c h w -> g h w c of one frame: a view."""
    return rearrange(level, "(g f) c h w -> f g h w c", f=frames)[number]


def _copied(known: Known) -> Known:
    """The same in memory of its own: a view would hold its whole window."""
    return Known(known.latents.clone(), [level.clone() for level in known.levels])


def _rows(level: Sequence[Tensor]) -> Tensor:
    """g h w c of each frame -> (g f) c h w, channels last in memory."""
    return rearrange(torch.stack(list(level), 1), "g f h w c -> (g f) c h w")
