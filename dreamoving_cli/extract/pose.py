"""Everyone's pose through a whole clip, and the video that shows it as a map: read this first.

frames -> cuts (cuts.py) -> people in each frame (detectors.py) -> tracks, those asked for (tracking.py)
-> repairs (repair.py) -> Poses (keypoints.py)
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import numpy as np

from dreamoving_cli.errors import InputError
from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.cuts import with_cuts
from dreamoving_cli.extract.detections import Detections
from dreamoving_cli.extract.detectors import Detector, open_detector
from dreamoving_cli.extract.draw import CANVAS_SIDE, OFFICIAL, Style, draw_control
from dreamoving_cli.extract.keypoints import People, Poses, Raw
from dreamoving_cli.extract.metrics import PoseReport, measure_poses
from dreamoving_cli.extract.repair import Repairs, repair
from dreamoving_cli.extract.settings import PoseOptions
from dreamoving_cli.extract.tracking import Track, choose, make_tracks
from dreamoving_cli.media.images import resize
from dreamoving_cli.media.video import Clip

BATCH = 8  # frames held at once
AFRESH = 256  # frames after which the detector starts anew, so that work that was cut off can go on there

OnFrame = Callable[[int], None]  # frames done


def extract_pose(
    clip: Clip,
    options: PoseOptions = PoseOptions(),  # noqa: B008 (frozen)
    *,
    on_frame: OnFrame = lambda done: None,
) -> Poses:
    """The points of the people asked for in every frame; InputError where nobody is in any of them."""
    return find_poses(clip, options, on_frame=on_frame)[0]


def find_poses(
    clip: Clip,
    options: PoseOptions,
    *,
    kept: Detections | None = None,
    on_frame: OnFrame = lambda done: None,
) -> tuple[Poses, PoseReport]:
    """The poses and what was measured on the way. kept: what was seen before an interruption."""
    name, detector = open_detector(options)
    begun = time.perf_counter()
    frames = with_cuts(chain.from_iterable(clip.batches(BATCH)), clip.fps)
    found, cuts = detect(frames, detector, kept, on_frame)
    tracks = make_tracks(found, clip.fps, cuts)
    if not tracks:
        raise InputError(
            f"no person was found in '{clip.path}'", "Use a video in which the dancer is well seen."
        )
    people = choose(tracks, options.person, clip.width, cuts)
    mended = [[repair(track, clip.fps, options.repair) for track in tracks_of] for tracks_of in people]
    points, scores, ids = placed([[track for track, _ in one] for one in mended], clip.num_frames)
    raw = Raw(*placed(people, clip.num_frames)[:2])
    poses = Poses(clip.fps, clip.height, clip.width, points, scores, ids, tuple(cuts), raw, name)
    done = sum((repairs for one in mended for _, repairs in one), Repairs())
    return poses, measure_poses(poses, len(tracks), done, time.perf_counter() - begun)


def detect(
    frames: Iterable[tuple[np.ndarray, bool]],
    detector: Detector,
    kept: Detections | None = None,
    on_frame: OnFrame = lambda done: None,
) -> tuple[list[People], list[int]]:
    """People in each frame, and first frames of new shots. frames: uint8 h w c, whether a shot begins."""
    found: list[People] = list(kept.people) if kept else []
    cuts: list[int] = []
    held: list[np.ndarray] = []

    def look() -> None:
        if held:
            found.extend(detector(np.stack(held)))
            held.clear()
            on_frame(len(found))

    for k, (frame, cut) in enumerate(frames):
        fresh = k > 0 and k % AFRESH == 0
        if cut or fresh:
            look()
            detector.forget()
        if cut:
            cuts.append(k)
        if kept and fresh:
            kept.keep(found)
        if k < len(found):
            continue
        held.append(frame)
        if len(held) == BATCH:
            look()
    look()
    return found, cuts


def find_people(
    frames: Iterable[np.ndarray], whole_body: bool, on_frame: OnFrame
) -> tuple[np.ndarray, np.ndarray]:
    """Points f 1 134 2 and scores f 1 134 of one person as the light detector sees them, nothing repaired.

    frames: uint8 h w c each.
    """
    from dreamoving_cli.extract.light import LightDetector  # its runtime is not needed to draw poses

    detector = LightDetector(whole_body=whole_body)
    points, scores = [], []
    for frame in frames:
        [(point, score)] = detector(frame[None])
        points.append(point[0] if len(point) else np.zeros((kp.NUM_POINTS, 2), np.float32))
        scores.append(score[0] if len(score) else np.zeros(kp.NUM_POINTS, np.float32))
        on_frame(len(points))
    return np.stack(points)[:, None], np.stack(scores)[:, None]


def placed(people: Sequence[Sequence[Track]], num_frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points f p 134 2, scores f p 134 and ids f p of tracks, one list a place."""
    points = np.zeros((num_frames, len(people), kp.NUM_POINTS, 2), np.float32)
    scores = np.zeros((num_frames, len(people), kp.NUM_POINTS), np.float32)
    ids = np.zeros((num_frames, len(people)), np.int64)
    for p, tracks in enumerate(people):
        for track in tracks:
            frames = slice(track.start, track.end)
            points[frames, p], scores[frames, p] = track.points, track.scores
            ids[frames, p] = np.where(track.seen, track.id, 0)
    return points, scores, ids


def pose_maps(poses: Poses, style: Style = OFFICIAL) -> Iterator[np.ndarray]:
    """The clip as pose pictures of its own size, uint8 f h w c, a batch at a time.

    Drawn at the size whose line widths the ControlNets know and then enlarged, as the official extractors do,
    so that a map read at any size shows what `draw_control` draws at that size.
    """
    size = poses.height, poses.width
    shrink = min(CANVAS_SIDE / min(size), 1.0)
    height, width = (round(side * shrink) for side in size)
    for start in range(0, poses.num_frames, BATCH):
        frames = range(start, min(start + BATCH, poses.num_frames))
        drawn = (draw_control(poses.points[f], poses.scores[f], size, height, width, style) for f in frames)
        yield np.stack([resize(picture, *size) for picture in drawn])
