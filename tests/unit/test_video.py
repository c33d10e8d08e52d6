"""The reader: one contract for PyAV and decord, times exact to the frame, bad files refused."""

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.media.frames import READERS
from dreamoving_cli.media.index import Index, frame_rate, index_file
from dreamoving_cli.media.video import default_fps, fit_size, open_clip, pick_frames, probe
from tests.conftest import NTSC, VFR_MS, number_of, numbered_frame

MakeVideo = Callable[..., Path]
RED, BLUE = (200, 40, 50), (40, 60, 190)


def numbers(frames: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in frames]


# --- the contract of every reader -----------------------------------------------------------------------


@pytest.fixture(params=sorted(READERS))
def reader(request: pytest.FixtureRequest) -> str:
    if request.param == "decord":
        pytest.importorskip("decord", reason="decord has no wheel for this platform")
    return str(request.param)


def test_all_frames_in_order(ntsc_video: Path, reader: str) -> None:
    with open_clip(ntsc_video, reader=reader) as clip:
        batches = list(clip.batches(10))
    assert [len(batch) for batch in batches] == [10, 10, 10, 6]
    assert numbers(np.concatenate(batches)) == list(range(36))
    assert batches[0].dtype == np.uint8
    assert batches[0].shape == (10, 48, 64, 3)


@pytest.mark.parametrize(
    "wanted", [[35], [0, 13, 14, 35], [20, 3, 30, 3, 3], [12, 11, 10, 9], [], [0, 1, 2, 0, 1, 2]]
)
def test_random_access_gives_the_same_frames(ntsc_video: Path, reader: str, wanted: list[int]) -> None:
    with open_clip(ntsc_video, reader=reader) as clip:
        assert numbers(clip.read(wanted)) == wanted


def test_readers_agree_on_every_pixel(ntsc_video: Path, reader: str) -> None:
    with open_clip(ntsc_video) as ours, open_clip(ntsc_video, reader=reader) as theirs:
        np.testing.assert_array_equal(ours.read(range(36)), theirs.read(range(36)))


def test_colors_and_way_up(rotated_video: Path, reader: str) -> None:
    info = probe(rotated_video)
    assert (info.height, info.width) == (64, 48)
    with open_clip(rotated_video, reader=reader) as clip:
        frame = clip.read([5])[0]
    upright = np.rot90(numbered_frame(5, 48, 64), 1)  # counterclockwise
    assert frame.shape == upright.shape
    assert np.abs(frame.astype(int) - upright).mean() < 4


def test_variable_rate_goes_by_the_times(vfr_video: Path, reader: str) -> None:
    info = probe(vfr_video)
    assert info.variable
    assert info.num_frames == len(VFR_MS)
    with open_clip(vfr_video, fps=Fraction(20), reader=reader) as clip:
        shown = numbers(clip.read(range(clip.num_frames)))
    on_display = [sum(ms <= 50 * k for ms in VFR_MS) - 1 for k in range(len(shown))]
    assert shown == on_display


def test_stretch_to_a_frame(ntsc_video: Path, reader: str) -> None:
    with open_clip(ntsc_video, start_s=Fraction(1, 2), duration_s=Fraction(2, 5), reader=reader) as clip:
        assert clip.fps == NTSC
        assert numbers(clip.read(range(clip.num_frames))) == list(range(14, 26))  # 0.4 s = 11.99 frames


def test_size_is_cropped_at_the_center_never_stretched(make_video: MakeVideo, reader: str) -> None:
    path = make_video("wide.mp4", 2, height=64, width=256)
    with open_clip(path, size=(32, 32), reader=reader) as clip:
        frame = clip.read([0])[0].astype(int)
    assert frame.shape == (32, 32, 3)
    assert np.abs(frame[24, 2:13] - RED).max() < 30  # the border of red and blue stays in the middle
    assert np.abs(frame[24, 19:30] - BLUE).max() < 30


def test_pixels_that_are_not_square(make_video: MakeVideo, reader: str) -> None:
    path = make_video("anamorphic.mp4", 3, aspect=Fraction(3, 2))
    with open_clip(path, reader=reader) as clip:
        assert (clip.height, clip.width) == (48, 96)
        assert numbers(clip.read([0, 1, 2])) == [0, 1, 2]


def test_odd_sizes(odd_video: Path, reader: str) -> None:
    with open_clip(odd_video, reader=reader) as clip:
        frames = clip.read([3, 7])
    assert frames.shape == (2, 49, 65, 3)
    assert numbers(frames) == [3, 7]


def test_one_frame(one_frame_video: Path, reader: str) -> None:
    with open_clip(one_frame_video, reader=reader) as clip:
        assert clip.num_frames == 1
        assert numbers(clip.read([0])) == [0]


@pytest.mark.parametrize("bad", ["missing.mp4", "truncated_video", "text_video"])
def test_bad_files_are_refused_alike(
    tmp_path: Path, reader: str, bad: str, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / bad if bad.endswith(".mp4") else request.getfixturevalue(bad)
    with pytest.raises(InputError, match=path.name):
        open_clip(path, reader=reader)


def test_frames_outside_the_clip(ntsc_video: Path, reader: str) -> None:
    with open_clip(ntsc_video, reader=reader) as clip, pytest.raises(IndexError, match="36"):
        clip.read([36])


def test_what_decord_cannot_read_says_what_can(make_video: MakeVideo) -> None:
    pytest.importorskip("decord", reason="decord has no wheel for this platform")
    path = make_video("a.mp4", 6, codec="libsvtav1")
    with pytest.raises(InputError, match="pyav reader"):
        open_clip(path, reader="decord")
    with open_clip(path) as clip:
        assert numbers(clip.read(range(6))) == list(range(6))


def test_unknown_reader(ntsc_video: Path) -> None:
    with pytest.raises(UsageError, match="opencv"):
        open_clip(ntsc_video, reader="opencv")


# --- what is in a file --------------------------------------------------------------------------------------


def test_probe(ntsc_video: Path) -> None:
    info = probe(ntsc_video)
    assert (info.height, info.width, info.fps, info.num_frames) == (48, 64, NTSC, 36)
    assert info.duration_s == 36 / NTSC
    assert info.has_audio
    assert not info.variable


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.avi", "a.mov", "a.ts"])
def test_rates_survive_coarse_clocks(make_video: MakeVideo, name: str) -> None:
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = make_video(name, 40, codec=codec)
    info = probe(path)
    assert (info.fps, info.num_frames, info.variable) == (NTSC, 40, False)
    with open_clip(path) as clip:
        assert numbers(clip.read(range(40))) == list(range(40))
        assert numbers(clip.read([30, 2, 17])) == [30, 2, 17]


def test_pictures_are_videos_of_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(numbered_frame(9, 48, 64)).save(path)
    assert probe(path).num_frames == 1
    with open_clip(path) as clip:
        np.testing.assert_array_equal(clip.read([0, 0])[1], numbered_frame(9, 48, 64))


def test_gif_with_holes_is_shown_over_white(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    pictures = [Image.new("RGBA", (32, 32), (200, 0, 0, 255)) for _ in range(3)]
    for i, picture in enumerate(pictures):
        picture.paste((0, 0, 0, 0), (i * 8, 0, i * 8 + 8, 32))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, disposal=2)
    assert (probe(path).num_frames, probe(path).fps) == (3, 10)
    with open_clip(path) as clip:
        frame = clip.read([1])[0]
    assert frame[16, 12].tolist() == [255, 255, 255]
    assert frame[16, 28].tolist() == [200, 0, 0]


def test_transparent_video_is_shown_over_white(make_video: MakeVideo) -> None:
    path = make_video("alpha.mov", 2, codec="png", pixels="rgba")
    with open_clip(path) as clip:
        assert clip.read([1]).shape == (1, 48, 64, 3)


def test_empty_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(InputError, match="0 bytes"):
        probe(tmp_path / "empty.mp4")
    with pytest.raises(InputError, match="folder"):
        probe(tmp_path)


def test_no_frames(make_video: MakeVideo) -> None:
    with pytest.raises(InputError, match=r"none\.mp4"):
        probe(make_video("none.mp4", 0, sound_s=0.5))


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    import wave

    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\0\0" * 800)
    with pytest.raises(InputError, match="no video track"):
        probe(tmp_path / "a.wav")


def test_a_text_file_is_not_shown_as_text_art(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello\n" * 99)
    with pytest.raises(InputError, match=r"notes\.txt"):
        probe(path)


def test_a_playlist_may_not_open_other_files(tmp_path: Path, ntsc_video: Path) -> None:
    path = tmp_path / "list.mp4"
    path.write_text(f"ffconcat version 1.0\nfile '{ntsc_video}'\n")
    with pytest.raises(InputError, match=r"list\.mp4"):
        probe(path)


@pytest.mark.parametrize("name", ["front.mp4", "cut.mkv"])
def test_a_download_that_broke_off(make_video: MakeVideo, tmp_path: Path, name: str) -> None:
    from dreamoving_cli.media.writer import write_video

    noise = np.random.default_rng(0).integers(0, 255, (90, 64, 64, 3), np.uint8)
    path = write_video(tmp_path / name, [noise], Fraction(25))  # its list of frames lies at the front
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="cut off"):
        probe(path)


def test_damage_in_the_middle_names_the_file(make_video: MakeVideo) -> None:
    path = make_video("damaged.mov", 24, codec="png", pixels="rgb24")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 600] = bytes(600)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged\.mov"), open_clip(path) as clip:
        clip.read(range(clip.num_frames))


def test_a_changed_file_is_indexed_anew(make_video: MakeVideo) -> None:
    assert probe(make_video("a.mp4", 5)).num_frames == 5
    assert probe(make_video("a.mp4", 9)).num_frames == 9


# --- rates, stretches and sizes ---------------------------------------------------------------------------


@given(st.sampled_from([Fraction(24), NTSC, Fraction(25), Fraction(60), Fraction(24000, 1001)]), st.data())
def test_constant_rates_are_recognized_through_rounding(fps: Fraction, data: st.DataObject) -> None:
    tick = data.draw(st.sampled_from([Fraction(1, 1000), Fraction(1, 90000), Fraction(1, 15360)]))
    start = data.draw(st.integers(0, 10**7))
    ticks = np.array([start + math.floor(k / fps / tick + Fraction(1, 2)) for k in range(200)])
    assert frame_rate(ticks, tick, [fps]) == (fps, False)


def uneven_index(ticks: np.ndarray) -> Index:
    return Index(
        path=Path("x"),
        ticks=ticks,
        tick=Fraction(1, 1000),
        keyframes=np.zeros(1, np.int64),
        fps=Fraction(20),
        variable=True,
        duration_s=Fraction(int(ticks[-1] - ticks[0]), 1000),
        height=1,
        width=1,
        quarter_turns=0,
        counted=False,
        still=False,
        alpha=False,
        has_audio=False,
        metadata={},
    )


@given(st.integers(1, 60), st.integers(0, 30))
def test_picks_rise_and_stay_inside(rate: int, start: int) -> None:
    ticks = np.cumsum(np.random.default_rng(rate).integers(5, 90, 80))
    index = uneven_index(ticks)
    picks = pick_frames(index, Fraction(rate), Fraction(start, 10), 150)
    assert (np.diff(picks) >= 0).all()
    assert picks.min() >= 0
    assert picks.max() < 80
    for k, pick in enumerate(picks):
        time_ms = int(ticks[0]) + 100 * start + Fraction(1000 * k, rate)
        assert ticks[pick] <= time_ms + Fraction(1, 2) or pick == 0
        assert pick == 79 or ticks[pick + 1] > time_ms


def test_a_higher_rate_repeats_and_a_lower_one_skips(ntsc_video: Path) -> None:
    with open_clip(ntsc_video, fps=2 * NTSC) as clip:
        assert numbers(clip.read(range(6))) == [0, 0, 1, 1, 2, 2]
        assert clip.num_frames == 72
    with open_clip(ntsc_video, fps=NTSC / 2) as clip:
        assert numbers(clip.read(range(clip.num_frames))) == list(range(0, 36, 2))


def test_stretches_that_make_no_sense(ntsc_video: Path) -> None:
    for bad in (
        {"start_s": 5},
        {"start_s": -1},
        {"duration_s": Fraction(0)},
        {"num_frames": 0},
        {"fps": Fraction(0)},
    ):
        with pytest.raises(UsageError):
            open_clip(ntsc_video, **bad)  # type: ignore[arg-type]


def test_a_stretch_past_the_end_is_said(ntsc_video: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_clip(ntsc_video, start_s=1, duration_s=Fraction(9)) as clip:
        assert clip.num_frames == 6
    assert "ends" in caplog.text
    with open_clip(ntsc_video, num_frames=10) as clip:
        assert clip.num_frames == 10
    with open_clip(ntsc_video, num_frames=99) as clip:
        assert clip.num_frames == 36
    assert "fewer than the 99" in caplog.text


def test_default_fps(make_video: MakeVideo) -> None:
    for fps, wanted in [(60, 30), (50, 25), (30, 30), (24, 24), (120, 30)]:
        assert default_fps(probe(make_video(f"{fps}.mp4", 10, fps=Fraction(fps)))) == wanted
    assert default_fps(probe(make_video("ntsc60.mp4", 10, fps=2 * NTSC))) == NTSC


@given(
    st.integers(64, 4000), st.integers(64, 4000), st.sampled_from([8, 16, 64]), st.integers(128**2, 1024**2)
)
def test_fit_size_keeps_the_budget(height: int, width: int, multiple: int, max_pixels: int) -> None:
    scale = min(1, math.sqrt(max_pixels / (height * width)))
    if min(height, width) * scale < multiple + 1:
        return
    h, w = fit_size(height, width, multiple, max_pixels)
    assert h % multiple == 0 == w % multiple
    assert h * w <= max_pixels
    assert h <= height
    assert w <= width
    assert height * scale - h < multiple + 1
    assert width * scale - w < multiple + 1


def test_fit_size_refuses_slivers() -> None:
    with pytest.raises(UsageError, match="4000x20"):
        fit_size(20, 4000, 64, 512 * 512)


def test_only_a_few_frames_are_in_memory(make_video: MakeVideo) -> None:
    import tracemalloc

    path = make_video("long.mp4", [k % 256 for k in range(300)], height=96, width=128)
    with open_clip(path) as clip:
        tracemalloc.start()
        for _batch in clip.batches(8):
            pass
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak_bytes < 40 * 96 * 128 * 3
    assert index_file(path).ticks.nbytes == 300 * 8


# --- real clips ---------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_real_clips(shared_media: Path) -> None:
    rates = {
        "dance_vertical_room": 16,
        "taiji_horizontal_audio": Fraction(24000, 1001),
        "kids_sport_lowres": NTSC,
    }
    counts = {"talking_portrait_audio": 141, "street_crowd_5frames": 5, "taiji_horizontal_audio": 412}
    for path in sorted((shared_media / "videos").glob("*.mp4")):
        info = probe(path)
        assert info.fps == rates.get(path.stem, info.fps)
        assert info.num_frames == counts.get(path.stem, info.num_frames)
        last = info.num_frames - 1
        with open_clip(path, size=(96, 64)) as clip:
            far = clip.read([last])[0]
            near = clip.read([0, min(3, last), last])
        np.testing.assert_array_equal(near[-1], far)


@pytest.mark.shared
@pytest.mark.parametrize("stem", ["taiji_horizontal_audio", "kids_sport_lowres", "two_people_vertical"])
def test_readers_agree_on_real_clips(shared_media: Path, stem: str) -> None:
    pytest.importorskip("decord", reason="decord has no wheel for this platform")
    path = shared_media / "videos" / f"{stem}.mp4"
    with open_clip(path) as ours, open_clip(path, reader="decord") as theirs:
        some = [ours.num_frames - 1, 0, 7, ours.num_frames // 2]
        np.testing.assert_array_equal(ours.read(some), theirs.read(some))
