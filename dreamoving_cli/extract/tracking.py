"""Who is who: detections of single frames become tracks, each one person in one shot; numpy only.

A detection continues the track whose pose, carried on at its last speed, it resembles most (overlap of the
boxes, distance of the joints). A person who is hidden for a moment keeps the track; no track crosses a cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.draw import VISIBLE
from dreamoving_cli.extract.keypoints import People

MAX_HIDDEN_S = 1.0  # a track goes on after this long without its person
SIMILAR = 0.15  # least similarity of a detection and a track
SPREAD = 0.15  # of the person's size: two joints this far apart agree by 60 %
SPREAD_PER_FRAME = 0.05  # added for each frame in which the person was hidden
SHORTEST_S = 0.15  # shorter tracks are false alarms, where there are others
SAME_SIZE = 2.0  # one person's tracks before and after a gap differ less than this in size

RULES = ("largest", "central", "all")


@dataclass(frozen=True)
class Track:
    """One person in consecutive frames of one shot; a frame in which they were not found has scores 0."""

    id: int  # 1, 2, ...
    start: int  # the first frame
    points: np.ndarray  # f 134 2, pixels
    scores: np.ndarray  # f 134

    @property
    def end(self) -> int:
        """The frame after the last."""
        return self.start + len(self.points)

    @property
    def seen(self) -> np.ndarray:
        """In which of its frames the person was found; bool f."""
        return np.asarray(self.scores.any(-1))

    def size(self) -> float:
        """Typical height of what is seen, in pixels."""
        heights = [
            np.ptp(p[s > VISIBLE][:, 1])
            for p, s in zip(self.points, self.scores, strict=True)
            if (s > VISIBLE).any()
        ]
        return float(np.median(heights)) if heights else 0.0

    def off_center(self, middle: float) -> float:
        """Typical distance from the middle of the picture, in pixels."""
        places = [
            p[s > VISIBLE][:, 0].mean()
            for p, s in zip(self.points, self.scores, strict=True)
            if (s > VISIBLE).any()
        ]
        return float(np.median(np.abs(np.array(places) - middle))) if places else middle


class _Live:
    """A track that is being made."""

    def __init__(self, start: int, points: np.ndarray, scores: np.ndarray) -> None:
        self.start, self.last = start, start
        self.rows = {start: (points, scores)}
        self.speed = np.zeros(2)  # pixels per frame

    def add(self, frame: int, points: np.ndarray, scores: np.ndarray) -> None:
        before, before_scores = self.rows[self.last]
        both = (np.minimum(scores, before_scores) > VISIBLE)[: kp.FEET.stop]
        if both.any():
            moved = (points - before)[: kp.FEET.stop][both]
            self.speed = np.median(moved, axis=0) / (frame - self.last)
        self.rows[frame], self.last = (points, scores), frame

    def similarity(self, frame: int, points: np.ndarray, scores: np.ndarray) -> float:
        hidden = frame - self.last - 1
        before, before_scores = self.rows[self.last]
        expected = before + self.speed * min(frame - self.last, 3)
        return similarity((expected, before_scores), (points, scores), SPREAD + SPREAD_PER_FRAME * hidden)

    def finished(self, number: int) -> Track:
        length = self.last - self.start + 1
        points = np.zeros((length, kp.NUM_POINTS, 2), np.float32)
        scores = np.zeros((length, kp.NUM_POINTS), np.float32)
        for frame, (p, s) in self.rows.items():
            points[frame - self.start], scores[frame - self.start] = p, s
        return Track(number, self.start, points, scores)


def make_tracks(detections: Sequence[People], fps: Fraction, cuts: Sequence[int] = ()) -> list[Track]:
    """All people of a clip, numbered from the most prominent on."""
    patience = max(round(MAX_HIDDEN_S * fps), 1)
    borders, live, done = set(cuts), list[_Live](), list[_Live]()
    for frame, (points, scores) in enumerate(detections):
        gone = [t for t in live if frame in borders or frame - t.last > patience]
        done += gone
        live = [t for t in live if t not in gone]
        live += _continue(live, frame, points, scores)
    tracks = [t.finished(0) for t in done + live]
    shortest = SHORTEST_S * fps
    longer = [t for t in tracks if t.seen.sum() >= shortest]
    ranked = sorted(longer or tracks, key=lambda t: (-t.size() * t.seen.sum(), t.start))
    return [replace(t, id=k) for k, t in enumerate(ranked, start=1)]


def _continue(live: list[_Live], frame: int, points: np.ndarray, scores: np.ndarray) -> list[_Live]:
    """Add each person to the most similar track; who resembles none begins a new one, returned."""
    people = [k for k in range(len(scores)) if (scores[k] > VISIBLE).any()]
    pairs = [(t.similarity(frame, points[k], scores[k]), i, k) for i, t in enumerate(live) for k in people]
    taken: set[int] = set()
    for similar, i, k in sorted(pairs, reverse=True):
        if similar < SIMILAR or live[i].last == frame or k in taken:
            continue
        live[i].add(frame, points[k], scores[k])
        taken.add(k)
    return [_Live(frame, points[k], scores[k]) for k in people if k not in taken]


def similarity(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], spread: float) -> float:
    """0..1: the mean of the boxes' overlap and of the agreement of the joints that both show.

    a, b: points 134 2, scores 134; spread: distance at which joints agree by 60 %, in sizes of the person.
    """
    box_a, box_b = (_box(*one) for one in (a, b))
    both = np.maximum(np.minimum(box_a[1], box_b[1]) - np.maximum(box_a[0], box_b[0]), 0).prod()
    area_a, area_b = ((box[1] - box[0]).prod() for box in (box_a, box_b))
    overlap = both / max(area_a + area_b - both, 1e-9)
    shown = (np.minimum(a[1], b[1]) > VISIBLE)[: kp.FEET.stop]
    if shown.sum() < 3:
        return float(overlap)
    apart = ((a[0] - b[0])[: kp.FEET.stop][shown] ** 2).sum(-1)
    agreement = np.exp(-apart / (2 * spread**2 * max(area_a, area_b, 1.0))).mean()
    return float((overlap + agreement) / 2)


def _box(points: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The corners of what is seen, 2 2."""
    seen = points[scores > VISIBLE]
    return np.stack([seen.min(0), seen.max(0)]) if len(seen) else np.zeros((2, 2))


def choose(tracks: Sequence[Track], person: str, width: int, cuts: Sequence[int] = ()) -> list[list[Track]]:
    """The tracks of the people asked for, one list a person shown; those of one list never overlap in time.

    person: largest or central (in each shot one person, and who follows where they are lost), a number
    (that track), or all.
    """
    if person == "all":
        return _packed(tracks)
    if person.isdigit() and int(person) > 0:
        chosen = [track for track in tracks if track.id == int(person)]
        if not chosen:
            raise InputError(
                f"there is no person {person}: {len(tracks)} were found", f"Choose 1 to {len(tracks)}."
            )
        return [chosen]
    if person not in RULES:
        raise UsageError(f"person is '{person}'", f"Choose {', '.join(RULES)} or a number from 1 on.")
    if person == "central":
        ranked = sorted(
            tracks, key=lambda t: (t.off_center(width / 2) / max(t.size(), 1.0) - t.seen.mean(), t.id)
        )
    else:
        ranked = list(tracks)
    shown: list[Track] = []
    for track in ranked:
        if _goes_with(track, shown, cuts):
            shown.append(track)
    return [sorted(shown, key=lambda t: t.start)]


def _goes_with(track: Track, shown: Sequence[Track], cuts: Sequence[int]) -> bool:
    """Whether a track can go on where the shown ones leave off: at another time, as large within a shot."""
    for other in shown:
        if track.start < other.end and other.start < track.end:
            return False
        same_shot = not any(
            min(track.start, other.start) < cut <= max(track.start, other.start) for cut in cuts
        )
        low, high = sorted((track.size(), other.size()))
        if same_shot and high > SAME_SIZE * low:
            return False
    return True


def _packed(tracks: Sequence[Track]) -> list[list[Track]]:
    """All tracks in as few lists as possible."""
    lists: list[list[Track]] = []
    for track in sorted(tracks, key=lambda t: (t.start, t.id)):
        free = next((one for one in lists if one[-1].end <= track.start), None)
        if free is None:
            lists.append([track])
        else:
            free.append(track)
    return lists
