"""Reference pictures out of a dancer's own frames: the face, the garment. numpy in, numpy out."""

from collections.abc import Callable, Iterator

import numpy as np

from dreamoving_cli.errors import InputError
from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.draw import VISIBLE
from dreamoving_cli.extract.face import crop_face
from dreamoving_cli.media.images import resize

Box = tuple[slice, slice]  # rows, columns
TORSO = [kp.LEFT_SHOULDER, kp.RIGHT_SHOULDER, kp.LEFT_HIP, kp.RIGHT_HIP]
MARGIN, BELOW = 0.3, 0.35  # room about the torso in its widths; further down, in its heights, a top may reach
SMALLEST_FACE, SMALLEST_GARMENT = 24, 48  # pixels
TRIES = 3  # frames in which a face is looked for
LARGEST = 512  # pixels of a reference's longer side


def face_crops(
    points: np.ndarray, scores: np.ndarray, read: Callable[[int], np.ndarray]
) -> Iterator[np.ndarray]:
    """Crops of the face from the frames where it is largest, uint8 h w c; points f 134 2, scores f 134."""
    seen = scores[:, kp.FACE] > VISIBLE
    sizes = np.ptp(points[:, kp.FACE], axis=1).max(-1) * seen.all(1)
    for frame in np.argsort(-sizes, kind="stable")[:TRIES]:
        if sizes[frame] < SMALLEST_FACE:
            return
        try:
            yield shrunk(crop_face(around_head(read(int(frame)), points[frame])))
        except InputError:  # the points say there is a face, the picture shows none
            continue


def around_head(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The part of a picture in which this person's face is and nobody else's, mostly; points 134 2."""
    low, high = points[kp.FACE].min(0), points[kp.FACE].max(0)
    reach = 1.5 * (high - low).max()
    (x0, y0), (x1, y1) = np.maximum(low - reach, 0).astype(int), (high + reach).astype(int)
    return picture[y0:y1, x0:x1]


def cloth_box(points: np.ndarray, scores: np.ndarray, size: tuple[int, int]) -> Box | None:
    """Rows and columns of shoulders to below the hips; None: not seen. size: height, width."""
    if (scores[TORSO] <= VISIBLE).any():
        return None
    (x0, y0), (x1, y1) = points[TORSO].min(0), points[TORSO].max(0)
    side, height = MARGIN * (x1 - x0), BELOW * (y1 - y0)
    rows = slice(int(max(y0 - side / 2, 0)), int(min(y1 + height, size[0])))
    columns = slice(int(max(x0 - side, 0)), int(min(x1 + side, size[1])))
    small = min(rows.stop - rows.start, columns.stop - columns.start) < SMALLEST_GARMENT
    return None if small else (rows, columns)


def area(box: Box) -> int:
    """Pixels in a box."""
    rows, columns = box
    return (rows.stop - rows.start) * (columns.stop - columns.start)


def garment(picture: np.ndarray, box: Box | None) -> np.ndarray:
    """What lies in the box, uint8 h w c."""
    assert box is not None
    return shrunk(picture[box])


def shrunk(picture: np.ndarray) -> np.ndarray:
    """uint8 h w c no larger than a reference needs to be."""
    factor = min(LARGEST / max(picture.shape[:2]), 1.0)
    height, width = (max(round(side * factor), 1) for side in picture.shape[:2])
    return resize(np.ascontiguousarray(picture), height, width)
