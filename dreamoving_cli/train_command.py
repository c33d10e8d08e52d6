"""The `train` command: parse, call one function, print. Results on stdout, talk on stderr.

Not here: any work (train/loop.py), nor the commands that make the miniature (train/__main__.py).
"""

from pathlib import Path
from typing import Annotated

import typer

from dreamoving_cli.errors import UsageError
from dreamoving_cli.terminal import RUN, AsJson, Debug, Verbose, show, switch

STAGE = typer.Argument(
    metavar="STAGE",
    show_default=False,
    help="content-guider, long-frames, video-controlnet or expression; of the miniature all of its stages.",
)
CONFIG = typer.Option("--config", "-c", metavar="FILE", help="A YAML file of the run.", show_default=False)
MAX_STEPS = typer.Option(
    "--max-steps",
    min=1,
    help="Stop at this step; the next run goes on.",
    show_default=False,
    rich_help_panel=RUN,
)

train_app = typer.Typer()


@train_app.command("train", rich_help_panel="Train")
def train(
    stage: Annotated[str, STAGE],
    config: Annotated[Path | None, CONFIG] = None,
    max_steps: Annotated[int | None, MAX_STEPS] = None,
    defaults: Annotated[bool, switch("--defaults", "Print a file with the stage's own values.")] = False,
    mini: Annotated[bool, switch("--mini", "With --defaults: the miniature's values.")] = False,
    dry_run: Annotated[bool, switch("--dry-run", "Say what would be trained, and its memory.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Train one of DreaMoving's stages on a data set; print the folder of the model that came out.

    A run that was cut off goes on from its checkpoint when the same command is given again.
    """
    from dreamoving_cli.train.options import as_run, chosen_stage, defaults_yaml, load_train_options

    if defaults:
        typer.echo(defaults_yaml(stage, "mini" if mini else "paper"), nl=False)
        return
    if config is None:
        raise UsageError(
            "there is no --config", f"Make one: dreamoving train {stage} --defaults > {stage}.yaml"
        )
    options = load_train_options(config)
    chosen_stage(stage, options)  # a wrong value is refused before torch is paid for
    run = as_run(stage, options, max_steps)
    if dry_run:
        from dreamoving_cli.train.estimate import estimate

        show(estimate(run), as_json)
        return
    from dreamoving_cli.train.start import start

    pack = start(run)
    show({"model": str(pack), "out": str(run.out)}, as_json) if as_json else typer.echo(pack)
