"""A look at a stage while it trains: one render, always of the same inputs, from the averaged weights."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Validation:
    """What is rendered, and how often."""

    every: int  # steps
    pose: Path
    prompt: str = ""
    face: Path | None = None
    cloth: Path | None = None
    frames: int = 16
    steps: int = 25
    size: str | None = None
    seed: int = 0


def validate(wanted: Validation, folder: Path, step: int) -> Path:
    """Render with the pack in `folder`/pack; where the video is."""
    from dreamoving_cli.options import RenderOptions
    from dreamoving_cli.render import render

    options = RenderOptions(
        model=str(folder / "pack"), pose=wanted.pose, prompt=wanted.prompt,
        face=(wanted.face,) if wanted.face else (), cloth=wanted.cloth,
        num_frames=wanted.frames, steps=wanted.steps, size=wanted.size, seed=wanted.seed,
    )  # fmt: skip
    return render(options, folder / f"step-{step:06d}.mp4", overwrite=True)
