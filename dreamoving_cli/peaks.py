"""Peak memory of a render, stage by stage, in every memory mode, as a table in Markdown.

    python -m dreamoving_cli.peaks --pose dance.json --model mini --size 256x256 --frames 100 1000 --steps 1

Each row is a render in a process of its own. On the CPU a peak is the resident memory of the whole process,
libraries included (Linux: per stage; elsewhere: up to its end); on CUDA it is torch's own count.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from dreamoving_cli.memory import NAMES, STAGES

CHILD = "--in-process"  # of one mode; for ourselves
HEADER = (
    f"| mode | frames | plan, GiB | {' | '.join(STAGES)} | s per window-frame | s |\n"
    f"|{'---|' * (len(STAGES) + 5)}"
)


def main(words: list[str]) -> None:
    """Print the table, or measure one render."""
    options = parse(words)
    if options.in_process:
        print_line(json.dumps(measure(options)))
        return
    print_line(HEADER)
    for name in options.modes:
        for count in options.frames:
            more = [CHILD, name, "--frames", str(count)]
            command = [sys.executable, "-m", "dreamoving_cli.peaks", *words, *more]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print_line(row(json.loads(done.stdout.splitlines()[-1])))


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dreamoving_cli.peaks", description=__doc__)
    parser.add_argument("--pose", type=Path, required=True)
    parser.add_argument("--cloth", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--size")
    parser.add_argument("--frames", type=int, nargs="+", default=[16], help="one row for each number")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--modes", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument(CHILD, choices=NAMES, help=argparse.SUPPRESS)
    return parser.parse_args(words)


@dataclass
class Meter:
    """The peak of each stage, from when its networks begin to be read."""

    cuda: bool
    stage: str = "start"
    peaks: dict[str, float] = field(default_factory=dict)  # stage -> GiB

    def begin(self, stage: str) -> None:
        """The stage before is over, and its networks are forgotten."""
        if stage != self.stage:
            self.note()
            self.stage = stage
            reset_peak(self.cuda)

    def note(self) -> None:
        """Keep the running stage's peak."""
        self.peaks[self.stage] = peak_gib(self.cuda)


def reset_peak(cuda: bool) -> None:
    """Count the peak from here on, where the system can."""
    if cuda:
        import torch

        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_gib(cuda: bool) -> float:
    """The most memory since the last reset."""
    if cuda:
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    system: str = sys.platform  # mypy knows only the one it runs on
    if system == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 2**20
    unit = 1 if system == "darwin" else 1024  # bytes in one of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One render in this process."""
    from dreamoving_cli.device import GIB, Machine
    from dreamoving_cli.memory import need
    from dreamoving_cli.options import RenderOptions
    from dreamoving_cli.plan import prepare
    from dreamoving_cli.render import render
    from dreamoving_cli.residency import Residency

    given = {} if options.guidance_scale is None else {"guidance_scale": options.guidance_scale}
    asked = RenderOptions(
        model=options.model, pose=options.pose, cloth=options.cloth, size=options.size,
        num_frames=options.frames[-1], steps=options.steps, seed=1, **given,
    )  # fmt: skip
    machine = Machine(options.device, options.in_process)
    job = prepare(asked, machine)
    meter, start = Meter(job.device.type == "cuda"), time.monotonic()
    times: list[float] = []
    read = Residency.read_stage

    def watched(residency: Residency, stage: str) -> None:
        meter.begin(stage)
        read(residency, stage)

    def on_progress(stage: str, done: int, total: int) -> None:
        times.extend([time.monotonic()] if stage == "denoise" else [])

    with tempfile.TemporaryDirectory() as folder, patch.object(Residency, "read_stage", watched):
        render(asked, Path(folder) / "out.mp4", machine, on_progress=on_progress)
    meter.note()
    steps = range(options.steps)
    window_frames = sum(len(window) for step in steps for window in job.windows.windows_at(step))
    return {
        "mode": str(job.modes[0]),
        "frames": job.driver.num_frames,
        "plan": need(job.modes[0], job.sizes) / GIB,
        "peaks": meter.peaks,
        "each": (times[-1] - times[0]) / window_frames,
        "seconds": time.monotonic() - start,
    }


def row(found: dict[str, Any]) -> str:
    peaks = [f"{found['peaks'][stage]:.2f}" if stage in found["peaks"] else "-" for stage in STAGES]
    numbers = " | ".join(peaks)
    return (
        f"| {found['mode']} | {found['frames']} | {found['plan']:.2f} | {numbers} | "
        f"{found['each']:.3f} | {found['seconds']:.0f} |"
    )


def print_line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
