"""The dancer's pose through a whole clip, and the video that shows it as a map."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import numpy as np

from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.draw import CANVAS_SIDE, VISIBLE, draw_control
from dreamoving_cli.extract.keypoints import Poses
from dreamoving_cli.media.images import resize
from dreamoving_cli.media.video import Clip

BATCH = 8  # frames held at once
SMOOTHING_S = (
    0.02  # standard deviation of the smoothing in time; half a frame at 25 frames/s, so motion stays
)

OnFrame = Callable[[int], None]  # frames done


def extract_pose(
    clip: Clip,
    *,
    max_people: int = 1,
    whole_body: bool = True,
    smoothing_s: float = SMOOTHING_S,
    on_frame: OnFrame = lambda done: None,
) -> Poses:
    """Everyone's points in every frame; InputError where nobody is in any of them."""
    if max_people != 1:
        raise UsageError(f"max_people is {max_people}", "The light detector follows 1 person.")
    points, scores = find_people(chain.from_iterable(clip.batches(BATCH)), whole_body, on_frame)
    if not (scores[..., kp.BODY] > VISIBLE).any():
        raise InputError(
            f"no person was found in '{clip.path}'", "Use a video in which the dancer is well seen."
        )
    points = smooth(points, scores, sigma=smoothing_s * float(clip.fps))
    return Poses(clip.fps, clip.height, clip.width, points, scores)


def find_people(
    frames: Iterable[np.ndarray], whole_body: bool, on_frame: OnFrame
) -> tuple[np.ndarray, np.ndarray]:
    """Points f 1 134 2 and scores f 1 134 of one person, if there. frames: uint8 h w c each."""
    from dreamoving_cli.extract.light import LightDetector  # its runtime is not needed to draw poses

    detect = LightDetector(whole_body=whole_body)
    people = []
    for frame in frames:
        people.append(detect(frame))
        on_frame(len(people))
    points, scores = zip(*people, strict=True)
    return np.stack(points)[:, None], np.stack(scores)[:, None]


def smooth(points: np.ndarray, scores: np.ndarray, sigma: float) -> np.ndarray:
    """Each point averaged over neighboring frames (Gaussian, sigma in frames) in which it is seen.

    points: f p n 2; scores: f p n. Centered, so nothing lags behind; absent points are left as they are.
    """
    seen = (scores > 0).astype(np.float64)[..., None]
    radius = min(round(3 * sigma), len(points) - 1)  # 0 where sigma is too small to reach a neighbor
    total, weight = points * seen, seen.copy()
    for step in range(1, radius + 1):
        share = np.exp(-0.5 * (step / sigma) ** 2)
        for target, source in ((np.s_[step:], np.s_[:-step]), (np.s_[:-step], np.s_[step:])):
            total[target] += share * (points * seen)[source]
            weight[target] += share * seen[source]
    averaged = total / np.maximum(weight, 1e-9)
    return np.where(seen > 0, averaged, points).astype(np.float32)


def pose_maps(poses: Poses) -> Iterator[np.ndarray]:
    """The clip as pose pictures of its own size, uint8 f h w c, a batch at a time.

    Drawn at the size whose line widths the ControlNets know and then enlarged, as the official extractors do,
    so that a map read at any size shows what `draw_control` draws at that size.
    """
    size = poses.height, poses.width
    shrink = min(CANVAS_SIDE / min(size), 1.0)
    height, width = (round(side * shrink) for side in size)
    for start in range(0, poses.num_frames, BATCH):
        frames = range(start, min(start + BATCH, poses.num_frames))
        drawn = (draw_control(poses.points[f], poses.scores[f], size, height, width) for f in frames)
        yield np.stack([resize(picture, *size) for picture in drawn])
