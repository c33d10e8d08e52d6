"""The writer: exact rates, true colors, tags; sound is in test_audio.py, whole files in test_whole.py."""

import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dreamoving_cli.errors import UsageError
from dreamoving_cli.media.video import open_clip, probe
from dreamoving_cli.media.writer import CODECS, write_video
from tests.conftest import NTSC, number_of, numbered_frame, pictures

MakeVideo = Callable[..., Path]


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


def test_a_gif_cannot_be_quick(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="50"):
        write_video(tmp_path / "a.gif", pictures(2), Fraction(60))


def test_names_that_ffmpeg_would_misread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_video(Path("data: 50%d é.mp4"), pictures(2), NTSC)
    assert probe(path).num_frames == 2
    with open_clip(path) as clip:
        assert clip.read([1]).shape == (1, 48, 64, 3)


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
