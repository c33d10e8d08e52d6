"""What this user decided: hashes of unlocked files, accepted licenses. One small file beside the weights.

The shipped lock is never written to; `known()` is the lock with the user's observations filled in.
"""

import os
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dreamoving_cli.errors import WeightsError
from dreamoving_cli.paths import weight_cache
from dreamoving_cli.weights import store
from dreamoving_cli.weights.lock import Entry, Lock, block, read_lock

OVERLAY_VERSION = 1


@dataclass(frozen=True)
class Observed:
    """What an unlocked file was when the user allowed it."""

    id: str
    sha256: str
    size: int
    source: str


@dataclass(frozen=True)
class Overlay:
    """The whole file."""

    observed: dict[str, Observed]
    accepted: frozenset[str]  # license ids


def overlay_path() -> Path:
    """Where the user's decisions are."""
    return weight_cache() / "overlay.toml"


def read_overlay(path: Path | None = None) -> Overlay:
    """The decisions in this file, by default this user's; no file, no decisions."""
    path = path or overlay_path()
    try:
        return parse_overlay(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return Overlay({}, frozenset())
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise WeightsError(f"'{path}' cannot be read ({error})", "Correct or remove it.") from error


def parse_overlay(text: str) -> Overlay:
    """The decisions in this text."""
    data: Mapping[str, Any] = tomllib.loads(text)
    observed = [Observed(**fields) for fields in data.get("observed", ())]
    return Overlay({each.id: each for each in observed}, frozenset(data.get("accepted", ())))


def overlay_text(overlay: Overlay) -> str:
    """The file that holds these decisions."""
    accepted = ", ".join(f'"{name}"' for name in sorted(overlay.accepted))
    blocks = [block("observed", asdict(each)) for each in overlay.observed.values()]
    return f"version = {OVERLAY_VERSION}\naccepted = [{accepted}]\n{''.join(blocks)}"


def known() -> Lock:
    """The lock in use, with the hashes that this user has observed."""
    lock, observed = read_lock(), read_overlay().observed
    entries = {entry.id: _observed(entry, observed.get(entry.id)) for entry in lock.entries.values()}
    return replace(lock, entries=entries)


def _observed(entry: Entry, seen: Observed | None) -> Entry:
    if seen is None or not entry.unlocked:
        return entry
    return replace(entry, sha256=seen.sha256, size=seen.size, observed=True)


def remember(seen: Observed) -> None:
    """Keep the hash that an allowed unlocked file had."""
    with store.locked("overlay"):
        old = read_overlay()
        _write(replace(old, observed=old.observed | {seen.id: seen}))


def accept(license_id: str) -> None:
    """Keep that the user accepts these terms."""
    with store.locked("overlay"):
        old = read_overlay()
        _write(replace(old, accepted=old.accepted | {license_id}))


def _write(overlay: Overlay) -> None:
    path = overlay_path()
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=".overlay-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(overlay_text(overlay))
    Path(part).replace(path)
