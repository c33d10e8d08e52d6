"""Which files are videos or pictures by their names, and the many files that one argument may mean."""

import glob
from collections.abc import Collection
from pathlib import Path

VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"}
PICTURES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".ppm", ".pgm"}


def files_of(source: str, suffixes: Collection[str]) -> list[Path] | None:
    """The files with these suffixes in a folder, or all of a pattern, sorted; None: one thing is meant."""
    path = Path(source)
    if path.is_dir():
        return [p for p in sorted(path.iterdir()) if p.suffix.lower() in suffixes and p.is_file()]
    if path.exists() or not any(mark in source for mark in "*?["):
        return None
    names = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 (absolute patterns too)
    return [Path(name) for name in names if Path(name).is_file()]
