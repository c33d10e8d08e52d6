"""What a clip looks like, in numbers: does anything move, is it sharp. uint8 frames in."""

import cv2
import numpy as np

from dreamoving_cli.media.images import resize

THUMBNAIL = 64  # pixels of the longer side in which movement and colors are looked at
CELLS = 16  # cells a side in which movement is measured
LIVELY = 95  # percentile of the cells: a dancer before a still wall is not static
SHARPNESS_SIDE = 512  # pixels of the shorter side in which blur is measured, at most
BLUR_WIDTH = 9  # pixels
STEP = 1.0  # of 255: what a flat picture loses by being blurred is its rounding


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """A small copy of uint8 h w c."""
    height, width = frame.shape[:2]
    factor = THUMBNAIL / max(height, width)
    return resize(frame, max(round(height * factor), 1), max(round(width * factor), 1))


def movement(before: np.ndarray, after: np.ndarray) -> float:
    """Mean change, of 255, of the liveliest cells between two thumbnails uint8 h w c."""
    change = cv2.absdiff(before, after).astype(np.float32).mean(-1)
    cells = cv2.resize(change, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    return float(np.percentile(cells, LIVELY))


def blur(frame: np.ndarray) -> float:
    """0 sharp .. 1 blurred: how little a picture loses by being blurred (Crete et al. 2007). uint8 h w c."""
    height, width = frame.shape[:2]
    factor = min(SHARPNESS_SIDE / min(height, width), 1.0)
    small = resize(frame, max(round(height * factor), 2), max(round(width * factor), 2))
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    worst = 0.0
    for axis, kernel in ((0, (1, BLUR_WIDTH)), (1, (BLUR_WIDTH, 1))):
        sharp = np.abs(np.diff(gray, axis=axis))
        soft = np.abs(np.diff(cv2.blur(gray, kernel), axis=axis))
        total = float(sharp.sum())
        lost = float(np.maximum(sharp - soft - STEP, 0).sum())
        worst = max(worst, (total - lost) / total if total else 1.0)
    return worst
