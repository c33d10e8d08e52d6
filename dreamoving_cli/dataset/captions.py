"""The words of a sample: from a table, from a text file beside its source, or from a captioner.

A table is a CSV file with the columns `file` and `caption`; a list of clips has `file`, `start`, `end` and,
if there are any, captions.
"""

import csv
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from dreamoving_cli.dataset.survey import Stretch
from dreamoving_cli.errors import InputError

if TYPE_CHECKING:
    from dreamoving_cli.caption.describe import Describer

FILE = ("file", "video", "path", "image", "name")  # what the column of file names may be called
WORDS = ("caption", "text", "prompt")


def rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, values by lower-case column) of a CSV file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error})", "Give a CSV file in UTF-8.") from error
    table = csv.DictReader(text.splitlines())
    for line, row in enumerate(table, start=2):
        yield line, {str(k).strip().lower(): (v or "").strip() for k, v in row.items() if isinstance(v, str)}


def cell(row: Mapping[str, str], names: tuple[str, ...]) -> str:
    """The first of these columns that is there."""
    return next((row[name] for name in names if row.get(name)), "")


def read_captions(path: Path) -> dict[str, str]:
    """File name, and its stem, -> caption."""
    found: dict[str, str] = {}
    for line, row in rows(path):
        name, words = cell(row, FILE), cell(row, WORDS)
        if not name:
            raise InputError(f"{path} names no file in line {line}", "It needs the columns file and caption.")
        found[Path(name).name] = found[Path(name).stem] = words
    return found


def read_list(path: Path) -> dict[Path, tuple[Stretch, ...]]:
    """Video -> the stretches of it that are listed; paths are relative to the list."""
    found: dict[Path, list[Stretch]] = {}
    for line, row in rows(path):
        name = cell(row, FILE)
        if not name:
            raise InputError(f"{path} names no file in line {line}", "It needs the columns file, start, end.")
        start, end = (moment(row.get(column, ""), path, line) for column in ("start", "end"))
        stretch = Stretch(start or Fraction(0), end, cell(row, WORDS))
        found.setdefault(path.parent / name, []).append(stretch)
    if not found:
        raise InputError(f"{path} lists no clips", "It needs the columns file, start, end.")
    return {video: tuple(stretches) for video, stretches in found.items()}


def moment(text: str, path: Path, line: int) -> Fraction | None:
    """Seconds of "2.5" or "1:02.5"; None where there is nothing."""
    if not text:
        return None
    try:
        total = Fraction(0)
        for part in text.split(":"):
            total = 60 * total + Fraction(part)
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"'{text}' in line {line} of {path} is no time", "Give seconds or M:SS.") from error
    return total


def caption_of(source: Path, name: str, table: Mapping[str, str]) -> str:
    """The words for a file: of the table, else of the .txt beside it; "" where nobody says anything."""
    told = table.get(Path(name).name) or table.get(Path(name).stem)
    if told:
        return told
    beside = source.with_suffix(".txt")
    return beside.read_text(encoding="utf-8").strip() if beside.is_file() else ""


def described(path: Path, captioner: str) -> str:
    """What a captioner says of a clip or picture, to the paper's prompt; "" where it is off."""
    return describer(captioner).describe(path).caption if captioner != "off" else ""


@lru_cache(maxsize=1)
def describer(captioner: str) -> "Describer":
    """The captioner of this process."""
    from dreamoving_cli.caption.describe import Describer, Request
    from dreamoving_cli.caption.models import choose_captioner

    return Describer(choose_captioner(captioner), Request(boxes=False))
