"""The `dataset` commands: parse, call one function, print. Results on stdout, talk on stderr.

Not here: any work (dataset/build.py).
"""

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.media.suffixes import VIDEOS
from dreamoving_cli.terminal import AsJson, Debug, Verbose, facts, option, say, show, switch

if TYPE_CHECKING:
    from dreamoving_cli.dataset.build import Report
    from dreamoving_cli.dataset.jobs import Source

CUTS, JUDGMENT, FILES = "How it is cut", "What is kept", "Files"


OUT = option("--out", "The folder of the data set; made if absent.", FILES, metavar="DIR")
LIST = option("--list", "A CSV file of clips: file, start, end and maybe caption.", FILES, metavar="CSV")
CAPTIONS = option("--captions", "A CSV file: file, caption. Or NAME.txt.", FILES, metavar="CSV")
CAPTIONER = option("--captioner", "Who describes the rest: off, auto, mini, minigpt-v2.", FILES, shown=True)
SHARD = option("--shard-mb", "Most megabytes of one shard.", FILES, shown=True)
WORKERS = option("--workers", "Processes.", FILES, shown=True, min=1)
LEAST = option("--min", "Shortest clip in seconds.", CUTS, shown=True)
MOST = option("--max", "Longest clip in seconds.", CUTS, shown=True)
FPS = option("--fps", "Frames a second (default: the video's own, halved while above 30).", CUTS)
SIDE = option("--side", "Pixels of the shorter side as stored, at most.", CUTS, shown=True)
CONTROLS = option("--controls", "What is extracted: pose, depth or both.", CUTS, shown=True)
DETECTOR = option("--detector", "auto, dwpose or light.", CUTS, shown=True)
NOBODY = option("--keep-people-less", "Keep clips in which nobody is.", JUDGMENT, metavar="")
STATIC = option("--static", "Drop clips that move less than this, of 255.", JUDGMENT, shown=True)
BLUR = option("--blur", "Drop what is more blurred, 0 to 1.", JUDGMENT, shown=True)
PEOPLE = option("--people", "Drop clips that show the dancer in fewer of their frames.", JUDGMENT, shown=True)

dataset_app = typer.Typer(no_args_is_help=True, help="Training data from your own footage and pictures.")


@dataset_app.command("build")
def build(
    videos: Annotated[
        list[Path] | None,
        typer.Argument(metavar="VIDEOS...", help="Videos, or folders of them.", show_default=False),
    ] = None,
    out: Annotated[Path | None, OUT] = None,
    clips: Annotated[Path | None, LIST] = None,
    captions: Annotated[Path | None, CAPTIONS] = None,
    least: Annotated[str, LEAST] = "8",
    most: Annotated[str, MOST] = "10",
    fps: Annotated[str | None, FPS] = None,
    side: Annotated[int, SIDE] = 512,
    controls: Annotated[str, CONTROLS] = "pose",
    detector: Annotated[str, DETECTOR] = "auto",
    keep_people_less: Annotated[bool, NOBODY] = False,
    static: Annotated[float, STATIC] = 3.0,
    blur: Annotated[float, BLUR] = 0.85,
    people: Annotated[float, PEOPLE] = 0.8,
    captioner: Annotated[str, CAPTIONER] = "off",
    shard_mb: Annotated[int, SHARD] = 512,
    workers: Annotated[int, WORKERS] = 1,
    dry_run: Annotated[bool, switch("--dry-run", "Look through the videos, report, write nothing.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Cut videos into clips without transitions, with poses and captions, packed into WebDataset shards.

    A build that was cut off goes on when the same command is given again.
    """
    from dreamoving_cli.dataset.build import build_clips
    from dreamoving_cli.dataset.rules import Rules
    from dreamoving_cli.options import frame_rate
    from dreamoving_cli.progress import progress

    rate = frame_rate(fps)
    wanted = tuple(kind.strip() for kind in controls.split(",") if kind.strip())
    rules = Rules(
        number("min", least), number("max", most), Fraction(rate) if rate else None, side, wanted,
        detector, keep_people_less, static, blur, people, shard_mb, captioner,
    )  # fmt: skip
    if out is None and not dry_run:
        raise UsageError("there is no folder to write to", "Give --out DIR, or --dry-run.")
    sources = find_videos(videos or [], clips, captions)
    with progress() as on_progress:
        report = build_clips(sources, rules, None if dry_run else out, workers, on_progress)
    show_report(report, as_json)


@dataset_app.command("pictures")
def pictures(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="PICTURES...", help="Pictures, folders or tars of them.", show_default=False),
    ],
    out: Annotated[Path, OUT],
    captions: Annotated[Path | None, CAPTIONS] = None,
    side: Annotated[int, SIDE] = 512,
    blur: Annotated[float, BLUR] = 0.85,
    captioner: Annotated[str, CAPTIONER] = "off",
    shard_mb: Annotated[int, SHARD] = 512,
    workers: Annotated[int, WORKERS] = 1,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Pack pictures of people with crops of face and garment; those that show no face are left out."""
    from dreamoving_cli.dataset.build import build_pictures
    from dreamoving_cli.dataset.captions import read_captions
    from dreamoving_cli.dataset.pictures import find_pictures
    from dreamoving_cli.dataset.rules import Rules
    from dreamoving_cli.progress import progress

    found = find_pictures(sources)
    table = read_captions(captions) if captions else {}
    rules = Rules(side=side, blur=blur, shard_mb=shard_mb, captioner=captioner)
    with progress() as on_progress:
        report = build_pictures(found, table, rules, out, workers, on_progress)
    show_report(report, as_json)


@dataset_app.command("check")
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A data set.", show_default=False)],
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Compare a data set's shards with the hashes in its manifest."""
    from dreamoving_cli.dataset.build import check as problems

    found = list(problems(folder))
    for problem in found:
        say(problem)
    if found:
        raise InputError(f"{len(found)} shards of {folder} are not as they were", "Build the data set again.")
    typer.echo(folder)


def number(name: str, text: str) -> Fraction:
    """Exact seconds of a flag."""
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(f"{name} is '{text}'", "Give seconds, such as 8 or 2.5.") from error


def find_videos(given: list[Path], listed: Path | None, captions: Path | None) -> "list[Source]":
    """Every video that was named, in a folder or in a list, with its words."""
    from dreamoving_cli.dataset.captions import caption_of, read_captions, read_list
    from dreamoving_cli.dataset.jobs import Source

    table = read_captions(captions) if captions else {}
    files = [found for path in given for found in (videos_in(path) if path.is_dir() else [path])]
    sources = [Source(path.name, path, (), caption_of(path, path.name, table)) for path in files]
    for path, stretches in (read_list(listed) if listed else {}).items():
        sources.append(Source(path.name, path, stretches, caption_of(path, path.name, table)))
    if not sources:
        raise InputError("there are no videos in what was given", "Give videos, folders of them, or --list.")
    return sources


def videos_in(folder: Path) -> list[Path]:
    """All videos of a folder and of those in it, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEOS)


def show_report(report: "Report", as_json: bool) -> None:
    """The report, counts by reason in one line each."""
    values = facts(report)
    if not as_json:
        for name in ("dropped", "skipped"):
            values[name] = ", ".join(f"{n} {reason}" for reason, n in values[name].items()) or "none"
        values = {name: value for name, value in values.items() if value != ""}
    show(values, as_json)
