"""How near a rendered clip is to the truth it was rendered from, in numbers. numpy in, numbers out.

made, truth: uint8 f h w c of one size; alpha: uint8 f h w, the true person; points: f 134 2, scores: f 134.
"""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.draw import VISIBLE
from dreamoving_cli.extract.pose import find_people
from dreamoving_cli.media.images import resize
from dreamoving_cli.quality import TORSO, Watched, body_masks, pck
from dreamoving_cli.train.report import psnr

SEEN = 128  # alpha from which a pixel belongs to the person
AROUND = 9  # pixels about the person that are not counted as background
OCCLUDED = 20.0  # of 255: where the truth, moved by its own flow, differs more, the flow is not to be trusted
LOOKED_AT = 512  # pixels of the longer side in which poses are looked for
FACE_FILL = 0.5  # of the face's box, in which skin shows


def measure_clip(
    made: np.ndarray, truth: np.ndarray, alpha: np.ndarray, points: np.ndarray, scores: np.ndarray
) -> dict[str, float]:
    """All measures of one clip; what cannot be measured in it is left out."""
    true_pose, found = watched(points, scores, truth.shape[1:3]), detected(made)
    values = {
        "psnr": psnr(truth, made),
        "ssim": ssim(truth, made),
        "background_de": region_error(made, truth, background(alpha)),
        "flicker": flicker(made, alpha),
        "warping_error": warping_error(made, truth),
    }
    if (true_pose.scores > VISIBLE).any():
        values |= {f"pck_{near}": pck(found, true_pose, near) for near in (0.1, 0.2)}
    for name, masks in (("garment", torsos(points, scores, alpha)), ("skin", faces(points, scores, alpha))):
        error = region_error(made, truth, masks)
        if np.isfinite(error):
            values[f"{name}_de"] = error
    return {name: value for name, value in values.items() if np.isfinite(value)}


def watched(points: np.ndarray, scores: np.ndarray, size: tuple[int, ...]) -> Watched:
    """True points as `quality` takes them; what lies outside the picture is not visible."""
    outside = ((points < 0) | (points >= np.array(size[::-1]))).any(-1)
    return Watched(points, np.where(outside, 0, scores), np.zeros(max(len(points) - 1, 0)))


def detected(frames: np.ndarray) -> Watched:
    """What the light detector sees in frames, which are enlarged for it."""
    factor = LOOKED_AT / max(frames.shape[1:3])
    height, width = (round(side * factor) for side in frames.shape[1:3])
    points, scores = find_people((resize(frame, height, width) for frame in frames), False, lambda done: None)
    return Watched(points[:, 0] / factor, scores[:, 0], np.zeros(max(len(frames) - 1, 0)))


def ssim(truth: np.ndarray, made: np.ndarray) -> float:
    """Mean structural similarity of brightness (Wang et al. 2004): windows of 11 pixels, sigma 1.5."""
    values = []
    for pair in zip(truth, made, strict=True):
        a, b = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float64) for frame in pair)
        blur = lambda x: cv2.GaussianBlur(x, (11, 11), 1.5)  # noqa: E731 (five uses in the next lines)
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
        both = blur(a * b) - mean_a * mean_b
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
        values.append((top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())
    return float(np.mean(values))


def background(alpha: np.ndarray) -> np.ndarray:
    """Where the person is not, with a margin, bool f h w."""
    kernel = np.ones((AROUND, AROUND), np.uint8)
    return np.stack([cv2.dilate((frame > SEEN).astype(np.uint8), kernel) == 0 for frame in alpha])


def torsos(points: np.ndarray, scores: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Where the garment shows between the arms, bool f h w."""
    masks = np.zeros(alpha.shape, bool)
    for k, (at, seen) in enumerate(zip(points, scores, strict=True)):
        if (seen[TORSO] > VISIBLE).all():
            masks[k] = body_masks(at, seen, (alpha.shape[1], alpha.shape[2]))[0] & (alpha[k] > SEEN)
    return masks


def faces(points: np.ndarray, scores: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The middle of the face where it is turned to us, bool f h w."""
    masks = np.zeros(alpha.shape, bool)
    for k, (at, seen) in enumerate(zip(points, scores, strict=True)):
        if (seen[kp.FACE] > VISIBLE).all():
            low, high = at[kp.FACE].min(0), at[kp.FACE].max(0)
            middle, half = (low + high) / 2, FACE_FILL * (high - low) / 2
            (x0, y0), (x1, y1) = np.maximum(middle - half, 0).astype(int), (middle + half).astype(int) + 1
            masks[k, y0:y1, x0:x1] = True
    return masks & (alpha > SEEN)


def region_error(made: np.ndarray, truth: np.ndarray, masks: np.ndarray) -> float:
    """Median over frames of the distance of mean Lab colors inside masks f h w; NaN: no frame has one."""
    apart = [
        float(np.linalg.norm(mean_lab(m, mask) - mean_lab(t, mask)))
        for m, t, mask in zip(made, truth, masks, strict=True)
        if mask.any()
    ]
    return float(np.median(apart)) if apart else float("nan")


def mean_lab(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean Lab color of uint8 h w c inside a mask h w."""
    return np.asarray(cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)[mask].mean(0))


def color_name(lab: np.ndarray, table: Mapping[str, tuple[int, int, int]]) -> str:
    """The name whose color, in RGB of 255, is nearest."""
    names = list(table)
    colors = np.array([table[name] for name in names], np.float32)[None] / 255
    return names[int(np.linalg.norm(cv2.cvtColor(colors, cv2.COLOR_RGB2Lab)[0] - lab, axis=-1).argmin())]


def flicker(made: np.ndarray, alpha: np.ndarray) -> float:
    """Mean change, of 255, from frame to frame where nobody is; the truth's background stands still."""
    still = background(alpha)
    both = still[1:] & still[:-1]
    if not both.any():
        return float("nan")
    change = np.abs(made[1:].astype(np.int16) - made[:-1]).mean(-1)
    return float(change[both].mean())


def warping_error(made: np.ndarray, truth: np.ndarray) -> float:
    """Mean change, of 255, between neighbors after the next is moved back along the truth's optical flow."""
    finder: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    errors, unused = [], np.empty(0)  # a map of x and y alone leaves the second one empty
    height, width = truth.shape[1:3]
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    for k in range(len(truth) - 1):
        gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in truth[k : k + 2]]
        there = grid + finder.calc(gray[0], gray[1], None)
        moved, true_moved = (
            cv2.remap(frames[k + 1], there, unused, cv2.INTER_LINEAR).astype(np.int16)
            for frames in (made, truth)
        )
        trusted = np.abs(true_moved - truth[k]).mean(-1) < OCCLUDED
        errors.append(float(np.abs(moved - made[k]).mean(-1)[trusted].mean()))
    return float(np.mean(errors)) if errors else float("nan")
