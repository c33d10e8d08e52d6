"""The example inputs are found by our own detectors; needs MediaPipe's networks."""

from pathlib import Path

import pytest

from dreamoving_cli.examples import write_examples
from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.draw import VISIBLE
from dreamoving_cli.extract.face import crop_face
from dreamoving_cli.extract.pose import extract_pose
from dreamoving_cli.extract.settings import PoseOptions
from dreamoving_cli.media.images import read_image
from dreamoving_cli.media.video import open_clip

pytestmark = pytest.mark.usefixtures("light_networks")


def test_the_dancer_is_found_in_every_frame(tmp_path: Path) -> None:
    with open_clip(write_examples(tmp_path)[0]) as clip:
        poses = extract_pose(clip, PoseOptions(whole_body=False))
    assert poses.num_frames == 48
    assert (poses.scores[:, 0, kp.BODY] > VISIBLE).all()


def test_the_face_is_found_in_the_portrait(tmp_path: Path) -> None:
    height, width, _ = crop_face(read_image(write_examples(tmp_path)[1])).shape
    assert height == width
    assert 200 < width < 400
