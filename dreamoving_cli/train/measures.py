"""How near a rendered clip's pixels are to the truth it was rendered from, in numbers. numpy in, numbers out.

made, truth: uint8 f h w c of one size; alpha: uint8 f h w, the true person; points: f 134 2, scores: f 134.
"""

from collections.abc import Mapping

import cv2
import numpy as np

from dreamoving_cli.extract import keypoints as kp
from dreamoving_cli.extract.draw import VISIBLE
from dreamoving_cli.quality import TORSO, body_masks
from dreamoving_cli.train.agreement import SEEN, Truth
from dreamoving_cli.train.report import psnr

AROUND = 9  # pixels about the person that are not counted as background
OCCLUDED = 20.0  # of 255: where the truth, moved by its own flow, differs more, the flow is not to be trusted
FACE_FILL = 0.5  # of the face's box, in which skin shows
CROWN, BESIDE = 0.9, 0.3  # of the face's box, brows to chin: how far above and beside it hair is looked for
FEW = 12  # pixels; a smaller region has no color
SHARES = np.linspace(0.03, 0.97, 16)  # of a region's pixels, sorted: where its spread of colors is compared


def measure_clip(made: np.ndarray, true: Truth) -> dict[str, float]:
    """All measures of one clip; what cannot be measured in it is left out."""
    truth, alpha = true.frames, true.alpha
    torso = torsos(true.points, true.scores, alpha)
    values = {
        "psnr": psnr(truth, made),
        "ssim": ssim(truth, made),
        "background_de": region_error(made, truth, background(alpha)),
        "garment_de": region_error(made, truth, torso),
        "skin_de": region_error(made, truth, faces(true.points, true.scores, alpha)),
        "hair_de": region_error(made, truth, hair(true)),
        "flicker": flicker(made, alpha),
        "warping_error": warping_error(made, truth, true.flow),
    }
    if true.pattern != "plain":
        values["pattern_kept"] = pattern_kept(made, truth, torso)
    return {name: value for name, value in values.items() if np.isfinite(value)}


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


def hair(true: Truth) -> np.ndarray:
    """Above the brows, where the truth's color is nearer to hair's than to skin's, bool f h w."""
    masks = np.zeros(true.alpha.shape, bool)
    if true.hair is None:
        return masks
    wanted = lab(true.hair[None, None])[0, 0]
    for k, skin in enumerate(faces(true.points, true.scores, true.alpha)):
        if skin.sum() < FEW:
            continue
        at = true.points[k, kp.FACE]
        (left, top), (wide, tall) = at.min(0), np.ptp(at, axis=0)
        low = np.maximum([left - BESIDE * wide, top - CROWN * tall], 0).astype(int)
        high = np.maximum([left + (1 + BESIDE) * wide, top], 0).astype(int)
        place = (k, slice(low[1], high[1]), slice(low[0], high[0]))
        if not masks[place].size:  # above the picture
            continue
        pixels, bare = lab(true.frames[place] / 255), mean_lab(true.frames[k], skin)
        apart = [np.linalg.norm(pixels - color, axis=-1) for color in (wanted, bare)]
        masks[place] = (apart[0] < apart[1]) & (true.alpha[place] > SEEN)
    masks[masks.sum((1, 2)) < FEW] = False
    return masks


def pattern_kept(made: np.ndarray, truth: np.ndarray, masks: np.ndarray) -> float:
    """How much of the spread of colors inside masks f h w is kept: 1 all, 0 as if plain, below 0 worse."""
    off = flat = 0.0
    for m, t, mask in zip(made, truth, masks, strict=True):
        if mask.sum() >= FEW:
            ours, theirs = spread_of_colors(m, mask), spread_of_colors(t, mask)
            off, flat = off + np.abs(ours - theirs).mean(), flat + np.abs(theirs).mean()
    return float(1 - off / flat) if flat else float("nan")


def spread_of_colors(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Quantiles of L, a and b inside a mask h w about their means, q 3."""
    pixels = lab(frame / 255)[mask]
    return np.asarray(np.quantile(pixels - pixels.mean(0), SHARES, axis=0))


def region_error(made: np.ndarray, truth: np.ndarray, masks: np.ndarray) -> float:
    """Median over frames of the distance of mean Lab colors inside masks f h w; NaN: no frame has one."""
    apart = [
        float(np.linalg.norm(mean_lab(m, mask) - mean_lab(t, mask)))
        for m, t, mask in zip(made, truth, masks, strict=True)
        if mask.any()
    ]
    return float(np.median(apart)) if apart else float("nan")


def lab(picture: np.ndarray) -> np.ndarray:
    """Lab of sRGB 0..1 h w c."""
    return np.asarray(cv2.cvtColor(picture.astype(np.float32), cv2.COLOR_RGB2Lab))


def mean_lab(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean Lab color of uint8 h w c inside a mask h w."""
    return np.asarray(lab(frame / 255)[mask].mean(0))


def color_name(color: np.ndarray, table: Mapping[str, tuple[int, int, int]]) -> str:
    """The name whose color, in RGB of 255, is nearest to a Lab color."""
    names = list(table)
    colors = lab(np.array([table[name] for name in names])[None] / 255)[0]
    return names[int(np.linalg.norm(colors - color, axis=-1).argmin())]


def flicker(made: np.ndarray, alpha: np.ndarray) -> float:
    """Mean change, of 255, from frame to frame where nobody is; the truth's background stands still."""
    still = background(alpha)
    both = still[1:] & still[:-1]
    if not both.any():
        return float("nan")
    change = np.abs(made[1:].astype(np.int16) - made[:-1]).mean(-1)
    return float(change[both].mean())


def warping_error(made: np.ndarray, truth: np.ndarray, flow: np.ndarray) -> float:
    """Mean change, of 255, between neighbors after the next is moved back by the truth's flow, f-1 h w 2."""
    errors = []
    rows, columns = np.indices(truth.shape[1:3], np.float32)
    for k, moves in enumerate(flow):
        x, y = columns + moves[..., 0], rows + moves[..., 1]
        moved, true_moved = (
            cv2.remap(frames[k + 1], x, y, cv2.INTER_LINEAR).astype(np.int16) for frames in (made, truth)
        )
        trusted = np.abs(true_moved - truth[k]).mean(-1) < OCCLUDED
        errors.append(float(np.abs(moved - made[k]).mean(-1)[trusted].mean()))
    return float(np.mean(errors)) if errors else float("nan")
