"""Every preset key as a command-line flag, made from the options themselves, so that none can be forgotten.

Not here: what a key means and which values it takes (options.py).
"""

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from dreamoving_cli.errors import UsageError
from dreamoving_cli.frozen import bounds, choices, parts
from dreamoving_cli.options import ContextOptions, RenderOptions

PANELS = ("Inputs", "Look", "Output", "Sampling", "Windows")
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+|nan|inf)"
CONTROL = re.compile(
    rf"(?P<kind>[^=]+)=(?P<file>.+?)(?::(?P<scale>{NUMBER})(?::(?P<start>{NUMBER})-(?P<end>{NUMBER}))?)?"
)
LORA = re.compile(rf"(?P<file>.*?)(?::(?P<scale>{NUMBER}))?", re.DOTALL)

Command = TypeVar("Command", bound=Callable[..., Any])


def preset_fields() -> Iterator[tuple[str, FieldInfo]]:
    """All keys of a preset, panel by panel; those of the windows stand flat beside the others."""
    fields = {**RenderOptions.model_fields, **ContextOptions.model_fields}
    del fields["context"]
    for panel in PANELS:
        yield from ((name, info) for name, info in fields.items() if extra(info)["panel"] == panel)


def preset_flags(command: Command) -> Command:
    """Give `command` one flag for each preset key; it receives them as keywords, None where not given.

    In a panel, the keys of a preset come before what the command itself adds to it.
    """
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    made = [flag(name, info) for name, info in preset_fields()]
    last = [p for p in own if p.annotation.__metadata__[0].rich_help_panel]
    ordered = [*(p for p in own if p not in last), *made, *last]
    signature = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in ordered])
    command.__signature__ = signature  # type: ignore[attr-defined]  # Typer reads the flags from here
    return command


def flag(name: str, info: FieldInfo) -> inspect.Parameter:
    """One flag: --name-with-dashes unless the field says otherwise, its help with the allowed range."""
    spelled = extra(info)["flag"] or "--" + name.replace("_", "-")
    lowest, highest = bounds(info)
    span = f" [{lowest}..{highest}]" if highest is not None and name != "seed" else ""
    kind = flag_type(info)
    declaration = f"{spelled}/--no-{spelled[2:]}" if kind is bool else spelled
    option = typer.Option(
        declaration,
        help=f"{info.description}{span}",
        rich_help_panel=extra(info)["panel"],
        show_default=False,
        metavar="" if kind is bool else None,
    )
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def flag_type(info: FieldInfo) -> Any:
    """What Typer parses a flag as; exact times, rates and sizes stay text until the options read them."""
    if choices(info):
        return Literal[tuple(choices(info))]
    kinds = [part for part in parts(info.annotation) if part is not type(None)]
    plain = get_args(kinds[0])[0] if get_origin(kinds[0]) is Annotated else kinds[0]
    if get_origin(plain) is tuple:
        return list[str]
    return plain if plain in (bool, int, float, Path) else str


def extra(info: FieldInfo) -> dict[str, Any]:
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def overrides(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, as keys of a preset."""
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    if "loras" in given:
        given["loras"] = [parse_lora(text) for text in given["loras"]]
    if "controls" in given:
        given["controls"] = [parse_control(text) for text in given["controls"]]
    return given


def parse_lora(text: str) -> dict[str, Any]:
    """FILE[:SCALE]; a colon before no number is part of the file."""
    found = LORA.fullmatch(text)
    assert found is not None  # any text matches
    return {"file": Path(found["file"])} | ({"scale": float(found["scale"])} if found["scale"] else {})


def parse_control(text: str) -> dict[str, Any]:
    r"""KIND=FILE[:SCALE[:START-END]]; a colon before no number is part of the file (C:\depth.mp4)."""
    found = CONTROL.fullmatch(text)
    if not found:
        raise UsageError(
            f"--control is '{text}'", "Give KIND=FILE[:SCALE[:START-END]], such as depth=map.mp4:0.7."
        )
    values = {"kind": found["kind"], "file": Path(found["file"])}
    numbers = {"control_scale": found["scale"], "control_start": found["start"], "control_end": found["end"]}
    return values | {name: float(number) for name, number in numbers.items() if number is not None}
