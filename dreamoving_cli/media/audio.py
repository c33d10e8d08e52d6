"""The driver's sound into a new container: packets copied when whole, else cut to the sample and encoded.

Time 0 is the first picture of the source (or the first sound, where there is no picture), so lips stay in
sync whatever the file's clock says. Sound never outlasts the pictures; where it is shorter, it ends earlier.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.packet import Packet

from dreamoving_cli.errors import InputError
from dreamoving_cli.media.images import one_line
from dreamoving_cli.media.index import index_file, open_container

PREROLL_S = Fraction(1, 2)  # decoded before a cut: codecs need a few packets to settle
IN_SYNC_S = Fraction(1, 20)  # sound that leads by more than this is cut rather than copied
GAP_S = Fraction(1, 20)  # holes longer than this are filled with silence; shorter ones are rounded times
BIT_RATE = 192_000
OPUS_RATE = 48_000  # Hz, the only rate all players take

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Audio:
    """Sound to go with a video: a stretch of a file, from its first picture; duration None = to the end."""

    path: Path
    start_s: Fraction = Fraction(0)
    duration_s: Fraction | None = None


class Track(Protocol):
    """A sound track that is being written, at `rate` samples a second."""

    rate: int

    def packets(self, until_s: Fraction, last: bool = False) -> Iterator["Packet[Any]"]:
        """What plays before `until_s`, in order; `last` ends the track."""

    def close(self) -> None:
        """Release the source."""


def add_track(audio: Audio, output: OutputContainer, suffix: str) -> Track | None:
    """A track in `output` (a container with extension `suffix`); None where the source is silent."""
    source = open_container(audio.path)
    if not source.streams.audio:
        source.close()
        logger.info("%s has no sound", audio.path)
        return None
    copyable, encoder = CONTAINERS[suffix]
    stream: Any = source.streams.audio[0]
    if stream.codec_context is None:
        source.close()
        logger.warning("%s has sound of a kind that cannot be read; the output is silent", audio.path)
        return None
    origin_s = picture_origin(source, audio.path)
    lead_s = origin_s - sound_origin(source)
    whole = audio.start_s == 0 and audio.duration_s is None and lead_s <= IN_SYNC_S
    if whole and stream.codec_context.name in copyable:
        return CopiedTrack(source, output, origin_s)
    return EncodedTrack(source, output, encoder, audio, origin_s)


def picture_origin(source: InputContainer, path: Path) -> Fraction:
    """The file's clock at its first picture, or at its first sound if it has no pictures."""
    if any(not s.disposition & av.stream.Disposition.attached_pic for s in source.streams.video):
        return index_file(path).origin_s
    return sound_origin(source)


def sound_origin(source: InputContainer) -> Fraction:
    """The file's clock at its first sound."""
    stream = source.streams.audio[0]
    return (stream.start_time or 0) * (stream.time_base or Fraction(0))


class CopiedTrack:
    """The source's packets as they are, moved so that the first picture is at 0."""

    def __init__(self, source: InputContainer, output: OutputContainer, origin_s: Fraction) -> None:
        self._source = source
        self._stream = source.streams.audio[0]
        self._track = output.add_stream_from_template(self._stream)
        self.rate = self._stream.codec_context.sample_rate
        self._shift = round(origin_s / (self._stream.time_base or 1))
        self._packets = (p for p in source.demux(self._stream) if p.size and p.dts is not None)
        self._next: Any = None

    def packets(self, until_s: Fraction, last: bool = False) -> Iterator["Packet[Any]"]:
        """Packets that begin before `until_s`."""
        try:
            while (packet := self._next or next(self._packets, None)) is not None:
                self._next = packet
                start: Any = packet.dts if packet.pts is None else packet.pts
                if (start - self._shift) * packet.time_base >= until_s:
                    return
                self._next = None
                yield self._moved(packet)
        except av.error.FFmpegError as error:
            raise InputError(
                f"the sound of {self._source.name} is damaged ({one_line(error)})", MUTE
            ) from error

    def _moved(self, packet: Any) -> "Packet[Any]":
        packet.dts -= self._shift
        if packet.pts is not None:
            packet.pts -= self._shift
        packet.stream = self._track
        return packet

    def close(self) -> None:
        """Close the source."""
        self._source.close()


class EncodedTrack:
    """A stretch of the source, exact to the sample, encoded anew."""

    def __init__(
        self, source: InputContainer, output: OutputContainer, encoder: str, audio: Audio, origin_s: Fraction
    ) -> None:
        self._source = source
        stream = source.streams.audio[0]
        self.rate = OPUS_RATE if encoder == "libopus" else stream.codec_context.sample_rate
        self._layout = "mono" if stream.codec_context.channels == 1 else "stereo"
        if stream.codec_context.channels > 2:
            logger.warning("%s: sound mixed down from %d channels to stereo", audio.path, stream.channels)
        self._track: Any = output.add_stream(encoder, rate=self.rate, layout=self._layout)
        if encoder != "pcm_s16le":
            self._track.codec_context.bit_rate = BIT_RATE
        self._total = None if audio.duration_s is None else round(audio.duration_s * self.rate)
        self._blocks = self._decoded(origin_s + audio.start_s)
        self._rest = np.zeros((1 if self._layout == "mono" else 2, 0), np.float32)  # decoded, not yet due
        self._written = 0  # samples handed to the encoder

    def packets(self, until_s: Fraction, last: bool = False) -> Iterator["Packet[Any]"]:
        """Encoded sound up to `until_s`, to the sample."""
        limit = round(until_s * self.rate)
        limit = limit if self._total is None else min(limit, self._total)
        while self._written < limit:
            if not self._rest.shape[1]:
                block = next(self._blocks, None)
                if block is None:
                    break
                self._rest = block
            due = min(limit - self._written, self._rest.shape[1])
            yield from self._track.encode(self._frame(self._rest[:, :due]))
            self._rest = self._rest[:, due:]
        if last:
            yield from self._track.encode(None)

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _frame(self, samples: np.ndarray) -> av.AudioFrame:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=self._layout)
        frame.sample_rate = self.rate
        frame.time_base = Fraction(1, self.rate)
        frame.pts = self._written
        self._written += samples.shape[1]
        return frame

    def _decoded(self, start_s: Fraction) -> Iterator[np.ndarray]:
        """Blocks of float32 c n from `start_s` on, gapless: overlaps dropped, holes filled with silence."""
        position = 0  # of the next sample that is due, counted from start_s
        for time_s, block in self._resampled(start_s - PREROLL_S):
            offset = round((time_s - start_s) * self.rate) - position
            if position and abs(offset) <= GAP_S * self.rate:
                offset = 0
            if offset > 0:
                block = np.concatenate([np.zeros((len(block), offset), np.float32), block], axis=1)
            block = block[:, max(0, -offset) :]
            position += block.shape[1]
            if block.shape[1]:
                yield block

    def _resampled(self, from_s: Fraction) -> Iterator[tuple[Fraction, np.ndarray]]:
        """(time on the file's clock, float32 c n) from about `from_s`."""
        stream = self._source.streams.audio[0]
        resampler = av.AudioResampler(format="fltp", layout=self._layout, rate=self.rate)
        if from_s > sound_origin(self._source):
            self._source.seek(math.floor(from_s / (stream.time_base or 1)), stream=stream)
        try:
            for decoded in self._source.decode(stream):
                for frame in resampler.resample(decoded):
                    yield Fraction(frame.pts or 0) * (frame.time_base or 0), frame.to_ndarray()
            for frame in resampler.resample(None):
                yield Fraction(frame.pts or 0) * (frame.time_base or 0), frame.to_ndarray()
        except av.error.FFmpegError as error:
            raise InputError(
                f"the sound of {self._source.name} is damaged ({one_line(error)})", MUTE
            ) from error


MUTE = "Render without the sound."
MP4_SOUND = {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"}
PCM = {"pcm_s16le", "pcm_s24le", "pcm_s16be", "pcm_s24be", "pcm_f32le"}

# extension -> codecs whose packets it holds as they are, encoder for all others
CONTAINERS: dict[str, tuple[set[str], str]] = {
    ".mp4": (MP4_SOUND, "aac"),
    ".m4v": (MP4_SOUND, "aac"),
    ".mov": ({"aac", "mp3", "ac3", "eac3", "alac"} | PCM, "aac"),
    ".mkv": (MP4_SOUND | PCM | {"vorbis"}, "aac"),
    ".webm": ({"opus", "vorbis"}, "libopus"),
}
