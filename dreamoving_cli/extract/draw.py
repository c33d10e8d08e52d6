"""Poses as pictures: the drawing that pose ControlNets were trained on, and its small sizes.

`draw_pose` gives the pixels of DWPose's own drawing code (IDEA-Research/DWPose): 17 limbs at 60 % brightness
and 18 joints in the colors of the rainbow, hands likewise, face points in white. `draw_control` is what a
ControlNet gets.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dreamoving_cli.errors import UsageError
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


@dataclass(frozen=True)
class Style:
    """What of a pose is drawn, and how; as it stands, the official drawing."""

    body: bool = True
    hands: bool = True
    face: bool = True
    thickness: float = 1.0  # of all lines and dots, in official ones
    fade: bool = False  # darken what is unsure, by its score

    def __post_init__(self) -> None:
        if not (self.body or self.hands or self.face):
            raise UsageError("nothing of the pose is drawn", f"Choose some of: {', '.join(PARTS)}.")
        if not 0.25 <= self.thickness <= 8:
            raise UsageError(f"thickness is {self.thickness:g}", "Choose 0.25 to 8.")

    def width(self, official: int) -> int:
        """A line's width or a dot's radius."""
        return max(round(official * self.thickness), 1)

    def color(self, color: Sequence[float], score: float) -> tuple[float, ...]:
        """What a color becomes at this score."""
        return tuple(c * score for c in color) if self.fade else tuple(color)


PARTS = ("body", "hands", "face")
OFFICIAL = Style()


def draw_pose(
    points: np.ndarray, scores: np.ndarray, height: int, width: int, style: Style = OFFICIAL
) -> np.ndarray:
    """Everyone's pose on black, uint8 h w c. points: p 134 2 in pixels of that picture; scores: p 134."""
    canvas = np.zeros((height, width, 3), np.uint8)
    size = np.array([width, height], np.float64)
    # The original stores fractions of the picture and multiplies back, which decides how a pixel rounds.
    xy = points.astype(np.float64) / size * size
    if style.body:
        _draw_bodies(canvas, xy[:, BODY], scores[:, BODY], style)
    for part in (LEFT_HAND, RIGHT_HAND) if style.hands else ():
        for hand, hand_scores in zip(xy[:, part], scores[:, part], strict=True):
            _draw_hand(canvas, hand, hand_scores, style)
    for face, face_scores in zip(xy[:, FACE], scores[:, FACE], strict=True) if style.face else ():
        for n in np.flatnonzero(_on_canvas(face, face_scores >= VISIBLE)):
            color = style.color(FACE_COLOR, float(face_scores[n]))
            cv2.circle(canvas, face[n].astype(int).tolist(), style.width(FACE_DOT), color, -1)
    return canvas


def draw_control(
    points: np.ndarray,
    scores: np.ndarray,
    source_size: tuple[int, int],
    height: int,
    width: int,
    style: Style = OFFICIAL,
) -> np.ndarray:
    """The pose picture a ControlNet gets, uint8 h w c; points in pixels of source_size = (height, width).

    Like a clip that is read at another size, the source is cropped at its center to the picture's aspect.
    Drawn large and shrunk, so that a small picture keeps thin lines, as the ControlNets have seen them.
    """
    enlarge = max(CANVAS_SIDE / min(height, width), 1.0)
    canvas_height, canvas_width = round(height * enlarge), round(width * enlarge)
    placed = place(points, source_size, (canvas_height, canvas_width))
    canvas = draw_pose(placed, scores, canvas_height, canvas_width, style)
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


def _draw_bodies(canvas: np.ndarray, bodies: np.ndarray, scores: np.ndarray, style: Style) -> None:
    """Limb by limb (so that of two people the later limb lies on top), then the joints. p 18 2, p 18."""
    visible = scores > VISIBLE
    for (a, b), color in zip(LIMBS, LIMB_COLORS, strict=True):
        for p in np.flatnonzero(visible[:, a] & visible[:, b]):
            body = bodies[p]
            middle = (body[a] + body[b]) / 2
            dx, dy = body[a] - body[b]
            axes = int(math.sqrt(dx**2 + dy**2) / 2), style.width(STICK)
            angle = int(math.degrees(math.atan2(dy, dx)))
            outline = cv2.ellipse2Poly((int(middle[0]), int(middle[1])), axes, angle, 0, 360, 1)
            faded = style.color(color, float(min(scores[p, a], scores[p, b])))
            cv2.fillConvexPoly(canvas, np.asarray(outline), faded)
    for joint, color in enumerate(COLORS):
        for p in np.flatnonzero(visible[:, joint]):
            faded = style.color(color, float(scores[p, joint]))
            cv2.circle(canvas, bodies[p, joint].astype(int).tolist(), style.width(JOINT), faded, -1)


def _draw_hand(canvas: np.ndarray, hand: np.ndarray, scores: np.ndarray, style: Style) -> None:
    """Bones, then joints. hand: 21 2; scores: 21."""
    drawn = _on_canvas(hand, scores >= VISIBLE)
    pixels = hand.astype(int).tolist()
    for (a, b), color in zip(BONES, BONE_COLORS, strict=True):
        if drawn[a] and drawn[b]:
            faded = style.color(color, float(min(scores[a], scores[b])))
            cv2.line(canvas, pixels[a], pixels[b], faded, style.width(BONE))
    for n in np.flatnonzero(drawn):
        cv2.circle(canvas, pixels[n], style.width(JOINT), style.color(HAND_COLOR, float(scores[n])), -1)
