"""Poses as pictures: the drawing that pose ControlNets were trained on, and its small sizes.

`draw_pose` gives the pixels of DWPose's own drawing code (IDEA-Research/DWPose): 17 limbs at 60 % brightness
and 18 joints in the colors of the rainbow, hands likewise, face points in white. `draw_control` is what a
ControlNet gets.
"""

import colorsys
import math

import cv2
import numpy as np

from dreamoving_cli.extract.keypoints import BODY, FACE, LEFT_HAND, RIGHT_HAND

CANVAS_SIDE = 512  # the drawing's line widths are meant for pictures of this size
VISIBLE = 0.3  # points under this score are not drawn
STICK, JOINT, FACE_DOT, BONE = 4, 4, 3, 2  # half width of a limb, radii, line width, in pixels

# The ends of each limb, in drawing order: neck to shoulders, arms, legs, neck to nose, eyes and ears.
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10),
    (1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
COLORS = tuple(tuple(round(255 * c) for c in colorsys.hsv_to_rgb(k / 18, 1.0, 1.0)) for k in range(18))
LIMB_COLORS = tuple(tuple(int(c * 0.6) for c in color) for color in COLORS[:17])
HAND_COLOR, FACE_COLOR = (0, 0, 255), (255, 255, 255)
BONES = tuple((0 if k % 4 == 0 else k, k + 1) for k in range(20))  # wrist to finger tip, thumb first
BONE_COLORS = tuple(tuple(255 * c for c in colorsys.hsv_to_rgb(k / 20, 1.0, 1.0)) for k in range(20))


def draw_pose(points: np.ndarray, scores: np.ndarray, height: int, width: int) -> np.ndarray:
    """Everyone's pose on black, uint8 h w c. points: p 134 2 in pixels of that picture; scores: p 134."""
    canvas = np.zeros((height, width, 3), np.uint8)
    size = np.array([width, height], np.float64)
    # The original stores fractions of the picture and multiplies back, which decides how a pixel rounds.
    xy = points.astype(np.float64) / size * size
    _draw_bodies(canvas, xy[:, BODY], scores[:, BODY] > VISIBLE)
    seen = scores >= VISIBLE
    for part in (LEFT_HAND, RIGHT_HAND):
        for hand, visible in zip(xy[:, part], seen[:, part], strict=True):
            _draw_hand(canvas, hand, visible)
    for x, y in xy[:, FACE][_on_canvas(xy[:, FACE], seen[:, FACE])].astype(int).tolist():
        cv2.circle(canvas, (x, y), FACE_DOT, FACE_COLOR, -1)
    return canvas


def draw_control(
    points: np.ndarray, scores: np.ndarray, source_size: tuple[int, int], height: int, width: int
) -> np.ndarray:
    """The pose picture a ControlNet gets, uint8 h w c; points in pixels of source_size = (height, width).

    Like a clip that is read at another size, the source is cropped at its center to the picture's aspect.
    Drawn large and shrunk, so that a small picture keeps thin lines, as the ControlNets have seen them.
    """
    enlarge = max(CANVAS_SIDE / min(height, width), 1.0)
    canvas_height, canvas_width = round(height * enlarge), round(width * enlarge)
    placed = place(points, source_size, (canvas_height, canvas_width))
    canvas = draw_pose(placed, scores, canvas_height, canvas_width)
    if (canvas_height, canvas_width) == (height, width):
        return canvas
    return cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)


def place(points: np.ndarray, source_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Where points of a source are in a picture cropped from its center; sizes are (height, width)."""
    scale = max(size[0] / source_size[0], size[1] / source_size[1])
    return (points - np.array(source_size[::-1]) / 2) * scale + np.array(size[::-1]) / 2


def _on_canvas(xy: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Which points are drawn: the visible, but none in the first row or column: as in the original."""
    return visible & (xy >= 1).all(-1)


def _draw_bodies(canvas: np.ndarray, bodies: np.ndarray, visible: np.ndarray) -> None:
    """Limb by limb (so that of two people the later limb lies on top), then the joints. bodies: p 18 2."""
    for (a, b), color in zip(LIMBS, LIMB_COLORS, strict=True):
        for body in bodies[visible[:, a] & visible[:, b]]:
            middle = (body[a] + body[b]) / 2
            dx, dy = body[a] - body[b]
            axes = int(math.sqrt(dx**2 + dy**2) / 2), STICK
            angle = int(math.degrees(math.atan2(dy, dx)))
            outline = cv2.ellipse2Poly((int(middle[0]), int(middle[1])), axes, angle, 0, 360, 1)
            cv2.fillConvexPoly(canvas, np.asarray(outline), color)
    for joint, color in enumerate(COLORS):
        for x, y in bodies[visible[:, joint], joint].astype(int).tolist():
            cv2.circle(canvas, (x, y), JOINT, color, -1)


def _draw_hand(canvas: np.ndarray, hand: np.ndarray, visible: np.ndarray) -> None:
    """Bones, then joints. hand: 21 2."""
    drawn = _on_canvas(hand, visible)
    pixels = hand.astype(int).tolist()
    for (a, b), color in zip(BONES, BONE_COLORS, strict=True):
        if drawn[a] and drawn[b]:
            cv2.line(canvas, pixels[a], pixels[b], color, BONE)
    for xy in (xy for xy, d in zip(pixels, drawn, strict=True) if d):
        cv2.circle(canvas, xy, JOINT, HAND_COLOR, -1)
