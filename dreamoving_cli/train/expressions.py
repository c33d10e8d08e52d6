"""What a synthetic face does: opens its mouth, smiles, raises its brows, blinks; and that over time.

    shape += face_offsets(Expression(smile=0.8))     # meters, in the rest shape
    faces = acting(rng, num_frames, fps)             # one for each frame

Places are those of the template, so they fit every baked body.
"""

from functools import cache

import numpy as np

from dreamoving_cli.train.body import Expression, load_bodies

MOUTH_DROP_M, CORNER_RISE_M, CORNER_OUT_M, BROW_RISE_M, LID_DROP_M = 0.021, 0.009, 0.007, 0.008, 0.008
CORNERS, UPPER_LIP, LOWER_LIP, UPPER_LIDS, BROWS = (48, 54), 62, 66, (37, 38, 43, 44), tuple(range(17, 27))
JAW_M = 0.03  # below the lips, all that is in front has come along with them
DEPTH_M = 0.09  # behind the lips, nothing moves
NECK_M = 0.07  # below the lips, nor there
NEAR_CORNER_M, NEAR_BROW_M, NEAR_LID_M = 0.016, 0.014, 0.006  # how far a pull reaches


def face_offsets(face: Expression) -> np.ndarray:
    """How far each vertex of the rest shape moves, meters, `v 3`."""
    pulls = _pulls()
    return face.open * pulls["open"] + face.smile * pulls["smile"] + face.brows * pulls["brows"] + (
        face.blink * pulls["blink"]
    )  # fmt: skip


def inside_mouth(at: np.ndarray) -> np.ndarray:
    """Which template positions `n 3` line the mouth, bool `n`: they are dark when it opens."""
    lips, line = _lips()
    x, behind, height = abs(at[:, 0]), at[:, 1] - lips[1], at[:, 2] - line
    near = (x < 0.017) & (behind > 0.0012) & (abs(height) < 0.014)
    deep = (x < 0.012) & (behind > 0.005) & (behind < DEPTH_M) & (abs(height) < 0.02)
    return near | deep


def acting(rng: np.random.Generator, num_frames: int, fps: float) -> list[Expression]:
    """A face over time: it smiles or not, sings along or not, raises its brows, and blinks now and then."""
    seconds = np.arange(num_frames) / fps
    smile = np.clip(rng.normal(0.3, 0.5) + 0.4 * _wave(rng, seconds, 0.1, 0.5), -0.7, 1)
    sings = rng.random() < 0.5
    mouth = np.clip(_wave(rng, seconds, 0.5, 2.5) * (0.9 if sings else 0.15), 0, 1)
    brows = np.clip(0.6 * _wave(rng, seconds, 0.1, 0.6), -1, 1)
    blinks = np.cumsum(rng.uniform(1.0, 5.0, int(seconds[-1]) + 2)) - rng.uniform(0.0, 4.0)
    shut = np.clip(1 - abs(seconds[:, None] - blinks) / 0.12, 0, 1).max(1)
    return [Expression(*map(float, moment)) for moment in np.stack([mouth, smile, brows, shut], 1)]


def _wave(rng: np.random.Generator, seconds: np.ndarray, low: float, high: float) -> np.ndarray:
    """A smooth curve about 0 of frequencies from `low` to `high` Hz; it seldom leaves -1..1."""
    frequencies, phases = rng.uniform(low, high, 3), rng.uniform(0, 2 * np.pi, 3)
    return np.asarray(np.sin(2 * np.pi * frequencies * seconds[:, None] + phases).sum(1) / 2)


@cache
def _lips() -> tuple[np.ndarray, float]:
    """Where the lower lip meets the upper one, 3, and the height of the line between them."""
    b = load_bodies()
    upper, lower = (b.template[b.face_landmarks[k]] for k in (UPPER_LIP, LOWER_LIP))
    return lower, float((upper[2] + lower[2]) / 2)


@cache
def _pulls() -> dict[str, np.ndarray]:
    """Offsets of each vertex, `v 3`, of an expression drawn to its full."""
    b = load_bodies()
    skin = b.part[:, None] == 0
    points = b.template[b.face_landmarks]
    down, up = np.array([0.0, 0.3, -1.0]), np.array([0.0, 0.0, 1.0])
    corners = sum(
        _near(points[k], NEAR_CORNER_M)[:, None] * [np.sign(points[k][0]) * CORNER_OUT_M, 0, CORNER_RISE_M]
        for k in CORNERS
    )
    brows = np.max([_near(points[k], NEAR_BROW_M) for k in BROWS], axis=0)
    lids = np.max([_near(points[k], NEAR_LID_M) for k in UPPER_LIDS], axis=0)
    pulls = {
        "open": _jaw()[:, None] * MOUTH_DROP_M * down,
        "smile": corners,
        "brows": brows[:, None] * BROW_RISE_M * up,
        "blink": -lids[:, None] * LID_DROP_M * up,
    }
    return {name: (pull * skin).astype(np.float32) for name, pull in pulls.items()}


def _near(point: np.ndarray, reach: float) -> np.ndarray:
    """1 at the point, less around it, `v`."""
    return np.asarray(np.exp(-((load_bodies().template - point) ** 2).sum(1) / (2 * reach**2)))


def _jaw() -> np.ndarray:
    """How far each vertex comes along when the mouth opens, 0..1 `v`.

    The lips part most in the middle and not at their corners; the chin moves as a whole.
    """
    b = load_bodies()
    lips, line = _lips()
    half_width = abs(b.template[b.face_landmarks[list(CORNERS)], 0]).mean()
    x, behind, below = b.template[:, 0], b.template[:, 1] - lips[1], line - b.template[:, 2]
    at_lips = np.sqrt(np.clip(1 - (x / half_width) ** 2, 0, 1))
    whole = np.clip(below / JAW_M, 0, 1)
    fades = np.clip(1 - behind / DEPTH_M, 0, 1) * np.clip((NECK_M - below) / (NECK_M - JAW_M), 0, 1)
    return np.where(below > 0, (at_lips + (1 - at_lips) * whole) * fades, 0)
