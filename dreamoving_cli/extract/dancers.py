"""Each dancer of a clip by themselves, taken out of the poses and put back. numpy only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dreamoving_cli.errors import InputError
from dreamoving_cli.extract.draw import VISIBLE
from dreamoving_cli.extract.keypoints import Poses, Raw


@dataclass(frozen=True)
class Dancer:
    """One dancer in the frames that show them."""

    number: int
    frames: np.ndarray  # int k, of the clip
    places: np.ndarray  # int k: which of the people they are there
    poses: Poses  # k 1 134


def dancers_of(poses: Poses) -> list[Dancer]:
    """Everyone who is seen, by their numbers; whoever is in the only place of a file is one dancer."""
    seen = (poses.scores > VISIBLE).any(-1)  # f p
    who = np.where(seen, 1 if poses.points.shape[1] == 1 else poses.identities, 0)
    return [_dancer(poses, number, who == number) for number in sorted(set(who.ravel().tolist()) - {0})]


def _dancer(poses: Poses, number: int, where: np.ndarray) -> Dancer:
    """where: bool f p."""
    frames, places = np.nonzero(where)
    points, scores = poses.points[frames, places][:, None], poses.scores[frames, places][:, None]
    alone = replace(poses, points=points, scores=scores, ids=None, cuts=(), raw=None)
    return Dancer(number, frames, places, alone)


def only(poses: Poses, number: int) -> Poses:
    """The poses of one person; InputError where there is no such number."""
    where = poses.identities == number  # f p
    if not where.any():
        known = sorted(set(poses.identities.ravel().tolist()) - {0})
        raise InputError(f"there is no person {number}", f"Choose one of {', '.join(map(str, known))}.")
    frames, places = np.nonzero(where)

    def alone(values: np.ndarray) -> np.ndarray:
        """values: f p ... -> f 1 ..."""
        out = np.zeros((len(values), 1, *values.shape[2:]), values.dtype)
        out[frames, 0] = values[frames, places]
        return out

    raw = poses.raw and Raw(alone(poses.raw.points), alone(poses.raw.scores))
    points, scores, ids = map(alone, (poses.points, poses.scores, poses.identities))
    return replace(poses, points=points, scores=scores, ids=ids, raw=raw)


def put_back(poses: Poses, dancers: Sequence[Dancer], moved: Sequence[np.ndarray]) -> Poses:
    """The poses with new points, k 134 2 a dancer."""
    points = poses.points.copy()
    for dancer, new in zip(dancers, moved, strict=True):
        points[dancer.frames, dancer.places] = new
    return replace(poses, points=points)


def by_dancer(reasons: Sequence[tuple[int, Sequence[str]]]) -> list[str]:
    """Sentences with whom they are about, unless they are about all. reasons: number, sentences."""
    about: dict[str, list[int]] = {}
    for number, sentences in reasons:
        for sentence in sentences:
            about.setdefault(sentence, []).append(number)
    return [
        sentence
        if len(numbers) == len(reasons)
        else f"dancer{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}: {sentence}"
        for sentence, numbers in about.items()
    ]
