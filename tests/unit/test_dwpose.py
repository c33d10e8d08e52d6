"""DWPose's path: our arithmetic against the official code's goldens, and the whole path on tiny networks."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from dreamoving_cli.errors import WeightsError
from dreamoving_cli.extract import sessions, simcc, yolox
from dreamoving_cli.extract.dwpose import DwposeDetector, between, overlap
from tests.tiny_onnx import person_network, pose_network

GOLDENS = Path(__file__).parents[2].parent / "shared" / "parity" / "goldens"
CROP = 384, 288  # height, width of DWPose's crops


def picture(name: str) -> np.ndarray:
    return np.asarray(cv2.imread(str(GOLDENS / name)))[..., ::-1]


@pytest.mark.shared
@pytest.mark.skipif(not GOLDENS.is_dir(), reason="the reference goldens lie beside a developer's checkout")
class TestOfficialCode:
    @pytest.fixture
    def golden(self) -> dict[str, np.ndarray]:
        from safetensors.numpy import load_file

        return load_file(GOLDENS / "B4_dwpose_decode.safetensors")

    def test_letterbox(self, golden: dict[str, np.ndarray]) -> None:
        padded, scale = yolox.letterbox(picture("B4_photo_450x400.png"), 640, 640)
        np.testing.assert_array_equal(padded, picture("B4_det_letterbox_640.png"))
        assert scale == golden["det.ratio"]

    def test_boxes(self, golden: dict[str, np.ndarray]) -> None:
        raw = np.zeros((8400, 85), np.float32)
        raw[golden["det.raw_rows"]] = golden["det.raw_values"]
        boxes = yolox.person_boxes(raw, float(golden["det.ratio"]), 640, 640)
        np.testing.assert_allclose(boxes, golden["det.out_boxes_xyxy"], atol=1e-3)

    def test_crops(self, golden: dict[str, np.ndarray]) -> None:
        photo = picture("B4_photo_450x400.png")
        for k, box in enumerate(golden["in.boxes_xyxy"]):
            center, size = simcc.crop_of(box, *CROP)
            np.testing.assert_allclose(center, golden["mid.center"][k])
            np.testing.assert_allclose(size, golden["mid.scale_after_aspect_fix"][k])
            np.testing.assert_allclose(
                simcc.crop_matrix(center, size, *CROP), golden["mid.warp_matrix"][k], atol=1e-3
            )
            cropped = simcc.crop(photo, center, size, *CROP)
            difference = cropped.astype(int) - picture(f"B4_pose_crop_{k}_288x384.png")
            assert np.abs(difference).max() <= 4  # OpenCV's own versions differ by as much
        first = simcc.normalize(picture("B4_pose_crop_0_288x384.png")[None])[..., ::8, ::8]
        np.testing.assert_allclose(first, golden["mid.input0_normalised_every_8th"], atol=1e-4)

    def test_no_detection_is_the_whole_picture(self, golden: dict[str, np.ndarray]) -> None:
        height, width = picture("B4_photo_450x400.png").shape[:2]
        center, size = simcc.crop_of(np.array([0.0, 0.0, width, height]), *CROP)
        np.testing.assert_allclose(center, golden["nodet.center"][0])
        np.testing.assert_allclose(size, golden["nodet.scale"][0])

    def test_points(self, golden: dict[str, np.ndarray]) -> None:
        rows = (golden[f"in.simcc_{axis}_f16"].astype(np.float32) for axis in "xy")
        in_crop, scores = simcc.peaks(*rows, CROP[1])
        places = [simcc.crop_of(box, *CROP) for box in golden["in.boxes_xyxy"]]
        points = np.stack([simcc.to_picture(p, *at, *CROP) for p, at in zip(in_crop, places, strict=True)])
        np.testing.assert_allclose(points, golden["out.keypoints"], atol=1e-3)
        np.testing.assert_allclose(scores, golden["out.scores"], atol=1e-6)

    def test_order(self) -> None:
        from safetensors.numpy import load_file

        golden = load_file(GOLDENS / "B4_dwpose_reorder.safetensors")
        points, scores = simcc.to_134(golden["in.keypoints133"], golden["in.scores133"])
        np.testing.assert_array_equal(points, golden["out.keypoints134"])
        np.testing.assert_array_equal(scores, golden["out.scores134"])


def spots(*places: tuple[int, int], height: int = 480, width: int = 640) -> np.ndarray:
    """uint8 h w c: a gray picture with a white spot at each (x, y)."""
    frame = np.full((height, width, 3), 60, np.uint8)
    for x, y in places:
        cv2.circle(frame, (x, y), 4, (255, 255, 255), -1)
    return frame


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("onnx")
    return str(person_network(folder / "person.onnx")), str(pose_network(folder / "pose.onnx"))


def test_spots_are_found_where_they_are(networks: tuple[str, str]) -> None:
    places = [(100, 200), (500, 250)]
    [(points, scores)] = DwposeDetector(*networks)(spots(*places)[None])
    assert points.shape == (2, 134, 2)
    assert scores == pytest.approx(0.5, abs=0.05) or (scores[:, 1] == 1).all()  # the neck's is 0 or 1
    found = sorted(points.mean(1).tolist())
    np.testing.assert_allclose(found, sorted(places), atol=5)


def test_between_looked_at_frames_boxes_move_along(networks: tuple[str, str]) -> None:
    frames = np.stack([spots((100 + 8 * k, 200)) for k in range(10)])
    detector = DwposeDetector(*networks, detect_every=4)
    looked: list[int] = []
    find = detector._boxes.__call__
    detector._boxes = lambda frame: (looked.append(1), find(frame))[1]  # type: ignore[assignment,func-returns-value]
    people = detector(frames[:6]) + detector(frames[6:])
    assert len(looked) == 4  # frames 0, 4, 5 (the batch's last), 9
    for k, (points, _) in enumerate(people):
        assert len(points) == 1
        np.testing.assert_allclose(points[0].mean(0), [100 + 8 * k, 200], atol=5)


def test_batches_change_nothing(networks: tuple[str, str]) -> None:
    frames = np.stack([spots((100 + 9 * k, 200), (400, 300 - 5 * k)) for k in range(5)])
    together = DwposeDetector(*networks, detect_every=1)(frames)
    alone = DwposeDetector(*networks, detect_every=1)
    for k, (points, scores) in enumerate(together):
        [(single, single_scores)] = alone(frames[k : k + 1])
        np.testing.assert_allclose(points, single, atol=1e-4)
        np.testing.assert_allclose(scores, single_scores, atol=1e-6)


def test_nobody_detected_looks_at_the_whole_picture(networks: tuple[str, str]) -> None:
    dim = np.full((480, 640, 3), 10, np.uint8)
    dim[240, 320] = 150  # not bright enough for a box
    [(points, _)] = DwposeDetector(*networks)(dim[None])
    assert len(points) == 1
    np.testing.assert_allclose(points[0].mean(0), [320, 240], atol=6)


@pytest.mark.parametrize(("count", "size"), [(17, (256, 192)), (26, (256, 192)), (133, (384, 288))])
def test_other_simcc_networks(
    tmp_path: Path, networks: tuple[str, str], count: int, size: tuple[int, int]
) -> None:
    pose = pose_network(tmp_path / "pose.onnx", *size, points=count)
    [(points, scores)] = DwposeDetector(networks[0], str(pose))(spots((300, 200))[None])
    shown = scores[0] > 0.3
    assert shown.sum() == {17: 18, 26: 24, 133: 134}[count]
    np.testing.assert_allclose(points[0][shown].mean(0), [300, 200], atol=5)


def test_wrong_networks_are_named(tmp_path: Path, networks: tuple[str, str]) -> None:
    person, pose = networks
    with pytest.raises(WeightsError, match="not YOLOX's boxes"):
        DwposeDetector(pose, pose)(spots((9, 9))[None])
    with pytest.raises(WeightsError, match="not SimCC"):
        DwposeDetector(person, person)(spots((100, 100))[None])
    odd = pose_network(tmp_path / "odd.onnx", points=21)
    with pytest.raises(WeightsError, match="finds 21 points"):
        DwposeDetector(person, str(odd))(spots((100, 100))[None])
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not onnx")
    with pytest.raises(WeightsError, match="cannot be run"):
        sessions.Session(broken)


def test_an_idle_gpu_is_loud(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, networks: tuple[str, str]
) -> None:
    monkeypatch.setattr(sessions, "gpu_is_here", lambda: True)
    with caplog.at_level(logging.WARNING):
        session = sessions.Session(Path(networks[0]))
    assert "onnxruntime runs on the CPU" in caplog.text
    assert not session.on_gpu
    assert sessions.unused_gpu(["CUDAExecutionProvider", "CPUExecutionProvider"], gpu=True) is None
    assert sessions.unused_gpu(["CPUExecutionProvider"], gpu=False) is None
    ordered = sessions.providers_here(["CPUExecutionProvider", "CUDAExecutionProvider"])
    assert ordered == ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_boxes_between_two_frames() -> None:
    before = np.array([[0.0, 0, 10, 10], [100, 0, 110, 10]])
    after = np.array([[4.0, 0, 14, 10], [200, 0, 210, 10]])
    half = between(before, after, 0.5)
    np.testing.assert_allclose(half[0], [2, 0, 12, 10])
    assert len(half) == 3  # who leaves, who comes
    np.testing.assert_allclose(between(before, after, 1.0), after)
    assert overlap(before[0], before[0]) == 1
    assert overlap(before[0], before[1]) == 0


def test_suppression_keeps_the_surest() -> None:
    boxes = np.array([[0.0, 0, 100, 100], [5, 5, 105, 105], [200, 0, 300, 100]])
    assert yolox.suppress(boxes, np.array([0.5, 0.9, 0.4])) == [1, 2]
