"""The writer: exact rates, true colors, sound in sync to the sample, whole files or none."""

import errno
import logging
import os
import resource
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dreamoving_cli.errors import InputError, OutputError, UsageError, UserError
from dreamoving_cli.media.video import open_clip, probe
from dreamoving_cli.media.whole import writing
from dreamoving_cli.media.writer import CODECS, Audio, whole_file, write_video
from tests.conftest import NTSC, RATE, number_of, numbered_frame, sound

MakeVideo = Callable[..., Path]


def pictures(count: int, height: int = 48, width: int = 64) -> Iterator[np.ndarray]:
    """Numbered frames in batches of 5."""
    for start in range(0, count, 5):
        yield np.stack([numbered_frame(k, height, width) for k in range(start, min(start + 5, count))])


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


# --- pictures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fps", [NTSC, Fraction(16), Fraction(24000, 1001), Fraction(25), Fraction(60000, 1001)]
)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
def test_rate_length_and_order_are_exact(tmp_path: Path, name: str, fps: Fraction) -> None:
    path = write_video(tmp_path / name, pictures(23), fps)
    info = probe(path)
    assert (info.fps, info.num_frames, info.duration_s) == (fps, 23, 23 / fps)
    with open_clip(path) as clip:
        assert [number_of(frame) for frame in clip.read(range(23))] == list(range(23))


@pytest.mark.parametrize(
    ("codec", "name", "error"),
    [
        ("h264", "a.mp4", 4),
        ("hevc", "a.mp4", 5),
        ("av1", "a.mp4", 7),
        ("vp9", "a.webm", 4),
        ("prores", "a.mov", 4),
        ("gif", "a.gif", 12),
        ("png", "folder", 0),
    ],
)
def test_colors_survive_every_codec(tmp_path: Path, codec: str, name: str, error: int) -> None:
    patches = [(200, 40, 50), (40, 160, 60), (40, 60, 190), (230, 180, 150), (128, 128, 128), (255, 255, 0)]
    frame = np.repeat(np.repeat(np.array([patches], np.uint8), 64, axis=0), 32, axis=1)
    path = write_video(tmp_path / name, [np.stack([frame] * 4)], Fraction(20), codec=codec)
    picture = path / "000002.png" if codec == "png" else path
    with open_clip(picture) as clip:
        back = clip.read([clip.num_frames - 1])[0].astype(int)
    for i, color in enumerate(patches):
        assert np.abs(back[8:56, 32 * i + 8 : 32 * i + 24] - color).max() <= error


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mov"])
def test_pictures_are_tagged_bt709(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, pictures(3), NTSC)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range) == (1, 1, 1, 1)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mkv", "a.mov"])
def test_tags_of_our_own_survive(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, pictures(2), NTSC, metadata={"dreamoving_kind": "pose"})
    assert probe(path).metadata["dreamoving_kind"] == "pose"


def test_odd_sizes_are_padded_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "a.mp4", pictures(3, 49, 65), NTSC)
    assert "65x49 is padded to 66x50" in caplog.text
    assert (probe(path).height, probe(path).width) == (50, 66)
    with open_clip(path) as clip:
        frame = clip.read([1])[0].astype(int)
    assert np.abs(frame[:49, :65] - numbered_frame(1, 49, 65)).mean() < 6  # same pixels in the same places


@pytest.mark.parametrize("name", ["a.webm", "a.gif", "folder"])
def test_odd_sizes_that_need_no_padding(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, pictures(2, 49, 65), Fraction(25))
    info = probe(path / "000001.png" if path.is_dir() else path)
    assert (info.height, info.width) == (49, 65)


def test_pictures_go_to_a_numbered_folder(tmp_path: Path) -> None:
    path = write_video(tmp_path / "frames.png", pictures(7), NTSC)
    assert path == tmp_path / "frames"
    assert sorted(file.name for file in path.iterdir()) == [f"{k:06d}.png" for k in range(7)]
    np.testing.assert_array_equal(np.asarray(Image.open(path / "000006.png")), numbered_frame(6, 48, 64))


def test_gif_rate_is_right_on_average(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "a.gif", pictures(30), NTSC)
    assert "on average" in caplog.text
    info = probe(path)
    assert info.num_frames == 30
    assert abs(info.duration_s - 30 / NTSC) < Fraction(2, 100)


def test_a_lower_quality_is_smaller(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), np.uint8)
    good = write_video(tmp_path / "good.mp4", [noise], NTSC, quality=10)
    bad = write_video(tmp_path / "bad.mp4", [noise], NTSC, quality=45)
    assert bad.stat().st_size < good.stat().st_size / 2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.xyz", {}),
        ("a.mp4", {"codec": "theora"}),
        ("a.webm", {"codec": "h264"}),
        ("a.mp4", {"codec": "gif"}),
        ("a.mp4", {"quality": 52}),
        ("a.mov", {"quality": -1}),
    ],
)
def test_codecs_that_do_not_fit(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"Choose|End"):
        write_video(tmp_path / name, pictures(2), NTSC, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_every_codec_has_a_container_and_a_default() -> None:
    for codec in CODECS.values():
        assert codec.suffixes
        assert min(codec.best, codec.worst) <= codec.quality <= max(codec.best, codec.worst)


def test_only_the_current_batch_is_held(tmp_path: Path) -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def batches() -> Iterator[np.ndarray]:
        for _ in range(30):
            batch = np.zeros((4, 64, 64, 3), np.uint8)
            alive.append(weakref.ref(batch))
            yield batch
            assert sum(ref() is not None for ref in alive) <= 3

    write_video(tmp_path / "a.mp4", batches(), NTSC)
    assert len(alive) == 30


# --- sound -----------------------------------------------------------------------------------------------


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


# --- whole or none -----------------------------------------------------------------------------------------


def left_behind(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "folder"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, InputError("x is damaged", "Fix it."), RuntimeError])
def test_a_failure_midway_leaves_nothing(tmp_path: Path, name: str, failure: BaseException) -> None:
    def batches() -> Iterator[np.ndarray]:
        yield from pictures(10)
        raise failure

    kind = failure if isinstance(failure, type) else type(failure)
    with pytest.raises(kind):
        write_video(tmp_path / name, batches(), Fraction(25))
    assert left_behind(tmp_path) == []


def test_an_existing_output_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("precious")
    with pytest.raises(OutputError, match="exists"):
        write_video(path, pictures(2), NTSC)
    assert path.read_text() == "precious"
    with pytest.raises(RuntimeError):
        write_video(path, failing(), NTSC, overwrite=True)
    assert path.read_text() == "precious"  # a failed render does not cost the old one
    write_video(path, pictures(2), NTSC, overwrite=True)
    assert probe(path).num_frames == 2


def failing() -> Iterator[np.ndarray]:
    yield from pictures(5)
    raise RuntimeError


def test_a_folder_is_replaced_only_if_it_holds_our_pictures(tmp_path: Path) -> None:
    write_video(tmp_path / "out", pictures(5), NTSC)
    write_video(tmp_path / "out", pictures(2), NTSC, overwrite=True)
    assert left_behind(tmp_path / "out") == ["000000.png", "000001.png"]
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(OutputError, match=r"notes\.txt"):
        write_video(tmp_path / "out", pictures(2), NTSC, overwrite=True)
    assert left_behind(tmp_path) == ["out"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing" / "a.mp4", tmp_path / "file" / "a.mp4", tmp_path / f"{'a' * 300}.mp4"):
        with pytest.raises(OutputError):
            write_video(path, pictures(2), NTSC)
    assert left_behind(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="not writable"):
        write_video(tmp_path / "a.mp4", pictures(2), NTSC)


def test_no_frames_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 frames"):
        write_video(tmp_path / "a.mp4", iter(()), NTSC)
    assert left_behind(tmp_path) == []


@contextmanager
def no_file_above(size_bytes: int) -> Iterator[None]:
    """As a full disk: writes beyond this size fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.gif", "folder"])
@pytest.mark.parametrize("limit", [100, 20_000])
def test_a_full_disk_leaves_nothing(tmp_path: Path, name: str, limit: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (4, 96, 96, 3), np.uint8)
    with no_file_above(limit), pytest.raises(OutputError, match="disk is full"):
        write_video(tmp_path / name, (noise for _ in range(6)), Fraction(25), quality=None)
    assert left_behind(tmp_path) == []


def test_a_full_disk_at_the_very_end(tmp_path: Path) -> None:
    size_bytes = write_video(tmp_path / "whole.mp4", pictures(20), NTSC).stat().st_size
    for limit in range(size_bytes - 700, size_bytes, 100):
        with no_file_above(limit), pytest.raises(OutputError, match="disk is full"):
            write_video(tmp_path / "a.mp4", pictures(20), NTSC)
    assert left_behind(tmp_path) == ["whole.mp4"]


def test_errors_that_are_not_the_system_s_pass() -> None:
    with pytest.raises(OSError, match="odd") as caught, writing(Path("a")):
        raise OSError(errno.ENOTCONN, "odd")
    assert not isinstance(caught.value, UserError)


def test_whole_file_for_text(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a.json") as part:
        part.write_text("{}")
        assert not (tmp_path / "a.json").exists()
    assert left_behind(tmp_path) == ["a.json"]
    with no_file_above(10), pytest.raises(OutputError), whole_file(tmp_path / "b.json") as part:
        part.write_text("x" * 100)
    assert left_behind(tmp_path) == ["a.json"]


def test_ctrl_c_in_another_process(tmp_path: Path) -> None:
    script = (
        "import itertools, sys, numpy as np\n"
        "from fractions import Fraction\nfrom pathlib import Path\n"
        "from dreamoving_cli.media.writer import write_video\n"
        "def batches():\n"
        "    for _ in itertools.count():\n"
        "        print('batch', flush=True)\n"
        "        yield np.zeros((8, 64, 64, 3), np.uint8)\n"
        "write_video(Path(sys.argv[1]), batches(), Fraction(25))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.mp4")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode in (-signal.SIGINT, 130)
    assert left_behind(tmp_path) == []


# --- real clips ----------------------------------------------------------------------------------------


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
