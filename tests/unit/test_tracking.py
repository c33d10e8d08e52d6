"""Tracks: people keep their numbers, are chosen as asked, and never live on behind a cut."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.extract.keypoints import People
from dreamoving_cli.extract.tracking import choose, make_tracks, similarity

FPS = Fraction(25)


def person(x: float, y: float, height: float = 100.0) -> tuple[np.ndarray, np.ndarray]:
    """A body of that height about (x, y): points 134 2, scores 134."""
    rng = np.random.default_rng(1)
    shape = rng.uniform(-0.5, 0.5, (134, 2)) * [0.4, 1.0]
    return (shape * height + [x, y]).astype(np.float32), np.ones(134, np.float32)


def crowd(*people: tuple[np.ndarray, np.ndarray]) -> People:
    if not people:
        return np.zeros((0, 134, 2), np.float32), np.zeros((0, 134), np.float32)
    points, scores = zip(*people, strict=True)
    return np.stack(points), np.stack(scores)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), frames=st.integers(5, 30), apart=st.floats(70, 300))
def test_two_walkers_keep_their_numbers(seed: int, frames: int, apart: float) -> None:
    rng = np.random.default_rng(seed)
    found = []
    for k in range(frames):
        both = [person(100 + 3 * k, 100, 120), person(100 + apart - 3 * k, 300)]
        order = rng.permutation(2)  # a detector promises no order
        found.append(crowd(*(both[i] for i in order)))
    tracks = make_tracks(found, FPS)
    assert [track.id for track in tracks] == [1, 2]
    assert [len(track.points) for track in tracks] == [frames, frames]
    assert np.ptp(tracks[0].points[:, :, 1].mean(1)) < 1  # nobody changed the row


def test_people_who_pass_each_other_keep_their_numbers() -> None:
    """By their speed: in the middle the two overlap."""
    found = [crowd(person(60 + 6 * k, 100), person(300 - 6 * k, 104)) for k in range(40)]
    tracks = make_tracks(found, FPS)
    assert len(tracks) == 2
    for track in tracks:
        steps = np.diff(track.points[:, :, 0].mean(1))
        assert (np.sign(steps) == np.sign(steps[0])).all()


def test_a_hidden_person_comes_back_as_the_same() -> None:
    found = [crowd(person(100 + 2 * k, 100)) if not 8 <= k < 18 else crowd() for k in range(30)]
    [track] = make_tracks(found, FPS)
    assert len(track.points) == 30
    assert track.seen.sum() == 20
    found = [crowd(person(100, 100)) if not 5 <= k < 40 else crowd() for k in range(50)]
    assert len(make_tracks(found, FPS)) == 2  # gone for too long


def test_cuts_end_tracks() -> None:
    tracks = make_tracks([crowd(person(100, 100))] * 20, FPS, cuts=[9])
    assert sorted((t.start, t.end) for t in tracks) == [(0, 9), (9, 20)]


def test_a_false_alarm_is_no_person_but_a_short_clip_may_hold_one() -> None:
    found = [crowd(person(100, 100), *([person(300, 50, 30)] if k == 4 else [])) for k in range(20)]
    assert len(make_tracks(found, FPS)) == 1
    assert len(make_tracks([crowd(person(9, 9))], FPS)) == 1
    assert make_tracks([crowd()] * 5, FPS) == []


class TestChoice:
    found = tuple(crowd(person(60, 200, 200), person(320, 200, 80)) for _ in range(10))

    def test_largest_and_central(self) -> None:
        tracks = make_tracks(self.found, FPS)
        assert [[t.id for t in one] for one in choose(tracks, "largest", 640)] == [[1]]
        assert [[t.id for t in one] for one in choose(tracks, "central", 640)] == [[2]]

    def test_a_number_and_all(self) -> None:
        tracks = make_tracks(self.found, FPS)
        assert [[t.id for t in one] for one in choose(tracks, "2", 640)] == [[2]]
        assert len(choose(tracks, "all", 640)) == 2
        with pytest.raises(InputError, match="no person 3: 2 were found"):
            choose(tracks, "3", 640)
        with pytest.raises(UsageError, match="person is 'tallest'"):
            choose(tracks, "tallest", 640)

    def test_each_shot_has_its_largest(self) -> None:
        late = [crowd(person(320, 200, 150), person(100, 100, 60)) for _ in range(12)]
        tracks = make_tracks([*self.found, *late], FPS, cuts=[10])
        [shown] = choose(tracks, "largest", 640, cuts=[10])
        assert [(t.start, t.end) for t in shown] == [(0, 10), (10, 22)]
        assert [round(t.size() / 50) for t in shown] == [4, 3]

    def test_nobody_takes_over_who_is_of_another_size(self) -> None:
        found = [crowd(person(60, 200, 200)) if k < 10 else crowd(person(500, 200, 60)) for k in range(20)]
        [shown] = choose(make_tracks(found, FPS), "largest", 640)
        assert len(shown) == 1

    def test_all_share_places_when_they_do_not_meet(self) -> None:
        found = [crowd(person(60, 200)) if k < 10 else crowd(person(500, 200)) for k in range(20)]
        assert len(choose(make_tracks(found, FPS), "all", 640)) == 1


def test_similarity_is_whole_for_the_same_and_nothing_far_away() -> None:
    a = person(100, 100)
    assert similarity(a, a, 0.15) == pytest.approx(1)
    assert similarity(a, person(900, 100), 0.15) < 0.01
    assert similarity(a, person(110, 100), 0.15) > similarity(a, person(125, 100), 0.15)
