"""The face in a photo, cropped as the Content Guider wants it: the whole head, square, nothing resampled."""

import numpy as np

from dreamoving_cli.errors import InputError
from dreamoving_cli.extract.light import FACE_STRIDES, FaceMesh, face_region
from dreamoving_cli.extract.networks import Detection, Detector
from dreamoving_cli.extract.regions import Region, around_points

HEAD = 1.6  # side of the crop in sides of the face, which spans forehead to chin
HAIR = 0.12  # the crop's center lies this much above the face's, in sides of the face
SURE = 0.5  # least score of a face in a still picture
NEARER = 2.5  # the second look's side, in sides of the face first seen
TILES = (1, 2, 4)  # the picture is searched whole, then in ever smaller squares


def crop_face(image: np.ndarray, *, name: str = "the face picture") -> np.ndarray:
    """The largest face with its hair and chin, a square view of image, uint8 h w c; name: for refusals."""
    face = find_face(image)
    if face is None:
        height, width = image.shape[:2]
        raise InputError(
            f"no face was found in {name}: all {width}x{height} pixels were searched, then squares of "
            f"{' and '.join(str(max(height, width) // tiles) for tiles in TILES[1:])} pixels",
            "Give a photo in which the face is large and turned to the camera.",
        )
    height, width = image.shape[:2]
    head = face.grown(HEAD, up=HAIR)
    side = min(round(head.side), height, width)
    x = min(max(round(head.x - side / 2), 0), width - side)
    y = min(max(round(head.y - side / 2), 0), height - side)
    return image[y : y + side, x : x + side]


def find_face(image: np.ndarray) -> Region | None:
    """The upright square about the largest face, forehead to chin; None if there is no face."""
    face = _detect(image)
    if face is None:
        return None
    seen = FaceMesh()(image, face_region(face.points, face.box))
    return around_points(seen.landmarks if seen else face.box.reshape(2, 2), 0.0)


def _detect(image: np.ndarray) -> Detection | None:
    """The largest face, looked at twice: the network only sees faces that fill a good part of its input."""
    search = Detector("mediapipe.face_detection_short_range", FACE_STRIDES, SURE)
    height, width = image.shape[:2]
    for tiles in TILES:
        faces = [face for tile in _tiles(height, width, tiles) for face in search(image, tile)]
        if faces:
            largest = max(faces, key=lambda face: face.score * float(np.ptp(face.box[::2])))
            nearer = search(image, around_points(largest.box.reshape(2, 2), 0.0).grown(NEARER))
            return nearer[0] if nearer else largest
    return None


def _tiles(height: int, width: int, tiles: int) -> list[Region]:
    """Squares that overlap by half and cover the picture; `tiles` of them in a row span its longer side."""
    if tiles == 1:
        return [Region(width / 2, height / 2, max(height, width))]
    side = max(height, width) / tiles
    xs, ys = (
        np.arange(side / 2, max(length - side / 2, side / 2) + 1, side / 2) for length in (width, height)
    )
    return [Region(float(x), float(y), side) for y in ys for x in xs]
