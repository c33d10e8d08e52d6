"""What the commands of extraction share: flags of the stretch, many videos in one call, what is printed.

Not here: the commands themselves (pose_command.py, depth_command.py) and any work (extract/).
"""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dreamoving_cli.errors import InputError, OutputError, UsageError, UserError
from dreamoving_cli.media.suffixes import VIDEOS, files_of
from dreamoving_cli.terminal import RUN, option, say, show, switch

if TYPE_CHECKING:
    from dreamoving_cli.extract.footage import Stretch

FILES = "Files"


SIZE = option("--size", "Look at the video at WIDTHxHEIGHT, cropped at its center.", FILES)
FPS = option("--fps", "Frames a second (default: the video's own).", FILES)
START = option("--start", "Begin here: seconds or M:SS.", FILES)
RESUME = switch("--resume", "Go on with an extraction that was cut off.")
METRICS = option("--metrics", "Print what was measured: text or json.", RUN, metavar="text|json")
DURATION = option("--duration", "Look at this much: seconds or M:SS.", FILES)


def stretch_of(size: str | None, fps: str | None, start: str, duration: str | None) -> "Stretch":
    """The stretch that the flags name."""
    from dreamoving_cli.extract.footage import Stretch
    from dreamoving_cli.options import frame_rate, picture_size

    width, height = map(int, picture_size(size).split("x")) if size else (0, 0)
    rate = frame_rate(None if fps == "source" else fps)
    begin, length = moment("start", start), moment("duration", duration) if duration else None
    return Stretch(Fraction(rate) if rate else None, begin, length, (height, width) if size else None)


def moment(name: str, text: str) -> Fraction:
    """Exact seconds of "2.5" or "1:02.5"."""
    from dreamoving_cli.options import seconds

    try:
        return Fraction(seconds(text))
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(f"{name} is '{text}'", "Give seconds or M:SS, such as 2.5 or 1:02.5.") from error


def refuse_metrics(metrics: str | None) -> None:
    """UsageError where --metrics is no known form."""
    if metrics not in (None, "text", "json"):
        raise UsageError(f"metrics is '{metrics}'", "Choose text or json.")


def show_files(source: Path, paths: Sequence[Path], measured: Mapping[str, Any], metrics: str | None) -> None:
    """The files, one a line, and what was measured under them; or all as JSON."""
    if metrics == "json":
        show({"input": str(source), "files": [str(path) for path in paths], **measured}, as_json=True)
        return
    for path in paths:
        typer.echo(path)
    if metrics:
        show(dict(measured), as_json=False)


def many(source: str) -> list[Path] | None:
    """The videos of a folder or a pattern, sorted; None where IN is one thing."""
    if any(Path(source).glob("*_keypoints.json")):  # OpenPose's folder is one video's
        return None
    found = files_of(source, VIDEOS)
    if found == []:
        raise InputError(f"no video is in '{source}'", "Check the folder or the pattern.")
    return found


def in_folders(
    folders: Mapping[str, Path | None], suffixes: Mapping[str, str], video: Path
) -> dict[str, Path]:
    """The outputs of one of many videos: what was named is a folder, the file is named after the video."""
    named = {}
    for name, folder in folders.items():
        if folder is None:
            continue
        if folder.suffix:
            raise UsageError(f"'{folder}' is one file for many videos", "Name a folder.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{folder} cannot be made ({error.strerror})", "Choose another folder."
            ) from error
        named[name] = folder / f"{video.stem}{suffixes[name]}"
    return named


def all_of(jobs: Sequence[tuple[Path, Sequence[Path]]], extract: Callable[[int], None]) -> None:
    """One after the other; who fails is named, the others are made, the first failure is the exit code.

    jobs: videos and what is written of each; extract: makes the one of this number.
    """
    paths = [path for _, outputs in jobs for path in outputs]
    if len(set(paths)) < len(paths):
        raise UsageError("two of the videos have one name", "Extract them into different folders.")
    failures: list[UserError] = []
    for k, (video, _) in enumerate(jobs):
        try:
            extract(k)
        except UserError as error:
            failures.append(error)
            about = "" if str(video) in str(error) else f"{video}: "
            typer.secho(f"dreamoving: {about}{error}", fg="red", err=True)
    if failures:
        say(f"{len(failures)} of {len(jobs)} videos failed")
        raise typer.Exit(failures[0].exit_code)


def is_done(source: Path, paths: Sequence[Path]) -> bool:
    """Whether all that would be written is there; then say so and name it."""
    if not all(path.exists() for path in paths):
        return False
    say(f"{source} is done already")
    for path in paths:
        typer.echo(path)
    return True
