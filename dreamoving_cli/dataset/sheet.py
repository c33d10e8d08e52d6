"""A picture to look at: what was kept of a data set, with poses, and what was dropped and why."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dreamoving_cli.media.images import contact_sheet, fit_square, read_image, spread, write_image

Labeled = tuple[Path, str]  # a picture and its label
SIDE, COLUMNS = 160, 8
KEPT, DROPPED = 48, 24  # pictures of each, at most
LETTERS = 24  # of a label


def write_sheet(path: Path, kept: Sequence[Labeled], dropped: Sequence[Labeled]) -> Path | None:
    """Pictures (file, label) of both kinds, spread over all; None where there are none."""
    cells, labels = [], []
    for group, most in ((kept, KEPT), (dropped, DROPPED)):
        there = [(file, label) for file, label in group if file.is_file()]
        shown = [there[i] for i in spread(len(there), most)]
        cells += [fit_square(read_image(file), SIDE, 32) for file, _ in shown]
        labels += [label[:LETTERS] for _, label in shown]
        filling = -len(shown) % COLUMNS
        cells += [np.full((SIDE, SIDE, 3), 255, np.uint8)] * filling
        labels += [""] * filling
    if not cells:
        return None
    return write_image(path, contact_sheet(cells, COLUMNS, labels), overwrite=True)
