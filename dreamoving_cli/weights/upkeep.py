"""The store looked after: checking files, what they cost, what can go. Nothing outside it is touched."""

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreamoving_cli.paths import weight_cache
from dreamoving_cli.weights import store
from dreamoving_cli.weights.lock import Entry, Lock

BUSY_S = 3600  # a part without a lock that was touched within this time may still be written to


@dataclass(frozen=True)
class Debris:
    """Something in the store that no lock needs."""

    path: Path
    size_bytes: int
    why: str


def verify(entries: Iterable[Entry], full: bool) -> dict[str, str]:
    """ok, mismatch, missing or unlocked, by id. Quick: unchanged since last hashed; full: hashed again.

    A file that is not what the lock says is put into quarantine.
    """
    return {entry.id: _verdict(entry, full) for entry in entries}


def _verdict(entry: Entry, full: bool) -> str:
    if entry.unlocked:
        return "unlocked"
    path = store.blob_path(entry.sha256)
    if not path.exists():
        return "missing"
    if not store.is_here(entry):  # of another size
        store.quarantine(path, entry.id)
        return "mismatch"
    sound = store.check_blob(entry) if full else store.is_sound(entry)
    return "ok" if sound else "mismatch"


def usage(lock: Lock) -> dict[str, int]:
    """Bytes by group, then in all and of what could be pruned. A file of two groups counts in both."""
    here = [entry for entry in lock.entries.values() if store.is_here(entry)]
    sizes = {entry.id: store.blob_path(entry.sha256).stat().st_size for entry in here}
    groups = sorted({group for entry in here for group in entry.groups})
    rows = {group: sum(sizes[entry.id] for entry in here if group in entry.groups) for group in groups}
    return rows | {"total": sum(sizes.values()), "prunable": sum(item.size_bytes for item in debris(lock))}


def debris(lock: Lock, chosen: Sequence[Entry] = ()) -> list[Debris]:
    """What pruning would remove: the chosen files, and all that no entry names."""
    needed = {entry.sha256 for entry in lock.entries.values()} - {entry.sha256 for entry in chosen}
    ids = {entry.sha256: entry.id for entry in chosen}
    blobs = [path for path in _inside("blobs/sha256") if path.name not in needed]
    found = [Debris(path, _size(path), ids.get(path.name, "in no lock")) for path in blobs]
    found += [Debris(path, _size(path), "half fetched") for path in _inside("parts") if not _in_use(path)]
    return found + [Debris(path, _size(path), "in quarantine") for path in _inside("quarantine")]


def remove(items: Iterable[Debris]) -> int:
    """Remove them; the bytes that are free now."""
    freed = 0
    for item in items:
        freed += item.size_bytes
        if item.path.parent.name == "sha256":
            store.remove(item.path.name)
        elif item.path.is_dir():
            shutil.rmtree(item.path, ignore_errors=True)
        else:
            item.path.unlink(missing_ok=True)
    return freed


def _in_use(part: Path) -> bool:
    """Whether a process works on a part; of those without a lock, made in one go, the age must tell."""
    if any(part.name.startswith(word) for word in ("link-", "copy-", "import-", "member-", "wheel-")):
        return time.time() - part.stat().st_mtime < BUSY_S
    return store.is_locked(part.stem)


def _inside(name: str) -> Iterator[Path]:
    folder = weight_cache() / name
    yield from sorted(folder.iterdir()) if folder.is_dir() else ()


def _size(path: Path) -> int:
    """What removing it frees; a link frees nothing."""
    return 0 if path.is_symlink() else path.stat().st_size
