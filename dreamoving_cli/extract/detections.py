"""What a detector saw of a clip so far, in a file, so that a look that was cut off goes on where it ended."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreamoving_cli.extract.keypoints import NUM_POINTS, People
from dreamoving_cli.whole import whole_file


class Detections:
    """The people of a clip's first frames; keeps them on disk."""

    def __init__(self, path: Path, made_from: Mapping[str, Any], *, resume: bool = False) -> None:
        """made_from: plain values that decide what is seen; resume: go on with a file of the same."""
        self.path = path
        self._made_from = json.dumps(dict(made_from), sort_keys=True)
        self.people: list[People] = self._read() if resume else []

    def keep(self, people: list[People]) -> None:
        """Write what was seen of all frames until now, whole."""
        if len(people) <= len(self.people):
            return
        counts = [len(points) for points, _ in people]
        points = np.concatenate([np.zeros((0, NUM_POINTS, 2), np.float32), *(p for p, _ in people)])
        scores = np.concatenate([np.zeros((0, NUM_POINTS), np.float32), *(s for _, s in people)])
        with whole_file(self.path) as part, part.open("wb") as file:
            np.savez(file, made_from=self._made_from, counts=counts, points=points, scores=scores)
        self.people = list(people)

    def _read(self) -> list[People]:
        """Nothing where there is no file, or one of something else."""
        try:
            with np.load(self.path) as saved:
                if str(saved["made_from"]) != self._made_from:
                    return []
                ends = np.cumsum(saved["counts"])[:-1]
                parts = (np.split(saved[name], ends) for name in ("points", "scores"))
                return list(zip(*parts, strict=True))
        except (OSError, ValueError, KeyError, EOFError):
            return []
