"""Many files: what is here, what would be fetched, whether the disk can hold it; then all of it.

Everything that can be refused is refused before the first byte. One file: fetch.py.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from dreamoving_cli.errors import GatedError, OutputError, WeightsError
from dreamoving_cli.paths import weight_cache
from dreamoving_cli.weights import hub, overlay, store
from dreamoving_cli.weights.fetch import OnFile, Rules, bring, offline_reason, quiet, refuse, refuse_offline
from dreamoving_cli.weights.lock import Entry, Lock, describe
from dreamoving_cli.weights.transport import SourceError, UnreachableError

Item = TypeVar("Item")
RESERVE_BYTES = 64 * 2**20  # left free beside the files themselves


@dataclass(frozen=True)
class Step:
    """What would be done for one file."""

    id: str
    state: str  # here, cached (by the hub), begun, fetch, unlocked, terms, no source
    size: int | None
    fetch_bytes: int | None  # still to come; None: nobody has said how many
    source: str
    license: str


@dataclass(frozen=True)
class Plan:
    """What would be done for all of them."""

    steps: list[Step]
    fetch_bytes: int  # where known
    unknown_sizes: int
    free_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the disk can hold what is to come."""
        return not self.fetch_bytes or self.fetch_bytes + RESERVE_BYTES <= self.free_bytes


def plan(entries: Iterable[Entry], lock: Lock, rules: Rules) -> Plan:
    """What `pull` would do; nothing is fetched, and with sizes in the lock nothing is asked."""
    steps = [_step(entry, lock, rules) for entry in entries]
    coming = [step.fetch_bytes for step in steps]
    known = sum(count for count in coming if count is not None)
    return Plan(steps, known, coming.count(None), store.free_bytes())


def _step(entry: Entry, lock: Lock, rules: Rules) -> Step:
    state = _state(entry, lock, rules)
    source = describe(entry.sources[0]) if entry.sources else ""
    coming: int | None = 0
    if state not in ("here", "cached"):
        part = store.part_path(entry.key)
        begun = part.stat().st_size if part.is_file() and not entry.unlocked else 0
        coming = None if entry.size is None else max(entry.size - begun, 0)
    return Step(entry.id, state, entry.size, coming, source, entry.license)


def _state(entry: Entry, lock: Lock, rules: Rules) -> str:
    if store.is_here(entry):
        return "here"
    try:
        refuse(entry, lock, rules)
    except GatedError:
        return "terms"
    except WeightsError:
        return "unlocked"
    if not entry.unlocked and hub.cached(entry):
        return "cached"
    if not entry.unlocked and store.part_path(entry.key).is_file():
        return "begun"
    return "fetch" if entry.sources else "no source"


def pull(entries: Sequence[Entry], lock: Lock, rules: Rules) -> dict[str, Path]:
    """All files into the store; their paths by id. One that fails does not stop the others, but is raised."""
    missing = [entry for entry in entries if not store.is_sound(entry)]
    check(missing, lock, rules)
    rules = replace(rules, on_file=_in_turn(rules.on_file))
    paths: dict[str, Path] = {}
    failures: list[WeightsError] = []

    def bring_all(group: list[Entry]) -> None:
        for entry in group:
            try:
                paths[entry.id] = bring(entry, lock, rules)
            except WeightsError as error:
                failures.append(error)

    at_once(bring_all, _by_archive(entries), rules.at_once)
    if failures:
        raise _all(failures)
    return {entry.id: paths[entry.id] for entry in entries}


def at_once(work: Callable[[Item], None], items: Iterable[Item], count: int) -> None:
    """work(item) for every item, `count` at a time; the first error stops what has not begun.

    Ctrl-C waits for nobody: the threads end with the process, and parts are made to be cut anywhere.
    """
    left: queue.SimpleQueue[Item] = queue.SimpleQueue()
    for item in items:
        left.put(item)
    errors: list[BaseException] = []

    def take() -> None:
        while not errors:
            try:
                work(left.get_nowait())
            except queue.Empty:
                return
            except BaseException as error:  # noqa: BLE001 (raised below, in the caller's thread)
                errors.append(error)

    threads = [threading.Thread(target=take, daemon=True) for _ in range(min(count, left.qsize()))]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # with a pause, or Windows would not hear Ctrl-C
            thread.join(0.2)
    if errors:
        raise errors[0]


def _by_archive(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Files of one archive together, since it is fetched once; any other file by itself."""
    groups: dict[object, list[Entry]] = {}
    for entry in entries:
        first = dict(entry.sources[0]) if entry.sources else {}
        shared = first.pop("member", None) is not None
        groups.setdefault(tuple(sorted(first.items())) if shared else entry.id, []).append(entry)
    return list(groups.values())


def _in_turn(on_file: OnFile) -> OnFile:
    """The same, one call at a time, for it is told from several threads."""
    if on_file is quiet:
        return quiet  # bring() looks for it
    turn = threading.Lock()

    def told(name: str, done: int, total: int) -> None:
        with turn:
            on_file(name, done, total)

    return told


def check(missing: list[Entry], lock: Lock, rules: Rules) -> None:
    """Refuse what cannot end well: unlocked files, terms, no network, a full disk."""
    for entry in missing:
        refuse(entry, lock, rules)
    refuse_offline([entry for entry in missing if entry.unlocked or not hub.cached(entry)], rules)
    whole = plan(_with_sizes(missing, rules), lock, rules)
    if not whole.fits:
        raise OutputError(
            f"{whole.fetch_bytes:,} bytes are to come, and the disk of '{weight_cache()}' "
            f"has {whole.free_bytes:,} free",
            store.FULL_NOTE,
        )


def _with_sizes(entries: list[Entry], rules: Rules) -> list[Entry]:
    """The entries with their sizes, asked for where the lock does not know them."""
    silent: set[str] = set()  # hosts that do not answer are not waited for again
    return [_with_size(entry, silent) if not offline_reason(rules) else entry for entry in entries]


def _with_size(entry: Entry, silent: set[str]) -> Entry:
    source = entry.sources[0] if entry.size is None and entry.sources else {}
    if "member" in source or not ("hf" in source or "url" in source):
        return entry
    host = hub.address(source).split("/")[2]
    if host in silent:
        return entry
    try:
        return replace(entry, size=hub.ask(source).size)
    except UnreachableError:
        silent.add(host)
    except SourceError:
        pass  # whether it can be had is seen when it is fetched
    return entry


def _all(failures: list[WeightsError]) -> WeightsError:
    """One error for all: the first one's kind, everybody's words."""
    if len(failures) == 1:
        return failures[0]
    first = failures[0]
    problems = "".join(f"\n  {error.problem}" for error in failures)
    return type(first)(f"{len(failures)} files could not be fetched:{problems}\n ", first.remedy)


def known_and_accepted(licenses: Sequence[str], lock: Lock) -> None:
    """Accept these licenses, all of which the lock must know."""
    for name in licenses:
        if name not in lock.licenses:
            choices = ", ".join(value.id for value in lock.licenses.values() if value.accept)
            raise WeightsError(f"models.lock has no license '{name}'", f"To be accepted: {choices}.")
        overlay.accept(name)
