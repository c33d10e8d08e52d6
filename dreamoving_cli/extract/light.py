"""The light detector: one person's body, hands and face by MediaPipe's networks, followed through a clip.

Each part is looked for in the region that its landmarks of the frame before give. Where these are lost, the
body is searched in the whole picture, and hands and face where the body says they are. Works on one CPU core.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract import layout
from dreamoving_cli.extract.networks import Detector, Network, sigmoid
from dreamoving_cli.extract.regions import Region, angle_upright, around_center, around_points

SEARCH_SIDE = 640  # pictures are shrunk to this longer side for the body; hands and face see all pixels
FOUND = 0.4  # score from which a detection counts
PRESENT = 0.4  # score from which landmarks are kept and followed
BODY_STRIDES, FACE_STRIDES = (8, 16, 32, 32, 32), (8, 16, 16, 16)
HEATMAP_RADIUS, HEATMAP_PEAK = 3, 0.5  # cells about a landmark that refine it; least peak to do so
AWAY = (
    0.2  # nose behind the ears by this much of the body's width and height; seen from behind it is 0.4 to 0.5
)
LARGEST_HAND = 0.15  # of the side of the body's region; what is larger is an arm taken for a hand
WRIST_NEAR = (
    0.6  # a hand's wrist is this near to the body's, in sizes of the hand, or it lies the wrong way round
)
HAND_NEAR = 0.4  # a followed hand may be this far from where the body says, in sides of the body's guess
HAND_SIZES = 0.3, 1.5  # and this much smaller or larger than the guess
PALM = [0, 1, 2, 3, 5, 6, 9, 10, 13, 14, 17, 18]  # hand landmarks that decide the next region


@dataclass(frozen=True)
class Part:
    """Landmarks of one part in pixels, n 2, their scores, n, and where to look for it in the next frame."""

    landmarks: np.ndarray
    scores: np.ndarray
    next_region: Region


class LightDetector:
    """Follows one person through the frames of a clip; whole_body=False leaves out hands and face."""

    def __init__(self, *, whole_body: bool = True) -> None:
        self._body = BodyFinder()
        self._hands = [(part, source, HandFinder()) for part, source in HANDS] if whole_body else []
        self._face = FaceFinder() if whole_body else None

    def __call__(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points 134 2 (pixels) and scores 134 in the next frame, uint8 h w c; all scores 0 = nobody."""
        points, scores = np.zeros((kp.NUM_POINTS, 2), np.float32), np.zeros(kp.NUM_POINTS, np.float32)
        body = self._body(frame)
        if body:
            layout.put_body(body.landmarks, body.scores, points, scores)
            for part, source, find in self._hands:
                hand = find(frame, body.landmarks[list(source)], LARGEST_HAND * body.next_region.side)
                if hand:
                    points[part], scores[part] = hand.landmarks, hand.scores
        face = self._find_face(frame, body)
        if face:
            layout.put_face(face.landmarks, face.scores, points, scores)
        height, width = frame.shape[:2]
        scores[((points < 0) | (points >= [width, height])).any(-1)] = 0  # nobody can see what is outside
        return points, scores

    def _find_face(self, frame: np.ndarray, body: Part | None) -> Part | None:
        """The body's face; of a portrait too close to show a body, the face alone."""
        if self._face is None or (body and not body.scores[layout.FACIAL].any()):
            return None
        return self._face(frame, body.landmarks[layout.HEAD] if body else None)


class BodyFinder:
    """The body: searched in the whole picture, then followed."""

    def __init__(self) -> None:
        self._search = Detector("mediapipe.pose_detection", BODY_STRIDES, FOUND)
        self._network = Network("mediapipe.pose_landmark_full")
        self._region: Region | None = None

    def __call__(self, frame: np.ndarray) -> Part | None:
        """The 33 landmarks in the next frame."""
        factor = min(SEARCH_SIDE / max(frame.shape[:2]), 1.0)
        small = (
            cv2.resize(frame, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            if factor < 1
            else frame
        )
        body = self._landmarks(small, self._region.scaled(factor)) if self._region else None
        if body is None:
            found = self._search(small)
            largest = max(found, key=lambda f: f.score * np.ptp(f.points[:2], axis=0).max(), default=None)
            body = self._landmarks(small, _body_region(*largest.points[:2])) if largest else None
        if body is None:
            self._region = None
            return None
        self._region = body.next_region.scaled(1 / factor)
        return Part(body.landmarks / factor, body.scores, self._region)

    def _landmarks(self, frame: np.ndarray, region: Region) -> Part | None:
        values, present, _, heatmaps, _ = self._network(region.crop(frame, self._network.side))
        if present[0] < PRESENT:
            return None
        values = values.reshape(-1, 5)  # x, y, z, visibility, presence; the last 6 rows are no joints
        places = _refine(values[:, :2] / self._network.side, heatmaps)
        landmarks = region.to_picture(places)
        scores = sigmoid(values[:, 3:]).min(-1)
        if _faces_away(values[:, :3]):
            scores[layout.FACIAL] = 0  # the network guesses them through the head
        joints = slice(layout.NUM_BODY)
        return Part(landmarks[joints], scores[joints], _body_region(landmarks[33], landmarks[34]))


class HandFinder:
    """One hand: where the body's wrist and fingers are, then followed while it stays near them."""

    def __init__(self) -> None:
        self._aim = Network("mediapipe.hand_recrop")
        self._network = Network("mediapipe.hand_landmark_full")
        self._region: Region | None = None

    def __call__(self, frame: np.ndarray, hints: np.ndarray, largest: float) -> Part | None:
        """The 21 landmarks. hints: the body's wrist, little and index finger, 3 2; largest: pixels."""
        wrist, little, index = hints
        middle = (2 * index + little) / 3
        guess = around_center(middle, 2 * middle - wrist).grown(2.7)
        hand = None
        if self._region and _is_near(self._region, guess):
            hand = self._landmarks(frame, self._region)
        if not _is_hand(hand, wrist, largest) and guess.side > 1:
            aimed = self._aim(guess.crop(frame, self._aim.side))[0].reshape(2, 2) / self._aim.side
            palm, arm = guess.to_picture(aimed)
            hand = self._landmarks(frame, around_center(palm, 2 * palm - arm))  # up is away from the arm
        hand = hand if _is_hand(hand, wrist, largest) else None
        self._region = hand.next_region if hand else None
        return hand

    def _landmarks(self, frame: np.ndarray, region: Region) -> Part | None:
        values, present, _, _ = self._network(region.crop(frame, self._network.side))
        if present[0] < PRESENT:
            return None
        landmarks = region.to_picture(values.reshape(-1, 3)[:, :2] / self._network.side)
        knuckles = (landmarks[5] + 2 * landmarks[9] + landmarks[13]) / 4
        angle = around_center(landmarks[0], knuckles).angle
        following = around_points(landmarks[PALM], angle).grown(2.0, up=0.1)
        return Part(landmarks, np.full(len(landmarks), present[0]), following)


class FaceFinder:
    """The face: searched about the body's head, then followed."""

    def __init__(self) -> None:
        self._search = Detector("mediapipe.face_detection_short_range", FACE_STRIDES, FOUND)
        self._mesh = FaceMesh()
        self._region: Region | None = None

    def __call__(self, frame: np.ndarray, head: np.ndarray | None) -> Part | None:
        """The 468 vertices of the mesh. head: the body's landmarks of the head, 11 2; None = anywhere."""
        face = self._mesh(frame, self._region) if self._region else None
        if face is None:
            found = self._search(frame, None if head is None else _head_region(head))
            face = self._mesh(frame, face_region(found[0].points, found[0].box)) if found else None
        self._region = face.next_region if face else None
        return face


class FaceMesh:
    """The mesh of the face that a region shows."""

    def __init__(self) -> None:
        self._network = Network("mediapipe.face_landmark")

    def __call__(self, frame: np.ndarray, region: Region) -> Part | None:
        """The 468 vertices of the mesh."""
        values, present = self._network(region.crop(frame, self._network.side))
        score = float(sigmoid(present).item())
        if score < PRESENT:
            return None
        landmarks = region.to_picture(values.reshape(-1, 3)[:, :2] / self._network.side)
        angle = angle_upright(landmarks[layout.RIGHT_EYE_CORNER], landmarks[layout.LEFT_EYE_CORNER])
        return Part(landmarks, np.full(len(landmarks), score), around_points(landmarks, angle).grown(1.5))


def face_region(points: np.ndarray, box: np.ndarray) -> Region:
    """Where to look for the mesh of a detected face. points: right eye, left eye, ..., k 2; box: 4."""
    left, top, right, bottom = box.tolist()
    side = max(right - left, bottom - top)
    return Region((left + right) / 2, (top + bottom) / 2, side, angle_upright(points[0], points[1])).grown(
        1.5
    )


def _head_region(head: np.ndarray) -> Region:
    return around_points(head, angle_upright(head[layout.RIGHT_EYE], head[layout.LEFT_EYE])).grown(3.0)


def _body_region(center: np.ndarray, rim: np.ndarray) -> Region:
    return around_center(center, rim).grown(1.25)


def _faces_away(landmarks: np.ndarray) -> bool:
    """Whether the nose lies behind the ears. landmarks: n 3, the last growing away from the camera."""
    left, right, hip = landmarks[[layout.LEFT_SHOULDER, layout.RIGHT_SHOULDER, layout.LEFT_HIP]]
    extent = abs(left[0] - right[0]) + abs(left[1] - hip[1])
    depth = landmarks[layout.NOSE, 2] - landmarks[layout.EARS, 2].mean()
    return bool(depth > AWAY * extent)


def _is_near(region: Region, guess: Region) -> bool:
    """Whether a followed hand can still be the one that the body's arm ends in."""
    distance = np.hypot(region.x - guess.x, region.y - guess.y)
    low, high = HAND_SIZES
    return bool(distance < HAND_NEAR * guess.side and low < region.side / guess.side < high)


def _is_hand(hand: Part | None, wrist: np.ndarray, largest: float) -> bool:
    """Whether these landmarks can be the hand at the body's wrist."""
    if hand is None:
        return False
    extent = np.ptp(hand.landmarks, axis=0).max()
    return bool(extent < largest and np.hypot(*(hand.landmarks[0] - wrist)) < WRIST_NEAR * extent)


def _refine(places: np.ndarray, heatmaps: np.ndarray) -> np.ndarray:
    """Landmarks moved to the center of mass of their heatmaps nearby. places: n 2, 0..1; heatmaps: h w n."""
    height, width, _ = heatmaps.shape
    refined = places.copy()
    for n, (x, y) in enumerate((places * [width, height]).astype(int).tolist()):
        if not (0 <= x < width and 0 <= y < height):
            continue
        rows = np.arange(max(y - HEATMAP_RADIUS, 0), min(y + HEATMAP_RADIUS + 1, height))
        columns = np.arange(max(x - HEATMAP_RADIUS, 0), min(x + HEATMAP_RADIUS + 1, width))
        heat = sigmoid(heatmaps[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, n])
        if heat.max() >= HEATMAP_PEAK:
            total = heat.sum()
            refined[n] = heat.sum(0) @ columns / total / width, heat.sum(1) @ rows / total / height
    return refined


HANDS = ((kp.LEFT_HAND, layout.LEFT_HAND), (kp.RIGHT_HAND, layout.RIGHT_HAND))
