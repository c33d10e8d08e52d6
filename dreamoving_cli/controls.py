"""What the ControlNets follow, as pictures on demand, and the driver: what decides size, rate and length.

numpy only. Nothing here holds a clip as pixels: poses are kept as points and drawn when asked for, maps are
read from their video when asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np

from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.extract.depth import ClipDepth, DepthStore, find_depth
from dreamoving_cli.extract.depth_networks import DepthOptions, open_network
from dreamoving_cli.extract.draw import draw_control
from dreamoving_cli.extract.keypoints import FORMAT, Poses, load_poses
from dreamoving_cli.media.video import MAX_DEFAULT_FPS, Clip, open_clip, probe
from dreamoving_cli.media.writer import Audio
from dreamoving_cli.options import ControlOptions, RenderOptions

OnFrame = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class ControlFile:
    """A control that acts, its file, and what that is: footage, map or json."""

    control: ControlOptions
    path: Path
    form: str


@dataclass(frozen=True)
class Driver:
    """The stretch of the first control's file that is rendered."""

    path: Path
    fps: Fraction  # of the output
    num_frames: int
    source_fps: Fraction
    source_size: tuple[int, int]  # height, width
    start_s: Fraction
    audio: Audio | None

    @property
    def end_s(self) -> Fraction:
        return self.start_s + self.num_frames / self.fps


class Source(Protocol):
    """Control pictures of the output's frames."""

    def read(self, frames: Sequence[int]) -> np.ndarray:
        """uint8 f h w c."""


@dataclass(frozen=True)
class Control:
    """One ControlNet's pictures, and how strongly and when it acts."""

    kind: str
    source: Source
    control_scale: float = 1.0
    control_start: float = 0.0
    control_end: float = 1.0

    def acts_at(self, step: int, steps: int) -> bool:
        """Whether this step lies within control_start..control_end of all steps."""
        return self.control_start <= step / steps and (step + 1) / steps <= self.control_end


@dataclass(frozen=True)
class PosePictures:
    """Poses drawn at the output's size and times."""

    poses: Poses
    picks: Sequence[int]  # the pose shown in each output frame
    size: tuple[int, int]  # height, width

    def read(self, frames: Sequence[int]) -> np.ndarray:
        """uint8 f h w c."""
        points, scores = self.poses.points, self.poses.scores
        source_size = (self.poses.height, self.poses.width)
        picks = [self.picks[frame] for frame in frames]
        return np.stack([draw_control(points[k], scores[k], source_size, *self.size) for k in picks])


@dataclass(frozen=True)
class DepthPictures:
    """The depth of footage at the output's size and times."""

    depth: ClipDepth
    size: tuple[int, int]  # height, width

    def read(self, frames: Sequence[int]) -> np.ndarray:
        """uint8 f h w c; the last frame is held where the footage ends a frame early."""
        last = self.depth.store.num_frames - 1
        return self.depth.pictures([min(frame, last) for frame in frames], *self.size)


def control_files(options: RenderOptions) -> list[ControlFile]:
    """The controls that act (scale 0 costs nothing), the driver first; refuses options without one."""
    given = [c for c in options.all_controls if c.control_scale > 0]
    driver = next((c.file for c in given if c.file is not None), None)
    if driver is None:
        raise UsageError(
            "there is nothing to follow", "Give --pose, --depth or --control KIND=FILE, with a scale above 0."
        )
    files = [ControlFile(c, c.file or driver, file_form(c, c.file or driver, options)) for c in given]
    return sorted(files, key=lambda f: f.path != driver)


def file_form(control: ControlOptions, path: Path, options: RenderOptions) -> str:
    """What a control's file is: footage, map or json; told by what the extractors wrote into it."""
    listed = control in options.controls  # not --pose or --depth
    said = {"pose": options.pose_kind, "depth": options.depth_kind}.get(control.kind, "auto")
    if said != "auto" and not listed:
        return said
    if control.kind == "pose" and is_pose_file(path):
        return "json"
    from dreamoving_cli.extract import control_kind

    told = control_kind(path)
    if told == control.kind:
        return "map"
    if told is not None:
        raise InputError(f"{path} holds {told} pictures", f"Give it as --control {told}=FILE.")
    if control.file is not None and control.kind != "pose" and listed:
        return "map"  # --control KIND=FILE says so
    from dreamoving_cli.extract import EXTRACTORS

    if control.kind in EXTRACTORS:
        return "footage"
    raise InputError(
        f"{path} is not marked as a {control.kind} map, and {control.kind} is not taken from footage",
        f"If it is a map made elsewhere, give --control {control.kind}={path}.",
    )


def is_pose_file(path: Path) -> bool:
    """Whether this is a keypoints JSON of extract-pose."""
    try:
        with path.open("rb") as file:
            return f'"{FORMAT}"'.encode() in file.read(200)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "Check the path.") from error


def open_driver(options: RenderOptions, files: Sequence[ControlFile]) -> Driver:
    """The driver of these options, probed; refuses a control that ends before it."""
    first = files[0]
    fps, height, width, length_s, has_audio = _probe(first)
    rate = _output_fps(options.fps, fps)
    num_frames = _count_frames(options, rate, length_s, first.path)
    whole = not options.start_s and abs(num_frames / rate - length_s) <= 1 / rate
    audio = Audio(first.path, options.start_s, None if whole else num_frames / rate)
    driver = Driver(
        path=first.path,
        fps=rate,
        num_frames=num_frames,
        source_fps=fps,
        source_size=(height, width),
        start_s=options.start_s,
        audio=audio if options.audio and has_audio else None,
    )
    for file in files:
        missing_s = driver.end_s - _probe(file)[3]
        if missing_s > 1 / rate:  # less than a frame: the last one is held
            raise InputError(
                f"{file.path} ends {float(missing_s):.2f} s before the rendered stretch does",
                "Render less with --duration, or give a longer file.",
            )
    return driver


def footage_poses(files: Sequence[ControlFile], driver: Driver, on_frame: OnFrame) -> Poses | None:
    """The poses of raw footage at the output's rate, found once for the whole clip; None without footage."""
    footage = [file for file in files if (file.control.kind, file.form) == ("pose", "footage")]
    if not footage:
        return None
    from dreamoving_cli.extract.pose import extract_pose

    with _open(footage[0].path, driver) as clip:
        return extract_pose(clip, on_frame=lambda done: on_frame(done, clip.num_frames))


@contextmanager
def footage_depth(
    files: Sequence[ControlFile], driver: Driver, size: tuple[int, int], device: str, on_frame: OnFrame
) -> Iterator[ClipDepth | None]:
    """The depth of raw footage at the output's rate and size (height, width); None without footage.

    Its distances wait in a file that nobody sees and that is gone at the end.
    """
    footage = [file for file in files if (file.control.kind, file.form) == ("depth", "footage")]
    if not footage:
        yield None
        return
    with TemporaryDirectory(prefix="dreamoving-") as folder:
        with _open(footage[0].path, driver, size) as clip:
            depth = _looked_at(clip, Path(folder), device, on_frame)
        with closing(depth.store):
            yield depth


def _looked_at(clip: Clip, folder: Path, device: str, on_frame: OnFrame) -> ClipDepth:
    """The clip's depth; its network does not outlive this, as the render needs the memory."""
    network = open_network(DepthOptions(device=device))
    shape = (clip.num_frames, *network.size(clip.height, clip.width))
    store = DepthStore(folder / "distances", shape)
    return find_depth(clip, network, store, on_frame=lambda done: on_frame(done, clip.num_frames))[0]


@contextmanager
def open_controls(
    files: Sequence[ControlFile],
    driver: Driver,
    size: tuple[int, int],
    poses: Poses | None,
    depth: ClipDepth | None = None,
) -> Iterator[list[Control]]:
    """Every control with its pictures at `size` (height, width); files close at the end.

    poses, depth: those of footage.
    """
    with ExitStack() as stack:
        controls = []
        for file in files:
            c = file.control
            source: Source
            if file.form == "footage" and c.kind == "depth":
                assert depth is not None
                source = DepthPictures(depth, size)
            elif file.form == "footage":
                assert poses is not None
                source = PosePictures(poses, range(poses.num_frames), size)
            elif file.form == "json":
                saved = load_poses(file.path)
                source = PosePictures(saved, pose_picks(saved, driver), size)
            else:
                source = _Held(stack.enter_context(_open(file.path, driver, size)))
            controls.append(Control(c.kind, source, c.control_scale, c.control_start, c.control_end))
        yield controls


def pose_picks(poses: Poses, driver: Driver) -> list[int]:
    """The pose on display in each output frame."""
    times_s = (driver.start_s + k / driver.fps for k in range(driver.num_frames))
    return [min(floor(t * poses.fps), poses.num_frames - 1) for t in times_s]


def shot_cuts(files: Sequence[ControlFile], driver: Driver, poses: Poses | None) -> tuple[int, ...]:
    """The output frames with which new shots begin, as far as the poses tell. poses: those of footage."""
    if poses is not None:
        return poses.cuts
    saved = next((load_poses(file.path) for file in files if file.form == "json"), None)
    if saved is None or not saved.cuts:
        return ()
    shots = np.searchsorted(saved.cuts, pose_picks(saved, driver), side="right")
    return tuple((np.flatnonzero(np.diff(shots)) + 1).tolist())


def depth_cuts(controls: Sequence[Control]) -> tuple[int, ...]:
    """As `shot_cuts`, by the depth of footage."""
    sources = (control.source for control in controls)
    return next((source.depth.cuts for source in sources if isinstance(source, DepthPictures)), ())


@dataclass(frozen=True)
class _Held:
    """A map video whose last frame is held where it ends a frame early."""

    clip: Clip

    def read(self, frames: Sequence[int]) -> np.ndarray:
        return self.clip.read([min(frame, self.clip.num_frames - 1) for frame in frames])


def _open(path: Path, driver: Driver, size: tuple[int, int] | None = None) -> Clip:
    """The driver's stretch of a file, at the output's rate."""
    length_s = driver.num_frames / driver.fps
    return open_clip(path, fps=driver.fps, start_s=driver.start_s, duration_s=length_s, size=size)


def _probe(file: ControlFile) -> tuple[Fraction, int, int, Fraction, bool]:
    """Rate, height, width, length in seconds, and whether there is sound."""
    if file.form == "json":
        poses = load_poses(file.path)
        return poses.fps, poses.height, poses.width, poses.num_frames / poses.fps, False
    info = probe(file.path)
    return info.fps, info.height, info.width, info.duration_s, info.has_audio


def _output_fps(asked: str | None, source: Fraction) -> Fraction:
    if asked not in (None, "source"):
        return Fraction(asked)
    while asked is None and source > MAX_DEFAULT_FPS:
        source /= 2
    return source


def asked_frames(options: RenderOptions, fps: Fraction) -> int | None:
    """The length that was asked for, if any."""
    if options.duration_s is None:
        return options.num_frames
    return max(1, floor(options.duration_s * fps + Fraction(1, 2)))


def _count_frames(options: RenderOptions, fps: Fraction, length_s: Fraction, path: Path) -> int:
    """Frames to render: the file from the start on, or what was asked for if that is less."""
    left_s = length_s - options.start_s
    if left_s <= 0:
        raise UsageError(
            f"start is {float(options.start_s):g} s, {path} lasts {float(length_s):g} s",
            f"Choose from 0 to less than {float(length_s):g} s.",
        )
    available = max(1, floor(left_s * fps + Fraction(1, 2)))
    return min(asked_frames(options, fps) or available, available)
