"""The `models` commands: parse, call one function of weights/, print. Results on stdout, talk on stderr.

Not here: any work on files. docs/weights.md explains what the commands do.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from dreamoving_cli.errors import UsageError
from dreamoving_cli.paths import MINI
from dreamoving_cli.terminal import RUN, AsJson, Debug, Verbose, facts, say, show, switch

if TYPE_CHECKING:
    from dreamoving_cli.weights import Entry, Lock, Rules

MB = 10**6
Row = TypeVar("Row")

models_app = typer.Typer(no_args_is_help=True, help="The model packs and weight files.")


def complete_name(incomplete: str) -> list[str]:
    """Groups and ids that begin so."""
    from dreamoving_cli.weights import known

    entries = known().entries.values()
    names = [
        *sorted({group for entry in entries for group in entry.groups}),
        *(entry.id for entry in entries),
    ]
    return [name for name in names if name.startswith(incomplete)]


NAMES = typer.Argument(
    metavar="[NAME]...",
    autocompletion=complete_name,
    show_default=False,
    help="Groups (generate, long, face, pose, depth, caption, preview), ids or the start of ids. "
    "None: what a render needs.",
)
UNLOCKED = typer.Option(
    "--allow-unlocked",
    metavar="ID",
    show_default=False,
    help="Take this file although its hash is not known.",
)
ACCEPT = typer.Option("--accept-license", metavar="LICENSE", show_default=False, help="Accept these terms.")
Names = Annotated[list[str] | None, NAMES]
AllowUnlocked = Annotated[list[str] | None, UNLOCKED]
AcceptLicense = Annotated[list[str] | None, ACCEPT]
JOBS = typer.Option("--jobs", "-j", min=1, max=16, rich_help_panel=RUN, help="Files fetched at once.")
Jobs = Annotated[int, JOBS]
Everything = Annotated[bool, switch("--all", "Of a group, all files; not only the usual choices.")]
Commercial = Annotated[bool, switch("--commercial", "Leave out files that forbid commercial use.")]
Offline = Annotated[bool, switch("--offline", "Use no network.")]
Delete = Annotated[bool, switch("--delete", "Do remove; without it, only say what would go.")]
WeightId = Annotated[
    str,
    typer.Argument(metavar="ID", show_default=False, autocompletion=complete_name, help="mini, or an id."),
]


@models_app.command("list")
def models_list(names: Names = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """List the model packs and weight files, and whether they are here."""
    from dreamoving_cli.weights import known
    from dreamoving_cli.weights.lock import choose

    lock = known()
    entries = choose(lock, names, everything=True) if names else lock.entries.values()
    rows: dict[str, dict[str, Any]] = {}
    if not names:
        rows["mini"] = {"here": MINI.is_dir(), "license": "Apache-2.0"}
    rows |= {entry.id: listed(entry, lock) for entry in entries}
    width = max(map(len, rows), default=0)

    def line(name: str, row: Mapping[str, Any]) -> str:
        state = "here" if row["here"] else "unlocked" if row.get("unlocked") else "not fetched"
        return f"{name:<{width}}  {state:<11}  {megabytes(row.get('size')):>9}  {row['license']}"

    show_rows(rows, as_json, line)


def show_rows(rows: Mapping[str, Row], as_json: bool, line: Callable[[str, Row], str]) -> None:
    """All as JSON, or a line for each."""
    if as_json:
        return show(rows, as_json)
    for name, row in rows.items():
        typer.echo(line(name, row))
    return None


def listed(entry: "Entry", lock: "Lock") -> dict[str, Any]:
    """What `list --json` says of a file."""
    from dreamoving_cli.weights.lock import entry_fields
    from dreamoving_cli.weights.store import is_here

    row = {"here": is_here(entry), "unlocked": entry.unlocked, "size": entry.size, "sha256": entry.sha256}
    return row | entry_fields(entry) | {"license": lock.license_of(entry).name, "license_id": entry.license}


def megabytes(size: int | None) -> str:
    """A size for people."""
    return "?" if size is None else f"{size / MB:.1f} MB"


@models_app.command("plan")
def models_plan(
    names: Names = None,
    everything: Everything = False,
    commercial: Commercial = False,
    allow_unlocked: AllowUnlocked = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what `pull` would fetch, from where, and whether the disk can hold it; fetch nothing."""
    from dreamoving_cli.weights import Rules, known
    from dreamoving_cli.weights.lock import choose
    from dreamoving_cli.weights.pull import plan

    lock = known()
    entries = choose(lock, names or (), everything=everything, commercial=commercial)
    whole = plan(entries, lock, Rules(allow_unlocked=frozenset(allow_unlocked or ())))
    if as_json:
        totals = {key: getattr(whole, key) for key in ("fetch_bytes", "unknown_sizes", "free_bytes", "fits")}
        return show({"files": [facts(step) for step in whole.steps], **totals}, as_json)
    width = max((len(step.id) for step in whole.steps), default=0)
    for step in whole.steps:
        typer.echo(f"{step.id:<{width}}  {step.state:<9}  {megabytes(step.size):>9}  {step.source}")
    unknown = f", and {whole.unknown_sizes} files of unknown size" if whole.unknown_sizes else ""
    room = "" if whole.fits else ": not enough"
    coming, free = megabytes(whole.fetch_bytes), megabytes(whole.free_bytes)
    return typer.echo(f"to fetch: {coming}{unknown}; the disk has {free}{room}")


@models_app.command("pull")
def models_pull(
    names: Names = None,
    everything: Everything = False,
    commercial: Commercial = False,
    allow_unlocked: AllowUnlocked = None,
    accept_license: AcceptLicense = None,
    offline: Offline = False,
    jobs: Jobs = 4,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Fetch weight files and check them; what is here already is not fetched again."""
    from dataclasses import replace

    from dreamoving_cli.weights import known
    from dreamoving_cli.weights.lock import choose
    from dreamoving_cli.weights.pull import known_and_accepted, pull

    lock = known()
    entries = choose(lock, names or (), everything=everything, commercial=commercial)
    known_and_accepted(accept_license or (), lock)
    with fetching(entries, offline, allow_unlocked) as rules:
        paths = pull(entries, lock, replace(rules, at_once=jobs))
    show_rows({name: str(path) for name, path in paths.items()}, as_json, lambda name, _: name)


@contextmanager
def fetching(
    entries: Iterable["Entry"], offline: bool, allow_unlocked: list[str] | None
) -> Iterator["Rules"]:
    """The rules of this run, with progress in MB: a row for each large file, and one for all."""
    from dreamoving_cli.progress import in_megabytes, progress
    from dreamoving_cli.weights import Rules

    whole = sum(entry.size or 0 for entry in entries)
    with progress() as on_progress:
        on_file = in_megabytes(on_progress, whole)
        yield Rules(offline=offline, allow_unlocked=frozenset(allow_unlocked or ()), on_file=on_file)


@models_app.command("path")
def models_path(
    weight_id: WeightId,
    allow_unlocked: AllowUnlocked = None,
    offline: Offline = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Print where a model pack or weight file is; a file that is not here is fetched first."""
    if weight_id == "mini":
        typer.echo(MINI)
        return
    from dreamoving_cli.weights import entry, weight_path

    with fetching([entry(weight_id)], offline, allow_unlocked) as rules:
        path = weight_path(weight_id, rules)
    typer.echo(path)


@models_app.command("verify")
def models_verify(
    names: Names = None,
    full: Annotated[bool, switch("--full", "Hash every file again, also those that look unchanged.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check the files that are here, or the named ones; a wrong one is put into quarantine."""
    from dreamoving_cli.errors import MismatchError, WeightsError
    from dreamoving_cli.weights import known, upkeep
    from dreamoving_cli.weights.lock import choose

    lock = known()
    entries = choose(lock, names or (), everything=bool(not names)) if names else list(lock.entries.values())
    verdicts = upkeep.verify(entries, full)
    rows = {name: said for name, said in verdicts.items() if names or said in ("ok", "mismatch")}
    show(rows, as_json)
    wrong = [name for name, said in rows.items() if said == "mismatch"]
    if wrong:
        raise MismatchError(
            f"wrong bytes: {', '.join(wrong)}", f"Run: dreamoving models pull {' '.join(wrong)}"
        )
    if absent := [name for name, said in rows.items() if said == "missing"]:
        raise WeightsError(
            f"not here: {', '.join(absent)}", f"Run: dreamoving models pull {' '.join(absent)}"
        )


@models_app.command("du")
def models_du(as_json: AsJson = False, debug: Debug = False) -> None:
    """Print what the files cost, by group."""
    from dreamoving_cli.weights import known, upkeep

    rows = upkeep.usage(known())
    show(rows if as_json else {name: megabytes(size) for name, size in rows.items()}, as_json)


@models_app.command("prune")
def models_prune(
    names: Names = None, delete: Delete = False, as_json: AsJson = False, debug: Debug = False
) -> None:
    """List what no lock names, half fetched and wrong files, and the named ones; with --delete, remove it."""
    from dreamoving_cli.weights import known, upkeep
    from dreamoving_cli.weights.lock import choose

    lock = known()
    items = upkeep.debris(lock, choose(lock, names, everything=True) if names else ())
    if delete:
        upkeep.remove(items)
    if as_json:
        show({"deleted": delete, "files": [facts(item) for item in items]}, as_json)
    for item in () if as_json else items:
        typer.echo(f"{item.path}  {megabytes(item.size_bytes)}  {item.why}")
    verb = "removed" if delete else "would go (--delete removes)"
    say(f"{len(items)} files, {megabytes(sum(item.size_bytes for item in items))} {verb}")


@models_app.command("import")
def models_import(
    sources: Annotated[list[Path], typer.Argument(metavar="FILE|DIR|TAR...", show_default=False)],
    allow_unlocked: AllowUnlocked = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Take known files from this machine: single ones, folders, zips, wheels, or what `export` wrote."""
    from dreamoving_cli.weights import known
    from dreamoving_cli.weights.travel import import_from

    result = import_from(sources, known(), allow_unlocked or ())
    if as_json:
        show(facts(result), as_json)
    for name in () if as_json else (*result.taken, *result.present):
        typer.echo(name)
    for path in result.unknown:
        say(f"{path} has the size of a known file but other bytes: left alone")
    if not (result.taken or result.present):
        say("no known file was found")


@models_app.command("convert")
def models_convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="A PyTorch checkpoint.")],
    out: Annotated[Path | None, typer.Option("--out", help="Write it here.", show_default=False)] = None,
    allow_pickle: Annotated[
        bool, switch("--allow-pickle", "Open it although models.lock does not know it.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write a PyTorch checkpoint as safetensors, once and for all, and say what it is."""
    from dreamoving_cli.recipes import convert

    path, what = convert(file, out, allow_pickle)
    say(f"{file} is {what}")
    typer.echo(path)


@models_app.command("export")
def models_export(
    destination: Annotated[Path, typer.Argument(metavar="DIR|FILE.tar", show_default=False)],
    names: Names = None,
    everything: Everything = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write files that are here to a folder or tar, for a machine without a network."""
    from dreamoving_cli.weights import known
    from dreamoving_cli.weights.lock import choose
    from dreamoving_cli.weights.travel import export

    ids = export(choose(known(), names or (), everything=everything), destination)
    if as_json:
        show({"path": str(destination), "files": ids}, as_json)
    else:
        typer.echo(destination)


@models_app.command("licenses")
def models_licenses(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the terms that files come under, which must be accepted, and which are."""
    from dreamoving_cli.weights import known
    from dreamoving_cli.weights.overlay import read_overlay

    lock, accepted = known(), read_overlay().accepted
    rows = {each.id: facts(each) | {"accepted": each.id in accepted} for each in lock.licenses.values()}
    for name, row in rows.items():
        row["files"] = [entry.id for entry in lock.entries.values() if entry.license == name]

    def line(name: str, row: Mapping[str, Any]) -> str:
        state = "accepted" if row["accepted"] else "to accept" if row["accept"] else "-"
        return f"{name:<32}  {state:<9}  {len(row['files']):>3} files  {row['name']}"

    show_rows(rows, as_json, line)


@models_app.command("accept")
def models_accept(
    licenses: Annotated[list[str], typer.Argument(metavar="LICENSE...", show_default=False)],
    debug: Debug = False,
) -> None:
    """Accept terms, after reading them, so that files under them may be fetched."""
    from dreamoving_cli.weights import known
    from dreamoving_cli.weights.pull import known_and_accepted

    known_and_accepted(licenses, known())


OWN = typer.Option(
    "--own",
    metavar="ID=FILE",
    show_default=False,
    help="Have this file of yours in the place of a public one.",
)


def id_and_file(text: str) -> tuple[str, Path]:
    """The value of --own."""
    name, equals, file = text.partition("=")
    if not (equals and name and file):
        raise UsageError(f"--own is '{text}'", "Write ID=FILE.")
    return name, Path(file)


@models_app.command("lock")
def models_lock(
    names: Names = None,
    refresh: Annotated[bool, switch("--refresh", "Ask the sources what they have; no downloads.")] = False,
    own: Annotated[list[str] | None, OWN] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the lock here.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check models.lock; with --refresh, hold it against its sources. A changed hash is never taken."""
    from dreamoving_cli.errors import MismatchError
    from dreamoving_cli.weights.lock import choose, lock_text, read_lock
    from dreamoving_cli.weights.refresh import Finding, with_own
    from dreamoving_cli.weights.refresh import refresh as ask_sources
    from dreamoving_cli.whole import whole_file

    lock, findings = with_own(read_lock(), dict(map(id_and_file, own or ()))), list[Finding]()
    if refresh:
        entries = choose(lock, names, everything=True) if names else list(lock.entries.values())
        lock, findings = ask_sources(lock, entries)
    if out is not None:
        with whole_file(out) as part:
            part.write_text(lock_text(lock), encoding="utf-8")
    if as_json:
        show(
            {"id": lock.id, "files": len(lock.entries), "findings": [facts(each) for each in findings]},
            as_json,
        )
    else:
        typer.echo(f"{lock.id}  {len(lock.entries)} files")
    for each in () if as_json else findings:
        typer.echo(f"{each.id}  {each.what}  {each.detail}")
    if lock.stated_id != lock.id and out is None:
        say("lock_id in the file is another one: dreamoving models lock --out models.lock renews it")
    if any(each.what == "changed" and each.detail.startswith("sha256") for each in findings):
        raise MismatchError("a source has other bytes than the lock names", "Look at the findings above.")
