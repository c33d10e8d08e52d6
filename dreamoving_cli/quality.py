"""How good a rendered video is, in numbers: does it follow its driver, do seams show, what are its colors.

The poses of both videos are found by the same light detector; nothing here looks into the models.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from dreamoving_cli.errors import InputError
from dreamoving_cli.extract import OnFrame, OnProgress, control_kind
from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.draw import VISIBLE, place
from dreamoving_cli.extract.pose import find_people
from dreamoving_cli.extract.smoothing import smooth
from dreamoving_cli.media.images import contact_sheet, crop_to_aspect, resize, spread, write_image
from dreamoving_cli.media.video import Clip, open_clip
from dreamoving_cli.outputs import record_path

JOINTS = [
    kp.NOSE, kp.LEFT_SHOULDER, kp.RIGHT_SHOULDER, kp.LEFT_ELBOW, kp.RIGHT_ELBOW, kp.LEFT_WRIST,
    kp.RIGHT_WRIST, kp.LEFT_HIP, kp.RIGHT_HIP, kp.LEFT_KNEE, kp.RIGHT_KNEE, kp.LEFT_ANKLE, kp.RIGHT_ANKLE,
]  # fmt: skip
TORSO = [kp.LEFT_SHOULDER, kp.RIGHT_SHOULDER, kp.RIGHT_HIP, kp.LEFT_HIP]
ARMS = (
    (kp.LEFT_SHOULDER, kp.LEFT_ELBOW, kp.LEFT_WRIST),
    (kp.RIGHT_SHOULDER, kp.RIGHT_ELBOW, kp.RIGHT_WRIST),
)
NEAR = 0.2  # of the torso's length: a joint this near to the driver's is correct
OUT_OF_STEP_S = 3  # the floor's driver is this much out of step
SMOOTHING_FRAMES = 0.5  # of both videos alike
COLOR_FRAMES, SHEET_FRAMES, SHEET_COLUMNS, SHEET_SIDE = 32, 12, 6, 240
BATCH = 8
CHANCES = 200  # draws of what the seam measure would be without seams
CHEST, CHEST_WIDTH = (0.15, 0.6), 0.65  # the torso's part that any top covers, from shoulders (0) to hips (1)
ARM_WIDTH, AURA = (
    0.3,
    0.5,
)  # of the torso's length: an arm's width; room about the joints that is not background

Lab = tuple[float, float, float]  # L 0..100, a, b


@dataclass(frozen=True)
class Quality:
    """What was measured. DESIGN.md, section 4, states the bars."""

    frames: int
    fps: str
    person_found: float  # share of the driver's frames with a person in which the output has one too
    pck: float  # share of the driver's visible joints that the output has within 0.2 torso lengths
    pck_floor: float  # what a driver 3 s out of step, or one that stands in its mean pose, scores
    pck_normalized: float  # (pck - floor) / (1 - floor)
    hop: (
        int | None
    )  # frames between the starts of two windows, from the record; None = one window or no record
    seam: float | None  # largest fold of the change per frame over the mean fold; 1 = no seam
    seam_by_chance: float | None  # what the same frames give without seams: a few windows alone are above 1
    torso_lab: Lab | None  # mean color of the garment; None = no torso was seen
    background_lab: Lab | None


@dataclass(frozen=True)
class Watched:
    """What the measures need of a clip: the person, in pixels of the output, and each frame's change."""

    points: np.ndarray  # f 134 2
    scores: np.ndarray  # f 134
    changes: np.ndarray  # f - 1, mean absolute difference of neighboring frames


def measure(
    output: Path,
    driver: Path,
    *,
    start_s: Fraction | None = None,
    hop: int | None = None,
    sheet: Path | None = None,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> Quality:
    """Compare a rendered video with the footage that drove it, frame by frame at the output's rate.

    start_s, hop: from the record beside the output unless given; sheet: where to write a contact sheet.
    """
    if control_kind(driver):
        raise InputError(f"'{driver}' is a map, not footage", "Give the video that it was extracted from.")
    recorded_start_s, recorded_hop = _recorded(output)
    start_s, hop = recorded_start_s if start_s is None else start_s, hop or recorded_hop
    with open_clip(output) as made, open_clip(driver, fps=made.fps, start_s=start_s) as source:
        count, size = min(made.num_frames, source.num_frames), (made.height, made.width)
        theirs = _watch(source, count, size, lambda done: on_progress("driver", done, count))
        ours = _watch(made, count, size, lambda done: on_progress("output", done, count))
        if sheet:
            write_sheet(sheet, source, made, count)
        colors = mean_colors(made, ours)
    return _report(ours, theirs, made.fps, hop if hop and hop < count - 1 else None, colors)


def _report(
    ours: Watched,
    theirs: Watched,
    fps: Fraction,
    hop: int | None,
    colors: tuple[Lab | None, Lab | None],
) -> Quality:
    score, floor = pck(ours, theirs), pck_floor(theirs, fps)
    there = theirs.scores[:, JOINTS].max(-1) > VISIBLE
    found = ours.scores[:, JOINTS].max(-1) > VISIBLE
    return Quality(
        frames=len(ours.points),
        fps=str(fps),
        person_found=round(float(found[there].mean()), 4),
        pck=round(score, 4),
        pck_floor=round(floor, 4),
        pck_normalized=round((score - floor) / max(1 - floor, 1e-9), 4),
        hop=hop,
        seam=round(seam(ours.changes, theirs.changes, hop), 4) if hop else None,
        seam_by_chance=round(seam_by_chance(ours.changes, theirs.changes, hop), 4) if hop else None,
        torso_lab=colors[0],
        background_lab=colors[1],
    )


def pck(ours: Watched, theirs: Watched, near: float = NEAR) -> float:
    """PCK: the share of the driver's visible joints that are near in ours; a missed joint is wrong."""
    visible = theirs.scores[:, JOINTS] > VISIBLE
    if not visible.any():
        raise InputError("no person was found in the driver", "Give the footage that drove the output.")
    apart = np.linalg.norm(ours.points[:, JOINTS] - theirs.points[:, JOINTS], axis=-1)
    right = (apart <= near * torso_length(theirs)) & (ours.scores[:, JOINTS] > VISIBLE)
    return float(right[visible].mean())


def pck_floor(theirs: Watched, fps: Fraction) -> float:
    """What can be had without following: the driver 3 s out of step (wrapped round), or its mean pose."""
    frames = len(theirs.points)
    shift = min(round(OUT_OF_STEP_S * fps), frames // 2)
    late = Watched(np.roll(theirs.points, shift, 0), np.roll(theirs.scores, shift, 0), theirs.changes)
    weight = (theirs.scores > VISIBLE)[..., None]
    mean = (theirs.points * weight).sum(0) / np.maximum(weight.sum(0), 1)
    still = Watched(np.broadcast_to(mean, theirs.points.shape), np.ones_like(theirs.scores), theirs.changes)
    return max(pck(late, theirs), pck(still, theirs))


def torso_length(watched: Watched) -> float:
    """The clip's median distance from the neck to the middle of the hips, in pixels."""
    hips = watched.points[:, [kp.LEFT_HIP, kp.RIGHT_HIP]].mean(1)
    lengths = np.linalg.norm(watched.points[:, kp.NECK] - hips, axis=-1)
    seen = watched.scores[:, kp.NECK] > VISIBLE
    return float(np.median(lengths[seen] if seen.any() else lengths))


def seam(ours: np.ndarray, theirs: np.ndarray, hop: int) -> float:
    """Largest fold over the mean: changes per frame folded by the hop, over the driver's own; 1 = none."""
    folds = np.arange(len(ours)) % hop
    change, own = (np.bincount(folds, changes, hop) for changes in (ours, theirs))
    ratio = change / np.maximum(own, 1e-9)
    return float(ratio.max() / max(ratio.mean(), 1e-9))


def seam_by_chance(ours: np.ndarray, theirs: np.ndarray, hop: int) -> float:
    """Median seam measure with each window's changes turned by a chance offset: no seam is left in place.

    With three windows every fold is a mean of three numbers, and the largest of them lies far above the rest.
    """
    rng = np.random.default_rng(0)
    rows = np.arange(len(ours)) // hop
    drawn = []
    for _ in range(CHANCES):
        offsets = rng.integers(hop, size=rows[-1] + 1)[rows]
        places = rows * hop + (np.arange(len(ours)) + offsets) % hop
        order = np.argsort(places, kind="stable")
        drawn.append(seam(ours[order], theirs[order], hop))
    return float(np.median(drawn))


def mean_colors(clip: Clip, watched: Watched) -> tuple[Lab | None, Lab | None]:
    """Mean Lab color of the torso between the arms, and of what is far from the person."""
    torso: list[np.ndarray] = []
    background: list[np.ndarray] = []
    for frame in spread(len(watched.points), COLOR_FRAMES):
        points, scores = watched.points[frame], watched.scores[frame]
        if (scores[TORSO] <= VISIBLE).any():
            continue
        image = clip.read([frame])[0]
        lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
        inside, outside = body_masks(points, scores, (clip.height, clip.width))
        torso += [lab[inside].mean(0)] if inside.any() else []
        background += [lab[outside].mean(0)] if outside.any() else []
    return _mean(torso), _mean(background)


def _mean(colors: list[np.ndarray]) -> Lab | None:
    if not colors:
        return None
    light, a, b = np.mean(colors, 0).astype(float).round(2).tolist()
    return light, a, b


def body_masks(
    points: np.ndarray, scores: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Where the torso shows between the arms, and where the person is far away; bool h w each.

    points: 134 2; scores: 134; size: height, width.
    """
    length = max(float(np.linalg.norm(points[kp.NECK] - points[[kp.LEFT_HIP, kp.RIGHT_HIP]].mean(0))), 1.0)
    torso, person = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    shoulders, hips = points[TORSO[:2]], points[TORSO[:1:-1]]  # left, right
    bands = [shoulders + share * (hips - shoulders) for share in CHEST]
    (top, bottom) = (band.mean(0) + CHEST_WIDTH * (band - band.mean(0)) for band in bands)
    cv2.fillConvexPoly(torso, np.concatenate([top, bottom[::-1]]).round().astype(np.int32), 1)
    for arm in ARMS:
        for a, b in zip(arm[1:], arm[:-1], strict=True):
            if min(scores[a], scores[b]) > VISIBLE:
                ends = points[[a, b]].round().astype(int).tolist()
                cv2.line(torso, ends[0], ends[1], 0, max(round(ARM_WIDTH * length), 1))
    seen = points[:24][scores[:24] > VISIBLE].round().astype(np.int32)
    cv2.fillConvexPoly(person, cv2.convexHull(seen), 1)
    distance = cv2.distanceTransform(1 - person, cv2.DIST_L2, 3)
    return torso.astype(bool), distance > AURA * length


def write_sheet(path: Path, source: Clip, made: Clip, count: int) -> Path:
    """A picture of frames spread over the clip: the driver, and under it the output."""
    picks = spread(count, SHEET_FRAMES)
    width = max(round(SHEET_SIDE * made.width / made.height), 1)
    rows = []
    for start in range(0, len(picks), SHEET_COLUMNS):
        for clip in (source, made):
            for frame in picks[start : start + SHEET_COLUMNS]:
                image = crop_to_aspect(clip.read([frame])[0], made.height, made.width)
                rows.append((resize(image, SHEET_SIDE, width), f"{frame}"))
    pictures, labels = zip(*rows, strict=True)
    return write_image(path, contact_sheet(pictures, min(SHEET_COLUMNS, len(picks)), labels), overwrite=True)


def _watch(clip: Clip, count: int, size: tuple[int, int], on_frame: OnFrame) -> Watched:
    """Follow the person through the first `count` frames; points are placed in a picture of `size`."""
    changes: list[float] = []

    def frames() -> Iterator[np.ndarray]:
        before = None
        for start in range(0, count, BATCH):
            for frame in clip.read(range(start, min(start + BATCH, count))):
                small = resize(crop_to_aspect(frame, *size), *size)
                if before is not None:
                    changes.append(float(cv2.absdiff(small, before).mean()))
                before = small
                yield frame

    points, scores = find_people(frames(), False, on_frame)
    placed = place(smooth(points, scores, SMOOTHING_FRAMES)[:, 0], (clip.height, clip.width), size)
    outside = ((placed < 0) | (placed >= size[::-1])).any(-1)
    return Watched(placed, np.where(outside, 0, scores[:, 0]), np.array(changes))


def _recorded(output: Path) -> tuple[Fraction, int | None]:
    """Start and hop of a render, from the record beside it, if there is one."""
    from dreamoving_cli.presets import load_preset

    path = record_path(output)
    if not path.is_file():
        return Fraction(0), None
    options = load_preset(path)
    window, overlap = options.context.context_frames, options.context.context_overlap
    return options.start_s, window - overlap if window and overlap is not None else None
