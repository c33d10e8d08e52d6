"""The `extract-pose` command: parse, call one function a video, print. Results on stdout, talk on stderr.

Not here: any work (extract/pose_files.py).
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreamoving_cli.errors import UsageError
from dreamoving_cli.extraction_flags import (
    DURATION,
    FILES,
    FPS,
    METRICS,
    RESUME,
    SIZE,
    START,
    all_of,
    in_folders,
    is_done,
    many,
    refuse_metrics,
    show_files,
    stretch_of,
)
from dreamoving_cli.terminal import Debug, Overwrite, Verbose, facts, option, say, switch

if TYPE_CHECKING:
    from dreamoving_cli.extract.pose_files import Outputs, PoseJob

PEOPLE, DRAWING = "Who and how", "Drawing and fit"

SOURCE = typer.Argument(
    metavar="IN",
    show_default=False,
    help="A video; keypoints (JSON of this command or of COCO, OpenPose's folder); a folder or a "
    "quoted pattern of many videos.",
)
OUTPUT = typer.Argument(
    metavar="OUT",
    show_default=False,
    help="The pose map video; NAME.json: only the keypoints; for many videos a folder.",
)
JSON = option("--json", "Also keep the keypoints, as data to edit and reuse.", FILES)
OPENPOSE = option("--openpose", "Also write OpenPose's JSON files into this folder.", FILES)
COCO = option("--coco", "Also write COCO-WholeBody annotations.", FILES)
PREVIEW = option("--preview", "Also write a sheet of frames with their poses.", FILES)
DETECTOR = option("--detector", "auto, dwpose or light.", PEOPLE, shown=True)
PERSON = option(
    "--person", "largest, central, all, or a number: 1 is the most prominent.", PEOPLE, shown=True
)
MAX_PEOPLE = option("--max-people", "That the light detector follows at once.", PEOPLE, shown=True)
DETECT_EVERY = option("--detect-every", "Frames between two of DWPose's searches.", PEOPLE, shown=True)
PERSON_NETWORK = option("--person-network", "A YOLOX network: id or ONNX file.", PEOPLE, shown=True)
POSE_NETWORK = option(
    "--pose-network", "A DWPose, RTMPose or RTMW network: id or ONNX file.", PEOPLE, shown=True
)
WHOLE_BODY = option("--whole-body/--body-only", "With or without hands and face.", PEOPLE)
SMOOTHING = option("--smoothing", "savgol, gaussian, one-euro or none.", PEOPLE, shown=True)
FILL = option("--fill", "Fill gaps up to this many seconds.", PEOPLE, shown=True)
RAW = option("--raw", "Repair and smooth nothing.", PEOPLE, metavar="")
DRAW = option("--draw", "What of a pose to draw.", DRAWING, shown=True)
THICKNESS = option("--thickness", "Of lines and dots.", DRAWING, shown=True)
FADE = option("--fade", "Draw what is unsure darker.", DRAWING, metavar="")
FIT = option(
    "--fit", "source, center, or a picture of a person whose body and place are taken.", DRAWING, shown=True
)

pose_app = typer.Typer()


@pose_app.command("extract-pose", rich_help_panel="Make videos")
def extract_pose(
    source: Annotated[str, SOURCE],
    output: Annotated[Path, OUTPUT],
    keypoints: Annotated[Path | None, JSON] = None,
    openpose: Annotated[Path | None, OPENPOSE] = None,
    coco: Annotated[Path | None, COCO] = None,
    preview: Annotated[Path | None, PREVIEW] = None,
    size: Annotated[str | None, SIZE] = None,
    fps: Annotated[str | None, FPS] = None,
    start: Annotated[str, START] = "0",
    duration: Annotated[str | None, DURATION] = None,
    detector: Annotated[str, DETECTOR] = "auto",
    person: Annotated[str, PERSON] = "largest",
    max_people: Annotated[int, MAX_PEOPLE] = 8,
    detect_every: Annotated[int, DETECT_EVERY] = 4,
    person_network: Annotated[str, PERSON_NETWORK] = "dwpose.det",
    pose_network: Annotated[str, POSE_NETWORK] = "dwpose.pose",
    whole_body: Annotated[bool, WHOLE_BODY] = True,
    smoothing: Annotated[str, SMOOTHING] = "savgol",
    fill: Annotated[float, FILL] = 0.25,
    raw: Annotated[bool, RAW] = False,
    draw: Annotated[str, DRAW] = "body,hands,face",
    thickness: Annotated[float, THICKNESS] = 1.0,
    fade: Annotated[bool, FADE] = False,
    fit: Annotated[str, FIT] = "source",
    metrics: Annotated[str | None, METRICS] = None,
    resume: Annotated[bool, RESUME] = False,
    skip_existing: Annotated[bool, switch("--skip-existing", "Leave out what is there already.")] = False,
    overwrite: Overwrite = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Find the dancer's pose in a video; write it as a map and, if asked, as keypoints.

    With keypoints as input, draw, convert or fit them.
    """
    from dreamoving_cli.extract.draw import PARTS, Style
    from dreamoving_cli.extract.pose_files import Outputs, PoseJob
    from dreamoving_cli.extract.repair import RepairOptions
    from dreamoving_cli.extract.settings import PoseOptions

    refuse_metrics(metrics)
    parts = [part.strip() for part in draw.split(",") if part.strip()]
    if unknown := set(parts) - set(PARTS):
        raise UsageError(
            f"draw is '{draw}', and nobody has {sorted(unknown)}", f"Choose some of: {', '.join(PARTS)}."
        )
    stretch = stretch_of(size, fps, start, duration)
    repair = RepairOptions(not raw, "none" if raw else smoothing, fill)
    options = PoseOptions(
        detector, person, whole_body, max_people, detect_every, person_network, pose_network, repair
    )
    drawn = {part: part in parts for part in PARTS}
    style = Style(**drawn, thickness=thickness, fade=fade)
    outputs = Outputs(output, keypoints, openpose, coco, preview)
    job = PoseJob(only_keypoints(outputs), stretch, options, style, fit, overwrite, resume)
    videos = many(source)
    if videos is None:
        one(Path(source), job, metrics, skip_existing)
        return
    folders = facts(outputs)
    jobs = [replace(job, outputs=Outputs(**in_folders(folders, SUFFIXES, video))) for video in videos]
    each = [(video, job.outputs.paths()) for video, job in zip(videos, jobs, strict=True)]
    all_of(each, lambda k: one(videos[k], jobs[k], metrics, skip_existing))


def only_keypoints(outputs: "Outputs") -> "Outputs":
    """OUT named .json is the keypoints and no map."""
    if outputs.map is None or outputs.map.suffix.lower() != ".json":
        return outputs
    if outputs.keypoints:
        raise UsageError(f"OUT is '{outputs.map}', and --json names a second file", "Name one of them.")
    return replace(outputs, map=None, keypoints=outputs.map)


SUFFIXES = {"map": ".pose.mp4", "keypoints": ".json", "openpose": "", "coco": ".coco.json", "preview": ".png"}


def one(source: Path, job: "PoseJob", metrics: str | None, skip_existing: bool) -> None:
    """One video, and what to print of it."""
    from dreamoving_cli.extract.pose_files import extract_pose_files
    from dreamoving_cli.progress import progress

    if skip_existing and is_done(source, job.outputs.paths()):
        return
    with progress() as on_progress:
        result = extract_pose_files(source, job, on_progress)
    for reason in result.verdict.reasons:
        say(f"fit: {reason}")
    verdict = facts(result.verdict) if metrics == "json" else {}
    show_files(source, result.paths, facts(result.report) | verdict, metrics)
