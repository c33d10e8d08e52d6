"""How a synthetic face is painted: blush, lips, brows and eyes, on the template's own coordinates.

Small heads are painted as a cartoonist does, with few bold features: thin brows and pale lips would
not outlive an autoencoder of 16 pixels a cell, and without a face nobody can tell front from back.
"""

from dataclasses import dataclass

import numpy as np

from dreamoving_cli.train.body import Expression
from dreamoving_cli.train.expressions import inside_mouth

LARGE_HEAD_PX_PER_M = 220.0  # from here on a head is large enough for natural features


@dataclass(frozen=True)
class Features:
    """Sizes in meters, colors as shares of the skin's or the hair's."""

    brow_m: tuple[float, float]  # half height, half width
    brow_of_hair: float
    iris_m: tuple[float, float]  # radius of the pupil, of the iris
    lips_from: float  # the template's lips, 0..1, from which on they are painted
    lips_of_skin: tuple[float, float, float]
    lashes_m: tuple[float, float]  # half width and half height about the eye; 0 = none


NATURAL = Features((0.0045, 0.022), 0.6, (0.0035, 0.0075), 0.35, (0.86, 0.5, 0.5), (0.0, 0.0))
BOLD = Features((0.007, 0.026), 0.4, (0.0085, 0.0085), 0.2, (0.75, 0.25, 0.25), (0.021, 0.013))
LASHES_OF_SKIN, EYE_WHITE, PUPIL = 0.3, 0.95, 0.05
MOUTH_OF_SKIN = (0.35, 0.1, 0.1)  # inside
EYE_M = 0.009  # half of an open eye's height
FRONT_M = 0.03  # the features lie before this plane behind the eyes


def paint_face(
    color: np.ndarray,
    at: np.ndarray,
    head: np.ndarray,
    eye: np.ndarray,
    tones: tuple[np.ndarray, ...],
    face: Expression,
    bold: bool,
) -> np.ndarray:
    """Skin colors `n 3` with the face painted on.

    at: attributes `n 12` (people.py); head: bool `n`; eye: template position of the left eye;
    tones: colors of skin, hair and irises.
    """
    features, (skin, hair, irises) = BOLD if bold else NATURAL, tones
    x, height, is_eye = abs(at[:, 0]), at[:, 2] - eye[2], at[:, 6] > 0.5
    front = head & (at[:, 1] < eye[1] + FRONT_M)
    blush = np.clip(1 - np.hypot(x - 0.045, height + 0.045) / 0.03, 0, 1) * head
    color = color * (1 - 0.08 * blush[:, None] * [0, 1, 1])
    lips = head & (at[:, 11] > features.lips_from)
    color = np.where(lips[:, None], skin * features.lips_of_skin + [0.06, 0, 0.01], color)
    if bold:
        wide, tall = features.lashes_m
        lashes = front & (np.hypot((x - eye[0]) / wide, height / tall) < 1)
        color = np.where(lashes[:, None], skin * LASHES_OF_SKIN, color)
    (half_height, half_width), arch = features.brow_m, 0.024 + 0.004 * np.cos((x - 0.032) * 60)
    brow = front & (abs(height - arch) < half_height) & (abs(x - 0.034) < half_width)
    color = np.where(brow[:, None], hair * features.brow_of_hair, color)
    pupil, iris = features.iris_m
    off = np.hypot(x - eye[0], height)[:, None]
    painted = np.where(off < pupil, PUPIL, np.where(off < iris, irises, EYE_WHITE))
    painted = np.where((height > EYE_M * (1 - 2 * face.blink))[:, None] & (face.blink > 0), skin, painted)
    color = np.where((head & inside_mouth(at))[:, None], skin * MOUTH_OF_SKIN, color)
    return np.where(is_eye[:, None], painted, color)
