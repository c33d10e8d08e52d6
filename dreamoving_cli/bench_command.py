"""The `bench` command: parse, measure, print. Results on stdout, talk on stderr.

Not here: any measuring (bench/).
"""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dreamoving_cli.errors import UsageError
from dreamoving_cli.terminal import AsJson, Debug, Verbose, say, switch

if TYPE_CHECKING:
    from dreamoving_cli.bench.sections import Bench

SECTION_NAMES = ("window", "long", "whole", "render", "length", "stages", "kernels", "extraction", "startup")
LENGTHS = (16, 64, 256, 1024)  # frames of the clips that cost is followed over
DEFAULTS: dict[str, dict[str, Any]] = {  # by the kind of device: what a few minutes are enough for
    "cpu": {"width": "half", "frames": 8, "size": "128x128", "steps": 1, "long": 24, "lengths": LENGTHS},
    "cuda": {"width": "full", "frames": 16, "size": "512x512", "steps": 4, "long": 48, "lengths": LENGTHS},
    "quick": {
        "width": "tiny",
        "frames": 4,
        "size": "64x64",
        "steps": 1,
        "long": 24,
        "lengths": (16, 64),
        "extracted": 12,
    },
}

bench_app = typer.Typer()


def option(name: str, text: str, metavar: str) -> Any:
    return typer.Option(name, help=text, metavar=metavar, show_default=False)


Width = Annotated[str | None, option("--width", "full (Stable Diffusion 1.5), half or tiny.", "WIDTH")]
Frames = Annotated[int | None, option("--frames", "Frames of one window.", "N")]
Long = Annotated[int | None, option("--long", "Frames of the clip of several windows.", "N")]
Size = Annotated[str | None, option("--size", "WIDTHxHEIGHT in pixels.", "SIZE")]
Steps = Annotated[int | None, option("--steps", "Denoising steps of one run.", "N")]
Guidance = Annotated[float, option("--guidance-scale", "1 is off, and the default.", "X")]
Device = Annotated[str, option("--device", "auto, cpu, cuda or cuda:N.", "DEVICE")]
Dtype = Annotated[str, option("--dtype", "auto, fp32, bf16 or fp16.", "DTYPE")]
Rounds = Annotated[int, option("--rounds", "Runs of each contender; their median counts.", "N")]
Only = Annotated[list[str] | None, option("--only", f"{', '.join(SECTION_NAMES)}; repeatable.", "SECTION")]
Compiled = Annotated[
    bool | None,
    typer.Option(
        "--compiled/--eager", help="Both sides compiled, too (default: on CUDA).", show_default=False
    ),
]
Quick = Annotated[bool, switch("--quick", "Tiny networks and pictures: does it run?")]


@bench_app.command("bench", rich_help_panel="Look around")
def bench(
    width: Width = None,
    frames: Frames = None,
    long: Long = None,
    size: Size = None,
    steps: Steps = None,
    guidance_scale: Guidance = 1.0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    rounds: Rounds = 3,
    only: Only = None,
    compiled: Compiled = None,
    quick: Quick = False,
    as_json: AsJson = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Measure speed and memory on this machine, beside diffusers' pipeline with the same random weights."""
    from dreamoving_cli.bench.contenders import once
    from dreamoving_cli.bench.report import report
    from dreamoving_cli.bench.sections import SECTIONS

    chosen = checked(only, rounds)
    about = once("machine", device=device, dtype=dtype)
    asked = {"width": width, "frames": frames, "size": size, "steps": steps, "long": long}
    kind = "quick" if quick else about["kind"]
    values = DEFAULTS[kind] | {key: value for key, value in asked.items() if value is not None}
    values["compiled"] = about["kind"] == "cuda" if compiled is None else compiled
    bench = plan(values, guidance_scale, rounds, about)
    told = {**values, "lengths": " ".join(map(str, values["lengths"])), "guidance_scale": guidance_scale}
    found: dict[str, Any] = {"machine": about, "settings": {**told, "rounds": rounds}}
    if not as_json:
        typer.echo(report(found))
    for name in chosen:
        say(f"measuring: {name}")
        found[name] = SECTIONS[name](bench)
        if not as_json:  # at once: whoever is cut off has what was measured
            typer.echo(f"\n{report({name: found[name]})}")
    if as_json:
        typer.echo(json.dumps(found, indent=2))


def checked(only: list[str] | None, rounds: int) -> list[str]:
    """The sections to measure."""
    if unknown := [name for name in only or () if name not in SECTION_NAMES]:
        raise UsageError(f"section is '{unknown[0]}'", f"Choose {', '.join(SECTION_NAMES)}.")
    if rounds < 1:
        raise UsageError(f"rounds is {rounds}", "Choose 1 or more.")
    return only or list(SECTION_NAMES)


def plan(values: dict[str, Any], guidance_scale: float, rounds: int, about: dict[str, Any]) -> "Bench":
    """The tasks of a benchmark from what was asked."""
    from dreamoving_cli.bench.sections import Bench
    from dreamoving_cli.bench.sizes import WIDTHS, Task
    from dreamoving_cli.options import picture_size

    if values["width"] not in WIDTHS:
        raise UsageError(f"width is '{values['width']}'", f"Choose {', '.join(WIDTHS)}.")
    width, height = map(int, picture_size(values["size"]).split("x"))
    if width % 64 or height % 64:
        raise UsageError(f"size is '{values['size']}'", "Give multiples of 64.")
    for name in ("frames", "steps", "long"):
        if values[name] < 1:
            raise UsageError(f"{name} is {values[name]}", "Choose 1 or more.")
    task = Task(
        width=values["width"],
        frames=values["frames"],
        size=(height, width),
        steps=values["steps"],
        guidance_scale=guidance_scale,
        device=about["device"],
        dtype=about["dtype"],
    )
    long = Task(**{**vars(task), "frames": values["long"], "window": 16, "overlap": 4})
    narrow = {} if about["kind"] == "cuda" else {"width": "tiny", "size": (64, 64)}
    growing = Task(**{**vars(long), **narrow, "steps": 1})
    ceilings = about["matmul_flops"], about["threads"]
    return Bench(
        task, long, growing, tuple(values["lengths"]), rounds, about["free_bytes"], *ceilings,
        compiled=values["compiled"], extracted=values.get("extracted"),
    )  # fmt: skip
