"""The light detector on real footage and photos; needs the shared media and MediaPipe's networks."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from dreamoving_cli.errors import InputError
from dreamoving_cli.extract import control_kind, extract_to_file
from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.draw import VISIBLE
from dreamoving_cli.extract.face import crop_face
from dreamoving_cli.extract.keypoints import load_poses
from dreamoving_cli.extract.pose import extract_pose
from dreamoving_cli.media.images import read_image
from dreamoving_cli.media.video import open_clip, probe
from dreamoving_cli.media.writer import write_video
from dreamoving_cli.quality import measure

pytestmark = pytest.mark.shared
MEDIA = Path(__file__).resolve().parents[2].parent / "shared" / "media"
DANCE, TAIJI = (MEDIA / "videos" / name for name in ("dance_vertical_room.mp4", "taiji_horizontal_audio.mp4"))


@pytest.fixture(autouse=True, scope="module")
def _media(light_networks: None) -> None:
    if not MEDIA.is_dir():
        pytest.skip("the shared media do not lie beside this checkout")


@pytest.mark.parametrize("video", [DANCE, TAIJI], ids=["dance", "taiji"])
def test_the_dancer_is_found_in_every_frame(video: Path) -> None:
    with open_clip(video, num_frames=24) as clip:
        poses = extract_pose(clip)
    body = poses.scores[:, 0, kp.BODY]
    assert (body[:, [kp.NECK, kp.LEFT_HIP, kp.RIGHT_HIP]] > VISIBLE).all()
    assert (body > VISIBLE).mean() > 0.9
    assert (poses.scores[:, 0, kp.FACE] > VISIBLE).mean() > 0.6
    assert (poses.scores[:, 0, kp.LEFT_HAND.start :] > VISIBLE).mean() > 0.4


def test_points_lie_as_in_a_body() -> None:
    with open_clip(DANCE, num_frames=8) as clip:
        points = extract_pose(clip).points[:, 0]
    x, y = points[..., 0], points[..., 1]
    assert (x[:, kp.RIGHT_SHOULDER] < x[:, kp.LEFT_SHOULDER]).all()  # she faces us
    assert (y[:, kp.NOSE] < y[:, kp.NECK]).all()
    assert (y[:, kp.NECK] < y[:, kp.LEFT_HIP]).all()
    assert (y[:, kp.LEFT_KNEE] < y[:, kp.LEFT_ANKLE]).all()
    face = points[:, kp.FACE]
    np.testing.assert_allclose(
        face[:, 36:48].mean(1), points[:, [kp.LEFT_EYE, kp.RIGHT_EYE]].mean(1), atol=12
    )
    assert (face[:, 8, 1] > face[:, 30, 1]).all()  # the chin under the nose
    assert (face[:, 0, 0] < face[:, 16, 0]).all()  # her right ear is on our left


def test_extraction_to_files(tmp_path: Path) -> None:
    with open_clip(TAIJI, num_frames=10, size=(180, 320)) as clip:
        source = write_video(tmp_path / "source.mp4", clip.batches(5), clip.fps)
    done: list[tuple[str, int, int]] = []
    paths = extract_to_file(
        "pose",
        source,
        tmp_path / "map.mp4",
        json_path=tmp_path / "pose.json",
        on_progress=lambda *x: done.append(x),
    )
    assert paths == [tmp_path / "map.mp4", tmp_path / "pose.json"]
    assert done[-1] == ("pose", 10, 10)
    info, poses = probe(paths[0]), load_poses(paths[1])
    assert (info.num_frames, info.fps, info.height, info.width) == (10, Fraction(24000, 1001), 180, 320)
    assert control_kind(paths[0]) == "pose"
    assert (poses.num_frames, poses.fps, poses.height, poses.width) == (10, info.fps, 180, 320)


def test_footage_without_a_person_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (5, 128, 96, 3), np.uint8)
    source = write_video(tmp_path / "noise.mp4", [noise], Fraction(25))
    with pytest.raises(InputError, match=r"no person was found in .*noise\.mp4"):
        extract_to_file("pose", source, tmp_path / "map.mp4", json_path=tmp_path / "pose.json")
    assert [path.name for path in tmp_path.iterdir()] == ["noise.mp4"]


@pytest.mark.parametrize("name", ["human_ai-face.jpg", "human_person-vlado1.jpg", "moore_anyone-3.png"])
def test_the_face_is_cropped_with_the_whole_head(name: str) -> None:
    image = read_image(MEDIA / "people" / name)
    face = crop_face(image)
    assert face.shape[0] == face.shape[1]
    again = crop_face(face)  # the crop is mostly face: it shrinks little
    assert again.shape[0] > 0.8 * face.shape[0]


def test_a_picture_without_a_face_is_named() -> None:
    with pytest.raises(InputError, match=r"no face was found in shirt\.jpg"):
        crop_face(read_image(MEDIA / "garments" / "00126_00.jpg"), name="shirt.jpg")


def test_a_small_copy_of_the_driver_follows_it(tmp_path: Path) -> None:
    with open_clip(DANCE, num_frames=32, size=(288, 192)) as clip:
        copy = write_video(tmp_path / "copy.mp4", clip.batches(8), clip.fps)
    report = measure(copy, DANCE, hop=8, sheet=tmp_path / "sheet.png")
    assert report.person_found == 1
    assert report.pck > 0.97
    assert report.pck_floor < report.pck
    assert report.seam == pytest.approx(1, abs=0.05)
    assert report.torso_lab is not None
    assert report.torso_lab[2] > 20  # her top is mustard yellow
    assert read_image(tmp_path / "sheet.png").shape[0] > 400
    with pytest.raises(InputError, match="map"):
        measure(
            copy,
            write_video(
                tmp_path / "m.mp4",
                [np.zeros((2, 32, 32, 3), np.uint8)],
                Fraction(5),
                metadata={"dreamoving_kind": "pose"},
            ),
        )
