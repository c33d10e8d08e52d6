"""Frames of synthetic clips as the light depth network's training takes them: one canvas for all shapes.

Not here: what is made of them (depth_batch.py).
"""

from pathlib import Path

import numpy as np

from dreamoving_cli.train.live import Arrays

FRAMES_A_CLIP = 6
CANVAS = 288  # pixels a side; larger frames are cut off
SPOTS = 16  # places on the person about which pictures are cut
SEEN = 0.5  # of a pixel's cover, from which it belongs to the person


def frames_job(folder: Path, seeds: list[int]) -> tuple[str, Arrays]:
    """Frames of clips, for live.Pool: RGB, nearness and cover `n 5 c c`; sizes `n 2`, spots `n k 2` (x y)."""
    canvases, sizes, spots = [], [], []
    for seed in seeds:
        frames, near, alpha = (
            np.load(folder / f"{seed}.{name}.npy", mmap_mode="r") for name in ("frames", "depth", "alpha")
        )
        height, width = (min(side, CANVAS) for side in frames.shape[1:3])
        for i in np.linspace(0, len(frames) - 1, FRAMES_A_CLIP).astype(int):
            canvas = np.zeros((5, CANVAS, CANVAS), np.uint8)
            canvas[:3, :height, :width] = frames[i, :height, :width].transpose(2, 0, 1)
            canvas[3, :height, :width] = near[i, :height, :width]
            canvas[4, :height, :width] = alpha[i, :height, :width]
            canvases.append(canvas)
            sizes.append((height, width))
            spots.append(some_spots(np.random.default_rng((seed, int(i))), canvas[4, :height, :width]))
    rows = {"canvas": np.stack(canvases), "size": np.array(sizes), "spots": np.stack(spots)}
    return "frames", rows


def some_spots(rng: np.random.Generator, alpha: np.ndarray) -> np.ndarray:
    """Pixels of the person, x y; the middle where nobody is. alpha: uint8 h w -> k 2."""
    rows, columns = np.nonzero(alpha > 255 * SEEN)
    if not len(rows):
        return np.tile(np.array(alpha.shape[::-1], np.float32) / 2, (SPOTS, 1))
    chosen = rng.integers(len(rows), size=SPOTS)
    return np.stack([columns[chosen], rows[chosen]], 1).astype(np.float32)
