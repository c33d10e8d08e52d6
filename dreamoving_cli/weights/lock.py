"""models.lock as data: which weight files exist, what they are, where they may come from; no file is touched.

A file is its sha256 and size; its sources are an ordered list of places to try and cannot change what is
accepted. An entry without a sha256 is `unlocked`: refused until the user allows it by name; what was observed
then is kept in the overlay beside the user's files (overlay.py). Not here: the store (store.py), how a file
comes into it (fetch.py).
"""

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from dreamoving_cli.errors import UsageError, WeightsError
from dreamoving_cli.paths import LOCK

LOCK_VERSION = 1
LOCK_VARIABLE = "DREAMOVING_LOCK"  # environment: another lock than the shipped one
SOURCE_KINDS = ("hf", "url", "wheel", "file")  # a source is named by the one of these keys that it has
EVERYDAY = ("generate", "pose", "depth", "preview")  # the groups that `models pull` means when none is named

Source = Mapping[str, str]


@dataclass(frozen=True)
class License:
    """Terms that files come under."""

    id: str
    name: str
    accept: bool = False  # whether it must be accepted by name before a file is fetched


@dataclass(frozen=True)
class Motion:
    """What a motion module was trained as; only the module's own file tells more."""

    frames: int  # length of the clips it was trained on
    positions: int  # rows of its position table
    beta_schedule: str
    norm: str  # what the ResNets' norms take statistics from: "clip" (AnimateDiff v1) or "frame"
    sampler: str = ""  # where it wants one of its own
    scale: float = 1.0  # its makers' motion scale


@dataclass(frozen=True)
class Entry:
    """One weight file."""

    id: str
    kind: str  # what it is: unet, vae, motion-module, controlnet, ip-adapter, ...
    format: str  # safetensors, pickle, onnx, tflite, json, ...
    license: str  # a key of Lock.licenses
    groups: tuple[str, ...]  # what it is for
    sources: tuple[Source, ...] = ()
    sha256: str = ""  # empty: unlocked
    size: int | None = None  # bytes, where known
    default: bool = False  # whether it is the usual choice within its groups
    variant: str = ""  # what the keys alone cannot tell: openpose or depth, plus or plus-face
    keys: str = ""  # naming scheme of its tensors
    dtype: str = ""
    commercial: str = "unknown"  # yes, no, restricted, unknown
    gated: str = "no"
    motion: Motion | None = None
    note: str = ""
    observed: bool = field(default=False, compare=False)  # the sha256 is the user's, not the lock's

    @property
    def unlocked(self) -> bool:
        """Whether nothing says which bytes are the right ones."""
        return not self.sha256

    @property
    def key(self) -> str:
        """What its part and its process lock are named by."""
        return self.sha256 or "unlocked-" + re.sub(r"[^A-Za-z0-9._-]", "-", self.id)

    @property
    def name(self) -> str:
        """The file's name at its first source."""
        return next((source_name(source) for source in self.sources), self.id)


@dataclass(frozen=True)
class Lock:
    """All entries and licenses, by id."""

    entries: dict[str, Entry]
    licenses: dict[str, License]
    stated_id: str = ""  # the lock_id written in the file

    @property
    def id(self) -> str:
        """The identity of the lock's content; two machines with the same id mean the same files."""
        return "sha256:" + hashlib.sha256(lock_body(self).encode()).hexdigest()

    def license_of(self, entry: Entry) -> License:
        """The terms of a file."""
        return self.licenses[entry.license]

    def find(self, weight_id: str) -> Entry:
        """The entry with this id; an unknown one is refused with the nearest."""
        if weight_id in self.entries:
            return self.entries[weight_id]
        near = get_close_matches(weight_id, self.entries, n=1) or ["(none is close)"]
        raise WeightsError(
            f"models.lock has no '{weight_id}'", f"Nearest: {near[0]}. See: dreamoving models list."
        )


def source_kind(source: Source) -> str:
    """Which of SOURCE_KINDS a source is."""
    return next(kind for kind in SOURCE_KINDS if kind in source)


def source_name(source: Source) -> str:
    """The name of the file there."""
    address = source.get("member") or source.get("path") or source[source_kind(source)]
    return address.rsplit("/", 1)[-1].lstrip("*")


def describe(source: Source) -> str:
    """A source in one short line, for plans and messages."""
    kind = source_kind(source)
    place = {"hf": "hub ", "wheel": "wheel "}.get(kind, "") + source[kind]
    place += "".join(f"@{source[key][:12]}" for key in ("rev", "version") if key in source)
    return " ".join([place, *(source[key] for key in ("path", "member") if key in source)])


def lock_path() -> Path:
    """The lock in use: $DREAMOVING_LOCK, else the shipped one."""
    chosen = os.environ.get(LOCK_VARIABLE)
    return Path(chosen).expanduser() if chosen else LOCK


def read_lock(path: Path | None = None) -> Lock:
    """The lock in this file, by default the one in use."""
    path = path or lock_path()
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise WeightsError(f"'{path}' cannot be read ({error.strerror})", _remedy(path)) from error
    return _read_lock(path, changed)


@cache
def _read_lock(path: Path, changed: int) -> Lock:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise WeightsError(f"'{path}' cannot be read ({error})", _remedy(path)) from error
    if data.get("version") != LOCK_VERSION:
        raise WeightsError(
            f"'{path}' has version {data.get('version')}", f"This release reads {LOCK_VERSION}."
        )
    try:
        return parse_lock(data)
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise WeightsError(f"'{path}' is not a lock: {error}", _remedy(path)) from error


def _remedy(path: Path) -> str:
    return "Reinstall dreamoving." if path == LOCK else f"Correct the file or unset {LOCK_VARIABLE}."


def parse_lock(data: Mapping[str, Any]) -> Lock:
    """A lock from TOML's plain values; ValueError, KeyError or TypeError where it is none."""
    licenses = {fields["id"]: License(**fields) for fields in data["license"]}
    entries = [_entry(fields) for fields in data["file"]]
    for entry in entries:
        _check(entry, licenses)
    by_id = {entry.id: entry for entry in entries}
    locked = {entry.sha256 for entry in entries if entry.sha256}
    if len(by_id) < len(entries) or len(locked) < sum(not entry.unlocked for entry in entries):
        raise ValueError("two entries have the same id or the same sha256")
    return Lock(by_id, licenses, data.get("lock_id", ""))


def _entry(fields: Mapping[str, Any]) -> Entry:
    values = {key: value for key, value in fields.items() if key != "state"}
    values |= {key: tuple(values.get(key, ())) for key in ("groups", "sources")}
    if "motion" in values:
        values["motion"] = Motion(**values["motion"])
    entry = Entry(**values)
    if (fields.get("state") == "unlocked") != entry.unlocked:
        raise ValueError(f"{entry.id}: an entry has a sha256 or the state 'unlocked'")
    return entry


def _check(entry: Entry, licenses: Mapping[str, License]) -> None:
    if not entry.unlocked and len(bytes.fromhex(entry.sha256)) != hashlib.sha256().digest_size:
        raise ValueError(f"{entry.id}: '{entry.sha256}' is no sha256")
    if entry.license not in licenses:
        raise ValueError(f"{entry.id}: the license '{entry.license}' is not listed")
    for source in entry.sources:
        if sum(kind in source for kind in SOURCE_KINDS) != 1:
            raise ValueError(f"{entry.id}: a source has one of {', '.join(SOURCE_KINDS)}")


def choose(
    lock: Lock, names: Sequence[str], *, everything: bool = False, commercial: bool = False
) -> list[Entry]:
    """The entries that the user's words mean, in the lock's order.

    A word is an id, the start of ids ("sd15.tokenizer"), or a group: its usual choices or `everything`.
    No word means the groups of every day. `commercial` leaves out what may not be used so.
    """
    wanted: set[str] = set()
    known = {group for entry in lock.entries.values() for group in entry.groups}
    for name in names or [group for group in EVERYDAY if group in known]:
        wanted |= _meant(lock, name, everything)
    chosen = [entry for entry in lock.entries.values() if entry.id in wanted]
    return [entry for entry in chosen if not (commercial and entry.commercial == "no")]


def _meant(lock: Lock, name: str, everything: bool) -> set[str]:
    entries = lock.entries.values()
    if name in lock.entries:
        return {name}
    if group := [entry for entry in entries if name in entry.groups]:
        return {entry.id for entry in group if everything or entry.default}
    if started := {entry.id for entry in entries if entry.id.startswith(name.rstrip(".*") + ".")}:
        return started
    groups = sorted({group for entry in entries for group in entry.groups})
    near = get_close_matches(name, [*groups, *lock.entries], n=1)
    raise UsageError(
        f"models.lock has no group or file '{name}'",
        f"Nearest: {near[0]}." if near else f"Groups: {', '.join(groups)}.",
    )


# ---- writing: one canonical form, so that a change of the lock is a small diff

HEADER = """\
# Every public weight file that dreamoving knows. sha256 (and size, where known) is the identity of a file;
# `sources` are only places to try, in order. An entry in state "unlocked" has no known sha256 and is refused
# unless the user allows it by name. docs/weights.md says how to add a file; afterwards,
# `dreamoving models lock --out models.lock` renews lock_id.
"""


def lock_text(lock: Lock) -> str:
    """The whole file."""
    return f'{HEADER}version = {LOCK_VERSION}\nlock_id = "{lock.id}"\n{lock_body(lock)}'


def lock_body(lock: Lock) -> str:
    """The licenses and entries, as the file holds them."""
    blocks = [block("license", license_fields(value)) for value in lock.licenses.values()]
    blocks += [block("file", entry_fields(value)) for value in lock.entries.values()]
    return "".join(blocks)


def license_fields(value: License) -> dict[str, Any]:
    """What the file holds of a license."""
    return {"id": value.id, "name": value.name} | ({"accept": True} if value.accept else {})


def entry_fields(entry: Entry) -> dict[str, Any]:
    """What the file holds of an entry: what says something, in one order."""
    values: dict[str, Any] = {"id": entry.id}
    values |= {"state": "unlocked"} if entry.unlocked else {"sha256": entry.sha256}
    names = ("size", "kind", "variant", "format", "keys", "dtype", "groups", "default", "license")
    values |= {name: getattr(entry, name) for name in (*names, "commercial", "gated", "note")}
    if entry.motion:
        values["motion"] = {k: v for k, v in vars(entry.motion).items() if v not in ("", 1.0)}
    values["sources"] = [dict(source) for source in entry.sources]
    return {name: value for name, value in values.items() if value not in (None, "", False)}


def block(table: str, fields: Mapping[str, Any]) -> str:
    """One table of an array of tables."""
    return f"\n[[{table}]]\n" + "".join(f"{name} = {toml_value(value)}\n" for name, value in fields.items())


def toml_value(value: Any) -> str:
    """One value in TOML; strings and numbers are written as in JSON, which TOML reads alike."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {toml_value(part)}" for name, part in value.items()) + " }"
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return "[\n" + "".join(f"  {toml_value(part)},\n" for part in value) + "]"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(part) for part in value) + "]"
    return json.dumps(value, ensure_ascii=False)
