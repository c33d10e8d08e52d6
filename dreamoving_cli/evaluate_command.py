"""The `evaluate` command: parse, call one function, print. Results on stdout, talk on stderr.

Not here: any work (train/evaluate.py).
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from dreamoving_cli.paths import MINI
from dreamoving_cli.terminal import RUN, AsJson, Debug, Verbose, complete_preset, switch

DATA = typer.Option(
    "--data", metavar="DIR", help="Synthetic clips; the held-out ones are used.", show_default=False
)
OUT = typer.Option(
    "--out", metavar="DIR", help="evaluation.json and a sheet; made if absent.", show_default=False
)
MODEL = typer.Option(
    "--model", metavar="DIR", help="A pack's folder (default: the miniature).", show_default=False
)
CLIPS = typer.Option("--clips", min=1, help="How many.", rich_help_panel=RUN)
FRAMES = typer.Option("--frames", min=2, help="Of each clip.", rich_help_panel=RUN)
STEPS = typer.Option("--steps", min=1, help="Denoising steps.", rich_help_panel=RUN)
PRESET = typer.Option(
    "--preset",
    metavar="NAME|FILE",
    help="Its sampler, steps, guidance and strengths; without it: --steps of ddim, guidance 2.",
    autocompletion=complete_preset,
    show_default=False,
    rich_help_panel=RUN,
)
WINDOW = typer.Option(
    "--context-frames",
    min=2,
    help="Of a window; fewer than --frames: seams are measured.",
    show_default="pack's",
    rich_help_panel=RUN,
)
OVERLAP = typer.Option("--context-overlap", min=0, help="Frames that windows share.", rich_help_panel=RUN)
VARIANT = typer.Option(
    "--without", help="face, cloth, control, control-motion, motion, anchors: repeatable.", show_default=False
)
AGAINST = typer.Option(
    "--against", metavar="DIR", help="Another pack, as of an earlier stage; repeatable.", show_default=False
)
DRIVER = typer.Option("--driver", help="Footage to follow too; repeatable.", show_default=False)

evaluate_app = typer.Typer()


@evaluate_app.command("evaluate", rich_help_panel="Train")
def evaluate(
    data: Annotated[Path, DATA],
    out: Annotated[Path, OUT],
    model: Annotated[Path | None, MODEL] = None,
    without: Annotated[list[str] | None, VARIANT] = None,
    against: Annotated[list[Path] | None, AGAINST] = None,
    driver: Annotated[list[Path] | None, DRIVER] = None,
    ablate: Annotated[bool, switch("--ablate", "Leave out each part in turn.")] = False,
    noise_only: Annotated[bool, switch("--noise-only", "No renders: the prediction's own error.")] = False,
    clips: Annotated[int, CLIPS] = 8,
    frames: Annotated[int, FRAMES] = 16,
    steps: Annotated[int, STEPS] = 15,
    preset: Annotated[str | None, PRESET] = None,
    context_frames: Annotated[int | None, WINDOW] = None,
    context_overlap: Annotated[int, OVERLAP] = 4,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Render held-out synthetic clips and compare them with the truth; show what each part gives."""
    from dreamoving_cli.progress import progress
    from dreamoving_cli.train.evaluate import evaluate as run
    from dreamoving_cli.train.variants import VARIANTS, EvaluateOptions

    left_out = tuple(VARIANTS)[1:] if ablate else tuple(f"no-{part}" for part in without or ())
    options = EvaluateOptions(
        model or MINI, data, out, clips, frames, steps, variants=("full", *left_out),
        drivers=tuple(driver or ()), against=tuple(against or ()), context_frames=context_frames,
        context_overlap=context_overlap, renders=not noise_only, preset=preset,
    )  # fmt: skip
    with progress() as on_progress:
        means = run(options, on_progress)
    typer.echo(json.dumps(means, indent=2) if as_json else table(means))


def table(means: dict[str, dict[str, float]]) -> str:
    """One line a measure, one column a variant."""
    names = sorted({name for values in means.values() for name in values})
    width = max(map(len, names))
    lines = [" " * width + "".join(f"  {variant:>18}" for variant in means)]
    for name in names:
        cells = (f"{values[name]:>18.3f}" if name in values else f"{'-':>18}" for values in means.values())
        lines.append(f"{name:<{width}}" + "".join(f"  {cell}" for cell in cells))
    return "\n".join(lines)
