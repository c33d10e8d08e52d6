"""The command line: parse, call one function, print. Results on stdout, talk on stderr; no torch up here.

Not here: any work. Reading on from `render`: render_command.py, whose flags are made from options.py.
"""

import json
import logging
import signal
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from dreamoving_cli import __version__
from dreamoving_cli.bench_command import bench_app
from dreamoving_cli.caption_command import caption_app
from dreamoving_cli.dataset_command import dataset_app
from dreamoving_cli.depth_command import depth_app
from dreamoving_cli.errors import EXIT_INTERRUPTED, DeviceMemoryError, UserError
from dreamoving_cli.evaluate_command import evaluate_app
from dreamoving_cli.models_command import models_app
from dreamoving_cli.pose_command import pose_app
from dreamoving_cli.terminal import (
    DEBUG,
    AsJson,
    Debug,
    Preset,
    Talk,
    Verbose,
    facts,
    say,
    show,
)
from dreamoving_cli.train_command import train_app


class Commands(TyperGroup):
    """The one place that turns an error into a sentence and an exit code; a bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # job queues stop a render as Ctrl-C does
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise refuse(ctx, error) from error
        except MemoryError as error:
            smaller = "Choose a smaller --size, fewer --context-frames or a smaller --decode-batch."
            raise refuse(ctx, DeviceMemoryError("the machine's memory is full", smaller)) from error
        except KeyboardInterrupt as error:
            say("dreamoving: interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from error


def refuse(ctx: Any, error: UserError) -> typer.Exit:
    if ctx.meta.get(DEBUG):
        say("".join(traceback.format_exception(error)))
    typer.secho(f"dreamoving: {error}", fg="red", err=True)
    return typer.Exit(error.exit_code)


class Render(TyperCommand):
    """`render` in the list of commands; its flags are made when it is called, as the options load slowly."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        from dreamoving_cli.render_command import command

        return command().make_context(info_name, args, parent, **extra)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
presets_app = typer.Typer(no_args_is_help=True, help="The looks that ship with dreamoving.")
app.add_typer(presets_app, name="presets", rich_help_panel="Look around")
app.add_typer(models_app, name="models", rich_help_panel="Look around")


def show_version(value: bool) -> None:
    if value:
        typer.echo(f"dreamoving {__version__}")
        raise typer.Exit


Version = typer.Option(
    "--version", callback=show_version, is_eager=True, metavar="", help="Print the version."
)


@app.callback()
def main(version: Annotated[bool, Version] = False, verbose: Verbose = 0, debug: Debug = False) -> None:
    """A dance video, a face photo and a garment photo in; that person, so dressed, doing that dance, out.

    dreamoving render --pose dance.mp4 --face me.jpg --cloth shirt.png
    """
    logging.basicConfig(format="%(message)s", handlers=[Talk()], level=logging.WARNING)


@app.command(cls=Render, rich_help_panel="Make videos")
def render() -> None:
    """Render one video and print where it is."""


app.add_typer(pose_app)
app.add_typer(caption_app)
app.add_typer(bench_app)
app.add_typer(depth_app)
app.add_typer(dataset_app, name="dataset", rich_help_panel="Train")
app.add_typer(train_app)
app.add_typer(evaluate_app)


@app.command(rich_help_panel="Look around")
def quality(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The rendered video.", show_default=False)],
    pose: Annotated[Path, typer.Option("--pose", help="The video that drove it.", show_default=False)],
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Also write a contact sheet of both.", show_default=False)
    ] = None,
    hop: Annotated[
        int | None,
        typer.Option(
            "--hop",
            min=2,
            show_default=False,
            help="Frames between windows (default: the record's); another shows the driver's own beat.",
        ),
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Measure how well a rendered video follows its driver, and whether seams show."""
    from dreamoving_cli.progress import progress
    from dreamoving_cli.quality import measure

    with progress() as on_progress:
        report = measure(output, pose, hop=hop, sheet=sheet, on_progress=on_progress)
    show(facts(report), as_json)


@app.command(rich_help_panel="Look around")
def examples(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Made if absent.", show_default=False)],
) -> None:
    """Write an example dance.mp4, me.jpg and shirt.png, made by our own renderer."""
    from dreamoving_cli.examples import write_examples

    for path in write_examples(folder):
        typer.echo(path)


@presets_app.command("list")
def presets_list(as_json: AsJson = False) -> None:
    """Name each preset and say what it is for."""
    from dreamoving_cli.presets import preset_names, preset_purpose

    show({name: preset_purpose(name) for name in preset_names()}, as_json)


@presets_app.command("show")
def presets_show(name: Preset) -> None:
    """Print a preset, complete and commented: a start for one of your own."""
    from dreamoving_cli.presets import load_preset, preset_path

    load_preset(name)  # a broken file is refused, not shown
    typer.echo(preset_path(name).read_text(encoding="utf-8"), nl=False)


@presets_app.command("schema")
def presets_schema() -> None:
    """Print the JSON schema of a preset, for editors."""
    from dreamoving_cli.presets import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
