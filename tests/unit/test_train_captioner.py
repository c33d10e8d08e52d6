"""What the embedded captioner is taught: captions say the truth, and the training learns and goes on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamoving_cli.models.minigpt.load import load_captioner
from dreamoving_cli.models.minigpt.model import Captioner
from dreamoving_cli.train.caption_batch import (
    Pictures,
    as_rows,
    moved,
    moved_boxes,
    patch_targets,
    scenes_job,
)
from dreamoving_cli.train.caption_data import drawn_people, drawn_person
from dreamoving_cli.train.caption_facts import (
    BOX,
    EVEN,
    caption_of,
    read_caption,
    scene_facts,
    shown_garment,
    told_garment,
    vocabulary,
    worn_garment,
)
from dreamoving_cli.train.caption_report import iou, marks_of
from dreamoving_cli.train.captioner import (
    PROMPT,
    WHOLE,
    CaptionRun,
    CaptionTrainer,
    first_person,
    mini_captioner,
    own_tokenizer,
    train_captioner,
)
from dreamoving_cli.train.live import Dice, Pool
from dreamoving_cli.train.people import random_look

RUN = CaptionRun(None, Path(), steps=3, batch=4, side=56, width=32, drawn=6, scenes=4)


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
    picture = torch.arange(24, dtype=torch.uint8).view(1, 4, 1, 6) + 1
    for shift in (-2, 0, 2):
        out = moved(picture, torch.tensor([shift]), torch.tensor([False]))
        assert (out == 0).all(1).sum() == abs(shift)
        kept = out[..., max(shift, 0) : 6 + min(shift, 0)]
        assert torch.equal(kept, picture[..., max(-shift, 0) : 6 - max(shift, 0)])
        assert torch.equal(moved(picture, torch.tensor([shift]), torch.tensor([True])), out.flip(-1))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.integers(1, 6), st.integers(-5, 5), st.booleans())
def test_boxes_go_with_the_people(left: int, wide: int, shift: int, mirror: bool) -> None:
    picture = torch.zeros(1, 1, 1, 16)
    picture[..., left : left + wide] = 1
    box = torch.tensor([[[left / 16, 0.25, (left + wide) / 16, 0.5]]])
    move, flip = torch.tensor([shift]), torch.tensor([mirror])
    at = moved(picture, move, flip)[0, 0, 0].nonzero()[:, 0]
    x0, y0, x1, y1 = moved_boxes(box, move / 16, flip)[0, 0].tolist()
    assert (y0, y1) == (0.25, 0.5)
    if len(at):
        assert x0 * 16 == pytest.approx(int(at.min()), abs=1e-4)
        assert x1 * 16 == pytest.approx(int(at.max()) + 1, abs=1e-4)


def test_batches_say_what_they_show() -> None:
    """Composed ids are those of the caption in words; boxes hold the person, targets lie on it."""
    tokenizer = own_tokenizer(0)
    pictures = Pictures(tokenizer, 112, torch.device("cpu"))
    _, facts = people = drawn_people(0, 6, 112)
    pictures.add(*as_rows("people", people))
    name, scenes = scenes_job(0, 5, 112)
    pictures.add(name, scenes)
    batch = pictures.draw(Dice(torch.device("cpu"), 3), 16)
    whole = {caption_of(f, s["scene"], np.zeros(4)) for f in facts for s in scenes["facts"]}
    for told, alpha, (box, _) in zip(batch.told, batch.alpha, batch.boxes, strict=True):
        *ids, end = told[told >= 0].tolist()
        said = tokenizer.decode(ids)
        assert end == tokenizer.eos
        assert tokenizer.encode(said) == ids
        assert BOX.sub("{<0><0><0><0>}", said) in whole
        assert read_caption(said)["box"] == pytest.approx(box.tolist(), abs=0.021)
        columns = (alpha > 0.5).any(0).nonzero()[:, 0] / 112
        assert box[0] - 0.02 <= columns.min()
        assert columns.max() <= box[2] + 0.02
    targets = patch_targets(batch, 8)
    assert (targets["person"][targets["color"] >= 0] > 0.7).all()
    assert (targets["person"][targets["kind"] >= 0] < 0.1).all()
    assert (targets["color"] >= 0).any()


def test_rare_patterns_are_drawn_more_often() -> None:
    dice = Dice(torch.device("cpu"), 5)
    rows = {"pattern": np.array([0] * 60 + [3] * 3), "row": np.arange(63)}
    pool = Pool(rows, 10**6, dice.device)
    pool.add(rows)
    assert (pool.take(dice, 600)["pattern"] == 3).float().mean() < 0.1
    evenly = pool.take(dice, 600, "pattern")
    assert 0.4 < (evenly["pattern"] == 3).float().mean() < 0.6
    assert len(evenly["row"].unique()) > 50


def test_a_captioner_is_trained_on(trained: CaptionRun, tmp_path: Path) -> None:
    """From its own weights and sizes, whatever the run says; heads that know nothing ask nothing."""
    init = trained.out / "captioner"
    on = CaptionTrainer(replace(RUN, out=tmp_path, side=112, width=64, init=init, seed=1))
    before = load_captioner(init).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in on.model.state_dict().items())
    assert on.pictures.pools["people"].rows["picture"].shape[-1] == RUN.side
    words, told = on.loss()
    alone = torch.autograd.grad(words, on.model.ln_vision.weight, retain_graph=True)[0]
    both = torch.autograd.grad(words + told, on.model.ln_vision.weight)[0]
    assert torch.equal(alone, both)
    on.train()
    after = load_captioner(tmp_path / "captioner").state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    assert first_person(on.run) != first_person(trained)


def test_only_what_is_seen_of_a_garment_is_told() -> None:
    """A picture of cloth in one of the two colors says plain; in both, what the garment is."""
    looks = [random_look(np.random.default_rng(k)) for k in range(40)]
    for look in [look for look in looks if worn_garment(look).pattern in EVEN][:6]:
        cloth, alpha = worn_garment(look), np.full((20, 20), 255, np.uint8)
        picture = np.zeros((20, 20, 3))
        picture[:], whole = cloth.color, told_garment(cloth)
        only = shown_garment(look, (picture * 255).astype(np.uint8), alpha, [0, 0, 1, 1])
        assert only == {"color": cloth.name, "second": "", "pattern": "plain"}
        picture[:, ::2] = cloth.second
        assert shown_garment(look, (picture * 255).astype(np.uint8), alpha, [0, 0, 1, 1]) == whole


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
    full = Captioner(mini_captioner(model.tokenizer, CaptionRun.side, CaptionRun.width), model.tokenizer)
    assert 2 * sum(p.numel() for p in full.parameters()) < 6.4e6
    assert isinstance(model.describe([np.zeros((40, 30, 3), np.uint8)], PROMPT)[0], str)
    assert all(len(model.tokenizer.encode(piece)) == 2 for piece in WHOLE)  # the space before, and itself


def test_it_learns(tmp_path: Path) -> None:
    trainer = CaptionTrainer(replace(RUN, out=tmp_path, steps=40, batch=2, drawn=1, scenes=1))
    for _ in range(25):
        trainer.train_step()
    assert trainer.losses[-1][0] < trainer.losses[0][0] - 0.3


def test_time_may_be_what_ends_a_run(tmp_path: Path) -> None:
    run = replace(RUN, out=tmp_path, minutes=0.2, drawn=2, scenes=1)
    trainer = CaptionTrainer(run)
    trainer.clock.used_s = 0
    trainer.train_step()
    trainer.save()
    again = CaptionTrainer(run)
    again.resume()
    assert again.clock.used_s >= trainer.clock.used_s
    again.clock.used_s = 12
    again.train()
    assert again.step == 1
    assert (tmp_path / "captioner" / "config.json").exists()
