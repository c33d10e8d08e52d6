"""The `extract-depth` command: parse, call one function a video, print. Results on stdout, talk on stderr.

Not here: any work (extract/depth_files.py).
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
from dreamoving_cli.terminal import Debug, Overwrite, Verbose, facts, option, switch

if TYPE_CHECKING:
    from dreamoving_cli.extract.depth_files import DepthJob

HOW = "How"
ENDINGS = {"auto": ".depth.mp4", "mp4": ".depth.mp4", "png8": "", "png16": "", "npz": ".npz"}

SOURCE = typer.Argument(
    metavar="IN", show_default=False, help="A video; a folder or a quoted pattern of many videos."
)
OUTPUT = typer.Argument(
    metavar="OUT",
    show_default=False,
    help="The depth map video; NAME.npz: the distances; a name without extension: a folder of 16-bit "
    "pictures; for many videos a folder.",
)
FORM = option("--format", "auto (by OUT's extension), mp4, png8, png16 or npz.", FILES, shown=True)
PREVIEW = option("--preview", "Also write frames and depth in colors: a sheet (.png) or a video.", FILES)
DETECTOR = option("--detector", "auto, zoe or light.", HOW, shown=True)
NETWORK = option("--network", "A ZoeDepth: id, file, or folder with its config.json.", HOW)
STEADY = option("--smooth/--no-smooth", "Steady what does not move over time.", HOW, shown=True)
DEVICE = option("--device", "auto, cpu, cuda, cuda:N or mps.", HOW, shown=True)

depth_app = typer.Typer()


@depth_app.command("extract-depth", rich_help_panel="Make videos")
def extract_depth(
    source: Annotated[str, SOURCE],
    output: Annotated[Path, OUTPUT],
    form: Annotated[str, FORM] = "auto",
    preview: Annotated[Path | None, PREVIEW] = None,
    size: Annotated[str | None, SIZE] = None,
    fps: Annotated[str | None, FPS] = None,
    start: Annotated[str, START] = "0",
    duration: Annotated[str | None, DURATION] = None,
    detector: Annotated[str, DETECTOR] = "auto",
    network: Annotated[str, NETWORK] = "",
    smooth: Annotated[bool, STEADY] = True,
    device: Annotated[str, DEVICE] = "auto",
    metrics: Annotated[str | None, METRICS] = None,
    resume: Annotated[bool, RESUME] = False,
    skip_existing: Annotated[bool, switch("--skip-existing", "Leave out what is there already.")] = False,
    overwrite: Overwrite = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Find how far away everything in a video is; write it as a depth map: near is white.

    Black and white are set once for the whole video, so that it does not flicker.
    """
    from dreamoving_cli.extract.depth_files import FORMATS, DepthJob
    from dreamoving_cli.extract.depth_networks import DepthOptions

    refuse_metrics(metrics)
    stretch = stretch_of(size, fps, start, duration)
    options = DepthOptions(detector, network, smooth, device)
    job = DepthJob(output, form, preview, stretch, options, overwrite, resume)
    videos = many(source)
    if videos is None:
        one(Path(source), job, metrics, skip_existing)
        return
    if form not in ENDINGS:
        from dreamoving_cli.errors import UsageError

        raise UsageError(f"format is '{form}'", f"Choose one of: {', '.join(FORMATS)}.")
    folders = {"output": output, "preview": preview}
    endings = {"output": ENDINGS[form], "preview": ".png"}
    jobs = [replace(job, **in_folders(folders, endings, video)) for video in videos]  # type: ignore[arg-type]
    each = [(video, job.paths()) for video, job in zip(videos, jobs, strict=True)]
    all_of(each, lambda k: one(videos[k], jobs[k], metrics, skip_existing))


def one(source: Path, job: "DepthJob", metrics: str | None, skip_existing: bool) -> None:
    """One video, and what to print of it."""
    from dreamoving_cli.extract.depth_files import extract_depth_files
    from dreamoving_cli.progress import progress

    if skip_existing and is_done(source, job.paths()):
        return
    with progress() as on_progress:
        result = extract_depth_files(source, job, on_progress)
    show_files(source, result.paths, facts(result.report), metrics)
