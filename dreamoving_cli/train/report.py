"""How good an autoencoder is on clips it never saw; the energy of edges is measured too, so blur shows."""

from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from dreamoving_cli.models.load import Pack, load_pack
from dreamoving_cli.train.data import as_video
from dreamoving_cli.train.start import require_clips

EVERY = 5  # frames between two that are compared
SEEN = 128  # alpha from which a pixel belongs to the person
POSED = 16  # frames of a clip in which poses are looked for
FEW = 50  # pixels; a person that shows less has no box


def report_autoencoder(folder: Path, data: Path) -> dict[str, float]:
    """Over the held-out clips: PSNR (dB) of frames and of the person's box, gradient energy kept."""
    store, pack = require_clips(data, held_out=True), load_pack(folder)
    whole, boxes, edges = [], [], []
    for seed in store.seeds:
        frames, alpha = (np.asarray(store.array(seed, name)[::EVERY]) for name in ("frames", "alpha"))
        made = reconstruct(pack, frames)
        whole.append(psnr(frames, made))
        edges.append(gradient_energy(made) / gradient_energy(frames))
        for i, mask in enumerate(alpha):
            if (box := person_box(mask)) is not None:
                boxes.append(psnr(frames[i][box], made[i][box]))
    values = {
        "clips": len(whole), "psnr": np.mean(whole), "worst_clip_psnr": np.min(whole),
        "person_psnr": np.mean(boxes) if boxes else np.nan,
        "gradient_energy": np.mean(edges), "worst_clip_gradient_energy": np.min(edges),
    }  # fmt: skip
    return {name: round(float(value), 3) for name, value in values.items()}


def report_poses(folder: Path, data: Path) -> dict[str, float]:
    """Over held-out clips of full bodies: PCK@0.2 of the detector on their frames, and after the autoencoder.

    What is lost here no denoiser brings back: without a face, front is taken for back, and left for right.
    """
    from dreamoving_cli.quality import pck
    from dreamoving_cli.train.agreement import detected, watched

    store, pack = require_clips(data, held_out=True), load_pack(folder)
    scores: list[tuple[float, float]] = []
    for seed in store.seeds:
        facts = store.facts(seed)
        if str(facts["framing"]) != "full body":
            continue
        frames = np.asarray(store.array(seed, "frames")[:POSED])
        truth = watched(facts["points"][:POSED], facts["scores"][:POSED], frames.shape[1:3])
        scores.append((pck(detected(frames), truth), pck(detected(reconstruct(pack, frames)), truth)))
    before, after = np.mean(scores, axis=0)
    return {"posed_clips": len(scores), "pck_of_frames": round(before, 3), "pck": round(after, 3)}


@torch.inference_mode()
def reconstruct(pack: Pack, frames: np.ndarray) -> np.ndarray:
    """uint8 f h w c through the autoencoder and back, uint8 f h w c."""
    video = pack.vae.decode(pack.vae.encode(as_video(frames), batch=16), batch=16)
    pixels = (rearrange(video, "1 c f h w -> f h w c").clamp(-1, 1) + 1) * 127.5
    return pixels.round().to(torch.uint8).numpy()


def psnr(wanted: np.ndarray, made: np.ndarray) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures in dB."""
    error = np.square(wanted.astype(np.float64) - made).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def gradient_energy(frames: np.ndarray) -> float:
    """Sum of squared differences between neighboring pixels of f h w c."""
    pixels = frames.astype(np.float64)
    return float(np.square(np.diff(pixels, axis=1)).sum() + np.square(np.diff(pixels, axis=2)).sum())


def person_box(alpha: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns of the person in a mask h w; None where hardly anything of the person shows."""
    rows, columns = np.nonzero(alpha > SEEN)
    if len(rows) < FEW:
        return None
    return slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
