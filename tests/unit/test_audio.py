"""Sound: copied when whole, cut to the sample, in sync with the pictures, never longer than they are."""

import logging
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from dreamoving_cli.media.video import open_clip, probe
from dreamoving_cli.media.writer import Audio, write_video
from tests.conftest import NTSC, RATE, pictures, sound

MakeVideo = Callable[..., Path]


def decoded_sound(path: Path) -> tuple[Fraction, np.ndarray]:
    """(time of the first sample, mono samples) as a player hears them."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=RATE)
        frames = [f for d in container.decode(audio=0) for f in resampler.resample(d)] + resampler.resample(
            None
        )
        start = Fraction(frames[0].pts or 0) * (frames[0].time_base or 0)
        return start, np.concatenate([frame.to_ndarray()[0] for frame in frames])


def delay(heard: np.ndarray, wanted: np.ndarray) -> int:
    """By how many samples `heard` is late, and that it is the same sound at all."""
    size = 1 << (len(heard) + len(wanted)).bit_length()
    likeness = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(wanted, size)))
    best = int(likeness.argmax())
    assert likeness[best] > 0.8 * np.sqrt((heard**2).sum() * (wanted**2).sum())
    return best if best < size // 2 else best - size


def test_whole_sound_is_copied(tmp_path: Path, ntsc_video: Path) -> None:
    path = write_video(tmp_path / "a.mp4", pictures(36), NTSC, audio=Audio(ntsc_video))
    with av.open(str(path)) as copy, av.open(str(ntsc_video)) as source:
        copied = [(p.pts, bytes(p)) for p in copy.demux(audio=0) if p.size]
        wanted = [(p.pts, bytes(p)) for p in source.demux(audio=0) if p.size]
    assert copied == wanted
    start, heard = decoded_sound(path)
    assert start == 0
    assert delay(heard, sound(1.2)[0]) == 0


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.webm"])
@pytest.mark.parametrize(("start", "frames"), [(Fraction(1, 3), 20), (Fraction(0), 9), (Fraction(7, 10), 13)])
def test_cut_sound_is_exact_to_the_sample(
    tmp_path: Path, ntsc_video: Path, name: str, start: Fraction, frames: int
) -> None:
    length = frames / NTSC
    path = write_video(tmp_path / name, pictures(frames), NTSC, audio=Audio(ntsc_video, start, length))
    begin, end = round(start * RATE), round((start + length) * RATE)
    wanted = sound(1.2)[0, begin:end]
    first, heard = decoded_sound(path)
    assert abs(delay(heard, wanted) + round(first * RATE)) <= (1 if name in ("a.mp4", "a.mov") else 45)
    if name in ("a.mp4", "a.mov"):
        with av.open(str(path)) as container:
            tracks = [float((s.duration or 0) * (s.time_base or 0)) for s in container.streams]
        assert max(tracks) - min(tracks) < 2 / RATE + max(0, float(start + length) - 1.2)


def test_sound_of_a_late_picture_track_stays_in_sync(tmp_path: Path, make_video: MakeVideo) -> None:
    driver = make_video("late.mp4", 24, video_start=30, sound_s=0.8)  # the pictures begin at 1.001 s
    path = write_video(tmp_path / "a.mp4", pictures(24), NTSC, audio=Audio(driver))
    first, heard = decoded_sound(path)
    assert abs(delay(heard, sound(0.8)[0]) + round(first * RATE)) <= 1


def test_sound_that_begins_before_the_pictures_is_cut(tmp_path: Path, make_video: MakeVideo) -> None:
    driver = make_video("early.mp4", 24, video_start=30, sound_s=1.6, sound_start_s=Fraction(-1, 2))
    path = write_video(tmp_path / "a.mp4", pictures(24), NTSC, audio=Audio(driver))
    first, heard = decoded_sound(path)
    wanted = sound(1.6)[0, RATE // 2 :][: round(24 / NTSC * RATE)]
    assert abs(delay(heard, wanted) + round(first * RATE)) <= 1


@pytest.mark.parametrize("sound_s", [0.3, 3.0])
def test_sound_of_another_length_than_the_pictures(
    tmp_path: Path, make_video: MakeVideo, sound_s: float
) -> None:
    driver = make_video("a.mp4", 24, sound_s=sound_s)
    path = write_video(tmp_path / "out.mp4", pictures(24), NTSC, audio=Audio(driver))
    with av.open(str(path)) as container:
        length_s = container.duration / 1e6
    assert abs(length_s - float(24 / NTSC)) < float(1 / NTSC)
    assert probe(path).num_frames == 24


def test_a_silent_driver_gives_a_silent_video(tmp_path: Path, make_video: MakeVideo) -> None:
    path = write_video(tmp_path / "a.mp4", pictures(4), NTSC, audio=Audio(make_video("silent.mp4", 4)))
    assert not probe(path).has_audio


def test_pictures_cannot_hold_sound(
    tmp_path: Path, ntsc_video: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_video(tmp_path / "a.gif", pictures(4), Fraction(25), audio=Audio(ntsc_video))
    assert "no sound" in caplog.text


@pytest.mark.shared
@pytest.mark.parametrize("stem", ["taiji_horizontal_audio", "talking_portrait_audio"])
def test_real_sound_kept(
    shared_media: Path, tmp_path: Path, stem: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    driver = shared_media / "videos" / f"{stem}.mp4"
    with open_clip(driver, size=(32, 32)) as clip:
        path = write_video(tmp_path / "a.mp4", clip.batches(32), clip.fps, audio=Audio(driver))
        assert probe(path).num_frames == clip.num_frames
        assert probe(path).fps == clip.fps
    with av.open(str(path)) as container:
        assert abs(container.duration / 1e6 - float(clip.num_frames / clip.fps)) < float(1 / clip.fps)
    assert probe(path).has_audio
    assert not caplog.records
