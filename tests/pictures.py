"""The pictures that a render with the codec `png` has written."""

from pathlib import Path

import numpy as np

from dreamoving_cli.media.video import open_clip


def pixels(folder: Path) -> np.ndarray:
    """uint8 f h w c."""
    frames = []
    for file in sorted(folder.glob("*.png")):
        with open_clip(file) as clip:
            frames.append(clip.read([0]))
    return np.concatenate(frames)
