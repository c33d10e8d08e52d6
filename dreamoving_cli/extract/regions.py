"""Square, turned regions of a picture: how the landmark networks look at a body, a hand or a face."""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np


@dataclass(frozen=True)
class Region:
    """A square in pixels of the picture; its own up is turned by `angle` (radians, clockwise on screen)."""

    x: float  # center
    y: float
    side: float
    angle: float = 0.0

    def crop(self, frame: np.ndarray, side: int, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
        """The region as a picture of side x side pixels. frame: h w c."""
        to_frame = self._matrix() @ np.array(
            [[1 / side, 0, 0.5 / side], [0, 1 / side, 0.5 / side], [0, 0, 1]]
        )
        to_frame[:2, 2] -= 0.5  # OpenCV counts from the middle of the first pixel
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(frame, to_frame[:2], (side, side), flags=flags, borderMode=border)

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """Points in fractions of the region, n 2, as pixels of the picture."""
        matrix = self._matrix()
        return np.asarray(points @ matrix[:2, :2].T + matrix[:2, 2])

    def scaled(self, factor: float) -> "Region":
        """The same place seen in a picture that is `factor` times as large."""
        return Region(self.x * factor, self.y * factor, self.side * factor, self.angle)

    def grown(self, factor: float, up: float = 0.0) -> "Region":
        """Moved by `up` of its side along its own up, then grown about its center."""
        x = self.x + up * self.side * math.sin(self.angle)
        y = self.y - up * self.side * math.cos(self.angle)
        return replace(self, x=x, y=y, side=self.side * factor)

    def _matrix(self) -> np.ndarray:
        """3 x 3: fractions of the region to pixels of the picture."""
        cos, sin = self.side * math.cos(self.angle), self.side * math.sin(self.angle)
        turn = np.array([[cos, -sin], [sin, cos]])
        matrix = np.eye(3)
        matrix[:2, :2] = turn
        matrix[:2, 2] = np.array([self.x, self.y]) - turn @ [0.5, 0.5]
        return matrix


def around_center(center: np.ndarray, rim: np.ndarray) -> Region:
    """The square about a circle with that center, whose up points at `rim`."""
    dx, dy = (rim - center).tolist()
    return Region(float(center[0]), float(center[1]), 2 * math.hypot(dx, dy), math.atan2(dx, -dy))


def around_points(points: np.ndarray, angle: float) -> Region:
    """The smallest square turned by `angle` that holds the points, n 2, at its center."""
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])  # region axes to picture axes
    turned = points @ turn
    low, high = turned.min(0), turned.max(0)
    x, y = (turn @ ((low + high) / 2)).tolist()
    return Region(x, y, float((high - low).max()), angle)


def angle_upright(left: np.ndarray, right: np.ndarray) -> float:
    """The turn of a region in which `left` and `right` (of the picture) lie level."""
    dx, dy = (right - left).tolist()
    return math.atan2(dy, dx)
