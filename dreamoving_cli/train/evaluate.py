"""What models make of held-out synthetic clips, whose truth is known; and with parts of them left out.

    means = evaluate(EvaluateOptions(model, data, out))     # measures by column; a sheet, evaluation.json

Real drivers have no truth: what can be measured of their renders is what `dreamoving quality` measures.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import nn

from dreamoving_cli.conditioning import Denoiser, ImagePrompts, encode_prompts
from dreamoving_cli.controls import Control
from dreamoving_cli.errors import UsageError
from dreamoving_cli.frozen import unknown
from dreamoving_cli.media.images import contact_sheet, resize, spread, write_image
from dreamoving_cli.models.load import Pack, load_pack
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.quality import seam, seam_by_chance
from dreamoving_cli.sampling import FrameNoise, Solver, denoise, make_scheduler
from dreamoving_cli.train.agreement import Truth, agreement, read_truth
from dreamoving_cli.train.data import ClipStore
from dreamoving_cli.train.garments import COLORS
from dreamoving_cli.train.measures import color_name, mean_lab, measure_clip, torsos
from dreamoving_cli.train.start import require_clips
from dreamoving_cli.whole import whole_file
from dreamoving_cli.windows import Windows

SHEET_FRAMES, CELL = 3, 144  # frames of a clip in the sheet; pixels of a cell's height
SHEET_CLIPS = 4  # beside each other in the sheet

OnProgress = Callable[[str, int, int], None]
Values = dict[str, float]


@dataclass(frozen=True)
class EvaluateOptions:
    """What is rendered."""

    model: Path
    data: Path
    out: Path
    clips: int = 8
    frames: int = 16
    steps: int = 15
    guidance_scale: float = 2.0
    seed: int = 0
    variants: tuple[str, ...] = ("full",)
    drivers: tuple[Path, ...] = ()  # footage, rendered without pictures or words
    against: tuple[Path, ...] = ()  # further packs, whole
    context_frames: int | None = None  # of a window; None = the pack's
    context_overlap: int = 4

    @property
    def columns(self) -> "dict[str, tuple[Path, Variant]]":
        """Name -> which pack, and what of it."""
        columns = {name: (self.model, VARIANTS[name]) for name in self.variants}
        for path in self.against:
            name = path.parent.name if path.name == "pack" else path.name
            if name in ("truth", *columns):
                raise UsageError(f"two of what is compared are called '{name}'", "Rename the pack's folder.")
            columns[name] = (path, VARIANTS["full"])
        return columns


@dataclass(frozen=True)
class Variant:
    """A model with a part left out."""

    leaves_out: str  # in words
    face: float = 1.0
    cloth: float = 1.0
    control: float = 1.0
    still: tuple[str, ...] = ()  # networks whose motion blocks do nothing
    anchors: bool = True


VARIANTS = {
    "full": Variant("nothing"),
    "no-face": Variant("the face picture: alpha_f 0", face=0.0),
    "no-cloth": Variant("the garment picture: alpha_c 0", cloth=0.0),
    "no-control": Variant("the Video ControlNet", control=0.0),
    "no-control-motion": Variant("motion blocks of the Video ControlNet", still=("controlnet_",)),
    "no-motion": Variant("motion blocks of the U-Net", still=("unet",)),
    "no-anchors": Variant("the pack's anchor frames", anchors=False),
}


def evaluate(
    options: EvaluateOptions, on_progress: OnProgress = lambda stage, done, total: None
) -> dict[str, Values]:
    """Column or driver -> its measures, means over the clips; also OUT/evaluation.json and a sheet."""
    for name in options.variants:
        if name not in VARIANTS:
            raise unknown("variant", name, VARIANTS)
    columns, store = options.columns, require_clips(options.data, held_out=True)
    packs = {path: load_pack(path) for path, _ in columns.values()}
    options.out.mkdir(parents=True, exist_ok=True)
    seeds = chosen(store, options)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("truth", "pose", *columns)}
    found: dict[str, list[Values]] = {name: [] for name in ("truth", *columns)}
    for i, seed in enumerate(seeds):
        truth = read_truth(store, seed, options.frames)
        found["truth"].append(judged(truth.frames, truth))
        rows["truth"] += pictures_of(truth.frames)
        rows["pose"] += pictures_of(np.array(store.array(seed, "pose")[: options.frames]))
        for j, (name, (path, variant)) in enumerate(columns.items()):
            made = render_clip(packs[path], store, seed, variant, options)
            hop = (options.context_frames or packs[path].config.context_frames) - options.context_overlap
            found[name].append(judged(made, truth) | seams(made, truth.frames, hop))
            rows[name] += pictures_of(made)
            on_progress("clips", i * len(columns) + j + 1, len(seeds) * len(columns))
    return written(options, found, rows, seeds)


def follow_drivers(options: EvaluateOptions) -> dict[str, dict[str, Any]]:
    """Driver -> what `quality` finds in its render; the renders lie in OUT."""
    from dreamoving_cli.quality import measure
    from dreamoving_cli.render import render

    found = {}
    for driver in options.drivers:
        wanted = RenderOptions(
            model=str(options.model), pose=driver, num_frames=options.frames, steps=options.steps,
            guidance_scale=options.guidance_scale, seed=options.seed,
        )  # fmt: skip
        made = render(wanted, options.out / f"{driver.stem}.mp4", overwrite=True)
        sheet = options.out / f"{driver.stem}.png"
        sheet.unlink(missing_ok=True)
        found[driver.name] = asdict(measure(made, driver, sheet=sheet))
    return found


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The measures among a report's values."""
    return {
        n: float(v) for n, v in values.items() if isinstance(v, int | float) and n not in ("frames", "hop")
    }


def chosen(store: ClipStore, options: EvaluateOptions) -> list[int]:
    """Held-out clips that are long enough, evenly spread over the seeds."""
    long = [s for s in store.seeds if len(store.array(s, "frames")) >= options.frames]
    return [long[i] for i in spread(len(long), options.clips)]


def render_clip(
    pack: Pack, store: ClipStore, seed: int, variant: Variant, options: EvaluateOptions
) -> np.ndarray:
    """The clip as the model makes it from pose, face, garment and caption: uint8 f h w c."""
    facts, poses = store.facts(seed), np.array(store.array(seed, "pose")[: options.frames])
    prompt = RenderOptions(
        prompt=str(facts["captions"][0]), guidance_scale=options.guidance_scale, steps=options.steps,
        face_strength=variant.face, cloth_strength=variant.cloth,
    )  # fmt: skip
    shown = ImagePrompts({"face": [facts["faces"][0]], "cloth": [facts["cloths"][0]]})
    frames, height, width = poses.shape[:3]
    factor, channels = pack.config.pixel_factor, pack.config.latent_channels
    scheduler = make_scheduler(prompt.sampler, prompt.steps, pack.config.scheduler.model_dump())
    noise = FrameNoise(options.seed, (channels, height // factor, width // factor), pack.config.shared_noise)
    controls = [Control("pose", Stored(poses), variant.control)] if variant.control else []
    with without_motion(pack, variant.still):
        prompts = encode_prompts(pack, prompt, shown)
        solver = Solver(scheduler, noise, frames)
        anchors = pack.config.anchor_frames * variant.anchors
        window = options.context_frames or pack.config.context_frames
        windows = Windows(frames, window, options.context_overlap, anchor_frames=anchors)
        model = Denoiser(pack, prompts, controls, solver.timesteps, windows)
        latents = denoise(model.predict_noise, solver, windows, look=model.look)
    with torch.inference_mode():
        video = rearrange(pack.vae.decode(latents, batch=8).clamp(-1, 1), "1 c f h w -> f h w c")
    return ((video + 1) * 127.5).round().to(torch.uint8).numpy()


@dataclass(frozen=True)
class Stored:
    """Control pictures that are there already."""

    pictures: np.ndarray  # f h w c

    def read(self, frames: Sequence[int]) -> np.ndarray:
        """uint8 f h w c."""
        return self.pictures[list(frames)]


@contextmanager
def without_motion(pack: Pack, networks: tuple[str, ...]) -> Iterator[None]:
    """Motion blocks of these networks are the identity while the block lasts."""
    kept: list[tuple[nn.Parameter, torch.Tensor]] = []
    for name, network in pack.networks().items():
        if networks and name.startswith(networks) and getattr(network, "motion", None) is not None:
            outputs = [
                p for n, p in network.named_parameters() if n.startswith("motion.") and ".proj_out." in n
            ]
            kept += [(p, p.detach().clone()) for p in outputs]
    with torch.no_grad():
        for p, _ in kept:
            p.zero_()
        try:
            yield
        finally:
            for p, value in kept:
                p.copy_(value)


def judged(made: np.ndarray, truth: Truth) -> Values:
    """All measures of one clip, and whether its garment has the right color's name."""
    values = measure_clip(made, truth) | agreement(made, truth)
    masks = torsos(truth.points, truth.scores, truth.alpha)
    if masks.any():
        named = [color_name(lab_of(clip, masks), COLORS) for clip in (truth.frames, made)]
        values["garment_name"] = float(named[0] == named[1])
    return values


def seams(made: np.ndarray, truth: np.ndarray, hop: int) -> Values:
    """The seam ratio, and what it would be by chance, of a clip of several windows that begin `hop` apart."""
    if hop >= len(made) - 1:
        return {}
    ours, theirs = (np.abs(np.diff(c.astype(np.int16), axis=0)).mean((1, 2, 3)) for c in (made, truth))
    return {"seam": seam(ours, theirs, hop), "seam_by_chance": seam_by_chance(ours, theirs, hop)}


def lab_of(clip: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Mean Lab color of uint8 f h w c inside masks f h w."""
    found = [mean_lab(frame, mask) for frame, mask in zip(clip, masks, strict=True) if mask.any()]
    return np.asarray(np.mean(found, axis=0))


def pictures_of(frames: np.ndarray) -> list[np.ndarray]:
    """A few frames of a clip, cut to the sheet's squares."""
    squares = []
    for k in spread(len(frames), SHEET_FRAMES):
        height, width = frames.shape[1:3]
        small = resize(frames[k], CELL, round(width * CELL / height))
        square = np.full((CELL, CELL, 3), 255, np.uint8)
        span = min(small.shape[1], CELL)
        square[:, (CELL - span) // 2 : (CELL - span) // 2 + span] = small[:, :span]
        squares.append(square)
    return squares


def sheet_of(rows: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
    """All rows below each other, a few clips at a time; uint8 h w c."""
    width = SHEET_CLIPS * SHEET_FRAMES
    blank = np.full((CELL, CELL, 3), 255, np.uint8)
    cells: list[np.ndarray] = []
    labels: list[str] = []
    for start in range(0, max(map(len, rows.values())), width):
        for name, row in rows.items():
            part = list(row[start : start + width])
            cells += part + [blank] * (width - len(part))
            labels += [name] + [""] * (width - 1)
    return contact_sheet(cells, width, labels)


def written(
    options: EvaluateOptions,
    found: Mapping[str, Sequence[Values]],
    rows: Mapping[str, Sequence[np.ndarray]],
    seeds: Sequence[int],
) -> dict[str, Values]:
    """The means, kept as JSON beside the sheet."""
    names = sorted({name for values in found.values() for clip in values for name in clip})
    means = {
        column: {
            name: round(float(np.mean([clip[name] for clip in clips if name in clip])), 4)
            for name in names
            if any(name in clip for clip in clips)
        }
        for column, clips in found.items()
    }
    write_image(options.out / "evaluation.png", sheet_of(rows), overwrite=True)
    values: dict[str, Any] = {
        "clips": list(seeds), "frames": options.frames, "steps": options.steps, "means": means, "each": found,
        "leaves_out": {name: VARIANTS[name].leaves_out for name in options.variants},
        "packs": {name: str(path) for name, (path, _) in options.columns.items()},
        "drivers": follow_drivers(options),
    }  # fmt: skip
    with whole_file(options.out / "evaluation.json") as part:
        part.write_text(json.dumps(values, indent=1) + "\n")
    return means | {name: numbers(values) for name, values in values["drivers"].items()}
