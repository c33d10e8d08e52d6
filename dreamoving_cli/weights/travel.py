"""Weight files for machines without a network: out, a folder or tar; in, anything that holds known files.

What comes in is told by its sha256 alone. Candidates are chosen by size or name, so that a large folder of
other files is not hashed for nothing.
"""

import io
import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from dreamoving_cli.errors import InputError, MismatchError, OutputError, WeightsError
from dreamoving_cli.weights import archives, overlay, store
from dreamoving_cli.weights.lock import Entry, Lock, lock_path, source_name
from dreamoving_cli.whole import part_path, writing

LOCK_NAME, OVERLAY_NAME = "models.lock", "overlay.toml"
BLOBS = "blobs/sha256/"
HEX_LENGTH = 64


@dataclass(frozen=True)
class Imported:
    """What an import found."""

    taken: list[str] = field(default_factory=list)  # ids that are here now
    present: list[str] = field(default_factory=list)  # ids that were here before
    unknown: list[str] = field(default_factory=list)  # files that look like weights and are in no lock


# ---- out


def export(entries: Sequence[Entry], destination: Path) -> list[str]:
    """Write these files, which must be here, to a new folder or .tar; it appears whole or not at all."""
    absent = [entry.id for entry in entries if not store.is_sound(entry)]
    if absent:
        raise WeightsError(
            f"not here: {', '.join(absent)}", f"First: dreamoving models pull {' '.join(absent)}"
        )
    if os.path.lexists(destination):
        raise OutputError(f"{destination} already exists", "Choose another output.")
    if not destination.absolute().parent.is_dir():
        raise OutputError(f"{destination.parent} is not a folder", "Create it.")
    part = part_path(destination)
    writer = _write_tar if destination.suffix == ".tar" else _write_folder
    try:
        with writing(destination):
            writer(entries, part)
            part.rename(destination)
    finally:
        _remove(part)
    return [entry.id for entry in entries]


def _papers(entries: Iterable[Entry]) -> dict[str, bytes]:
    """What travels beside the blobs: the lock, and what was observed of unlocked files."""
    seen = overlay.read_overlay().observed
    mine = {entry.id: seen[entry.id] for entry in entries if entry.observed}
    text = overlay.overlay_text(overlay.Overlay(mine, frozenset()))
    return {LOCK_NAME: lock_path().read_bytes(), OVERLAY_NAME: text.encode()}


def _write_tar(entries: Iterable[Entry], part: Path) -> None:
    with tarfile.open(part, "w") as tar:
        for name, content in _papers(entries).items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
        for entry in entries:
            tar.add(store.blob_path(entry.sha256).resolve(), BLOBS + entry.sha256)


def _write_folder(entries: Iterable[Entry], part: Path) -> None:
    (part / BLOBS).mkdir(parents=True)
    for name, content in _papers(entries).items():
        (part / name).write_bytes(content)
    for entry in entries:
        with store.blob_path(entry.sha256).open("rb") as old, (part / BLOBS / entry.sha256).open("wb") as new:
            while chunk := old.read(2**20):
                new.write(chunk)


def _remove(part: Path) -> None:
    import shutil

    shutil.rmtree(part, ignore_errors=True)
    part.unlink(missing_ok=True)


# ---- in


def import_from(paths: Sequence[Path], lock: Lock, allow_unlocked: Sequence[str] = ()) -> Imported:
    """Take every known file from these files, folders, zips, wheels and tars."""
    result = Imported()
    if len(allow_unlocked) == 1 and len(paths) == 1 and paths[0].is_file() and not _is_archive(paths[0]):
        entry = lock.find(allow_unlocked[0])
        if not entry.sha256 or entry.observed:
            take_unlocked(entry, paths[0])
            result.taken.append(entry.id)
            return result
    catalog = _Catalog(lock, frozenset(allow_unlocked))
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} is not there", "Give a file, a folder, or what `models export` wrote.")
        for found in _files(path):
            _import_file(found, catalog, result, asked_for=found == path)
    return result


def take_unlocked(entry: Entry, path: Path) -> None:
    """This file is the unlocked entry: the user says so, and from then on its hash says so."""
    sha256 = store.file_sha256(path)
    if store.copy(path, sha256) is None:
        raise MismatchError(f"{path} changed while it was read", "Try again.")
    overlay.remember(overlay.Observed(entry.id, sha256, path.stat().st_size, "imported"))


class _Catalog:
    """What can be recognized: the lock, and hashes observed elsewhere of files that the user allows."""

    def __init__(self, lock: Lock, allow_unlocked: frozenset[str]) -> None:
        self.allow = allow_unlocked
        for name in allow_unlocked:
            lock.find(name)
        self.by_hash = {entry.sha256: entry for entry in lock.entries.values() if not entry.unlocked}
        self.sizes = {entry.size for entry in self.by_hash.values()}
        self.names = {source_name(source) for entry in self.by_hash.values() for source in entry.sources}
        self.observed: dict[str, overlay.Observed] = {}

    def learn(self, text: str) -> None:
        """Hashes that the exporting machine observed; they count where the user allows the file."""
        self.observed |= {each.sha256: each for each in overlay.parse_overlay(text).observed.values()}

    def may_be(self, name: str, size: int) -> bool:
        """Whether a file is worth hashing."""
        hashlike = len(name) == HEX_LENGTH and (name in self.by_hash or name in self.observed)
        unsized = None in self.sizes and name in self.names
        return hashlike or unsized or (size in self.sizes and size > 0)

    def recognize(self, sha256: str) -> str | None:
        """The id of a file with this hash."""
        if sha256 in self.by_hash:
            return self.by_hash[sha256].id
        seen = self.observed.get(sha256)
        if seen is None:
            return None
        if seen.id not in self.allow:
            raise WeightsError(
                f"'{seen.id}' is unlocked: only the exporting machine says that these are its bytes",
                f"To believe it: --allow-unlocked {seen.id}",
            )
        overlay.remember(seen)
        return seen.id


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    overlays = [path / OVERLAY_NAME] if (path / OVERLAY_NAME).is_file() else []
    yield from overlays  # before the blobs that it speaks of
    yield from (each for each in sorted(path.rglob("*")) if each.is_file() and each not in overlays)


def _is_archive(path: Path) -> bool:
    return path.suffix == ".tar" or path.suffix in (".zip", ".whl")


def _import_file(path: Path, catalog: _Catalog, result: Imported, asked_for: bool) -> None:
    if path.name == OVERLAY_NAME:
        catalog.learn(path.read_text(encoding="utf-8"))
    elif path.suffix == ".tar" and asked_for:
        _import_tar(path, catalog, result)
    elif path.suffix in (".zip", ".whl") and asked_for:
        _import_zip(path, catalog, result)
    elif asked_for or catalog.may_be(path.name, path.stat().st_size):
        _take(path, catalog, result, asked_for)


def _take(path: Path, catalog: _Catalog, result: Imported, asked_for: bool, ours: bool = False) -> None:
    """Take one file if it is a known one: copied, or as it is if the part is `ours`."""
    sha256 = store.file_sha256(path)
    name = catalog.recognize(sha256)
    if name is None:
        if asked_for:
            raise MismatchError(
                f"{path} is no file of models.lock (sha256 {sha256})",
                "See the wanted hashes: dreamoving models list --json. An unlocked one: --allow-unlocked ID.",
            )
        result.unknown.append(str(path))
    elif store.is_unchanged(sha256):
        result.present.append(name)
    elif (store.keep(path, sha256) if ours else store.copy(path, sha256)) is not None:
        result.taken.append(name)


@contextmanager
def _as_part(stream: IO[bytes], name: str) -> Iterator[Path]:
    part = store.part_path(f"import-{os.getpid()}-{name}")
    try:
        with store.writing(), part.open("wb") as file:
            while chunk := stream.read(2**20):
                file.write(chunk)
            store.sync(file.fileno())
        yield part
    finally:
        part.unlink(missing_ok=True)


def _import_tar(path: Path, catalog: _Catalog, result: Imported) -> None:
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                name = member.name.rsplit("/", 1)[-1]
                if stream is None:
                    continue
                if name == OVERLAY_NAME:
                    catalog.learn(stream.read().decode())
                elif catalog.may_be(name, member.size):
                    with _as_part(stream, store.safe(name)) as part:
                        _take(part, catalog, result, asked_for=False, ours=True)
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{path} is damaged ({error})", "Export it again.") from error


def _import_zip(path: Path, catalog: _Catalog, result: Imported) -> None:
    try:
        members = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is no zip archive ({error})", "Fetch it again.") from error
    with members:
        for member in members.infolist():
            if catalog.may_be(member.filename.rsplit("/", 1)[-1], member.file_size):
                part, _ = archives.extract(members, member)
                _take(part, catalog, result, asked_for=False, ours=True)
                part.unlink(missing_ok=True)
