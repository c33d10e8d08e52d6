"""A render that can die: its state beside the output after a step, and going on from it bit for bit.

The state holds latents, the multistep history, found poses, and `fixed`: all that decides the other bits. It
is a torch file of tensors and plain values, read with weights_only.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.extract.keypoints import Poses
from dreamoving_cli.sampling import DenoiseState
from dreamoving_cli.whole import whole_file

SUFFIX = ".dreamoving.state"
PATIENCE = 10  # a state is written when the last write took less than 1/10 of the time since

log = logging.getLogger(__name__)


def state_path(output: Path) -> Path:
    """Where the state of an unfinished render is: beside the output."""
    return output.with_name(output.name + SUFFIX)


def unfinished(output: Path) -> dict[str, Any] | None:
    """What was fixed in the unfinished render of this output; None where there is none."""
    path = state_path(output)
    return dict(_read(path)["fixed"]) if path.is_file() else None


@dataclass
class Checkpoint:
    """The state of one render, on disk and in memory."""

    path: Path | None  # None: in memory only
    fixed: dict[str, Any]  # name -> plain value; all must agree to go on
    poses: Poses | None = None
    state: DenoiseState | None = None
    vram: list[str] = field(default_factory=list)  # memory modes so far; they may change on the way
    devices: int = 1  # that share the work; they may change too
    _written: DenoiseState | None = None
    _written_vram: list[str] = field(default_factory=list)
    _times: list[float] = field(
        default_factory=lambda: [0.0, 0.0]
    )  # when the last write ended, how long it took

    def load(self) -> None:
        """Take up what is on disk; without it, start from the beginning and say so."""
        if self.path is None or not self.path.is_file():
            log.warning("there is no unfinished render at %s: starting from the beginning", self.path)
            return
        saved = _read(self.path)
        for name, value in self.fixed.items():
            if (before := saved["fixed"].get(name)) != value:
                raise UsageError(
                    f"the unfinished render had {_changes(name, before, value)}",
                    "Give what it had, or leave out --resume to start anew.",
                )
        if (before := saved.get("devices", 1)) != self.devices:
            log.warning(
                "going on with %d device%s, before %d: last bits may differ",
                self.devices,
                "s" if self.devices > 1 else "",
                before,
            )
        self.poses, self.vram = _unpack_poses(saved), saved.get("vram", [])
        if saved["step"] is not None:
            history = {key: saved[key] for key in saved if key.startswith("history.")}
            self.state = self._written = DenoiseState(saved["step"], saved["latents"], history)
            self._written_vram = list(self.vram)
        log.warning("going on after step %d", saved["step"] or 0)

    def keep(self, state: DenoiseState) -> None:
        """A step is done: remember it, and write it unless writes would slow the render down."""
        self.state = state
        ended, took = self._times
        if time.monotonic() - ended >= PATIENCE * took:
            self.write()

    def write(self) -> None:
        """Put the state on disk, whole or not at all."""
        same = self.state is self._written and self.vram == self._written_vram
        if self.path is None or (same and self.path.is_file()):
            return
        start = time.monotonic()
        content: dict[str, Any] = {"fixed": self.fixed, "step": None, "vram": self.vram}
        content |= {"devices": self.devices} | _pack_poses(self.poses)
        if self.state is not None:
            content |= {"step": self.state.step, "latents": self.state.latents, **self.state.history}
        with whole_file(self.path) as part:
            torch.save(content, part)
        self._written, self._written_vram = self.state, list(self.vram)
        self._times = [time.monotonic(), time.monotonic() - start]

    def remove(self) -> None:
        """The output is there: the state has served."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:
        raise InputError(f"{path} is not a render's state", "Delete it and render anew.") from error
    return saved


def _pack_poses(poses: Poses | None) -> dict[str, Any]:
    if poses is None:
        return {}
    arrays = {"points": torch.from_numpy(poses.points), "scores": torch.from_numpy(poses.scores)}
    size = [poses.height, poses.width]
    return {**arrays, "pose_fps": str(poses.fps), "pose_size": size, "pose_cuts": list(poses.cuts)}


def _unpack_poses(saved: Mapping[str, Any]) -> Poses | None:
    if "points" not in saved:
        return None
    points: Tensor = saved["points"]
    height, width = saved["pose_size"]
    cuts = tuple(saved.get("pose_cuts", ()))
    return Poses(
        Fraction(saved["pose_fps"]), height, width, points.numpy(), saved["scores"].numpy(), cuts=cuts
    )


def _changes(name: str, before: Any, now: Any) -> str:
    """Where two values of what is fixed differ, for a message."""
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in [*before, *now] if before.get(key) != now.get(key))
        return _changes(f"{name} {key}", before.get(key), now.get(key))
    return f"{name} {before}, now it is {now}"
