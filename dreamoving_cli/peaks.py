"""Peak memory of one render in every memory mode, as a table in Markdown.

    python -m dreamoving_cli.peaks --pose dance.json --model mini --size 256x256 --frames 16 --steps 2

Each mode renders in a process of its own. On the CPU the peak is the resident memory of the process
(ru_maxrss) less what it held before it loaded the model; on CUDA torch's own count.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dreamoving_cli.memory import NAMES

CHILD = "--in-process"  # of one mode; for ourselves
UNIT = 1024 if sys.platform != "darwin" else 1  # bytes in one of ru_maxrss
HEADER = "| mode | stated in the plan | measured | seconds |\n|---|---|---|---|\n"


def main(words: list[str]) -> None:
    """Print the table, or measure one mode."""
    options = parse(words)
    if options.in_process:
        print_line(json.dumps(measure(options)))
        return
    print_line(HEADER.rstrip())
    for name in NAMES:
        command = [sys.executable, "-m", "dreamoving_cli.peaks", *words, CHILD, name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print_line(row(json.loads(done.stdout.splitlines()[-1])))


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dreamoving_cli.peaks", description=__doc__)
    parser.add_argument("--pose", type=Path, required=True)
    parser.add_argument("--cloth", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--size")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument(CHILD, choices=NAMES, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One render in this process: {mode, planned, measured} in GiB, and its seconds."""
    import resource
    import time

    import torch

    from dreamoving_cli.device import GIB, Machine
    from dreamoving_cli.options import RenderOptions
    from dreamoving_cli.render import plan, render

    asked = RenderOptions(
        model=options.model, pose=options.pose, cloth=options.cloth, size=options.size,
        num_frames=options.frames, steps=options.steps, seed=1,
    )  # fmt: skip
    machine = Machine(options.device, options.in_process)
    told = plan(asked, machine)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        render(asked, Path(folder) / "out.mp4", machine)
    if told.device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated() / GIB
    else:
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * UNIT / GIB
    seconds = time.monotonic() - start
    return {"mode": told.vram, "planned": told.memory_gib, "measured": peak, "seconds": seconds}


def row(found: dict[str, Any]) -> str:
    numbers = f"{found['planned']:.2f} GiB | {found['measured']:.2f} GiB | {found['seconds']:.0f}"
    return f"| {found['mode']} | {numbers} |"


def print_line(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
