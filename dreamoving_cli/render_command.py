"""The `render` command: the keys of a preset as flags, and where to write, what to skip, what to print.

Not here: any rendering (render.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from dreamoving_cli.errors import UsageError
from dreamoving_cli.flags import overrides, preset_flags
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.outputs import candidates, output_path, record_path, with_seed
from dreamoving_cli.presets import load_preset, preset_names
from dreamoving_cli.terminal import (
    RUN,
    AsJson,
    Debug,
    Overwrite,
    Verbose,
    complete_preset,
    facts,
    imports_that_last,
    say,
    show,
    switch,
)

PRESET = typer.Option(
    "--preset",
    "-p",
    metavar="NAME|FILE",
    autocompletion=complete_preset,
    show_default=False,
    help="A look by name, or a YAML file; the record beside a video repeats it. Flags win over it.",
)
OUT = typer.Option(
    "--out",
    "-o",
    show_default=False,
    help="The video, or a folder for it (default: named after inputs and seed).",
)
DEVICE = typer.Option(
    "--device",
    "--devices",
    rich_help_panel=RUN,
    help="auto, cpu, cuda, cuda:1, mps; several GPUs share the windows of a long clip: 0,1,2.",
)
VRAM = typer.Option(
    "--vram",
    rich_help_panel=RUN,
    help="Memory mode: auto (what fits), high (fastest), low (one window at a time), min (layer by layer).",
)
CAPTION = typer.Option(
    "--caption",
    rich_help_panel="Look",
    help="Where no prompt is given, word the driving footage's scene and action: auto (if MiniGPT-v2 is "
    "here), off, force (with the miniature too).",
)
PROMPT_FILE = typer.Option(
    "--prompt-file",
    rich_help_panel="Look",
    show_default=False,
    help="The prompt as a text, or as 'dreamoving caption' wrote it; by seconds or frames too.",
)
DTYPE = typer.Option("--dtype", rich_help_panel=RUN, help="Precision: auto, fp32, bf16, fp16.")
COMPILE = typer.Option(
    "--compile",
    rich_help_panel=RUN,
    help="off; blocks: torch.compile for what repeats, minutes at first, for long clips on a GPU; graphs: "
    "CUDA graphs of them, too.",
)


@preset_flags
def render(
    preset: Annotated[str | None, PRESET] = None,
    out: Annotated[Path | None, OUT] = None,
    device: Annotated[str, DEVICE] = "auto",
    vram: Annotated[str, VRAM] = "auto",
    dtype: Annotated[str, DTYPE] = "auto",
    compiling: Annotated[str, COMPILE] = "off",
    caption: Annotated[str, CAPTION] = "auto",
    prompt_file: Annotated[Path | None, PROMPT_FILE] = None,
    dry_run: Annotated[bool, switch("--dry-run", "Print the plan and stop.")] = False,
    skip_existing: Annotated[
        bool, switch("--skip-existing", "Done at once if this very render is there.")
    ] = False,
    resume: Annotated[bool, switch("--resume", "Go on with a render that died.")] = False,
    preview: Annotated[
        bool, switch("--preview", "While it runs, keep a sheet of how it will look beside the output.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Render one video and print where it is."""
    given = overrides(flags)
    options = chosen_options(preset, given)
    written = "prompt" in given
    if written and (prompt_file is not None or caption == "force"):
        raise UsageError("--prompt is given beside --prompt-file or --caption force", "Give one of them.")
    of_file = preset is not None and preset not in preset_names() and bool(options.prompt)  # so has a record
    caption = "off" if caption == "auto" and (written or of_file) else caption
    options = with_prompt(options, prompt_file, caption, device.split(",")[0])
    for note in unused(options, given):
        say(note)
    if skip_existing and (done := already_made(options, out)):
        say(f"{done} is there already, made from the same inputs and options")
        return show_render(done, as_json)
    options, output = resumed(options, out) if resume else fresh(options, out)
    with imports_that_last():  # torch is paid for here, not for a wrong flag
        from dreamoving_cli.device import Machine
        from dreamoving_cli.render import plan
        from dreamoving_cli.render import render as run

    machine = Machine(device, vram, dtype, compiling)
    if dry_run:
        return show({"output": str(output), **facts(plan(options, machine))}, as_json)
    from dreamoving_cli.progress import progress

    with progress() as on_progress:
        path = run(
            options,
            output,
            machine,
            overwrite=overwrite,
            resume=resume,
            preview=preview,
            on_progress=on_progress,
        )
    return show_render(path, as_json)


def command() -> Any:
    """The Typer command, made when `render` is called."""
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.command("render", context_settings={"help_option_names": ["-h", "--help"]})(render)
    return typer.main.get_command(app)


def chosen_options(preset: str | None, given: Mapping[str, Any]) -> RenderOptions:
    """The preset with the flags on top; without one, the look that suits the model pack."""
    if preset is not None:
        return load_preset(preset, given)
    suits = "mini" if given.get("model", "auto") in ("auto", "mini") else "quality"
    return load_preset(suits, {"model": "auto", **given})


def with_prompt(options: RenderOptions, file: Path | None, caption: str, device: str) -> RenderOptions:
    """The options with the prompt of a file, or of the footage where that is wanted; says which."""
    from dreamoving_cli.caption.files import read_prompt
    from dreamoving_cli.caption.for_render import footage_prompt
    from dreamoving_cli.progress import progress

    if file is not None:
        options = options.replace(prompt=read_prompt(file))
        say(f"prompt, from {file}: {options.prompt}")
        return options
    with progress() as on_progress:
        prompt, note = footage_prompt(
            options, caption, device, lambda done, total: on_progress("caption", done, total)
        )
    if note:
        say(note)
    return options if prompt is None else options.replace(prompt=prompt)


def unused(options: RenderOptions, given: Mapping[str, Any]) -> list[str]:
    """One sentence for each picture that was given, and for a negative prompt, that counts for nothing."""
    notes = [
        f"{path} is not used: {name}_strength is 0. Give --{name}-strength to use it."
        for name in ("face", "cloth", "style")
        for path in options.pictures(name)
        if not getattr(options, f"{name}_strength")
    ]
    if given.get("negative_prompt") and options.guidance_scale == 1:
        notes.append("--negative-prompt is not used: guidance_scale is 1. Give --guidance-scale 2 to use it.")
    return notes


def already_made(options: RenderOptions, out: Path | None) -> Path | None:
    """The output of an earlier render of just this; None where there is none."""
    from dreamoving_cli.record import record_matches

    return next((path for path in candidates(options, out) if record_matches(path, options)), None)


def fresh(options: RenderOptions, out: Path | None) -> tuple[RenderOptions, Path]:
    """The options with their seed, and the output named after it."""
    options = with_seed(options)
    return options, output_path(options, out)


def resumed(options: RenderOptions, out: Path | None) -> tuple[RenderOptions, Path]:
    """The latest render of these options that died; its state holds the seed if none is given."""
    from dreamoving_cli.resume import SUFFIX

    found = candidates(options, out, SUFFIX)
    return (options, found[0]) if found else fresh(options, out)


def show_render(path: Path, as_json: bool) -> None:
    if as_json:
        show({"output": str(path), "record": str(record_path(path))}, as_json)
    else:
        typer.echo(path)
