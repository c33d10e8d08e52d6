"""A render whose blocks go through torch.compile, which compiles nothing here: who is asked, what is told."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dreamoving_cli.compiling import CHANGING_SIZES
from dreamoving_cli.device import Machine
from dreamoving_cli.errors import UsageError
from dreamoving_cli.extract.keypoints import NUM_POINTS, Poses, save_poses
from dreamoving_cli.models.load import build_pack, save_pack
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.outputs import record_path
from dreamoving_cli.render import plan, render
from tests.pictures import pixels

FRAMES, HEIGHT, WIDTH = 10, 64, 96
PLAIN, BLOCKS = Machine("cpu"), Machine("cpu", compile="blocks")


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> RenderOptions:
    """A render in windows with guidance, of a pack in which motion blocks do something."""
    folder = tmp_path_factory.mktemp("inputs")
    pack = build_pack(tiny_config(), seed=0)
    for network in pack.networks().values():
        for weights in network.parameters():
            weights.data = weights.data if weights.any() else 0.1 * torch.randn(weights.shape)
    save_pack(pack, folder / "tiny")
    points = np.random.default_rng(0).uniform(5, 60, (FRAMES, 1, NUM_POINTS, 2)).astype(np.float32)
    scores = np.ones((FRAMES, 1, NUM_POINTS), np.float32)
    save_poses(folder / "pose.json", Poses(Fraction(24), HEIGHT, WIDTH, points, scores))
    return RenderOptions(
        model=folder / "tiny",
        pose=folder / "pose.json",
        steps=2,
        seed=5,
        guidance_scale=2.0,
        codec="png",
        context={"context_frames": 6, "context_overlap": 2},
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    """The blocks that came to torch.compile and ran."""
    ran: set[Any] = set()

    def counted(region: Any, **how: Any) -> Any:
        assert how["fullgraph"]
        return lambda *given: ran.add(region) or region(*given)

    monkeypatch.setattr(torch, "compile", counted)
    monkeypatch.setattr("dreamoving_cli.compiling.lacks", lambda device: None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    return ran


def test_every_kind_of_block_is_compiled_and_the_record_tells(
    wanted: RenderOptions, asked: set[Any], tmp_path: Path
) -> None:
    plain = pixels(render(wanted, tmp_path / "plain", PLAIN))
    assert asked == set()
    assert np.array_equal(pixels(render(wanted, tmp_path / "fast", BLOCKS)), plain)
    assert asked == set(CHANGING_SIZES)
    for name, compiled in (("plain", "off"), ("fast", "blocks")):
        record = yaml.safe_load(record_path(tmp_path / name).read_text())["record"]
        assert record["compile"] == compiled
        assert any("--compile" in note for note in record["notes"]) == (name == "fast")
    assert plan(wanted, BLOCKS).compile == "blocks"


def test_only_the_same_way_goes_on(wanted: RenderOptions, asked: set[Any], tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("denoise", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(wanted, tmp_path / "out", BLOCKS, on_progress=stop)
    with pytest.raises(UsageError, match="compile blocks, now it is off"):
        render(wanted, tmp_path / "out", PLAIN, resume=True)
    whole = pixels(render(wanted, tmp_path / "whole", BLOCKS))
    assert np.array_equal(pixels(render(wanted, tmp_path / "out", BLOCKS, resume=True)), whole)
