"""Other programs' keypoints: what goes out comes back, and what is broken is named."""

import json
from fractions import Fraction
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from dreamoving_cli.errors import InputError, OutputError, UsageError
from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.exchange import is_keypoints, read_keypoints, save_coco, save_openpose
from dreamoving_cli.extract.keypoints import Poses, Raw, load_poses, save_poses

RATE = Fraction(30000, 1001)
SCHEMA = Path(__file__).parents[2] / "docs" / "pose.schema.json"


def some_poses(frames: int = 5, people: int = 2, seed: int = 0) -> Poses:
    """Two people, the second of whom is absent in one frame, with some absent points."""
    rng = np.random.default_rng(seed)
    points = np.round(rng.uniform(1, 600, (frames, people, 134, 2)), 2).astype(np.float32)
    scores = np.round(rng.uniform(0.31, 0.99, (frames, people, 134)), 3).astype(np.float32)
    scores[:, 0, 30:40] = 0
    scores[2:3, 1:] = 0
    points[scores == 0] = 0
    points[:, :, kp.NECK] = points[:, :, [kp.RIGHT_SHOULDER, kp.LEFT_SHOULDER]].mean(2)
    scores[:, :, kp.NECK] = scores[:, :, [kp.RIGHT_SHOULDER, kp.LEFT_SHOULDER]].min(2)
    ids = np.where(scores.any(-1), [7, 3][:people], 0)
    return Poses(
        RATE,
        720,
        640,
        points,
        scores,
        ids,
        cuts=(3,) if frames > 3 else (),
        raw=Raw(points + 1, scores),
        detector="light",
    )


def assert_same(a: Poses, b: Poses) -> None:
    assert (a.fps, a.height, a.width) == (b.fps, b.height, b.width)
    np.testing.assert_array_equal(a.identities, b.identities)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-3)
    np.testing.assert_allclose(a.points, b.points, atol=0.02)


def test_our_file_holds_everything(tmp_path: Path) -> None:
    poses = some_poses()
    loaded = load_poses(save_poses(tmp_path / "p.json", poses))
    assert_same(poses, loaded)
    assert loaded.cuts == (3,)
    assert loaded.detector == "light"
    assert loaded.raw is not None
    shown = poses.scores > 0
    np.testing.assert_allclose(loaded.raw.points[shown], poses.points[shown] + 1, atol=0.02)


def test_our_file_is_as_documented(tmp_path: Path) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    data = json.loads(save_poses(tmp_path / "p.json", some_poses()).read_text())
    jsonschema.validate(data, schema)
    for damage in ({"version": 1.5}, {"fps": "fast"}, {"frames": [[{"id": 1}]]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**data, **damage}, schema)


def test_version_1_is_still_read(tmp_path: Path) -> None:
    person = {"points": [1.0] * 268, "scores": [0.5] * 134}
    old = {"format": "dreamoving-pose", "version": 1, "fps": "25", "height": 9, "width": 9}
    path = tmp_path / "old.json"
    path.write_text(json.dumps({**old, "frames": [[person], [], [person, person]]}))
    poses = load_poses(path)
    assert poses.scores.any(-1).tolist() == [[True, False], [False, False], [True, True]]
    assert poses.raw is None


def test_people_keep_their_place_whatever_their_order(tmp_path: Path) -> None:
    path = save_poses(tmp_path / "p.json", some_poses())
    data = json.loads(path.read_text())
    data["frames"][1].reverse()
    path.write_text(json.dumps(data))
    assert_same(load_poses(path), some_poses())


@pytest.mark.parametrize("ids", [[1, 1], [0, 1], [-1, 2]])
def test_impossible_ids_are_refused(tmp_path: Path, ids: list[int]) -> None:
    path = save_poses(tmp_path / "p.json", some_poses())
    data = json.loads(path.read_text())
    for person, number in zip(data["frames"][0], ids, strict=True):
        person["id"] = number
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"the ids in frame 0"):
        load_poses(path)


def test_openpose_and_back(tmp_path: Path) -> None:
    poses = some_poses()
    folder = save_openpose(tmp_path / "op", poses, "dance")
    names = sorted(path.name for path in folder.iterdir())
    assert names[0] == "dance_000000000000_keypoints.json"
    assert len(names) == 5
    assert is_keypoints(folder)
    person = json.loads((folder / names[0]).read_text())["people"][0]
    sizes = {key: len(value) for key, value in person.items() if key != "person_id"}
    assert sizes == {
        "pose_keypoints_2d": 75, "face_keypoints_2d": 210,
        "hand_left_keypoints_2d": 63, "hand_right_keypoints_2d": 63,
    }  # fmt: skip
    assert_same(read_keypoints(folder, RATE, (720, 640)), poses)
    with pytest.raises(UsageError, match="neither rate nor size"):
        read_keypoints(folder)


def test_openpose_s_18_points_and_missing_frames(tmp_path: Path) -> None:
    folder = tmp_path / "op"
    folder.mkdir()
    for number in (4, 6):
        person = {"pose_keypoints_2d": [1.0, 2.0, 0.9] * 18}
        (folder / f"x_{number}_keypoints.json").write_text(json.dumps({"people": [person]}))
    poses = read_keypoints(folder, RATE, (9, 9))
    assert poses.scores.any((1, 2)).tolist() == [True, False, True]
    assert (poses.scores[0, 0, kp.BODY] == np.float32(0.9)).all()


def test_coco_and_back(tmp_path: Path) -> None:
    poses = some_poses()
    path = save_coco(tmp_path / "coco.json", poses, "dance")
    data = json.loads(path.read_text())
    first = data["annotations"][0]
    assert [len(first[key]) for key in ("keypoints", "foot_kpts", "face_kpts", "lefthand_kpts")] == [
        51,
        18,
        204,
        63,
    ]
    left, top, width, height = first["bbox"]
    assert 0 <= left <= left + width <= 640
    assert 0 <= top <= top + height <= 720
    assert_same(read_keypoints(path), poses)


def test_coco_s_labels_are_no_scores(tmp_path: Path) -> None:
    path = save_coco(tmp_path / "coco.json", some_poses(1, 1), "dance")
    data = json.loads(path.read_text())
    data["annotations"][0]["keypoints"] = [10, 20, 2] * 16 + [30, 40, 1]
    path.write_text(json.dumps(data))
    scores = read_keypoints(path).scores[0, 0, kp.BODY]
    assert set(scores.tolist()) == {1.0, 0.5}


ONE = '"images": [{"id": 1, "height": 9, "width": 9}]'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"people": []}', "no keypoints that are known"),
        ("[1, 2]", "no keypoints that are known"),
        ("hello", "not JSON"),
        ('{"annotations": [], "images": [], "info": {"fps": "25"}}', "sizes"),
        (f'{{"annotations": [{{"image_id": 9}}], {ONE}, "info": {{"fps": "25"}}}}', "not a sound"),
        (f'{{"annotations": 3, {ONE}, "info": {{"fps": "0/0"}}}}', "not a sound"),
        (f'{{"annotations": [], {ONE}}}', "frame rate"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises((InputError, UsageError), match=says):
        read_keypoints(path)


def test_broken_openpose_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no"):
        read_keypoints(tmp_path, RATE, (9, 9))
    (tmp_path / "a_keypoints.json").write_text("{}")
    with pytest.raises(InputError, match="no frame number"):
        read_keypoints(tmp_path, RATE, (9, 9))
    (tmp_path / "a_keypoints.json").rename(tmp_path / "a_1_keypoints.json")
    with pytest.raises(InputError, match="not a sound"):
        read_keypoints(tmp_path, RATE, (9, 9))
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").touch()
    with pytest.raises(OutputError, match="not an empty folder"):
        save_openpose(full, some_poses(), "x")
