"""The commands of training: what they refuse, and that they name each other rightly."""

import re
import sys
from pathlib import Path

import pytest
import typer

from dreamoving_cli.train import __main__ as commands
from dreamoving_cli.train.stages import STAGES

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
