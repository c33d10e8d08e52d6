"""Frame i of a file as pixels, by PyAV or decord; both give the same frames and the same errors.

uint8 `h w c` RGB, upright, square pixels, transparency over white. Untagged YUV is taken as
BT.601, as FFmpeg does.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

import av
import numpy as np
from av.video.frame import VideoFrame

from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.media.images import one_line, read_image, resize
from dreamoving_cli.media.index import CONVERT, Index, has_alpha, open_container, video_stream

STEP = 8  # frames that are decoded and thrown away rather than sought over


class FrameReader(Protocol):
    """One open file."""

    def frame(self, i: int) -> np.ndarray:
        """Source frame i, uint8 h w c."""

    def close(self) -> None:
        """Release the file; idempotent."""


class StillFrames:
    """A picture, read once."""

    def __init__(self, index: Index) -> None:
        self._image = read_image(index.path)

    def frame(self, i: int) -> np.ndarray:
        """The picture, whichever frame is asked for."""
        return self._image

    def close(self) -> None:
        """Nothing is open."""


class PyAVFrames:
    """PyAV keeps its decoder running: the next frame is cheap, a far one costs a seek to its keyframe."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._container: Any = None
        self._frames: Iterator[tuple[int, VideoFrame]] = iter(())
        self._ahead: list[tuple[int, VideoFrame]] = []  # at most one frame that came out too early
        self._at = -1  # number of the frame in _image; -1 = none
        self._image = np.empty(0, np.uint8)
        self._restart()

    def frame(self, i: int) -> np.ndarray:
        """Source frame i, uint8 h w c; decodes forward or seeks, whichever is less work."""
        if i != self._at:
            try:
                if not self._within_reach(i):
                    self._seek(i)
                self._image = upright(self._decode_to(i), self._index)
            except av.error.FFmpegError as error:
                raise InputError(damaged(self._index, i, one_line(error)), CONVERT) from error
            self._at = i
        return self._image

    def close(self) -> None:
        """Close the decoder."""
        self._frames, self._ahead, self._at = iter(()), [], -1
        if self._container is not None:
            self._container.close()
            self._container = None

    def _restart(self) -> None:
        self.close()
        self._container = open_container(self._index.path)
        stream = video_stream(self._container, self._index.path)
        stream.thread_type = "AUTO"
        self._stream = stream
        self._frames = self._decoded()

    def _decoded(self) -> Iterator[tuple[int, VideoFrame]]:
        """(tick, frame) from here on; counted files use the frame's number as its tick."""
        for count, frame in enumerate(self._container.decode(self._stream)):
            yield (count if self._index.counted or frame.pts is None else frame.pts), frame

    def _within_reach(self, i: int) -> bool:
        if self._at >= i:
            return False
        keyframe = self._index.keyframes[np.searchsorted(self._index.keyframes, i, side="right") - 1]
        return bool(self._index.counted or keyframe <= self._at + 1 or i - self._at <= STEP)

    def _seek(self, i: int) -> None:
        """Stand before frame i: at its keyframe, at an earlier one if that lands late, or at the start."""
        target = int(self._index.ticks[i])
        before = np.searchsorted(self._index.keyframes, i, side="right")
        for keyframe in [] if self._index.counted else self._index.keyframes[:before][::-1][:3]:
            self._container.seek(int(self._index.ticks[keyframe]), stream=self._stream)
            self._frames, self._ahead = self._decoded(), []
            with suppress(StopIteration):
                self._ahead = [next(self._frames)]
            if self._ahead and self._ahead[0][0] <= target:
                return
        self._restart()

    def _decode_to(self, i: int) -> VideoFrame:
        """The frame shown at frame i's time; a frame the decoder dropped is covered by its neighbor."""
        target = int(self._index.ticks[i])
        held: VideoFrame | None = None
        while True:
            tick, frame = self._ahead.pop() if self._ahead else next(self._frames, (None, None))
            if frame is None or tick is None:
                break
            if tick == target:
                return frame
            if tick > target:
                self._ahead = [(tick, frame)]
                return held or frame
            held = frame
        if held is None:
            raise InputError(damaged(self._index, i, "no frame could be decoded"), CONVERT)
        return held


class DecordFrames:
    """decord, faster where single frames are taken here and there; it knows fewer codecs."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._failure: type[Exception] = RuntimeError
        self._reader: Any = self._open() if not index.alpha else None
        if self._reader is None or len(self._reader) != len(index.ticks):
            raise InputError(f"{index.path} cannot be read with decord", "Use the pyav reader.")

    def _open(self) -> Any:
        try:
            import decord
        except ImportError as error:
            raise UsageError("decord is not installed on this platform", "Use the pyav reader.") from error
        self._failure = decord.DECORDError
        decord.logging.set_level(decord.logging.QUIET)
        try:
            return decord.VideoReader(str(self._index.path.absolute()))
        except self._failure as error:
            raise InputError(
                f"{self._index.path} cannot be read with decord", "Use the pyav reader."
            ) from error

    def frame(self, i: int) -> np.ndarray:
        """Source frame i, uint8 h w c; decord turns it upright itself."""
        try:
            image = self._reader[i].asnumpy()
        except self._failure as error:
            raise InputError(damaged(self._index, i, one_line(error)), CONVERT) from error
        height, width = image.shape[:2]
        rows = image.reshape(height, -1)[:, : 3 * width]  # padding of narrow rows comes as a fourth channel
        return resize(rows.reshape(height, width, 3), self._index.height, self._index.width)

    def close(self) -> None:
        """Drop the reader."""
        self._reader = None


def damaged(index: Index, i: int, why: str) -> str:
    """What is wrong, and when."""
    time_s = float((int(index.ticks[i]) - int(index.ticks[0])) * index.tick)
    return f"{index.path} is damaged at {time_s:.2f} s ({why})"


def upright(frame: VideoFrame, index: Index) -> np.ndarray:
    """A decoded frame as it is meant to be seen: uint8 height width c of the index."""
    image = over_white(frame) if has_alpha(frame) else frame.to_ndarray(format="rgb24")
    return resize(np.rot90(image, index.quarter_turns), index.height, index.width)


def over_white(frame: VideoFrame) -> np.ndarray:
    """A frame with transparency over white, uint8 h w c."""
    rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
    alpha = rgba[..., 3:]
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def open_frames(index: Index, reader: str = "pyav") -> FrameReader:
    """The reader called `reader` on one file."""
    if reader not in READERS:
        raise UsageError(f"'{reader}' is not a video reader", f"Choose one of {', '.join(READERS)}.")
    return StillFrames(index) if index.still else READERS[reader](index)


READERS: dict[str, Callable[[Index], FrameReader]] = {"pyav": PyAVFrames, "decord": DecordFrames}
