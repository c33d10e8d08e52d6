"""The lock held against what the sources say today: what can be filled in, what has changed. No downloads.

A hash is never overwritten: a changed one is reported, for a person to look at.
"""

from dataclasses import dataclass, replace

from dreamoving_cli.weights import hub
from dreamoving_cli.weights.lock import Entry, Lock, Source, describe
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
