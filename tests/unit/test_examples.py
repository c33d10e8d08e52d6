"""The example inputs that ship with the package, and how they are handed out."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from dreamoving_cli.errors import OutputError
from dreamoving_cli.examples import EXAMPLES, write_examples
from dreamoving_cli.media.images import read_image
from dreamoving_cli.media.video import probe


def test_three_files_are_written_small_and_again_without_complaint(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "demo"
    paths = write_examples(folder)
    assert [path.name for path in paths] == list(EXAMPLES)
    assert sorted(path.name for path in folder.iterdir()) == sorted(EXAMPLES)
    assert sum(path.stat().st_size for path in paths) < 400_000
    assert write_examples(folder) == paths


def test_files_of_the_user_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "me.jpg").write_text("mine")
    with pytest.raises(OutputError, match=r"me\.jpg already exists"):
        write_examples(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["me.jpg"]


def test_the_dance_is_a_portrait_clip_with_sound_of_its_own_length(tmp_path: Path) -> None:
    info = probe(write_examples(tmp_path)[0])
    assert (info.height, info.width, info.fps, info.num_frames) == (288, 192, Fraction(16), 48)
    assert info.has_audio


def test_the_stills_are_512_squares(tmp_path: Path) -> None:
    for path in write_examples(tmp_path)[1:]:
        assert read_image(path).shape == (512, 512, 3)


def test_the_portrait_shows_somebody_else_than_the_dance(tmp_path: Path) -> None:
    pytest.importorskip("numba", reason="the renderer needs the extra `train`")
    from dreamoving_cli.train.example_media import dancer_look, portrait_look

    dancer, me = dancer_look(), portrait_look()
    assert np.abs(dancer.skin - me.skin).sum() > 0.5
    assert dancer.body != me.body
    assert dancer.hair_name != me.hair_name
