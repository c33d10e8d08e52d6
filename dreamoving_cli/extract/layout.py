"""From MediaPipe's landmarks (33 of the body, 468 of the face) to the 134 points of keypoints.py."""

import numpy as np

from dreamoving_cli.extract import keypoints as kp

NUM_BODY = 33

# Landmarks of the body network that other modules name.
NOSE, LEFT_EYE, RIGHT_EYE, LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_HIP = 0, 2, 5, 11, 12, 23
LEFT_HAND = (15, 17, 19)  # wrist, little finger, index finger
RIGHT_HAND = (16, 18, 20)
HEAD = slice(0, 11)
EARS = [7, 8]
FACIAL = [0, 1, 2, 3, 4, 5, 6, 9, 10]  # nose, eyes, mouth: not seen from behind

# OpenPose's 18 in order; the neck (-1) is made from the shoulders.
BODY = (0, -1, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)
# Big toe, small toe, heel, left then right. The network knows one toe a foot: it stands for both.
FEET = (31, 31, 29, 32, 32, 30)
# The mesh vertices on the 68 points: jaw from the right ear, brows, nose, eyes, outer and inner lips.
FACE = (
    127, 234, 93, 132, 58, 136, 150, 176, 152, 400, 379, 365, 288, 361, 323, 454, 356,
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,
    168, 197, 5, 4, 75, 97, 2, 326, 305,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,
    78, 82, 13, 312, 308, 317, 14, 87,
)  # fmt: skip
RIGHT_EYE_CORNER, LEFT_EYE_CORNER = 33, 263  # outer corners in the mesh


def put_body(
    landmarks: np.ndarray, landmark_scores: np.ndarray, points: np.ndarray, scores: np.ndarray
) -> None:
    """Write body and feet into a person. landmarks: 33 2 pixels, 33 scores; points: 134 2; scores: 134."""
    for part, source in ((kp.BODY, BODY), (kp.FEET, FEET)):
        points[part], scores[part] = landmarks[list(source)], landmark_scores[list(source)]
    shoulders = [kp.RIGHT_SHOULDER, kp.LEFT_SHOULDER]
    points[kp.NECK], scores[kp.NECK] = points[shoulders].mean(0), scores[shoulders].min()


def put_face(mesh: np.ndarray, mesh_scores: np.ndarray, points: np.ndarray, scores: np.ndarray) -> None:
    """Write the face; without a body also its nose and eyes. mesh: 468 2 pixels, 468 scores."""
    points[kp.FACE], scores[kp.FACE] = mesh[list(FACE)], mesh_scores[list(FACE)]
    if scores[kp.BODY].any():
        return
    face = points[kp.FACE]
    for joint, place in ((kp.NOSE, face[30]), (kp.RIGHT_EYE, face[36:42]), (kp.LEFT_EYE, face[42:48])):
        points[joint], scores[joint] = place.reshape(-1, 2).mean(0), mesh_scores[0]
