"""One picture of what a pack makes of every kind of input: words, face, garment, style, pose, depth, length.

    draw_modes(Path("docs/modes.png"), ModesOptions(pack))

All inputs are the example media; the driver is danced anew, longer and larger than dance.mp4.
"""

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dreamoving_cli.examples import write_examples
from dreamoving_cli.media.images import contact_sheet, crop_to_aspect, resize, spread
from dreamoving_cli.media.video import open_clip
from dreamoving_cli.media.writer import write_video
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.presets import load_preset
from dreamoving_cli.render import render
from dreamoving_cli.train.example_media import FPS, HEIGHT, WIDTH, dancing
from dreamoving_cli.whole import whole_file

COLUMNS, CELL = 7, (138, 92)  # frames of a video; height and width of a cell
SIDE_STEP = 16  # the driver's sides are multiples
COLORS = 200  # of the picture that is kept: a fraction of the bytes, hardly seen
WORDS = "a woman with brown skin and long black hair in a blue dress is dancing, a plain green background"
PLAIN = "a person is dancing, a plain gray background"

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ModesOptions:
    """What is rendered, and how large."""

    pack: Path
    frames: int = 12
    long_frames: int = 200
    steps: int = 6
    scale: float = 1.5
    seed: int = 1


@dataclass(frozen=True)
class Mode:
    """One kind of input."""

    prompt: str
    files: dict[str, str] = field(default_factory=dict)  # option -> which of the inputs
    scales: dict[str, float] = field(default_factory=dict)
    long: bool = False


DRIVER, FACE, CLOTH = {"pose": "dance.mp4"}, {"face": "me.jpg"}, {"cloth": "shirt.png"}
MODES = {
    "words": Mode(WORDS, DRIVER),
    "face": Mode(PLAIN, DRIVER | FACE),
    "face, garment": Mode(PLAIN, DRIVER | FACE | CLOTH),
    "style": Mode(PLAIN, DRIVER | {"style": "me.jpg"}),
    "pose": Mode("", DRIVER),
    "depth": Mode("", {"depth": "dance.mp4"}),
    "pose, depth": Mode("", DRIVER | {"depth": "dance.mp4"}, {"depth_scale": 0.7}),
    "long": Mode(PLAIN, {"pose": "long.mp4"} | FACE | CLOTH, long=True),
}


def draw_modes(out: Path, options: ModesOptions, on_progress: OnProgress = lambda *told: None) -> Path:
    """Render all modes; a row for the driver and for each of them."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_inputs(folder, options)
        columns = min(COLUMNS, options.frames, options.long_frames)
        rows = {"driver": pictures_of(folder / "dance.mp4", options.frames, columns)}
        for k, (name, mode) in enumerate(MODES.items()):
            made = render(asked(mode, folder, options), folder / f"{k}.mp4")
            count = options.long_frames if mode.long else options.frames
            rows[f"{count} frames" if mode.long else name] = pictures_of(made, count, columns)
            on_progress("modes", k + 1, len(MODES))
    cells = [cell for row in rows.values() for cell in row]
    labels = [name if k == 0 else "" for name in rows for k in range(columns)]
    return write_small(out, contact_sheet(cells, columns, labels))


def write_inputs(folder: Path, options: ModesOptions) -> None:
    """The example media, their dance anew: larger, and as dance.mp4 is but longer."""
    for path in write_examples(folder):
        if path.suffix == ".mp4":
            path.unlink()
    large = [round(side * options.scale / SIDE_STEP) * SIDE_STEP for side in (HEIGHT, WIDTH)]
    write_video(folder / "dance.mp4", [dancing(options.frames, *large)], FPS)
    write_video(folder / "long.mp4", [dancing(options.long_frames)], FPS)


def asked(mode: Mode, folder: Path, options: ModesOptions) -> RenderOptions:
    """The options of one render: preset `mini`, but for what is asked here."""
    given: dict[str, Any] = {option: folder / name for option, name in mode.files.items()}
    given |= mode.scales
    if "face" in given:
        given["face"] = (given["face"],)
    return load_preset("mini").replace(
        model=str(options.pack), prompt=mode.prompt, **given,
        num_frames=options.long_frames if mode.long else options.frames,
        steps=options.steps, seed=options.seed, audio=False,
    )  # fmt: skip


def pictures_of(video: Path, count: int, columns: int) -> list[np.ndarray]:
    """Some of the first `count` frames, small."""
    height, width = CELL
    with open_clip(video) as clip:
        chosen = (clip.read([k])[0] for k in spread(count, columns))
        return [resize(crop_to_aspect(frame, height, width), height, width) for frame in chosen]


def write_small(path: Path, picture: np.ndarray) -> Path:
    """A PNG of few colors, whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(picture).quantize(COLORS).save(buffer, "PNG", optimize=True)
    with whole_file(path) as part:
        part.write_bytes(buffer.getvalue())
    return path
