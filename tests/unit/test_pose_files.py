"""extract-pose in process, from the words of a command line to its files, on tiny networks."""

import json
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from dreamoving_cli.cli import app
from dreamoving_cli.extract import control_kind, footage, pose, pose_files
from dreamoving_cli.extract.draw import OFFICIAL, Style, draw_pose
from dreamoving_cli.extract.dwpose import DwposeDetector
from dreamoving_cli.extract.keypoints import load_poses, save_poses
from dreamoving_cli.media.images import read_image
from dreamoving_cli.media.video import open_clip, probe
from dreamoving_cli.media.writer import write_video
from tests.tiny_onnx import person_network, pose_network
from tests.unit.test_dwpose import spots
from tests.unit.test_exchange import some_poses


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("onnx")
    person, pose = person_network(folder / "person.onnx"), pose_network(folder / "pose.onnx")
    return ["--detector", "dwpose", "--person-network", str(person), "--pose-network", str(pose)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, networks: list[str]) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, ["extract-pose", *map(str, words), *networks])


def video(path: Path, frames: int = 10, y: int = 200) -> Path:
    """One bright spot that goes right, 3 pixels a frame, at 25 frames/s."""
    path.parent.mkdir(exist_ok=True)
    pictures = np.stack([spots((300 + 3 * k, y)) for k in range(frames)])
    return write_video(path, [pictures], Fraction(25), quality=5)


def test_all_outputs_at_once(run: Callable[..., Any]) -> None:
    video(Path("in.mp4"))
    words = "map.mp4 --json p.json --openpose op --coco c.json --preview s.png --metrics json"
    result = run("in.mp4", *words.split())
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["files"] == ["map.mp4", "p.json", "op", "c.json", "s.png"]
    assert told["found_rate"] == 1
    assert told["detector"] == "dwpose"
    assert told["fits"]
    assert control_kind(Path("map.mp4")) == "pose"
    poses = load_poses(Path("p.json"))
    assert (poses.num_frames, poses.fps, poses.height, poses.width) == (10, 25, 480, 640)
    np.testing.assert_allclose(poses.points[:, 0].mean(1)[:, 0], 300 + 3 * np.arange(10), atol=6)
    assert len(list(Path("op").iterdir())) == 10
    assert len(json.loads(Path("c.json").read_text())["annotations"]) == 10
    assert read_image(Path("s.png")).std() > 5
    again = run("in.mp4", *words.split())
    assert again.exit_code == 6
    assert "already exists" in again.stderr


def test_what_is_cut_off_is_gone_on_with(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut off at any frame and resumed, the keypoints are the same byte for byte."""
    monkeypatch.setattr(pose, "AFRESH", 4)
    looked_at: list[int] = []
    look = DwposeDetector.__call__

    def stops(self: DwposeDetector, frames: np.ndarray) -> Any:
        if sum(looked_at) == 8:
            raise KeyboardInterrupt
        looked_at.append(len(frames))
        return look(self, frames)

    video(Path("in.mp4"))
    assert run("in.mp4", "whole.json").exit_code == 0
    with monkeypatch.context() as patched:
        patched.setattr(DwposeDetector, "__call__", stops)
        cut_off = run("in.mp4", "p.json", "--preview", "s.png")
    assert cut_off.exit_code == 130
    assert "with --resume goes on from p.json.pose.state" in caplog.text
    assert sorted(p.name for p in Path().iterdir()) == ["in.mp4", "p.json.pose.state", "whole.json"]
    assert run("in.mp4", "p.json", "--resume", "--body-only").exit_code == 0
    assert "starting from the beginning" in caplog.text  # it was seen with other options
    Path("p.json").unlink()
    with monkeypatch.context() as patched:
        looked_at.clear()
        patched.setattr(DwposeDetector, "__call__", stops)
        assert run("in.mp4", "p.json").exit_code == 130
    again = run("in.mp4", "p.json", "--resume")
    assert again.exit_code == 0, again.output
    assert "going on after frame 8" in caplog.text
    assert Path("p.json").read_bytes() == Path("whole.json").read_bytes()
    assert sorted(p.name for p in Path().iterdir()) == ["in.mp4", "p.json", "whole.json"]


def test_keypoints_only_and_metrics_as_text(run: Callable[..., Any]) -> None:
    video(Path("in.mp4"))
    result = run("in.mp4", "p.json", "--metrics", "text")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("p.json\n")
    assert "found_rate           1.0" in result.stdout
    assert sorted(p.name for p in Path().iterdir()) == ["in.mp4", "p.json"]


def test_a_stretch_at_another_rate_and_size(run: Callable[..., Any]) -> None:
    video(Path("in.mp4"), 30)
    flags = ["--start", "0:00.4", "--duration", "0.8", "--fps", "12.5", "--size", "320x240"]
    assert run("in.mp4", "map.mp4", "--json", "p.json", *flags).exit_code == 0
    poses, info = load_poses(Path("p.json")), probe(Path("map.mp4"))
    assert (poses.num_frames, poses.fps, poses.height, poses.width) == (10, Fraction(25, 2), 240, 320)
    assert (info.num_frames, info.fps, info.height, info.width) == (10, Fraction(25, 2), 240, 320)
    assert poses.points[0, 0].mean(0) == pytest.approx([(300 + 30) / 2, 100], abs=4)


def test_keypoints_in_pictures_out(run: Callable[..., Any]) -> None:
    poses = some_poses()
    save_poses(Path("p.json"), poses)
    result = run("p.json", "map.mp4", "--openpose", "op", "--draw", "body", "--thickness", "2", "--fade")
    assert result.exit_code == 0, result.output
    assert probe(Path("map.mp4")).num_frames == 5
    back = run("op", "again.json", "--fps", "30000/1001", "--size", "640x720")
    assert back.exit_code == 0, back.output
    np.testing.assert_allclose(load_poses(Path("again.json")).points, poses.points, atol=0.02)


def test_one_person_of_a_keypoints_file(run: Callable[..., Any], networks: list[str]) -> None:
    poses = some_poses()
    save_poses(Path("p.json"), poses)
    chosen = int(poses.identities.max())
    result = run("p.json", "one.json", "--person", chosen, "--metrics", "json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["frames_per_s"] is None
    one = load_poses(Path("one.json"))
    assert set(one.identities.ravel().tolist()) <= {0, chosen}
    where = poses.identities == chosen
    np.testing.assert_allclose(one.points[where.any(1), 0], poses.points[where], atol=0.01)
    absent = run("p.json", "two.json", "--person", 99)
    assert absent.exit_code == 3
    assert "there is no person 99. Choose one of" in absent.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "64x64"], "has a rate and a size of its own. Leave out --fps and --size"),
        (["--fps", "5"], "has a rate and a size of its own"),
        (["--body-only"], "nobody is searched, nothing repaired. Leave out --body-only."),
        (["--raw", "--max-people", "3"], "Leave out --max-people, --raw, --smoothing and --fill."),
        (["--person", "central"], "Leave out --person central."),
        (["--start", "1"], "taken whole. Leave out --start and --duration."),
    ],
)
def test_what_says_nothing_about_keypoints_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_poses(Path("p.json"), some_poses())
    result = CliRunner().invoke(app, ["extract-pose", "p.json", "map.mp4", *words])
    assert result.exit_code == 2
    assert said in result.stderr


def test_fit_is_told_and_shown(run: Callable[..., Any]) -> None:
    save_poses(Path("p.json"), some_poses())
    result = run("p.json", "fitted.json", "--fit", "center", "--preview", "s.png")
    assert result.exit_code == 0, result.output
    assert "fit: scaled to" in result.stderr
    assert read_image(Path("s.png")).shape[0] > 2 * 300  # the poses found, and the poses fitted


def test_many_videos(run: Callable[..., Any]) -> None:
    for name in ("a", "b"):
        video(Path("in") / f"{name}.mp4", 4)
    (Path("in") / "c.mp4").write_text("not a video")
    (Path("in") / "notes.txt").touch()
    result = run("in", "out", "--json", "data")
    assert result.exit_code == 3  # of the one that failed
    assert "in/c.mp4" in result.stderr
    assert "1 of 3 videos failed" in result.stderr
    assert result.stdout.split() == ["out/a.pose.mp4", "data/a.json", "out/b.pose.mp4", "data/b.json"]
    result = run("in/[ab].mp4", "out", "--json", "data", "--skip-existing")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("is done already") == 2


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("none.mp4 map.mp4", 3, "does not exist"),
        ("text.mp4 map.mp4", 3, "text.mp4"),
        ("nothing*.mp4 out", 3, "no video is in 'nothing"),
        ("empty out", 3, "no video is in 'empty'"),
        ("in.mp4 in.mp4", 2, "is the input"),
        ("in.mp4 map.mp4 --json map.mp4", 2, "two outputs have one name"),
        ("in.mp4 gone/map.mp4", 6, "is not a folder"),
        ("in.mp4 map.mp4 --openpose in", 6, "is not an empty folder"),
        ("in.mp4 map.xyz", 2, "'.xyz' is not a video format"),
        ("in.mp4 map.mp4 --preview s.doc", 2, "'.doc' is not a picture format"),
        ("in.mp4 map.mp4 --start 99", 2, "start is 99 s"),
        ("in.mp4 map.mp4 --start soon", 2, "start is 'soon'"),
        ("in.mp4 map.mp4 --duration 0", 2, "duration is 0 s"),
        ("in.mp4 map.mp4 --fps 0", 2, "fps is '0'"),
        ("in.mp4 map.mp4 --size big", 2, "size is 'big'"),
        ("in.mp4 map.mp4 --person 7", 3, "there is no person 7: 1 were found"),
        ("in.mp4 map.mp4 --smoothing soft", 2, "smoothing is 'soft'"),
        ("in.mp4 map.mp4 --fill -1", 2, "fill is -1 s"),
        ("in.mp4 map.mp4 --draw hair", 2, "nobody has ['hair']"),
        ("in.mp4 map.mp4 --thickness 99", 2, "thickness is 99"),
        ("in.mp4 map.mp4 --fit nobody.jpg", 2, "fit is 'nobody.jpg'"),
        ("in.mp4 map.mp4 --metrics csv", 2, "metrics is 'csv'"),
        ("in.mp4 a.json --json b.json", 2, "Name one of them"),
        ("in out.mp4", 2, "is one file for many videos"),
        ("broken.json map.mp4", 3, "no keypoints that are known"),
        ("p.json map.mp4 --start 1", 2, "taken whole"),
    ],
)
def test_bad_input_is_one_sentence_and_a_code(
    run: Callable[..., Any], words: str, code: int, says: str
) -> None:
    video(Path("in.mp4"), 4)
    video(Path("in") / "a.mp4", 4)
    Path("text.mp4").write_text("this is not a video\n" * 50)
    Path("empty").mkdir()
    Path("broken.json").write_text("{}")
    save_poses(Path("p.json"), some_poses())
    before = set(Path().rglob("*"))
    result = run(*words.split())
    assert result.exit_code == code, result.output
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert set(Path().rglob("*")) - before <= {Path("out"), Path("out.mp4")}


def test_too_little_memory_is_refused(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    video(Path("in.mp4"), 4)
    free = type("Free", (), {"available": 2**20})
    monkeypatch.setattr(footage.psutil, "virtual_memory", lambda: free)
    result = run("in.mp4", "map.mp4")
    assert result.exit_code == 5
    assert "poses of 4 frames need about" in result.stderr


def test_memory_grows_with_frames_and_people(tmp_path: Path) -> None:
    with open_clip(video(tmp_path / "in.mp4", 8)) as clip:
        few, many = (pose_files.memory_bytes(clip, people) for people in (1, 8))
    assert few < many < few + 8 * 8 * 134 * 12 * 20


class TestStyle:
    points = np.random.default_rng(0).uniform(20, 480, (1, 134, 2)).astype(np.float32)

    def drawn(self, style: Style, score: float = 0.9) -> np.ndarray:
        return draw_pose(self.points, np.full((1, 134), score, np.float32), 500, 500, style)

    def test_parts_are_drawn_alone(self) -> None:
        alone = [self.drawn(Style(*(k == part for k in range(3)))) for part in range(3)]
        together = np.maximum.reduce(alone).any(-1)
        np.testing.assert_array_equal(together, self.drawn(OFFICIAL).any(-1))

    def test_thicker_covers_more_and_unsure_is_darker(self) -> None:
        assert (self.drawn(Style(thickness=3)) > 0).sum() > 1.5 * (self.drawn(OFFICIAL) > 0).sum()
        assert self.drawn(Style(fade=True), 0.5).max() <= 128
        np.testing.assert_array_equal(self.drawn(Style(fade=True), 1.0), self.drawn(OFFICIAL, 1.0))


def test_help_needs_no_numpy() -> None:
    """The command is made for every --help; what it works with is imported when it runs."""
    import subprocess

    code = "import dreamoving_cli.pose_command, sys; sys.exit('numpy' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
