"""Control pictures that were asked for once, kept packed: every step of a render asks for them again.

    source = Packed(source, most_bytes)      # a controls.Source; the same pictures

Drawing a pose of 512x512 takes 3 ms of a core, unpacking it 1 ms, several at once. numpy and zlib only.
"""

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dreamoving_cli.controls import Source

FAST = 1  # zlib's level
THREADS = min(8, os.cpu_count() or 1)


class Packed:
    """The pictures of another source, those that pack into `most_bytes` each held in memory."""

    def __init__(self, source: Source, most_bytes: int) -> None:
        self.source, self.most_bytes = source, most_bytes
        self._held: dict[int, bytes] = {}
        self._too_large: set[int] = set()
        self._shape: tuple[int, ...] = ()  # h w c

    def read(self, frames: Sequence[int]) -> np.ndarray:
        """uint8 f h w c."""
        new = [frame for frame in dict.fromkeys(frames) if frame not in self._held]
        made = dict(zip(new, self.source.read(new), strict=True)) if new else {}
        with ThreadPoolExecutor(THREADS) as threads:
            fresh = [frame for frame in new if frame not in self._too_large]
            for frame, packed in zip(fresh, threads.map(pack, map(made.__getitem__, fresh)), strict=True):
                self._shape = made[frame].shape
                if len(packed) <= self.most_bytes:
                    self._held[frame] = packed
                else:
                    self._too_large.add(frame)
            old = [frame for frame in dict.fromkeys(frames) if frame not in made]
            made |= zip(old, threads.map(self._unpacked, old), strict=True)
        return np.stack([made[frame] for frame in frames])

    def _unpacked(self, frame: int) -> np.ndarray:
        return unpack(self._held[frame], self._shape)


def pack(picture: np.ndarray) -> bytes:
    """h w c, gray ones as one channel."""
    gray = picture[..., :1]
    return zlib.compress(np.ascontiguousarray(gray if (picture == gray).all() else picture).data, FAST)


def unpack(packed: bytes, shape: Sequence[int]) -> np.ndarray:
    """What was packed, h w c."""
    height, width, _ = shape
    values = np.frombuffer(zlib.decompress(packed), np.uint8)
    return np.broadcast_to(values.reshape(height, width, -1), shape)
