"""The user's weight files on the disk, by content: blobs/sha256/<hex>, each whole and checked, or not there.

    blobs/sha256/<hex>   the files; a copy that was put there by hand serves as well as a fetched one
    stamps/<hex>         size, time and inode that a file had when it was last hashed
    parts/<key>.part     what has come of a file that is being fetched; the next try goes on from it
    quarantine/          files that were not what they should be, for a look
    locks/               one process at a time works on a file

Not here: where files come from (fetch.py), what the user decided (overlay.py).
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dreamoving_cli.errors import OutputError, WeightsError
from dreamoving_cli.paths import weight_cache
from dreamoving_cli.weights.lock import Entry

FULL_NOTE = "Free some space, or set DREAMOVING_CACHE to a folder on another disk."

_log = logging.getLogger(__name__)


def blob_path(sha256: str) -> Path:
    """Where the file with this hash lies once it is here."""
    return weight_cache() / "blobs" / "sha256" / sha256


def part_path(key: str) -> Path:
    """Where the bytes of an unfinished file are; the folder is made."""
    return _folder("parts") / f"{key}.part"


def is_here(entry: Entry) -> bool:
    """Whether a file of the right size lies in the store; says nothing of its content."""
    if entry.unlocked:
        return False
    try:
        return entry.size in (None, blob_path(entry.sha256).stat().st_size)
    except OSError:
        return False


def is_sound(entry: Entry) -> bool:
    """Whether the stored file is the right one: unchanged since it was last hashed, else hashed now.

    A wrong file is put into quarantine, so that it is fetched again.
    """
    return is_here(entry) and (is_unchanged(entry.sha256) or check_blob(entry))


def is_unchanged(sha256: str) -> bool:
    """Whether a stored file still has the size, time and inode that it had when it was last hashed."""
    try:
        return bool(json.loads(_stamp_path(sha256).read_text()) == _stamp(blob_path(sha256)))
    except (OSError, ValueError):
        return False


def check_blob(entry: Entry) -> bool:
    """Hash a stored file; a wrong one is put into quarantine."""
    path = blob_path(entry.sha256)
    if file_sha256(path) == entry.sha256:
        _write_stamp(entry.sha256)
        return True
    quarantine(path, entry.id)
    return False


def keep(part: Path, sha256: str) -> Path:
    """A part whose hash is `sha256` becomes the stored file, in one step."""
    path = blob_path(sha256)
    with writing():
        path.parent.mkdir(parents=True, exist_ok=True)
        part.replace(path)
    _write_stamp(sha256)
    return path


def link(source: Path, sha256: str) -> Path:
    """Take in a checked file from elsewhere, without a second copy of its bytes where the disk allows."""
    target = source.resolve()
    part = part_path(f"link-{os.getpid()}-{sha256}")
    part.unlink(missing_ok=True)
    try:
        os.link(target, part)
    except OSError:  # another disk, or one without hard links
        try:
            part.symlink_to(target)
        except OSError:  # a system that keeps links for administrators
            with writing():
                shutil.copyfile(target, part)
    return keep(part, sha256)


def copy(source: Path, sha256: str) -> Path | None:
    """Take in a copy of a file, hashed while it is copied; None if it is not the one with this hash."""
    part = part_path(f"copy-{os.getpid()}-{sha256}")
    digest = hashlib.sha256()
    try:
        with source.open("rb") as old, writing(), part.open("wb") as new:
            while chunk := old.read(2**20):
                digest.update(chunk)
                new.write(chunk)
            sync(new.fileno())
        return keep(part, sha256) if digest.hexdigest() == sha256 else None
    finally:
        part.unlink(missing_ok=True)


def quarantine(path: Path, name: str) -> Path:
    """Put a wrong file aside; the newest wrong file of a name replaces the older one."""
    aside = _folder("quarantine") / name
    with suppress(FileNotFoundError):  # another process was quicker
        path.replace(aside)
    return aside


def remove(sha256: str) -> None:
    """Take a file out of the store; what a link points to stays."""
    blob_path(sha256).unlink(missing_ok=True)
    _stamp_path(sha256).unlink(missing_ok=True)


def free_bytes() -> int:
    """What the disk of the store has left."""
    folder = weight_cache()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time; whoever comes second waits and says so."""
    from filelock import FileLock, Timeout

    lock = FileLock(_folder("locks") / f"{safe(name)}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("another process works on %s: waiting for it", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_locked(name: str) -> bool:
    """Whether a process works on this."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(_folder("locks") / f"{safe(name)}.lock", timeout=0):
            return False
    except Timeout:
        return True


@contextmanager
def writing() -> Iterator[None]:
    """Turn what the system says about a write into one sentence."""
    import errno

    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(
                f"the disk of the weight cache '{weight_cache()}' is full", FULL_NOTE
            ) from error
        raise _unwritable(error) from error


def safe(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)


def sync(descriptor: int) -> None:
    """Have the system write a file to the disk: after a power cut, a renamed file must not be empty."""
    os.fsync(descriptor)


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder(name: str) -> Path:
    folder = weight_cache() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(error) from error
    return folder


def _unwritable(error: OSError) -> WeightsError:
    return WeightsError(
        f"the weight cache '{weight_cache()}' cannot be written ({error.strerror})",
        "Set DREAMOVING_CACHE to a folder that can.",
    )


def _stamp_path(sha256: str) -> Path:
    return weight_cache() / "stamps" / sha256


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _write_stamp(sha256: str) -> None:
    part = _folder("stamps") / f".{os.getpid()}-{sha256}"
    with suppress(OSError):  # a store that cannot be written to still serves, at the price of hashing
        part.write_text(json.dumps(_stamp(blob_path(sha256))))
        part.replace(_stamp_path(sha256))
