"""The `caption` command: parse, call one function an input, print. Results on stdout, talk on stderr.

Not here: any work (caption/describe.py).
"""

from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dreamoving_cli.errors import UsageError, UserError
from dreamoving_cli.terminal import RUN, Debug, Overwrite, Verbose, option, say, switch

if TYPE_CHECKING:
    from dreamoving_cli.caption.describe import ClipWords, Describer

FRAMES, WORDS, FILES = "Which frames", "Words", "Files"


SOURCE = typer.Argument(
    metavar="IN", show_default=False, help="A photo, a video, a folder or a quoted pattern of many."
)
OUT = option("--out", "Write the captions here instead of printing them.", FILES)
FORMAT = option("--format", "text, json, jsonl or csv (default: by --out's extension, else text).", FILES)
PREVIEW = option("--preview", "Also draw the frames with their boxes into this picture.", FILES)
EVERY = option("--every", "A frame every so many seconds.", FRAMES)
COUNT = option("--frames", "So many frames, evenly spaced (default: 4).", FRAMES)
PROMPT = option(
    "--prompt", "What to ask (default: the paper's, for a detailed description with boxes).", WORDS
)
GROUNDING = option(
    "--grounding", "boxes: keep the marks <p>..</p> {<x0>..}; plain: words only.", WORDS, shown=True
)
SAMPLE = option("--sample", "Draw the words instead of taking the likeliest.", WORDS, metavar="")
SEED = option("--seed", "Of --sample: same seed, same words.", WORDS, shown=True)
MODEL = option("--model", "auto, minigpt-v2, mini, or a captioner's folder.", RUN, shown=True)
DEVICE = option("--device", "auto, cpu, cuda, cuda:1, mps.", RUN, shown=True)
DTYPE = option("--dtype", "Precision: auto, fp32, bf16, fp16.", RUN, shown=True)
BITS = option("--bits", "8 or 4: round the language model's weights (extra: caption).", RUN)
OFFLOAD = option(
    "--offload", "On CUDA: layers wait in the CPU's memory and come one at a time; slow.", RUN, metavar=""
)

caption_app = typer.Typer()


@caption_app.command("caption", rich_help_panel="Make videos")
def caption(
    source: Annotated[str, SOURCE],
    out: Annotated[Path | None, OUT] = None,
    form: Annotated[str | None, FORMAT] = None,
    preview: Annotated[Path | None, PREVIEW] = None,
    every: Annotated[str | None, EVERY] = None,
    count: Annotated[int | None, COUNT] = None,
    prompt: Annotated[str | None, PROMPT] = None,
    grounding: Annotated[str, GROUNDING] = "boxes",
    sample: Annotated[bool, SAMPLE] = False,
    seed: Annotated[int, SEED] = 0,
    model: Annotated[str, MODEL] = "auto",
    device: Annotated[str, DEVICE] = "auto",
    dtype: Annotated[str, DTYPE] = "auto",
    bits: Annotated[int | None, BITS] = None,
    offload: Annotated[bool, OFFLOAD] = False,
    skip_existing: Annotated[bool, switch("--skip-existing", "Done at once if --out is there.")] = False,
    overwrite: Overwrite = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Say in words what a photo or a video shows.

    A run with --out that was cut off goes on where it was when the same command is given again.
    """
    from dreamoving_cli.caption.describe import PROMPT as DETAILED
    from dreamoving_cli.caption.describe import Describer, Request
    from dreamoving_cli.caption.files import Partial, chosen_format
    from dreamoving_cli.caption.models import Machine, choose_captioner
    from dreamoving_cli.caption.sources import Picks, inputs

    if grounding not in ("boxes", "plain"):
        raise UsageError(f"grounding is '{grounding}'", "Choose boxes or plain.")
    form = chosen_format(form, out)
    if skip_existing and out is not None and out.exists():
        say(f"{out} is there already")
        typer.echo(out)
        return
    picks = Picks(moment(every) if every else None, count)
    paths = inputs(source)
    check_outputs(out, preview, paths, overwrite)
    request = Request(prompt or DETAILED, picks, grounding == "boxes", seed if sample else None)
    chosen = choose_captioner(model, Machine(device, dtype, bits, offload))
    say(chosen.note)
    if chosen.is_mini and request.prompt != DETAILED:
        say("the miniature was taught one question and answers that, whatever is asked")
    describer = Describer(chosen, request, Partial(out))
    try:
        clips, failures = all_of(paths, describer)
    except KeyboardInterrupt:
        if out is not None and describer.partial.answers:
            say(f"not finished; the same command goes on from {describer.partial.path}")
        raise
    if clips:
        deliver(clips, form, out)
        describer.partial.remove()
        if preview is not None:
            draw(preview, clips[0], overwrite)
    if failures:
        if len(paths) == 1:
            raise failures[0]
        say(f"{len(failures)} of {len(paths)} inputs failed")
        raise typer.Exit(failures[0].exit_code)


def moment(text: str) -> Fraction:
    """Exact seconds of "2.5" or "1:02.5"."""
    from dreamoving_cli.options import seconds

    try:
        return Fraction(seconds(text))
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError(f"every is '{text}'", "Give seconds, such as 2 or 0.5.") from error


def check_outputs(out: Path | None, preview: Path | None, paths: list[Path], overwrite: bool) -> None:
    """Refuse outputs that could not be written, before any work."""
    from dreamoving_cli.media.images import check_picture
    from dreamoving_cli.media.whole import check_output

    if out is not None:
        check_output(out, overwrite)
    if preview is not None:
        check_picture(preview, overwrite)
    if preview is not None and len(paths) > 1:
        raise UsageError(f"preview is '{preview}', for {len(paths)} inputs", "Preview one at a time.")


def all_of(paths: list[Path], describer: "Describer") -> tuple[list[Any], list[UserError]]:
    """One input after the other; of many, one that fails is named and the others are described."""
    from dreamoving_cli.progress import progress

    clips: list[ClipWords] = []
    failures: list[UserError] = []
    with progress() as on_progress:
        for done, path in enumerate(paths):
            many = len(paths) > 1
            if many:
                on_progress("inputs", done, len(paths))
            try:
                clips.append(describer.describe(path, quiet if many else partial(on_progress, "caption")))
            except UserError as error:
                failures.append(error)
                if many:
                    typer.secho(f"dreamoving: {path}: {error}", fg="red", err=True)
    return clips, failures


def quiet(done: int, total: int) -> None:
    """Of many inputs, the frames of each are not told."""


def deliver(clips: list[Any], form: str, out: Path | None) -> None:
    """Print the captions, or write them and print where."""
    from dreamoving_cli.caption.describe import as_table
    from dreamoving_cli.caption.files import written
    from dreamoving_cli.whole import whole_file

    text = written([as_table(clip) for clip in clips], form)
    if out is None:
        typer.echo(text, nl=False)
        return
    with whole_file(out) as part:
        part.write_text(text, encoding="utf-8")
    typer.echo(out)


def draw(preview: Path, clip: Any, overwrite: bool) -> None:
    """Write the preview picture of one input."""
    from dreamoving_cli.caption.describe import preview as sheet
    from dreamoving_cli.media.images import write_image

    typer.echo(write_image(preview, sheet(Path(clip.file), clip), overwrite=overwrite))
