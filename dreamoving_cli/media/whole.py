"""Outputs: checks before the work, and folders of pictures that appear whole or not at all.

Not here: single files (dreamoving_cli/whole.py).
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dreamoving_cli.errors import OutputError
from dreamoving_cli.whole import part_path, writing


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
