"""Outputs appear whole or not at all: checks before the work, a hidden part file, one rename after it."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dreamoving_cli.errors import OutputError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
UNWRITABLE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EIO,
    errno.ENODEV,
    errno.ENXIO,
}


def check_output(path: Path, overwrite: bool = False) -> None:
    """Refuse an output that exists (unless `overwrite`) or whose folder is missing or unwritable."""
    path = Path(path)
    parent = path.absolute().parent
    if not parent.is_dir():
        raise OutputError(f"{parent} is not a folder, so {path.name} cannot be written there", "Create it.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent} is not writable", "Choose another output.")
    if len(os.fsencode(path.name)) > 200:  # the part file's name is longer, and 255 bytes are the limit
        raise OutputError(f"the name {path.name[:40]}... is too long for a file", "Choose a shorter one.")
    if os.path.lexists(path) and not overwrite:
        raise OutputError(f"{path} already exists", "Choose another output or give --overwrite.")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A hidden neighbor to write to; it becomes `path` when the block ends well and vanishes when not.

    What the system says about the write (disk full, read-only, ...) becomes an OutputError.
    """
    with writing(Path(path)), part_file(Path(path)) as part:
        yield part


@contextmanager
def part_file(path: Path) -> Iterator[Path]:
    """As `whole_file`, for blocks that also read: errors inside keep their meaning, see `writing`."""
    part = part_path(path)
    try:
        yield part
        with writing(path):
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def part_folder(path: Path) -> Iterator[Path]:
    """As `part_file`, for a folder of pictures; a folder that held other things is never replaced."""
    part = part_path(path)
    refuse_foreign_folder(path)
    try:
        with writing(path):
            part.mkdir()
        yield part
        with writing(path):
            replace_folder(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def part_path(path: Path) -> Path:
    """Where the unfinished output is: hidden, in the same folder, one per process."""
    return path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")


def refuse_foreign_folder(path: Path) -> None:
    """An existing output folder may hold numbered PNG files and nothing else."""
    if not path.is_dir():
        return
    other = next((f for f in path.iterdir() if f.suffix != ".png" or not f.stem.isdigit()), None)
    if other is not None:
        raise OutputError(f"{path} holds other files ({other.name})", "Choose an empty or new folder.")


def replace_folder(part: Path, path: Path) -> None:
    """Rename `part` to `path`; the folder that was there is removed last."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.is_dir():
        path.rename(old)
    part.rename(path)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says about a write into one sentence; anything else is a bug and passes."""
    try:
        yield
    except OSError as error:  # PyAV's errors with a system code are OSErrors too
        if error.errno in FULL:
            raise OutputError(f"the disk is full: {path} was not written", "Free some space.") from error
        if error.errno in UNWRITABLE:
            reason = os.strerror(error.errno or 0).lower()
            raise OutputError(f"{path} cannot be written: {reason}", "Choose another output.") from error
        raise
