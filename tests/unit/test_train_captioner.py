"""What the embedded captioner is taught: captions say the truth, and the training learns and goes on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamoving_cli.models.minigpt.load import load_captioner
from dreamoving_cli.train.caption_data import drawn_person, moved
from dreamoving_cli.train.caption_facts import caption_of, read_caption, scene_facts, vocabulary
from dreamoving_cli.train.caption_report import iou, marks_of
from dreamoving_cli.train.captioner import PROMPT, WHOLE, CaptionRun, CaptionTrainer, train_captioner

RUN = CaptionRun(None, Path(), steps=3, batch=4, drawn=3, scenes=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> CaptionRun:
    run = replace(RUN, out=tmp_path_factory.mktemp("captioner"))
    train_captioner(run)
    return run


def test_a_caption_says_the_truth_and_is_read_back() -> None:
    for seed in range(4):
        person, facts = drawn_person(seed)
        facts |= scene_facts(facts["scene"])
        said = read_caption(caption_of(facts, facts["scene"], np.array(facts["box"])))
        marks = marks_of(facts, said)
        assert min(value for name, value in marks.items() if name != "person_iou") == 1
        assert marks["person_iou"] > 0.8
        alpha = person[..., 3] > 128
        x0, x1 = (round(facts["box"][i] * alpha.shape[1]) for i in (0, 2))
        assert alpha[:, x0].any()
        assert alpha[:, x1 - 1].any()


def test_every_word_is_read_back() -> None:
    for sentence in vocabulary(np.random.default_rng(0), 50)[1:]:
        said = read_caption(sentence)
        assert said.keys() >= {
            "who",
            "skin",
            "hair",
            "clothes",
            "pattern",
            "framing",
            "scene",
            "colors",
            "box",
            "kind",
        }
        assert said["kind"]


def test_people_are_moved_into_the_empty() -> None:
    picture = np.arange(24, dtype=np.uint8).reshape(1, 6, 4) + 1
    for shift in (-2, 0, 2):
        out = moved(picture, shift)
        assert (out == 0).all(-1).sum() == abs(shift)
        kept = out[:, max(shift, 0) : 6 + min(shift, 0)]
        assert np.array_equal(kept, picture[:, max(-shift, 0) : 6 - max(shift, 0)])


def test_boxes_overlap() -> None:
    assert iou([0, 0, 1, 1], [0, 0, 1, 1]) == pytest.approx(1)
    assert iou([0, 0, 1, 1], [0.5, 0, 1.5, 1]) == pytest.approx(1 / 3)
    assert iou([0, 0, 1, 1], [2, 2, 3, 3]) == iou([0, 0, 1, 1], None) == 0


def test_a_run_that_was_cut_off_goes_on(trained: CaptionRun, tmp_path: Path) -> None:
    half = CaptionTrainer(replace(trained, out=tmp_path))
    half.train_step()
    half.save()
    again = CaptionTrainer(replace(trained, out=tmp_path))
    again.resume()
    assert again.step == 1
    for _ in range(2):
        again.train_step()
    whole = torch.load(trained.out / "state.pt", weights_only=True)
    torch.testing.assert_close(dict(again.model.state_dict()), dict(whole["model"]))


def test_the_captioner_is_written_in_half_precision(trained: CaptionRun) -> None:
    model = load_captioner(trained.out / "captioner")
    assert (trained.out / "captioner" / "model.safetensors").stat().st_size < 6.5e6
    assert isinstance(model.describe([np.zeros((40, 30, 3), np.uint8)], PROMPT)[0], str)
    assert all(len(model.tokenizer.encode(piece)) == 2 for piece in WHOLE)  # the space before, and itself


def test_it_learns(tmp_path: Path) -> None:
    trainer = CaptionTrainer(replace(RUN, out=tmp_path, steps=40, batch=2, drawn=1, scenes=1))
    first, *_, last = [float(trainer.train_step() or trainer.losses[-1][0]) for _ in range(25)]
    assert last < first - 0.3
