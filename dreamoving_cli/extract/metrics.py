"""How well poses were found, in numbers: found rate, jitter, identity switches, repairs, speed."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.draw import VISIBLE
from dreamoving_cli.extract.keypoints import Poses
from dreamoving_cli.extract.repair import Repairs, torso_length


@dataclass(frozen=True)
class PoseReport:
    """What was measured on one clip."""

    detector: str
    frames: int
    shots: int
    people_found: int  # in the whole clip
    people_shown: int  # places in the file
    found_rate: float  # share of frames with anyone shown
    full_body_rate: float  # share of frames in which shoulders, hips, knees and ankles of someone are shown
    hand_rate: float  # share of the found people's hands that are shown
    face_rate: float  # share of the found people's faces that are shown
    jitter_before: float | None  # mean second difference of body joints, in torso lengths; None = too short
    jitter_after: float | None
    identity_switches: int  # changes of the person in one place within a shot
    swaps_repaired: int  # frames
    back_views_repaired: int  # frames
    flickers_repaired: int  # points
    outliers_removed: int  # points
    points_filled: int
    frames_per_s: float | None  # None: nobody was searched


STANDING = [
    kp.RIGHT_SHOULDER, kp.LEFT_SHOULDER, kp.RIGHT_HIP, kp.LEFT_HIP, kp.RIGHT_KNEE, kp.LEFT_KNEE,
    kp.RIGHT_ANKLE, kp.LEFT_ANKLE,
]  # fmt: skip


def measure_poses(poses: Poses, people_found: int, repairs: Repairs, took_s: float) -> PoseReport:
    """The report on poses that were just found."""
    shown: np.ndarray = np.asarray(poses.scores > VISIBLE)
    there: np.ndarray = np.asarray(shown.any(-1))  # f p
    raw = poses.raw or poses
    return PoseReport(
        detector=poses.detector,
        frames=poses.num_frames,
        shots=len(poses.cuts) + 1,
        people_found=people_found,
        people_shown=poses.points.shape[1],
        found_rate=round(float(there.any(1).mean()), 4),
        full_body_rate=round(float(np.asarray(shown[..., STANDING].all(-1)).any(1).mean()), 4),
        hand_rate=round(_rate(shown[..., [kp.LEFT_HAND.start, kp.RIGHT_HAND.start]][there]), 4),
        face_rate=round(_rate(np.asarray(shown[..., kp.FACE].any(-1))[there]), 4),
        jitter_before=_rounded(jitter(raw.points, raw.scores, poses)),
        jitter_after=_rounded(jitter(poses.points, poses.scores, poses)),
        identity_switches=identity_switches(poses),
        swaps_repaired=repairs.swapped,
        back_views_repaired=repairs.back_views,
        flickers_repaired=repairs.flickers,
        outliers_removed=repairs.outliers,
        points_filled=repairs.filled,
        frames_per_s=round(poses.num_frames / took_s, 2) if took_s else None,
    )


def jitter(points: np.ndarray, scores: np.ndarray, poses: Poses) -> float | None:
    """Mean second difference of the body's joints in torso lengths: what trembles; None = too short.

    points: f p 134 2; scores: f p 134. Over three frames of one person in one shot that show the joint before
    and after repair alike, so that both are measured on the same joints.
    """
    ids = poses.identities
    both = np.minimum(scores, poses.scores)[:, :, kp.BODY] > VISIBLE
    if poses.raw:
        both &= poses.raw.scores[:, :, kp.BODY] > VISIBLE
    three = both[:-2] & both[1:-1] & both[2:]
    three &= ((ids[:-2] == ids[1:-1]) & (ids[1:-1] == ids[2:]))[..., None]
    for cut in poses.cuts:
        three[max(cut - 2, 0) : cut] = False
    if not three.any():
        return None
    body = points[:, :, kp.BODY]
    second = np.linalg.norm(body[:-2] - 2 * body[1:-1] + body[2:], axis=-1)  # f p n
    units = [torso_length(poses.points[:, p], poses.scores[:, p]) for p in range(points.shape[1])]
    return float((second / np.array(units)[:, None])[three].mean())


def identity_switches(poses: Poses) -> int:
    """How often one place of the file passes from one person to another within a shot."""
    switches = 0
    for row in poses.identities.T:
        frames = np.flatnonzero(row)
        for a, b in pairwise(frames.tolist()):
            cut_between = any(a < cut <= b for cut in poses.cuts)
            switches += int(row[a] != row[b] and not cut_between)
    return switches


def _rate(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
