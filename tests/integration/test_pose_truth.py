"""The light detector on synthetic people, whose joints are known exactly; minutes, so not by default."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.draw import VISIBLE
from dreamoving_cli.extract.pose import find_poses
from dreamoving_cli.extract.settings import PoseOptions
from dreamoving_cli.media.video import open_clip
from dreamoving_cli.media.writer import write_video

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("light_networks")]
JOINTS = [kp.NOSE, *range(kp.RIGHT_SHOULDER, kp.LEFT_ANKLE + 1)]
NEAR = 0.2  # torso lengths
SEEDS = (1000002, 1000004, 1000006)  # held out, full bodies
FRAMES = 12


def test_nine_of_ten_joints_are_near(tmp_path: Path) -> None:
    from dreamoving_cli.train.scenes import make_clip

    near, before, after = [], [], []
    for seed in SEEDS:
        made = make_clip(seed, FRAMES)
        path = write_video(tmp_path / f"{seed}.mkv", [made["frames"]], Fraction(16), quality=0)
        with open_clip(path) as clip:
            poses, _ = find_poses(clip, PoseOptions("light", whole_body=False))
        assert poses.raw is not None
        truth, there = made["points"][:, JOINTS], made["scores"][:, JOINTS] > VISIBLE
        hips = made["points"][:, [kp.RIGHT_HIP, kp.LEFT_HIP]].mean(1)
        torso = np.median(np.linalg.norm(made["points"][:, kp.NECK] - hips, axis=-1))
        apart = np.linalg.norm(poses.points[:, 0, JOINTS] - truth, axis=-1) / torso
        found = poses.scores[:, 0, JOINTS] > VISIBLE
        near.append(((apart <= NEAR) & found)[there])
        raw = np.linalg.norm(poses.raw.points[:, 0, JOINTS] - truth, axis=-1) / torso
        both = there & found & (poses.raw.scores[:, 0, JOINTS] > VISIBLE)
        before.append(raw[both])
        after.append(apart[both])
    assert np.concatenate(near).mean() >= 0.9
    assert np.concatenate(after).mean() <= np.concatenate(before).mean()  # repairs do no harm
