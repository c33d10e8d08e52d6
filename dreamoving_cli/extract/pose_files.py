"""From a video (or keypoints) to files: pose map, keypoints, other programs' formats, an overlay sheet."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from dreamoving_cli.errors import DeviceMemoryError, InputError, UsageError
from dreamoving_cli.extract import KIND_TAG, OnProgress
from dreamoving_cli.extract.dancers import only
from dreamoving_cli.extract.detections import Detections
from dreamoving_cli.extract.draw import OFFICIAL, Style
from dreamoving_cli.extract.exchange import (
    is_keypoints,
    read_keypoints,
    refuse_taken,
    save_coco,
    save_openpose,
)
from dreamoving_cli.extract.footage import (
    Stretch,
    kept_if_interrupted,
    refuse_little_memory,
    say_where,
    sound_of,
    what_is_read,
)
from dreamoving_cli.extract.keypoints import NUM_POINTS, Poses, save_poses
from dreamoving_cli.extract.metrics import PoseReport, measure_poses
from dreamoving_cli.extract.pose import BATCH, find_poses, pose_maps
from dreamoving_cli.extract.repair import Repairs
from dreamoving_cli.extract.retarget import Verdict, fit_poses
from dreamoving_cli.extract.settings import PoseOptions
from dreamoving_cli.extract.sheet import write_sheet
from dreamoving_cli.media.suffixes import PICTURES
from dreamoving_cli.media.video import Clip, open_clip
from dreamoving_cli.media.whole import check_output
from dreamoving_cli.media.writer import codec_of, write_video

COPIES = 12  # of all points in memory at the worst moment: raw, repaired, and what a repair works with
FRAMES_HELD = 3 * BATCH
FITS = ("source", "center")
STATE = ".pose.state"
FINDING = {  # what is of no use with keypoints
    "whole_body": "--body-only", "max_people": "--max-people", "detect_every": "--detect-every",
    "repair": "--raw, --smoothing and --fill",
}  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outputs:
    """The files to write; None = not this one."""

    map: Path | None = None
    keypoints: Path | None = None
    openpose: Path | None = None  # a folder
    coco: Path | None = None
    preview: Path | None = None

    def paths(self) -> list[Path]:
        """Those that are asked for."""
        return [path for f in fields(self) if (path := getattr(self, f.name)) is not None]


@dataclass(frozen=True)
class PoseJob:
    """One extraction."""

    outputs: Outputs
    stretch: Stretch = field(default_factory=Stretch)
    options: PoseOptions = field(default_factory=PoseOptions)
    style: Style = OFFICIAL
    fit: str = "source"  # of FITS, or a picture of a person
    overwrite: bool = False
    resume: bool = False


@dataclass(frozen=True)
class PoseResult:
    """What an extraction gave."""

    paths: list[Path]
    report: PoseReport
    verdict: Verdict


def extract_pose_files(
    source: Path, job: PoseJob, on_progress: OnProgress = lambda stage, done, total: None
) -> PoseResult:
    """Find the poses of a video, or take those of a keypoints file, and write what is asked for."""
    refuse_outputs(source, job)
    target = person_in(Path(job.fit), job.options) if job.fit not in FITS else None
    with ExitStack() as stack:
        clip = None if is_keypoints(source) else stack.enter_context(opened(source, job))
        if clip is None:
            poses, report = taken(source, job)
        else:
            kept = stack.enter_context(detections(source, job, clip))
            poses, report = find_poses(
                clip,
                job.options,
                kept=kept,
                on_frame=lambda done: on_progress("pose", done, clip.num_frames),
            )
        fitted, verdict = fit_poses(poses, job.fit, target)
        if not verdict.fits:
            logger.warning("the fit is poor: %s", "; ".join(verdict.reasons))
        paths = write_outputs(source, job, clip, (poses, fitted))
    return PoseResult(paths, report, verdict)


def refuse_outputs(source: Path, job: PoseJob) -> None:
    """Outputs that cannot be written, before any work."""
    paths = job.outputs.paths()
    if not paths:
        raise UsageError("there is nothing to write", "Name an output.")
    if len({path.absolute() for path in paths}) < len(paths):
        raise UsageError("two outputs have one name", "Give each its own.")
    for path in paths:
        if path.absolute() == source.absolute():
            raise UsageError(f"{path} is the input", "Choose another output.")
        if path == job.outputs.openpose:
            refuse_taken(path)
        else:
            check_output(path, job.overwrite)
    if job.outputs.map:
        codec_of(job.outputs.map)
    if job.outputs.preview and job.outputs.preview.suffix.lower() not in PICTURES:
        raise UsageError(f"'{job.outputs.preview.suffix}' is not a picture format", "End --preview in .png.")


def opened(source: Path, job: PoseJob) -> Clip:
    """The stretch of a video, once its poses are known to fit into memory."""
    clip = job.stretch.open(source)
    need = memory_bytes(clip, 1 if job.options.person in ("largest", "central") else job.options.max_people)
    try:
        refuse_little_memory(f"poses of {clip.num_frames} frames", need)
    except DeviceMemoryError:
        clip.close()
        raise
    return clip


@contextmanager
def detections(source: Path, job: PoseJob, clip: Clip) -> Iterator[Detections]:
    """What was seen so far, in a file beside the first output while the work goes on."""
    first = job.outputs.paths()[0]
    path = first.with_name(first.name + STATE)
    options = {name: value for name, value in vars(job.options).items() if name != "repair"}
    with kept_if_interrupted(path):
        kept = Detections(path, what_is_read(source, clip) | options, resume=job.resume)
        say_where(job.resume, len(kept.people))
        yield kept


def memory_bytes(clip: Clip, people: int) -> int:
    """About how much memory the poses of a clip take."""
    points = clip.num_frames * people * NUM_POINTS * 3 * 4 * COPIES
    return points + FRAMES_HELD * clip.height * clip.width * 3


def taken(source: Path, job: PoseJob) -> tuple[Poses, PoseReport]:
    """The poses of a keypoints file as they are, all or one person's, and what can be measured of them."""
    stretch, person = job.stretch, job.options.person
    if stretch.start_s or stretch.duration_s is not None:
        raise UsageError(
            f"{source} holds keypoints, which are taken whole", "Leave out --start and --duration."
        )
    if person == "central" or unused(job.options):
        raise UsageError(
            f"{source} holds keypoints: nobody is searched, nothing repaired",
            f"Leave out {', '.join(unused(job.options) or ['--person central'])}.",
        )
    poses = read_keypoints(source, stretch.fps, stretch.size)
    if person.isdigit():
        poses = only(poses, int(person))
    people = len(set(poses.identities.ravel().tolist()) - {0})
    return poses, measure_poses(poses, people, Repairs(), 0.0)


def unused(options: PoseOptions) -> list[str]:
    """The flags that were set and change nothing where keypoints are taken as they are."""
    usual = PoseOptions()
    return [flag for name, flag in FINDING.items() if getattr(options, name) != getattr(usual, name)]


def person_in(picture: Path, options: PoseOptions) -> Poses:
    """The pose of the person in a picture (or in the first frame of anything)."""
    if not picture.is_file():
        raise UsageError(f"fit is '{picture}'", f"Choose {', '.join(FITS)} or a picture of a person.")
    with open_clip(picture, num_frames=1) as clip:
        try:
            return find_poses(clip, replace(options, person="largest", whole_body=True))[0]
        except InputError as error:
            raise InputError(
                f"no person was found in '{picture}'", "Give a picture that shows one from head to feet."
            ) from error


def write_outputs(source: Path, job: PoseJob, clip: Clip | None, made: tuple[Poses, Poses]) -> list[Path]:
    """All files asked for. made: the poses found, and as they fit."""
    out, (found, poses) = job.outputs, made
    written = []
    if out.map:
        written.append(
            write_video(
                out.map,
                pose_maps(poses, job.style),
                poses.fps,
                audio=sound_of(source, job.stretch, clip),
                overwrite=job.overwrite,
                metadata={KIND_TAG: "pose"},
            )
        )
    if out.keypoints:
        written.append(save_poses(out.keypoints, poses))
    if out.openpose:
        written.append(save_openpose(out.openpose, poses, source.stem))
    if out.coco:
        written.append(save_coco(out.coco, poses, source.stem))
    if out.preview:
        fitted = poses if job.fit != "source" else None
        written.append(write_sheet(out.preview, found, clip, fitted, overwrite=job.overwrite))
    return written
