"""Small media made on the spot: videos whose frames carry their own number, for tests to read back."""

import gc
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

NTSC = Fraction(30000, 1001)
BITS = 8  # blocks in the number that each frame shows
RATE = 44100  # Hz, of the sound in made videos
HEAR_CTRL_C = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # jobs in a shell's background do not
SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "media"


@dataclass(frozen=True)
class Look:
    """How a made video is encoded."""

    height: int = 48
    width: int = 64
    fps: Fraction = NTSC
    codec: str = "libx264"
    pixels: str = "yuv420p"
    times_ms: Sequence[int] | None = None  # one per frame; None = constant rate
    rotation: int = 0  # degrees counterclockwise that a player applies
    aspect: Fraction = Fraction(1)  # of a pixel
    sound_s: float = 0.0  # length of the sound; 0 = silent
    sound_start_s: Fraction = Fraction(0)  # against the first picture
    video_start: int = 0  # frames by which the whole picture track is late on the file's clock
    keyframes: int = 12


def numbered_frame(number: int, height: int, width: int) -> np.ndarray:
    """uint8 h w c: `number` as black and white blocks, lowest bit first, left to right, in the upper half.

    The lower left quarter is red, the lower right one blue: colors, and which way is up.
    """
    frame = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        left, right = bit * width // BITS, (bit + 1) * width // BITS
        frame[: height // 2, left:right] = 235 if number >> bit & 1 else 20
    frame[height // 2 :, : width // 2] = (200, 40, 50)
    frame[height // 2 :, width // 2 :] = (40, 60, 190)
    return frame


def pictures(count: int, height: int = 48, width: int = 64) -> Iterator[np.ndarray]:
    """Numbered frames in batches of 5."""
    for start in range(0, count, 5):
        yield np.stack([numbered_frame(k, height, width) for k in range(start, min(start + 5, count))])


def number_of(frame: np.ndarray) -> int:
    """The number that a `numbered_frame` shows, however it was encoded and scaled."""
    height, width = frame.shape[:2]
    row = frame[height // 4, :, 1]
    return sum(int(row[(2 * bit + 1) * width // (2 * BITS)] > 128) << bit for bit in range(BITS))


def sound(length_s: float, seed: int = 0) -> np.ndarray:
    """float32 1 n: noise below 4 kHz, so that one sample of delay is seen in a correlation even after AAC."""
    noise = np.random.default_rng(seed).standard_normal(round(length_s * RATE))
    smooth = np.convolve(noise, np.hanning(9) / np.hanning(9).sum(), mode="same")
    return (0.25 * smooth / np.abs(smooth).max())[None].astype(np.float32)


def make(path: Path, numbers: Sequence[int], look: Look) -> Path:
    """Write a video of numbered frames."""
    exact = {"movie_timescale": "4410000"} if path.suffix in (".mp4", ".mov") else {}  # FFmpeg's 1000 rounds
    container = av.open(str(path), "w", options=exact)
    clock = Fraction(1, 1000) if look.times_ms is not None else 1 / look.fps
    stream = add_picture_track(container, look, clock)
    audio: Any = container.add_stream("aac", rate=RATE, layout="mono") if look.sound_s else None
    if audio is not None:
        audio.codec_context.bit_rate = 128_000
    for k, number in enumerate(numbers):
        rgb = av.VideoFrame.from_ndarray(numbered_frame(number, look.height, look.width), format="rgb24")
        frame = rgb.reformat(
            format=look.pixels, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.pts = look.video_start + (k if look.times_ms is None else look.times_ms[k])
        frame.time_base = clock
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    if audio is not None:
        mux_sound(container, audio, look)
    container.close()
    return path


def add_picture_track(container: Any, look: Look, clock: Fraction) -> Any:
    """The picture track of a made video."""
    stream = container.add_stream(look.codec, rate=look.fps)
    stream.width, stream.height, stream.pix_fmt = look.width, look.height, look.pixels
    stream.codec_context.time_base = clock
    stream.codec_context.gop_size = look.keyframes
    stream.codec_context.colorspace = stream.codec_context.color_primaries = 1
    stream.codec_context.color_trc = stream.codec_context.color_range = 1
    stream.codec_context.sample_aspect_ratio = look.aspect
    if look.rotation:
        stream.set_display_rotation(look.rotation)
    return stream


def mux_sound(container: Any, stream: Any, look: Look) -> None:
    """The sound of a made video, from `sound_start_s` after its first picture."""
    samples = sound(look.sound_s)
    start = round((look.video_start / look.fps + look.sound_start_s) * RATE)
    for at in range(0, samples.shape[1], 1024):
        frame = av.AudioFrame.from_ndarray(samples[:, at : at + 1024].copy(), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, start + at, Fraction(1, RATE)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


@pytest.fixture(autouse=True, scope="module")
def _imports_are_no_garbage() -> None:
    """A render collects garbage at every stage: a second each, unless what was imported is left out."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def light_networks() -> None:
    """Skip where the light detector's networks can neither be found nor fetched."""
    from dreamoving_cli.errors import WeightsError
    from dreamoving_cli.weights import weight_path

    try:
        weight_path("mediapipe.pose_detection")
    except WeightsError as error:
        pytest.skip(f"the light detector's networks cannot be fetched: {error}")


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., Path]:
    """make_video(name, num_frames or numbers, **look) -> path of a new video in a folder of its own."""

    def made(name: str, frames: int | Sequence[int] = 24, **look: Any) -> Path:
        folder = tmp_path / "media"
        folder.mkdir(exist_ok=True)
        return make(folder / name, range(frames) if isinstance(frames, int) else frames, Look(**look))

    return made


@pytest.fixture
def ntsc_video(make_video: Callable[..., Path]) -> Path:
    """36 frames at 30000/1001 with 1.2 s of sound: both tracks end within a frame of each other."""
    return make_video("ntsc.mp4", 36, sound_s=1.2)


@pytest.fixture
def vfr_video(make_video: Callable[..., Path]) -> Path:
    """12 frames at uneven times (VFR_MS), as phones and screen recorders write them."""
    return make_video("vfr.mp4", len(VFR_MS), times_ms=VFR_MS)


@pytest.fixture
def rotated_video(make_video: Callable[..., Path]) -> Path:
    """A portrait clip as phones store it: 64x48 on its side, to be turned by 90 degrees."""
    return make_video("rotated.mp4", 8, rotation=90)


@pytest.fixture
def odd_video(make_video: Callable[..., Path]) -> Path:
    """65x49 pixels."""
    return make_video("odd.mkv", 8, width=65, height=49, codec="ffv1", pixels="yuv444p")


@pytest.fixture
def one_frame_video(make_video: Callable[..., Path]) -> Path:
    """A video of a single frame."""
    return make_video("one.mp4", 1)


@pytest.fixture
def truncated_video(make_video: Callable[..., Path]) -> Path:
    """An mp4 whose second half, with its list of frames, was never downloaded."""
    path = make_video("truncated.mp4", 36)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.fixture
def text_video(tmp_path: Path) -> Path:
    """A text file that calls itself a video."""
    path = tmp_path / "text.mp4"
    path.write_text("this is not a video\n" * 50)
    return path


@pytest.fixture
def shared_media() -> Path:
    """The folder of real clips and photos beside a developer's checkout (tests: marker `shared`)."""
    if not SHARED.is_dir():
        pytest.skip(f"no test media at {SHARED}")
    return SHARED


VFR_MS = (0, 33, 67, 100, 300, 333, 367, 600, 617, 633, 650, 900)


@pytest.fixture(scope="session", autouse=True)
def backward_first() -> None:
    """A process that compiled something before its first backward pass has no children that can train."""
    import torch

    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch computes with one thread: what several processes of one thread each are compared with."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
