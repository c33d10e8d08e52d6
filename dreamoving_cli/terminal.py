"""What the commands share: flags that mean the same everywhere, and how results and talk are printed.

Not here: progress (progress.py) and the commands (cli.py, render_command.py).
"""

import dataclasses
import gc
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer

DEBUG = "dreamoving.debug"  # key in Typer's store of one run: show the traceback of user errors too
RUN = "This run"  # the panel of flags that change how, not what


def say(text: str) -> None:
    """Talk: stderr, so that stdout holds results only."""
    typer.echo(text, err=True)


class Talk(logging.Handler):
    """Log lines as talk; unlike a stream handler's, they pass above a live progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


@contextmanager
def imports_that_last() -> Iterator[None]:
    """A block that imports torch and what renders: half a million objects, never searched for garbage.

    A render searches at every stage. Once a process: what a later call froze might be garbage.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def show(values: Mapping[str, Any], as_json: bool) -> None:
    """A result: JSON for scripts, else one aligned line a value."""
    if as_json:
        typer.echo(json.dumps(values, indent=2, default=str))
        return
    width = max(map(len, values), default=0)
    for name, value in values.items():
        rows = (value or ["none"]) if isinstance(value, list) else [value]
        typer.echo(f"{name:<{width}}  " + f"\n{'':<{width}}  ".join(map(str, rows)))


def facts(result: Any) -> dict[str, Any]:
    """The fields of a result, by name."""
    return {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}


def set_verbosity(value: int) -> int:
    """-v: what is done (INFO); -vv: also the details (DEBUG)."""
    if value:
        logging.getLogger("dreamoving_cli").setLevel(logging.INFO if value == 1 else logging.DEBUG)
    return value


def remember_debug(ctx: typer.Context, value: bool) -> bool:
    ctx.meta[DEBUG] = value or ctx.meta.get(DEBUG, False)
    return value


def complete_preset(incomplete: str) -> list[str]:
    from dreamoving_cli.presets import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


def option(name: str, text: str, panel: str, **more: Any) -> Any:
    """A flag with a value, in a panel of the help; shown=True: with its default."""
    return typer.Option(name, help=text, rich_help_panel=panel, show_default=more.pop("shown", False), **more)


def switch(name: str, text: str, **more: Any) -> Any:
    """A flag without a value."""
    return typer.Option(name, help=text, rich_help_panel=RUN, metavar="", **more)


VERBOSITY = typer.Option(
    "--verbose",
    "-v",
    count=True,
    callback=set_verbosity,
    show_default=False,
    rich_help_panel=RUN,
    metavar="",
    help="Say what is done; -vv says more.",
)
Verbose = Annotated[int, VERBOSITY]
Debug = Annotated[bool, switch("--debug", "Show the traceback of any error.", callback=remember_debug)]
AsJson = Annotated[bool, switch("--json", "Print the result as JSON.")]
Overwrite = Annotated[bool, switch("--overwrite", "Replace an existing output.")]
Preset = Annotated[str, typer.Argument(metavar="NAME|FILE", autocompletion=complete_preset)]
