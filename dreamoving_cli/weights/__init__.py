"""The public weight files: which exist (models.lock), where they lie, how they come here; not their content.

    weight_path("motion.sd15-v2")    a verified file; fetched if the user's rules allow it
    weight_paths([...])              several, all that are missing named in one refusal
    entry("motion.sd15-v2")          what is known of it: kind, variant, motion.frames, motion.norm, ...
    entry_by_sha256(hash)            which locked file this is, or None

In reading order: lock.py, overlay.py, store.py, transport.py, hub.py, archives.py, fetch.py, pull.py; then
travel.py, upkeep.py and refresh.py, which only the `models` commands need.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from dreamoving_cli.errors import WeightsError
from dreamoving_cli.weights import overlay, store
from dreamoving_cli.weights.fetch import Rules, bring
from dreamoving_cli.weights.lock import Entry, License, Lock, Motion
from dreamoving_cli.weights.overlay import known
from dreamoving_cli.weights.store import file_sha256

__all__ = [
    "Entry", "License", "Lock", "Motion", "Rules", "entry", "entry_by_sha256", "file_sha256", "known",
    "list_weights", "weight_path", "weight_paths",
]  # fmt: skip


def entry(weight_id: str) -> Entry:
    """What the lock knows of a file; an unknown id is refused with the nearest."""
    return known().find(weight_id)


def entry_by_sha256(sha256: str) -> Entry | None:
    """The entry whose file has this hash."""
    return next((each for each in known().entries.values() if each.sha256 == sha256), None)


def list_weights() -> list[tuple[Entry, bool]]:
    """Every entry, in the lock's order, and whether it is here."""
    return [(each, store.is_here(each)) for each in known().entries.values()]


def weight_path(weight_id: str, rules: Rules | None = None) -> Path:
    """A verified file, fetched at its first use if the rules allow it. Its name is its hash, no extension."""
    lock = known()
    return bring(lock.find(weight_id), lock, rules or Rules())


def weight_paths(weight_ids: Sequence[str]) -> dict[str, Path]:
    """Verified files that must be here already; those that are not are named together, with the fix."""
    lock = known()
    entries = [lock.find(weight_id) for weight_id in weight_ids]
    absent = [each for each in entries if not store.is_sound(each)]
    if absent:
        ids = " ".join(each.id for each in absent)
        megabytes = sum(each.size or 0 for each in absent) // 10**6
        raise WeightsError(
            f"{len(absent)} weight files are not here ({megabytes} MB): {ids}",
            fetch_remedy(absent, lock),
        )
    return {each.id: store.blob_path(each.sha256) for each in entries}


def fetch_remedy(absent: Iterable[Entry], lock: Lock) -> str:
    """The command that brings these files, with all that is to be allowed and accepted for it."""
    absent, accepted = list(absent), overlay.read_overlay().accepted
    asked = dict.fromkeys(each.license for each in absent if lock.license_of(each).accept)
    terms = [name for name in asked if name not in accepted]
    words = ["dreamoving models pull", *(each.id for each in absent)]
    words += [f"--allow-unlocked {each.id}" for each in absent if each.unlocked]
    words += [f"--accept-license {name}" for name in terms]
    first = "Read the terms (dreamoving models licenses), then run" if terms else "Run"
    return f"{first}: {' '.join(words)}"
