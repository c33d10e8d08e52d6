"""Left taken for right: arms or legs that change sides from one frame to the next are changed back.

A label that changes and changes back shows as two moments at which every joint leaps to where its twin was.
Of the two ways of naming, the right one is told by the face, which is seen from the front only, and where
that says nothing, by the longer time. numpy only.
"""

from itertools import pairwise

import numpy as np

from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.draw import VISIBLE

CROSSED = 0.5  # exchanged, the joints move less than this share of what they would move as they are named
APART = 0.15  # of the torso: twins nearer than this cannot be told apart by place
LONGEST_STEP = 2  # frames: over longer gaps a body may really have turned
LONGEST_SWAP = 15  # frames: a longer one must be contradicted by the face
CONTRADICTED = 0.5  # in this share of its frames
FACE_SURE = 0.5  # mean score of a face that is believed
CLEAR = 0.25  # of the greatest width of shoulders or hips: less wide, a body is seen from the side

# Left and right twins of the arms (with their hands) and of the legs (with their feet).
ARMS = (
    (kp.LEFT_SHOULDER, kp.RIGHT_SHOULDER), (kp.LEFT_ELBOW, kp.RIGHT_ELBOW), (kp.LEFT_WRIST, kp.RIGHT_WRIST),
)  # fmt: skip
LEGS = (
    (kp.LEFT_HIP, kp.RIGHT_HIP), (kp.LEFT_KNEE, kp.RIGHT_KNEE), (kp.LEFT_ANKLE, kp.RIGHT_ANKLE),
)  # fmt: skip
HANDS = tuple(zip(range(*kp.LEFT_HAND.indices(134)), range(*kp.RIGHT_HAND.indices(134)), strict=True))
FEET = ((18, 21), (19, 22), (20, 23))
GROUPS = ((ARMS, (*ARMS, *HANDS)), (LEGS, (*LEGS, *FEET)))  # what tells a swap, what is exchanged


def mend_swaps(points: np.ndarray, scores: np.ndarray, unit: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Points and scores with arms and legs on their own sides, and the number of frames that were changed.

    points: f 134 2; scores: f 134; unit: the torso's length, pixels.
    """
    points, scores = points.copy(), scores.copy()
    changed = np.zeros(len(points), bool)
    for told_by, exchanged in GROUPS:
        wrong = wrongly_named(points, scores, told_by, unit)
        left, right = (list(side) for side in zip(*exchanged, strict=True))
        for values in (points, scores):
            values[np.ix_(wrong, left + right)] = values[np.ix_(wrong, right + left)]
        changed |= wrong
    return points, scores, int(changed.sum())


def wrongly_named(
    points: np.ndarray, scores: np.ndarray, twins: tuple[tuple[int, int], ...], unit: float
) -> np.ndarray:
    """In which frames these twins bear each other's names; bool f. points: f 134 2; scores: f 134."""
    exchanges = _exchanges(points, scores, twins, unit)
    if not exchanges:
        return np.zeros(len(points), bool)
    parity = np.zeros(len(points), bool)
    for frame in exchanges:
        parity[frame:] ^= True
    facing = facing_vote(points, scores, twins[0])
    votes = np.where(parity, -1, 1) * facing
    right_as_is = votes.sum() if votes.any() else np.where(parity, -1, 1).sum()
    return _believable(parity if right_as_is >= 0 else ~parity, facing)


def _believable(wrong: np.ndarray, facing: np.ndarray) -> np.ndarray:
    """Only stretches that are short, or whose names the face contradicts. wrong: bool f; facing: int f."""
    out = wrong.copy()
    borders = [0, *(np.flatnonzero(np.diff(wrong)) + 1).tolist(), len(wrong)]
    for first, end in pairwise(borders):
        long = end - first > LONGEST_SWAP
        if long and facing[first:end].sum() > -CONTRADICTED * (end - first):
            out[first:end] = False
    return out


def _exchanges(
    points: np.ndarray, scores: np.ndarray, twins: tuple[tuple[int, int], ...], unit: float
) -> list[int]:
    """Frames from which on the twins bear the other names."""
    pairs = np.array(twins)  # k 2: left, right
    shown = np.asarray((scores[:, pairs] > VISIBLE).all(2))  # f k
    apart = np.linalg.norm(points[:, pairs[:, 0]] - points[:, pairs[:, 1]], axis=-1)  # f k
    found, flipped, last = [], False, -1
    for frame in range(len(points)):
        if shown[frame].sum() < 2:
            continue
        if last >= 0 and frame - last <= LONGEST_STEP:
            both = shown[frame] & shown[last] & (apart[last] > APART * unit) & (apart[frame] > APART * unit)
            if both.sum() >= 2:
                now, before = points[frame][pairs[both]], points[last][pairs[both]]  # k 2 2
                as_named = np.linalg.norm(now - before, axis=-1).sum()
                crossed = np.linalg.norm(now[:, ::-1] - before, axis=-1).sum()
                if crossed < CROSSED * as_named:
                    found.append(frame)
                    flipped = not flipped
        last = frame
    return found


def facing_vote(points: np.ndarray, scores: np.ndarray, twins: tuple[int, int]) -> np.ndarray:
    """1 where these twins and the face agree on which side is right, -1 where they do not, 0 else; int f.

    The 68 points of the face count, not the body's nose and eyes: networks guess these on backs too.
    """
    face_sure = scores[:, kp.FACE].mean(1) > FACE_SURE
    return np.where(face_sure, side_order(points, scores, twins), 0)


def side_order(points: np.ndarray, scores: np.ndarray, twins: tuple[int, int]) -> np.ndarray:
    """1 where the right twin lies clearly on our left (facing us), -1 on our right, 0 else; int f."""
    left, right = twins
    shown = (scores[:, [left, right]] > VISIBLE).all(1)
    width = points[:, left, 0] - points[:, right, 0]
    widest = np.percentile(np.abs(width[shown]), 90) if shown.any() else 0.0
    clear = shown & (np.abs(width) > CLEAR * widest)
    return np.asarray(np.where(clear, np.sign(width), 0), np.int64)


def away(points: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Where the shoulders say that the body faces away from us and the hips do not contradict; bool f."""
    return (side_order(points, scores, ARMS[0]) < 0) & (side_order(points, scores, LEGS[0]) <= 0)
