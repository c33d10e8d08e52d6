"""The light detector: body, hands and face by MediaPipe's networks, followed through a clip on one CPU core.

Each part is looked for in the region that its landmarks of the frame before give. Where these are lost, the
body is searched in the whole picture, and hands and face where the body says they are.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract import layout
from dreamoving_cli.extract.keypoints import People
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
SEARCH_EVERY = 8  # frames between two looks for more people
SAME_PLACE, SAME_SIZE = 0.35, 0.5  # of a region's side: how near, how alike, two regions of one body are
SAME_BODY = 0.1  # of a region's side: landmarks this near are one body's
PALM = [0, 1, 2, 3, 5, 6, 9, 10, 13, 14, 17, 18]  # hand landmarks that decide the next region


@dataclass(frozen=True)
class Part:
    """Landmarks of one part in pixels, n 2, their scores, n, and where to look for it in the next frame."""

    landmarks: np.ndarray
    scores: np.ndarray
    next_region: Region


class LightDetector:
    """Follows up to max_people through the frames of a clip; whole_body=False leaves out hands and face."""

    def __init__(self, *, whole_body: bool = True, max_people: int = 1) -> None:
        self._networks = Networks(whole_body)
        self._max_people = max_people
        self.forget()

    def __call__(self, frames: np.ndarray) -> list[People]:
        """Everyone in each of the next frames, uint8 f h w c: points p 134 2 (pixels) and scores p 134."""
        return [self._frame(frame) for frame in frames]

    def forget(self) -> None:
        """The next frame belongs to another shot."""
        self._people: list[Follower] = []
        self._lone_face = FaceFinder(self._networks)
        self._until_search = 0

    def _frame(self, frame: np.ndarray) -> People:
        factor = min(SEARCH_SIDE / max(frame.shape[:2]), 1.0)
        small = frame
        if factor < 1:
            small = cv2.resize(frame, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        self._follow(small)
        self._seek(small)
        found = [person.points(frame, factor) for person in self._people]
        if not found and self._networks.whole_body:
            found = [points for points in [self._portrait(frame)] if points]
        if not found:
            return np.zeros((0, kp.NUM_POINTS, 2), np.float32), np.zeros((0, kp.NUM_POINTS), np.float32)
        points, scores = (np.stack(values) for values in zip(*found, strict=True))
        height, width = frame.shape[:2]
        scores[((points < 0) | (points >= [width, height])).any(-1)] = 0  # nobody can see what is outside
        return points, scores

    def _follow(self, small: np.ndarray) -> None:
        """Everyone of the frame before, but who is lost and who turns out to be someone else."""
        followed: list[Follower] = []
        for person in self._people:
            if person.follow(small) and not any(person.is_on(other) for other in followed):
                followed.append(person)
        self._people = followed

    def _seek(self, small: np.ndarray) -> None:
        """Look for newcomers: always while nobody is followed, else now and then if there may be more."""
        self._until_search -= 1
        if self._people and (len(self._people) >= self._max_people or self._until_search > 0):
            return
        self._until_search = SEARCH_EVERY
        found = self._networks.search(small)
        for one in sorted(found, key=lambda f: -f.score * np.ptp(f.points[:2], axis=0).max()):
            if len(self._people) == self._max_people:
                return
            region = _body_region(*one.points[:2])
            if any(_is_same(region, person.region) for person in self._people):
                continue
            newcomer = Follower(self._networks, region)
            if newcomer.follow(small) and not any(newcomer.is_on(other) for other in self._people):
                self._people.append(newcomer)

    def _portrait(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """The face of a portrait too close to show a body."""
        face = self._lone_face(frame, None)
        if face is None:
            return None
        points, scores = _nobody()
        layout.put_face(face.landmarks, face.scores, points, scores)
        return points, scores


class Networks:
    """The networks, shared by everyone who is followed."""

    def __init__(self, whole_body: bool) -> None:
        self.whole_body = whole_body
        self.search = Detector("mediapipe.pose_detection", BODY_STRIDES, FOUND)
        self.body = Network("mediapipe.pose_landmark_full")
        if whole_body:
            self.aim = Network("mediapipe.hand_recrop")
            self.hand = Network("mediapipe.hand_landmark_full")
            self.face_search = Detector("mediapipe.face_detection_short_range", FACE_STRIDES, FOUND)
            self.face = FaceMesh()


class Follower:
    """One person: body, hands and face."""

    def __init__(self, networks: Networks, region: Region) -> None:
        """region: where the body is, in the small picture."""
        self.region = region
        self._networks = networks
        self._hands = [(part, source, HandFinder(networks)) for part, source in HANDS]
        self._face = FaceFinder(networks)
        self._body: Part | None = None

    def follow(self, small: np.ndarray) -> bool:
        """Find the body in the next frame, where it was before; False = lost."""
        self._body = self._landmarks(small, self.region)
        if self._body:
            self.region = self._body.next_region
        return self._body is not None

    def is_on(self, other: "Follower") -> bool:
        """Whether both follow one body."""
        assert self._body is not None
        assert other._body is not None
        apart = np.linalg.norm(self._body.landmarks - other._body.landmarks, axis=1)
        return _is_same(self.region, other.region) and bool(np.median(apart) < SAME_BODY * other.region.side)

    def points(self, frame: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
        """Points 134 2 and scores 134. frame: uint8 h w c; factor: size of the small picture against it."""
        assert self._body is not None
        points, scores = _nobody()
        landmarks = self._body.landmarks / factor
        layout.put_body(landmarks, self._body.scores, points, scores)
        if not self._networks.whole_body:
            return points, scores
        for part, source, find in self._hands:
            hand = find(frame, landmarks[list(source)], LARGEST_HAND * self.region.side / factor)
            if hand:
                points[part], scores[part] = hand.landmarks, hand.scores
        if self._body.scores[layout.FACIAL].any():
            face = self._face(frame, landmarks[layout.HEAD])
            if face:
                layout.put_face(face.landmarks, face.scores, points, scores)
        return points, scores

    def _landmarks(self, frame: np.ndarray, region: Region) -> Part | None:
        network = self._networks.body
        values, present, _, heatmaps, _ = network(region.crop(frame, network.side))
        if present[0] < PRESENT:
            return None
        values = values.reshape(-1, 5)  # x, y, z, visibility, presence; the last 6 rows are no joints
        places = _refine(values[:, :2] / network.side, heatmaps)
        landmarks = region.to_picture(places)
        scores = sigmoid(values[:, 3:]).min(-1)
        if _faces_away(values[:, :3]):
            scores[layout.FACIAL] = 0  # the network guesses them through the head
        joints = slice(layout.NUM_BODY)
        return Part(landmarks[joints], scores[joints], _body_region(landmarks[33], landmarks[34]))


class HandFinder:
    """One hand: where the body's wrist and fingers are, then followed while it stays near them."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
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
            aim = self._networks.aim
            aimed = aim(guess.crop(frame, aim.side))[0].reshape(2, 2) / aim.side
            palm, arm = guess.to_picture(aimed)
            hand = self._landmarks(frame, around_center(palm, 2 * palm - arm))  # up is away from the arm
        hand = hand if _is_hand(hand, wrist, largest) else None
        self._region = hand.next_region if hand else None
        return hand

    def _landmarks(self, frame: np.ndarray, region: Region) -> Part | None:
        network = self._networks.hand
        values, present, _, _ = network(region.crop(frame, network.side))
        if present[0] < PRESENT:
            return None
        landmarks = region.to_picture(values.reshape(-1, 3)[:, :2] / network.side)
        knuckles = (landmarks[5] + 2 * landmarks[9] + landmarks[13]) / 4
        angle = around_center(landmarks[0], knuckles).angle
        following = around_points(landmarks[PALM], angle).grown(2.0, up=0.1)
        return Part(landmarks, np.full(len(landmarks), present[0]), following)


class FaceFinder:
    """The face: searched about the body's head, then followed."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._region: Region | None = None

    def __call__(self, frame: np.ndarray, head: np.ndarray | None) -> Part | None:
        """The 468 vertices of the mesh. head: the body's landmarks of the head, 11 2; None = anywhere."""
        mesh = self._networks.face
        face = mesh(frame, self._region) if self._region else None
        if face is None:
            found = self._networks.face_search(frame, None if head is None else _head_region(head))
            face = mesh(frame, face_region(found[0].points, found[0].box)) if found else None
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


def _nobody() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((kp.NUM_POINTS, 2), np.float32), np.zeros(kp.NUM_POINTS, np.float32)


def _is_same(region: Region, other: Region) -> bool:
    """Whether two regions can be one body's."""
    low, high = sorted((region.side, other.side))
    near = np.hypot(region.x - other.x, region.y - other.y) < SAME_PLACE * high
    return bool(near and low > SAME_SIZE * high)


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
