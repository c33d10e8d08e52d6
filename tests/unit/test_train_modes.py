"""The picture of all modes, with a tiny pack."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="the renderer needs the extra `train`")
from dreamoving_cli.media.images import read_image
from dreamoving_cli.models.load import build_pack, save_pack
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.paths import MINI
from dreamoving_cli.train.modes import CELL, MODES, ModesOptions, asked, draw_modes, write_inputs


def test_every_mode_asks_for_what_it_is_named_after(tmp_path: Path) -> None:
    options = ModesOptions(MINI, frames=2, long_frames=3, scale=0.25)
    write_inputs(tmp_path, options)
    given = {name: asked(mode, tmp_path, options) for name, mode in MODES.items()}
    assert [name for name, o in given.items() if o.face] == ["face", "face, garment", "long"]
    assert [name for name, o in given.items() if o.cloth] == ["face, garment", "long"]
    assert [name for name, o in given.items() if o.style] == ["style"]
    assert [name for name, o in given.items() if o.depth] == ["depth", "pose, depth"]
    assert [name for name, o in given.items() if not o.pose] == ["depth"]
    assert given["long"].num_frames == 3
    for one in given.values():
        files = (one.pose, one.depth, one.cloth, one.style, *one.face)
        assert all(path is None or path.exists() for path in files)


@pytest.mark.usefixtures("light_networks")
def test_all_modes_are_drawn_into_one_small_picture(tmp_path: Path) -> None:
    save_pack(build_pack(tiny_config(), seed=0), tmp_path / "pack")
    options = ModesOptions(tmp_path / "pack", frames=2, long_frames=4, steps=1, scale=0.25)
    (tmp_path / "docs").mkdir()
    told: list[int] = []
    sheet = draw_modes(tmp_path / "docs" / "m.png", options, lambda stage, done, total: told.append(done))
    picture = read_image(sheet)
    rows = len(MODES) + 1
    assert picture.shape == (rows * CELL[0], 2 * CELL[1], 3)
    assert told == list(range(1, len(MODES) + 1))
    assert all(np.ptp(row) > 0 for row in np.split(picture, rows))
    assert sorted(p.name for p in (tmp_path / "docs").iterdir()) == ["m.png"]
