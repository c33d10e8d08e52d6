"""Tiny synthetic clips, and a random pack that has encoded them: what a training needs to begin."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.load import build_pack, save_pack
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.train import synth
from dreamoving_cli.train.latents import prepare_latents

FRAMES = 4


def clips_config() -> PackConfig:
    """The tiny pack, with eyes for pictures of 128 pixels."""
    tiny = tiny_config()
    return tiny.model_copy(update={"image": {**(tiny.image or {}), "image_size": 128, "patch_size": 32}})


def write_clips(folder: Path, seeds: Sequence[int]) -> Path:
    """One clip of FRAMES frames for each seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synth, "clip_length", lambda seed: FRAMES)
        for seed in seeds:
            synth.write_clip(folder, [], seed)
    return folder


def random_pack(folder: Path, data: Path) -> int:
    """Save a random tiny pack that knows the statistics of its latents; how many clips were encoded."""
    save_pack(build_pack(clips_config(), seed=0), folder)
    return prepare_latents(folder, data)
