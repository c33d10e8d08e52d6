"""Latents to pictures: devices take turns, and the first hands all frames out in order.

    with closing(decoded(residency, latents, ranks, turn, on_progress)) as batches:   # the first device
        write_video(output, batches, ...)
    decode_turns(residency, latents, ranks, turn)                                     # every other one

A turn is a few frames, so that nobody waits long or holds many. Not here: how they travel (ranks.py).
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from dreamoving_cli.errors import UsageError
from dreamoving_cli.media.ahead import ahead
from dreamoving_cli.ranks import Ranks
from dreamoving_cli.residency import Residency

OnProgress = Callable[[str, int, int], None]  # stage, done, total


def decoded(
    residency: Residency, latents: Tensor, ranks: Ranks, turn: int, on_progress: OnProgress
) -> Generator[np.ndarray, None, None]:
    """The clip as uint8 f h w c, a few frames at a time; latents: 1 c f h w; turn: frames of one.

    The next frames are decoded, here and on the other devices, while some are in use.
    """
    num_frames, done = latents.shape[2], 0
    with closing(ahead(own_frames(residency, latents, ranks, turn))) as mine:
        while done < num_frames:
            rank = done // turn % ranks.count
            frames = ranks.take(rank) if rank else next(mine)
            yield frames
            done += len(frames)
            on_progress("decode", done, num_frames)


def decode_turns(residency: Residency, latents: Tensor, ranks: Ranks, turn: int) -> None:
    """This device's share of the frames, for the first one."""
    for frames in own_frames(residency, latents, ranks, turn):
        ranks.give(frames)


def own_frames(residency: Residency, latents: Tensor, ranks: Ranks, turn: int) -> Iterator[np.ndarray]:
    """uint8 f h w c of every turn that is this rank's, as many frames at a time as the memory mode says."""
    if not latents.isfinite().all():
        dtype = str(residency.place.dtype).removeprefix("torch.")
        raise UsageError(f"the model gave no finite numbers in {dtype}", "Try --dtype fp32.")
    for start in range(ranks.rank * turn, latents.shape[2], ranks.count * turn):
        part, done = latents[:, :, start : start + turn], 0
        while done < part.shape[2]:
            frames = next_frames(residency, part[:, :, done:])
            yield frames
            done += len(frames)


def next_frames(residency: Residency, latents: Tensor) -> np.ndarray:
    """The first of these frames, uint8 f h w c: as many as fit into memory at once."""
    return residency.retried(
        "decode", lambda: to_pixels(residency, latents[:, :, : residency.mode.decode_batch])
    )


@torch.inference_mode()
def to_pixels(residency: Residency, latents: Tensor) -> np.ndarray:
    """1 c f h w -> uint8 f h w c."""
    video = residency.decode(latents).float().clamp(-1, 1)
    frames = rearrange((video + 1) * 127.5, "1 c f h w -> f h w c")
    return frames.round().to(torch.uint8).cpu().numpy()
