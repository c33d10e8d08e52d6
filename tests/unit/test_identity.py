"""Faces for FaceID: the decoding of SCRFD, the alignment, and what is said when there is no face."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from dreamoving_cli.errors import InputError
from dreamoving_cli.extract import identity
from dreamoving_cli.extract.identity import PATTERN, align, alignment, decode_faces, read_identities

GOLDEN = Path(__file__).parents[2].parent / "shared" / "parity" / "goldens" / "A5_arcface_align.safetensors"
FACE = np.array([[200, 240], [280, 236], [243, 290], [210, 330], [275, 328]], np.float32)  # x, y in pixels


def outputs_of(
    faces: Sequence[tuple[np.ndarray, float]], stride: int = 16, side: int = 640
) -> list[np.ndarray]:
    """What SCRFD would say of these faces (points, score), each seen by the cell next to its nose."""
    made: dict[int, list[np.ndarray]] = {}
    for s in (8, 16, 32):
        rows = (side // s) ** 2 * 2
        made[s] = [np.zeros((rows, width), np.float32) for width in (1, 4, 10)]
    for points, score in faces:
        cell = (points[2] // stride).astype(int)
        row = (cell[1] * (side // stride) + cell[0]) * 2
        center = cell * stride
        box = np.concatenate([center - points.min(0), points.max(0) - center])
        values = (np.array([score]), box / stride, ((points - center) / stride).ravel())
        for output, value in zip(made[stride], values, strict=True):
            output[row] = value
    return [made[s][k] for k in range(3) for s in (8, 16, 32)]


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_faces_are_decoded_where_they_are(stride: int) -> None:
    other = FACE + 120
    found = decode_faces(outputs_of([(FACE, 0.9), (other, 0.6), (FACE + 200, 0.4)], stride), 640)
    assert [round(face.score, 3) for face in found] == [0.9, 0.6]  # 0.4 is not sure enough
    for face, points in zip(found, (FACE, other), strict=True):
        np.testing.assert_allclose(face.points, points, atol=1e-3)
        np.testing.assert_allclose(face.box, [*points.min(0), *points.max(0)], atol=1e-3)


def test_of_two_boxes_on_one_face_the_surer_stays() -> None:
    near = FACE + np.float32(16)
    assert [round(face.score, 3) for face in decode_faces(outputs_of([(FACE, 0.7), (near, 0.8)]), 640)] == [
        0.8
    ]


def test_outputs_are_told_by_their_shape() -> None:
    outputs = outputs_of([(FACE, 0.9)])
    [face] = decode_faces(outputs[::-1], 640)
    np.testing.assert_allclose(face.points, FACE, atol=1e-3)


@given(
    angle=st.floats(-3, 3),
    scale=st.floats(0.1, 8),
    shift=st.tuples(st.floats(-300, 300), st.floats(-300, 300)),
    side=st.sampled_from([112, 224]),
)
def test_alignment_undoes_any_similarity(
    angle: float, scale: float, shift: tuple[float, float], side: int
) -> None:
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = PATTERN @ turn.T + np.array(shift)
    matrix = alignment(points, side)
    back = points @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(back, PATTERN * side / 112, atol=1e-6)


def test_alignment_never_mirrors() -> None:
    mirrored = PATTERN * np.array([-1.0, 1.0])
    assert np.linalg.det(alignment(mirrored, 112)[:, :2]) > 0


@pytest.mark.shared
@pytest.mark.skipif(not GOLDEN.is_file(), reason=f"{GOLDEN} is not there")
def test_alignment_is_insightface_s() -> None:
    golden = load_file(GOLDEN)
    for points, matrix, side in (
        ("in.landmarks", "out.M", 112),
        ("case2.landmarks", "case2.M112", 112),
        ("case2.landmarks", "case2.M224", 224),
    ):  # fmt: skip
        np.testing.assert_allclose(alignment(golden[points], side), golden[matrix], atol=1e-4)
    aligned = align(golden["in.photo_bgr_uint8"], golden["in.landmarks"], 112)
    assert np.abs(aligned.astype(int) - golden["out.aligned_bgr_uint8"]).max() <= 4


class Network:
    """Stands for SCRFD and ArcFace: finds the given face if the picture is bright, embeds the mean color."""

    def __init__(self, weight_id: str) -> None:
        self.detects = weight_id == identity.DETECTOR

    def __call__(self, pictures: np.ndarray) -> list[np.ndarray]:
        if self.detects:
            assert pictures.shape == (1, 3, 640, 640)
            return outputs_of([(FACE, 0.9)] if pictures.mean() > 0 else [])
        assert pictures.shape == (1, 3, 112, 112)
        return [np.concatenate([pictures.mean((2, 3)), np.zeros((1, 509), np.float32)], axis=1)]


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_session", Network)


@pytest.mark.usefixtures("networks")
def test_photos_become_crops_and_embeddings_of_length_one() -> None:
    red = np.broadcast_to(np.array([255, 180, 180], np.uint8), (640, 640, 3)).copy()
    half = red[:, :, ::-1][::2, ::2].copy()  # half the size, blue: its face is half as far in
    crops, embeddings = read_identities([("red.png", red), ("blue.png", half)])
    assert [crop.shape for crop in crops] == [(224, 224, 3)] * 2
    assert (embeddings.shape, embeddings.dtype) == ((2, 512), np.float32)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    assert embeddings[0].argmax() == 0  # RGB order, and each photo its own
    assert embeddings[1].argmax() == 2


@pytest.mark.usefixtures("networks")
def test_no_face_says_what_was_tried() -> None:
    with pytest.raises(
        InputError, match=r"no face was found in dark\.png: all 30x20 pixels were searched, twice"
    ):
        read_identities([("dark.png", np.zeros((20, 30, 3), np.uint8))])
