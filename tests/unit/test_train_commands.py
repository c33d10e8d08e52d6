"""The commands of training: what they refuse, and that they name each other rightly."""

import re
import shlex
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.keypoints import Poses, save_poses
from dreamoving_cli.media.video import probe
from dreamoving_cli.models.load import load_pack
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.render import render
from dreamoving_cli.train import __main__ as commands
from dreamoving_cli.train import start
from dreamoving_cli.train.stages import STAGES
from tests.clips import clips_config

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of one command."""
    monkeypatch.setattr(sys, "argv", ["train", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        commands.main()
    return int(end.value.code or 0)


def test_help_names_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--help") == 0
    told = capsys.readouterr().out
    for name in ("synth", "run", "latents", "autoencoder-report", "bake", "examples"):
        assert name in told


def test_refusals_are_one_sentence_with_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ("--data", tmp_path, "--out", tmp_path / "out")
    assert run(monkeypatch, "run", "pictures", *given) == 2
    assert "stage is 'pictures'. Choose one of autoencoder" in capsys.readouterr().err
    assert run(monkeypatch, "run", "picture", *given) == 3
    assert "no training clips in" in capsys.readouterr().err
    assert run(monkeypatch, "latents", "--pack", tmp_path, "--data", tmp_path, "--shard", "2/2") == 2
    assert run(monkeypatch, "autoencoder-report", "--pack", tmp_path, "--data", tmp_path) == 3
    assert not (tmp_path / "out").exists()


def test_the_guide_uses_commands_stages_and_numbers_that_exist() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    known = set(typer.main.get_command(commands.app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"^    \$T ([\w-]+)", text, re.MULTILINE)) <= known
    assert set(re.findall(r"^    \$T run ([\w-]+)", text, re.MULTILINE)) == set(STAGES)
    ours = text.partition("## The stages of the miniature")[2].partition("## The same stages")[0]
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in ours.splitlines() if row.startswith("| ")
    ]
    for name, *_, batch, steps, lr in rows[1:]:
        stage = STAGES[name]
        assert (stage.batch, stage.steps, stage.lr) == (int(batch), int(steps.replace(",", "")), float(lr))


def documented_chain(folder: Path) -> list[list[str]]:
    """The commands from nothing to a pack, as the guide has them, with folders below `folder`; least work."""
    text = GUIDE.read_text(encoding="utf-8").partition("## From nothing")[2].partition("    cp -r")[0]
    least = {"--clips": "2", "--workers": "1"}
    chain = []
    for line in re.findall(r"^    \$T (.*)$", text, re.MULTILINE):
        words = shlex.split(line)
        for flag, value in least.items():
            if flag in words:
                words[words.index(flag) + 1] = value
        words = [str(folder / w) if w == "data" or w.startswith("runs/") else w for w in words]
        motion = words[0] == "run" and STAGES[words[1]].frames > 1
        small = ["--steps", "1", "--batch", "1"] if words[0] == "run" else []
        frames = ["--frames", "4"] if motion else ["--frames", "5"] if words[0] == "synth" else []
        chain.append(words + small + frames)
    return chain


def test_the_chain_of_the_guide_makes_a_pack_that_renders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every command from nothing to the last stage, of a tiny model, one step a stage."""
    tiny = clips_config().model_copy(update={"text": {**clips_config().text, "vocab_size": 560}})
    monkeypatch.setattr(start, "mini_config", lambda: tiny)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    chain = documented_chain(tmp_path)
    assert [words[1] for words in chain if words[0] == "run"] == [s for s in STAGES if s != "refit"]
    for words in chain:
        assert run(monkeypatch, *words) == 0, words
    torch.set_num_threads(before)
    pack = tmp_path / "runs" / "expression" / "pack"
    assert load_pack(pack).config.motion is not None
    points = np.random.default_rng(0).uniform(8, 56, (2, 1, kp.NUM_POINTS, 2)).astype(np.float32)
    poses = Poses(Fraction(8), 96, 64, points, np.ones(points.shape[:3], np.float32))
    wanted = RenderOptions(
        model=str(pack), pose=save_poses(tmp_path / "pose.json", poses), prompt="a man", steps=1, seed=0
    )
    info = probe(render(wanted, tmp_path / "made.mp4", "cpu"))
    assert (info.num_frames, info.height, info.width) == (2, 96, 64)
