"""A prompt that changes while the video goes on really changes the video, from a file to the frames."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from dreamoving_cli import paths
from dreamoving_cli.cli import app
from dreamoving_cli.extract.keypoints import NUM_POINTS, Poses, save_poses
from dreamoving_cli.media.images import read_image
from dreamoving_cli.models.load import build_pack, save_pack
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.outputs import record_path

FRAMES, SIDE = 6, 32
FIRST, SECOND = "a man on a beach", "a red wall at night"


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A driver of six frames at 8 a second; weights are random, and frames do not see each other."""
    pack = build_pack(tiny_config(), seed=0)
    generator = torch.Generator().manual_seed(1)
    for network in pack.networks().values():
        for name, weights in network.named_parameters():
            if not weights.any() and "motion" not in name:
                weights.data = 0.1 * torch.randn(weights.shape, generator=generator)
    save_pack(pack, tmp_path / "pack")
    monkeypatch.setattr(paths, "MINI", tmp_path / "pack")
    monkeypatch.chdir(tmp_path)
    points = np.random.default_rng(0).uniform(2, SIDE - 2, (FRAMES, 1, NUM_POINTS, 2)).astype(np.float32)
    scores = np.ones((FRAMES, 1, NUM_POINTS), np.float32)
    yield save_poses(tmp_path / "pose.json", Poses(Fraction(8), SIDE, SIDE, points, scores))
    torch.set_num_threads(1)


def frames(name: str, *words: str) -> np.ndarray:
    """f h w c of a render with these flags."""
    fixed = ["--model", "mini", "--steps", "2", "--seed", "3", "--guidance-scale", "30", "--codec", "png"]
    fixed += ["--guidance-end", "1", "--anchor-frames", "0"]  # nor by anchors
    result = CliRunner().invoke(app, ["render", "--pose", "pose.json", *fixed, *words, "--out", name])
    assert result.exit_code == 0, result.output
    return np.stack([read_image(path) for path in sorted(Path(name).glob("*.png"))]).astype(int)


def test_frames_follow_the_prompt_of_their_time(drive: Path) -> None:
    """One frame a window: each is, to the bit, as if its own words were those of the whole video."""
    alone = ("--context-frames", "1", "--context-overlap", "0")
    drive.with_name("words.csv").write_text(f"frame,caption\n0,{FIRST}\n2,{SECOND}\n4,{FIRST}\n")
    switching = frames("switching", "--prompt-file", "words.csv", *alone)
    first, second = (frames(name, "--prompt", name, *alone) for name in (FIRST, SECOND))
    assert np.array_equal(switching, np.concatenate([first[:2], second[2:4], first[4:]]))
    assert not np.array_equal(first[2:4], second[2:4])
    record = yaml.safe_load(record_path(Path("switching")).read_text())
    assert record["prompt"] == f"@0f {FIRST}\n@2f {SECOND}\n@4f {FIRST}"


def test_a_prompt_changes_inside_a_window(drive: Path) -> None:
    """All frames in one window: those before the change have the first words, those after it the second."""
    words = "@0s " + FIRST + "\n@0.375s " + SECOND  # from the fourth frame on
    drive.with_name("words.txt").write_text(words)
    switching = frames("switching", "--prompt-file", "words.txt")
    first, second = (frames(name, "--prompt", name) for name in (FIRST, SECOND))
    assert np.abs(switching - np.concatenate([first[:3], second[3:]])).max() <= 2
    assert np.abs(first - second).max() > 4
    again = frames("again", "--preset", str(record_path(Path("switching"))))
    assert np.array_equal(again, switching)
