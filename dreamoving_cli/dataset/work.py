"""The unfinished part of a data set, `OUT/.work`: what is done stays done when the process is killed.

Every result is one file or folder that appears whole; what it is called says what it was made from.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dreamoving_cli.errors import OutputError
from dreamoving_cli.whole import whole_file, writing


@dataclass(frozen=True)
class Work:
    """Where the parts of a build are."""

    out: Path

    @property
    def folder(self) -> Path:
        return self.out / ".work"

    @property
    def manifest(self) -> Path:
        return self.out / "manifest.json"

    def survey(self, name: str) -> Path:
        """What was seen in one video."""
        return self.folder / "surveys" / f"{name}.json"

    def sample(self, key: str) -> Path:
        """The folder of a finished sample's members."""
        return self.folder / "samples" / key

    def verdict(self, key: str) -> Path:
        """What became of a candidate; written last."""
        return self.folder / "verdicts" / f"{key}.json"

    def thumbnail(self, key: str) -> Path:
        return self.folder / "thumbnails" / f"{key}.jpg"

    @contextmanager
    def open(self, settings: dict[str, Any]) -> Iterator[None]:
        """Begin or go on; refuses a folder that holds something else, or at which somebody else works."""
        if self.out.is_dir() and not self.folder.is_dir() and any(self.out.iterdir()):
            raise OutputError(f"{self.out} is not empty", "Give a new folder.")
        with writing(self.out):
            for name in ("surveys", "samples", "verdicts", "thumbnails"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / "lock", timeout=0):
                self._same(settings)
                yield
        except Timeout as error:
            raise OutputError(f"another process builds {self.out}", "Wait for it, or stop it.") from error

    def _same(self, settings: dict[str, Any]) -> None:
        path = self.folder / "settings.json"
        if not path.exists():
            write_json(path, settings)
        elif (before := read_json(path)) != settings:
            key = next(k for k in {**before, **settings} if before.get(k) != settings.get(k))
            raise OutputError(
                f"{self.out} was begun with {key} {before.get(key)}, now it is {settings.get(key)}",
                f"Give the same options to go on, or remove '{self.out}'.",
            )

    def remove(self) -> None:
        """Everything is in the shards now."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write_json(path: Path, values: Any) -> Path:
    """Write a JSON file, whole."""
    with whole_file(path) as part:
        part.write_text(json.dumps(values, sort_keys=True, indent=1) + "\n", encoding="utf-8")
    return path


def read_json(path: Path) -> Any:
    """A JSON file of ours."""
    return json.loads(path.read_text(encoding="utf-8"))
