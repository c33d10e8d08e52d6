"""A picture to look at: frames of a clip with the poses found on top, and what became of them under it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dreamoving_cli.extract.draw import VISIBLE, draw_control
from dreamoving_cli.extract.keypoints import Poses
from dreamoving_cli.media.images import contact_sheet, draw_labels, resize, spread, write_image
from dreamoving_cli.media.video import Clip

CELLS, COLUMNS, CELL_SIDE = 12, 6, 360  # pictures, in a row, pixels of a picture's longer side
DIM = 0.55  # of the footage's brightness under a pose


def write_sheet(
    path: Path, poses: Poses, clip: Clip | None, fitted: Poses | None, *, overwrite: bool
) -> Path:
    """Frames spread over the clip with their poses; with `fitted`, those poses as pictures below each row."""
    picks, size = spread(poses.num_frames, CELLS), cell_size(poses.height, poses.width)
    cells: list[np.ndarray] = []
    labels: list[str] = []
    for start in range(0, len(picks), COLUMNS):
        row = picks[start : start + COLUMNS]
        cells += [overlay(poses, k, clip, size) for k in row]
        labels += [label(poses, k) for k in row]
        if fitted is not None:
            blank = COLUMNS - len(row) if start else 0
            cells += [np.zeros((*size, 3), np.uint8)] * blank + [picture_of(fitted, k, size) for k in row]
            labels += [""] * blank + [f"{k} fitted" for k in row]
    return write_image(path, contact_sheet(cells, min(COLUMNS, len(picks)), labels), overwrite=overwrite)


def cell_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a frame in a sheet."""
    factor = CELL_SIDE / max(height, width)
    return max(round(height * factor), 16), max(round(width * factor), 16)


def overlay(poses: Poses, frame: int, clip: Clip | None, size: tuple[int, int]) -> np.ndarray:
    """One frame, dimmed, with its poses and the people's numbers; uint8 h w c of size (height, width)."""
    drawn = picture_of(poses, frame, size)
    if clip is not None:
        footage = (resize(clip.read([frame])[0], *size) * DIM).astype(np.uint8)
        drawn = np.where(drawn.any(-1, keepdims=True), drawn, footage)
    return numbered(drawn, poses, frame) if poses.points.shape[1] > 1 else drawn


def picture_of(poses: Poses, frame: int, size: tuple[int, int]) -> np.ndarray:
    """The pose picture of one frame, uint8 h w c."""
    return draw_control(poses.points[frame], poses.scores[frame], (poses.height, poses.width), *size)


def numbered(picture: np.ndarray, poses: Poses, frame: int) -> np.ndarray:
    """The people's numbers at their heads; a label is put into a cell of its own. picture: uint8 h w c."""
    out = picture.copy()
    height, width = picture.shape[:2]
    for p, number in enumerate(poses.identities[frame]):
        seen = poses.points[frame, p][poses.scores[frame, p] > VISIBLE]
        if not len(seen):
            continue
        x, y = seen[seen[:, 1].argmin()] * [width / poses.width, height / poses.height]
        top, left = min(max(int(y) - 18, 0), height - 16), min(max(int(x) - 6, 0), width - 24)
        out[top : top + 16, left : left + 24] = draw_labels(
            out[top : top + 16, left : left + 24], [str(number)], 1, (16, 24)
        )
    return out


def label(poses: Poses, frame: int) -> str:
    """The frame's number, and whether a shot begins or nobody was found."""
    notes: Sequence[str] = [
        *(["cut"] if frame in poses.cuts else []),
        *([] if (poses.scores[frame] > VISIBLE).any() else ["nobody"]),
    ]
    return " ".join([str(frame), *notes])
