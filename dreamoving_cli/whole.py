"""Files appear whole or not at all: a hidden neighbor to write to, one rename after it."""

import errno
import os
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


def part_path(path: Path) -> Path:
    """Where the unfinished output is: hidden, in the same folder, one per process."""
    return path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")


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
