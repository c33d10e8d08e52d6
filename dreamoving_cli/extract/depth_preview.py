"""Depth to look at: frames beside their depth in colors, as a sheet or as a video."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dreamoving_cli.extract.depth import ClipDepth
from dreamoving_cli.extract.sheet import CELLS, COLUMNS, cell_size
from dreamoving_cli.media.images import contact_sheet, resize, spread, write_image
from dreamoving_cli.media.suffixes import PICTURES
from dreamoving_cli.media.video import Clip
from dreamoving_cli.media.writer import codec_of, write_video


def check_preview(path: Path) -> None:
    """Refuse a name that is neither a picture's nor a video's."""
    if path.suffix.lower() not in PICTURES:
        codec_of(path)


def write_preview(path: Path, clip: Clip, depth: ClipDepth, *, overwrite: bool) -> Path:
    """A sheet of frames over their depth, or a video of the two side by side; told by the name."""
    if path.suffix.lower() in PICTURES:
        return write_image(path, sheet(clip, depth), overwrite=overwrite)
    return write_video(path, pairs(clip, depth), clip.fps, overwrite=overwrite)


def sheet(clip: Clip, depth: ClipDepth) -> np.ndarray:
    """Frames spread over the clip, each row of them over its depth; uint8 h w c."""
    picks, size = spread(clip.num_frames, CELLS), cell_size(clip.height, clip.width)
    cells: list[np.ndarray] = []
    labels: list[str] = []
    for start in range(0, len(picks), COLUMNS):
        row = picks[start : start + COLUMNS]
        blank = [np.zeros((*size, 3), np.uint8)] * (COLUMNS - len(row) if start else 0)
        cells += [*(resize(frame, *size) for frame in clip.read(row)), *blank]
        cells += [*(in_colors(near) for near in depth.at_size(row, *size)), *blank]
        labels += [*map(str, row), *[""] * len(blank)] + [""] * (len(row) + len(blank))
    return contact_sheet(cells, min(COLUMNS, len(picks)), labels)


def pairs(clip: Clip, depth: ClipDepth) -> Iterator[np.ndarray]:
    """Each frame beside its depth, uint8 1 h w c."""
    for k in range(clip.num_frames):
        near = next(depth.at_size([k], clip.height, clip.width))
        yield np.concatenate([clip.read([k]), in_colors(near)[None]], axis=2)


def in_colors(nearness: np.ndarray) -> np.ndarray:
    """0..1 h w as uint8 h w c: blue is far, red is near."""
    import cv2

    colored = cv2.applyColorMap((nearness * 255).astype(np.uint8), cv2.COLORMAP_TURBO)
    return np.ascontiguousarray(colored[..., ::-1])
