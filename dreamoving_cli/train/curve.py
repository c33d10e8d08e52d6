"""How the loss went: log.jsonl, a picture of it, TensorBoard's files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dreamoving_cli.errors import UsageError
from dreamoving_cli.whole import whole_file

WIDTH, HEIGHT, LEFT, BELOW = 800, 400, 60, 30  # pixels; room for the numbers


def read_log(out: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    path = out / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def cut_log(out: Path, step: int) -> None:
    """Forget what was logged after the checkpoint: those steps are taken again."""
    if (out / "log.jsonl").exists():
        kept = [line for line in read_log(out) if line["step"] <= step]
        with whole_file(out / "log.jsonl") as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in kept))


def draw_curve(out: Path) -> Path | None:
    """Write loss.png: the logged losses over the steps; nothing while there are fewer than two."""
    lines = read_log(out)
    if len(lines) < 2:
        return None
    steps, losses = (np.array([line[name] for line in lines], float) for name in ("step", "loss"))
    low, high = float(losses.min()), float(losses.max())
    span = max(high - low, 1e-9)
    x = LEFT + (steps - steps[0]) / max(steps[-1] - steps[0], 1) * (WIDTH - LEFT - 20)
    y = 15 + (high - losses) / span * (HEIGHT - BELOW - 30)
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(picture)
    pen.line([(LEFT, 10), (LEFT, HEIGHT - BELOW), (WIDTH - 15, HEIGHT - BELOW)], fill="gray")
    pen.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=(30, 90, 180), width=2)
    for text, place in ((f"{high:.4g}", (5, 10)), (f"{low:.4g}", (5, HEIGHT - BELOW - 20))):
        pen.text(place, text, fill="black")
    pen.text((LEFT, HEIGHT - 20), f"step {steps[0]:.0f}", fill="black")
    pen.text((WIDTH - 110, HEIGHT - 20), f"step {steps[-1]:.0f}", fill="black")
    with whole_file(out / "loss.png") as part:
        picture.save(part)
    return out / "loss.png"


class Board:
    """TensorBoard's files beside the log."""

    def __init__(self, out: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                "tensorboard is not installed", "pip install 'dreamoving[train]', or leave tensorboard out."
            ) from error
        self._writer: Any = SummaryWriter(str(out / "tensorboard"))

    def add(self, line: dict[str, Any], rate: float) -> None:
        """One line of the log."""
        self._writer.add_scalar("loss", line["loss"], line["step"])
        self._writer.add_scalar("learning rate", rate, line["step"])
        self._writer.flush()
