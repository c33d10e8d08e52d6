"""Captions of real pictures beside joints and pixels: what is measured, and shuffled words agree less."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamoving_cli.errors import InputError
from dreamoving_cli.extract.keypoints import NUM_POINTS, People
from dreamoving_cli.models.minigpt.model import Captioner
from dreamoving_cli.paths import MINI_CAPTIONER
from dreamoving_cli.train import caption_real
from dreamoving_cli.train.caption_facts import read_caption
from dreamoving_cli.train.caption_real import agreement, facts_of, report_real
from dreamoving_cli.train.garments import COLORS

SIZE = 100
SAID = ("<p>a {who}</p> {{<24><8><76><96>}} with tan skin and short red hair, in a {color} plain t-shirt, is "
        "dancing{arms}, {framing}, before a plain {background} background")  # fmt: skip


class Stick:
    """Sees the same figure in every picture that is not blank."""

    def __init__(self, framing: str = "full body", arms: int = 0) -> None:
        self.framing, self.arms = framing, arms

    def forget(self) -> None:
        """Knows nothing of the last picture."""

    def __call__(self, frames: np.ndarray) -> list[People]:
        points, scores = np.zeros((1, NUM_POINTS, 2), np.float32), np.zeros((1, NUM_POINTS), np.float32)
        places = {1: (50, 40), 2: (40, 40), 5: (60, 40), 4: (36, 60), 7: (64, 60), 0: (50, 20)}
        if self.framing != "portrait":
            places |= {8: (42, 60), 11: (58, 60)}
        if self.framing == "full body":
            places |= {10: (42, 90), 13: (58, 90)}
        places |= {hand: (x, 10) for hand, x in list({4: 36, 7: 64}.items())[: self.arms]}
        for joint, place in places.items():
            points[0, joint], scores[0, joint] = place, 0.9
        none = np.zeros((0, NUM_POINTS, 2), np.float32), np.zeros((0, NUM_POINTS), np.float32)
        return [(points, scores) if frame.any() else none for frame in frames]


def picture(color: str, background: str) -> np.ndarray:
    made = np.full((SIZE, SIZE, 3), COLORS[background], np.uint8)
    made[38:62, 40:61] = COLORS[color]
    return made


@pytest.mark.parametrize("framing", ["full body", "half body", "portrait"])
@pytest.mark.parametrize("arms", [0, 1, 2])
def test_what_is_said_truly_agrees(framing: str, arms: int) -> None:
    facts = facts_of(picture("red", "teal"), Stick(framing, arms))
    assert facts is not None
    words = ("", " with one arm up", " with both arms up")[arms]
    said = {"who": "man", "color": "red", "background": "teal", "framing": framing, "arms": words}
    marks = agreement(facts, read_caption(SAID.format(**said)))
    assert marks["garment_distance"] == pytest.approx(0, abs=1)
    right = ("framing", "arms", "garment_color", "background_color")
    assert [marks[name] for name in right] == [1, 1, 1, 1]
    wrong = said | {"color": "navy", "background": "gray", "framing": "other", "arms": " with no arm"}
    other = agreement(facts, read_caption(SAID.format(**wrong)))
    assert [other.get(name, 0) for name in right] == [0, 0, 0, 0]
    assert other["garment_distance"] > 40


def test_the_box_is_that_of_the_joints() -> None:
    facts = facts_of(picture("red", "teal"), Stick())
    assert facts is not None
    assert facts["box"] == pytest.approx([0.33, 0.12, 0.67, 0.98], abs=0.02)


def test_words_for_other_files_agree_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every caption is that of its own picture here, so nothing but shuffling makes it wrong."""
    shown = [("red", "teal"), ("navy", "gray"), ("yellow", "purple")]
    for color, background in shown:
        Image.fromarray(picture(color, background)).save(tmp_path / f"{color}.png")
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(tmp_path / "nobody.png")
    monkeypatch.setattr(caption_real, "open_detector", lambda options: ("stick", Stick()))

    def describe(self: Captioner, pictures: list[np.ndarray], prompt: str) -> list[str]:
        names = {COLORS[name]: name for name in COLORS}
        pairs = [(names[tuple(p[50, 50])], names[tuple(p[0, 0])]) for p in pictures]
        fixed = {"who": "man", "framing": "full body", "arms": ""}
        return [SAID.format(color=color, background=background, **fixed) for color, background in pairs]

    monkeypatch.setattr(Captioner, "describe", describe)
    report = report_real(MINI_CAPTIONER, [str(tmp_path)], 1)
    assert (report["files"], report["pictures"]) == (3, 3)
    assert (report["right"]["garment_color"], report["shuffled"]["garment_color"]) == (1, 0)
    assert (report["right"]["framing"], report["shuffled"]["framing"]) == (1, 1)
    assert {row["file"]: row["garment"] for row in report["seen"]} == {f"{c}.png": c for c, _ in shown}
    (tmp_path / "navy.png").unlink()
    (tmp_path / "yellow.png").unlink()
    with pytest.raises(InputError, match="found in 1 files"):
        report_real(MINI_CAPTIONER, [str(tmp_path)], 1)
