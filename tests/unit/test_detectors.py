"""One contract over both detectors, the choice between them, and the story from frames to poses."""

import logging
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from dreamoving_cli.errors import InputError, UsageError, WeightsError
from dreamoving_cli.extract import detectors
from dreamoving_cli.extract.cuts import with_cuts
from dreamoving_cli.extract.detectors import Detector, open_detector
from dreamoving_cli.extract.pose import detect, find_poses
from dreamoving_cli.extract.settings import PoseOptions
from dreamoving_cli.media.video import open_clip
from dreamoving_cli.media.writer import write_video
from dreamoving_cli.paths import PACKAGE
from dreamoving_cli.weights import weight_path
from tests.tiny_onnx import person_network, pose_network
from tests.unit.test_dwpose import spots


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("onnx")
    person, pose = person_network(folder / "person.onnx"), pose_network(folder / "pose.onnx")
    return {"person_network": str(person), "pose_network": str(pose)}


@pytest.fixture(params=["dwpose", "light"])
def detector(request: pytest.FixtureRequest, tiny: dict[str, str]) -> Detector:
    if request.param == "light":
        try:
            weight_path("mediapipe.pose_detection")
        except WeightsError as error:
            pytest.skip(f"the light detector's networks cannot be fetched: {error}")
    name, found = open_detector(PoseOptions(request.param, person="all", **tiny))
    assert name == request.param
    return found


@pytest.fixture(scope="module")
def dancing() -> np.ndarray:
    """Frames with a person for the light detector and a bright spot for the tiny networks; uint8 f h w c."""
    with open_clip(PACKAGE / "example_media" / "dance.mp4", num_frames=4) as clip:
        frames = clip.read(range(4))
    frames[:, 8:14, 8:14] = 255
    return frames


class TestContract:
    def test_people_of_every_frame(self, detector: Detector, dancing: np.ndarray) -> None:
        people = detector(dancing)
        assert len(people) == len(dancing)
        for points, scores in people:
            assert points.ndim == 3
            assert points.shape[1:] == (134, 2)
            assert scores.shape == points.shape[:2]
            assert points.dtype == scores.dtype == np.float32
            assert np.isfinite(points).all()
            assert ((scores >= 0) & (scores <= 1)).all()
        assert all((scores > 0.3).any() for _, scores in people)

    def test_a_new_shot_starts_from_nothing(self, detector: Detector, dancing: np.ndarray) -> None:
        first = detector(dancing[:2])
        detector.forget()
        again = detector(dancing[:2])
        for (points, scores), (same, same_scores) in zip(first, again, strict=True):
            np.testing.assert_allclose(points, same, atol=1e-3)
            np.testing.assert_allclose(scores, same_scores, atol=1e-4)

    def test_no_frames_and_no_body(self, detector: Detector, dancing: np.ndarray) -> None:
        assert detector(dancing[:0]) == []
        [(_, scores)] = detector(np.zeros((1, 96, 64, 3), np.uint8))
        assert not (scores > 0.3).any()


class TestChoice:
    def test_light_without_dwpose_s_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(detectors, "gpu_is_usable", lambda: True)
        monkeypatch.setattr(detectors, "list_weights", list)
        assert detectors.best_here(PoseOptions()) == "light"

    def test_dwpose_with_files_and_a_gpu(self, monkeypatch: pytest.MonkeyPatch, tiny: dict[str, str]) -> None:
        monkeypatch.setattr(detectors, "gpu_is_usable", lambda: True)
        assert detectors.best_here(PoseOptions(**tiny)) == "dwpose"

    def test_a_gpu_that_lies_idle_is_told(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tiny: dict[str, str]
    ) -> None:
        monkeypatch.setattr(detectors, "gpu_is_usable", lambda: False)
        monkeypatch.setattr(detectors, "gpu_is_here", lambda: True)
        with caplog.at_level(logging.WARNING):
            assert detectors.best_here(PoseOptions(**tiny)) == "light"
        assert "onnxruntime runs on the CPU" in caplog.text

    @pytest.mark.parametrize(
        "wrong",
        [
            {"detector": "magic"}, {"person": "0"}, {"person": "tall"}, {"max_people": 0},
            {"detect_every": 0},
            {"pose_network": "gone.onnx"},
        ],
        ids=str,
    )  # fmt: skip
    def test_impossible_options_are_refused(self, wrong: dict[str, object]) -> None:
        with pytest.raises(UsageError):
            PoseOptions(**wrong)  # type: ignore[arg-type]


def shots(*lengths: int) -> np.ndarray:
    """Noise that moves a little, another picture in each shot; uint8 f h w c."""
    frames = []
    for shot, length in enumerate(lengths):
        picture = np.random.default_rng(shot).integers(0, 255, (12, 16, 3)).repeat(8, 0).repeat(8, 1)
        frames += [np.roll(picture, k, 1) for k in range(length)]
    return np.array(frames, np.uint8)


def test_cuts_are_found_where_they_are() -> None:
    frames = shots(15, 20, 12)
    flagged = list(with_cuts(frames, Fraction(25)))
    assert [k for k, (_, cut) in enumerate(flagged) if cut] == [15, 35]
    np.testing.assert_array_equal(np.stack([frame for frame, _ in flagged]), frames)
    assert [cut for _, cut in with_cuts(shots(3), Fraction(5))] == [False] * 3


def test_the_detector_forgets_at_cuts() -> None:
    calls: list[str] = []

    class Watcher:
        def __call__(self, frames: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
            calls.append(str(len(frames)))
            return [(np.zeros((0, 134, 2)), np.zeros((0, 134)))] * len(frames)

        def forget(self) -> None:
            calls.append("forget")

    flags = [False] * 10 + [True] + [False] * 3
    found, cuts = detect(((np.zeros((4, 4, 3), np.uint8), flag) for flag in flags), Watcher())
    assert len(found) == 14
    assert cuts == [10]
    assert calls == ["8", "2", "forget", "4"]


@pytest.fixture
def spot_video(tmp_path: Path) -> Callable[..., Path]:
    """A video with bright spots that go right, 3 pixels a frame."""

    def make(name: str, frames: int, *starts: tuple[int, int]) -> Path:
        pictures = np.stack([spots(*((x + 3 * k, y) for x, y in starts)) for k in range(frames)])
        return write_video(tmp_path / name, [pictures], Fraction(25), quality=5)

    return make


def test_from_a_video_to_poses_and_numbers(spot_video: Callable[..., Path], tiny: dict[str, str]) -> None:
    path = spot_video("two.mp4", 12, (100, 200), (400, 260))
    with open_clip(path) as clip:
        poses, report = find_poses(clip, PoseOptions("dwpose", "all", **tiny))
    assert poses.points.shape == (12, 2, 134, 2)
    assert set(poses.identities.ravel().tolist()) == {1, 2}
    assert poses.detector == "dwpose"
    assert poses.raw is not None
    assert (report.frames, report.shots, report.people_found, report.found_rate) == (12, 1, 2, 1.0)
    assert report.identity_switches == 0
    assert report.jitter_before is not None
    assert report.jitter_after is not None
    assert report.jitter_after <= report.jitter_before
    starts = sorted(poses.points[0].mean(1).tolist())
    np.testing.assert_allclose(starts, [(100, 200), (400, 260)], atol=6)


def test_nobody_is_refused(tmp_path: Path, tiny: dict[str, str]) -> None:
    black = write_video(tmp_path / "black.mp4", [np.zeros((4, 96, 64, 3), np.uint8)], Fraction(25))
    with open_clip(black) as clip, pytest.raises(InputError, match=r"no person was found in .*black"):
        find_poses(clip, PoseOptions("dwpose", **tiny))
