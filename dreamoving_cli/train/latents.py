"""Encode the frames of a data set once: `SEED.latents.npy` beside each clip, and the latents' statistics."""

from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from dreamoving_cli.errors import UsageError
from dreamoving_cli.models.load import Pack, load_pack, save_pack
from dreamoving_cli.train.data import ClipStore, as_video
from dreamoving_cli.train.start import require_clips

SAMPLE = 120  # clips whose latents give mean and deviation


def prepare_latents(folder: Path, data: Path, shard: str = "0/1") -> int:
    """Measure the statistics of the pack in `folder` unless it has them, then encode a share of the clips.

    Several processes may each take a shard. Those that find no statistics all measure, and write the same.
    """
    share = parse_shard(shard)
    require_clips(data)
    pack = load_pack(folder)
    if not has_statistics(pack):
        measure_latents(pack, data)
        save_pack(pack, folder)
        pack = load_pack(folder)  # the statistics as rounded in the file are the ones that decoding will use
    return encode_clips(pack, data, shard=share)


def parse_shard(text: str) -> tuple[int, int]:
    """`K/N` -> (K, N)."""
    index, _, count = text.partition("/")
    if index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return int(index), int(count)
    raise UsageError(f"shard is '{text}'", "Write K/N with K from 0 to N - 1: 0/2, then 1/2.")


def has_statistics(pack: Pack) -> bool:
    """False where mean and deviation of the latents are still those of an untrained pack."""
    return bool(pack.vae.mean.any()) or bool((pack.vae.std != 1).any())


@torch.inference_mode()
def measure_latents(pack: Pack, folder: Path) -> None:
    """Set the VAE's mean per channel and one deviation for all: fine detail stays smaller than form."""
    store = ClipStore(folder)
    raw = [
        pack.vae.encode_raw(rearrange(as_video(store.array(s, "frames")[::8]), "1 c f h w -> f c h w"))
        for s in store.seeds[:SAMPLE]
    ]
    flat = torch.cat([rearrange(r, "f c h w -> (f h w) c") for r in raw])
    mean = flat.mean(0)
    deviation = (flat - mean).square().mean().sqrt()
    pack.vae.set_statistics(mean, deviation.expand_as(mean))


@torch.inference_mode()
def encode_clips(pack: Pack, folder: Path, overwrite: bool = False, shard: tuple[int, int] = (0, 1)) -> int:
    """Write the latents of every clip of the shard (k of n) that has none; float16 `f c h w`."""
    done = 0
    index, count = shard
    for held_out in (True, False):
        store = ClipStore(folder, held_out)
        for seed in store.seeds[index::count]:
            path = folder / f"{seed}.latents.npy"
            if overwrite or not path.exists():
                latents = pack.vae.encode(as_video(store.array(seed, "frames")), batch=16)
                part = folder / f".{seed}.part.npy"
                np.save(part, rearrange(latents, "1 c f h w -> f c h w").numpy().astype(np.float16))
                part.replace(path)
                done += 1
    return done
