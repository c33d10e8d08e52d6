"""The lock held against what the sources say today: what can be filled in, what has changed. No downloads.

A hash is never overwritten: a changed one is reported, for a person to look at.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.weights import hub
from dreamoving_cli.weights.lock import Entry, Lock, Source, describe
from dreamoving_cli.weights.store import file_sha256
from dreamoving_cli.weights.transport import SourceError


@dataclass(frozen=True)
class Finding:
    """One thing that a source says."""

    id: str
    what: str  # new, changed, failed
    detail: str


def refresh(lock: Lock, entries: list[Entry]) -> tuple[Lock, list[Finding]]:
    """The lock with what these entries' first sources add to it, and all that they say."""
    fresh, findings = dict(lock.entries), []
    for entry in entries:
        if not entry.sources or "member" in entry.sources[0] or not {"hf", "url"} & set(entry.sources[0]):
            continue
        try:
            told = hub.ask(entry.sources[0])
        except SourceError as error:
            findings.append(Finding(entry.id, "failed", str(error)))
            continue
        findings += _compare(entry, told)
        fresh[entry.id] = _filled(entry, told)
    return replace(lock, entries=fresh), findings


def with_own(lock: Lock, files: Mapping[str, Path]) -> Lock:
    """The lock with files of one's own in the place of public ones: their bytes are the right ones then."""
    entries = dict(lock.entries)
    for name, path in files.items():
        if not path.is_file():
            raise InputError(f"{path} is not there", "Give a file.")
        old, sha256, source = lock.find(name), file_sha256(path), {"file": str(path.absolute())}
        twins = [entry.id for entry in entries.values() if entry.sha256 == sha256 and entry.id != name]
        if twins:
            raise UsageError(f"{path} is '{twins[0]}' already", "Two ids cannot have the same bytes.")
        size = path.stat().st_size
        entries[name] = replace(old, sha256=sha256, size=size, sources=(source,), observed=False)
    return replace(lock, entries=entries)


def _compare(entry: Entry, told: hub.Facts) -> list[Finding]:
    """What is new or different, field by field."""
    source = describe(entry.sources[0])
    revision = str(entry.sources[0].get("rev", ""))
    pairs = (
        ("size", entry.size, told.size),
        ("sha256", entry.sha256, told.sha256),
        ("rev", revision, told.revision),
    )
    found = []
    for name, old, new in pairs:
        if new and old and old != new:
            found.append(Finding(entry.id, "changed", f"{name}: the lock has {old}, {source} has {new}"))
        elif new and not old:
            found.append(Finding(entry.id, "new", f"{name} is {new} at {source}"))
    return found


def _filled(entry: Entry, told: hub.Facts) -> Entry:
    """The entry with what was empty filled in; nothing is added if the source has another file."""
    if entry.sha256 and told.sha256 and entry.sha256 != told.sha256:
        return entry
    first: Source = entry.sources[0]
    if told.revision and "hf" in first and "rev" not in first:
        kind = {name: value for name, value in first.items() if name != "path"}
        first = {**kind, "rev": told.revision, "path": first["path"]}
    return replace(
        entry,
        sha256=entry.sha256 or told.sha256,
        size=told.size if entry.size is None else entry.size,
        sources=(first, *entry.sources[1:]),
    )
