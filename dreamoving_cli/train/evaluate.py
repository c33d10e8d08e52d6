"""What models make of held-out synthetic clips, whose truth is known; and with parts of them left out.

    means = evaluate(EvaluateOptions(model, data, out))     # measures by column; a sheet, evaluation.json

Real drivers have no truth: what can be measured of their renders is what `dreamoving quality` measures.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dreamoving_cli.frozen import unknown
from dreamoving_cli.media.images import contact_sheet, resize, spread, write_image
from dreamoving_cli.models.load import load_pack
from dreamoving_cli.quality import seam, seam_by_chance
from dreamoving_cli.train.agreement import Truth, agreement, read_truth
from dreamoving_cli.train.data import ClipStore
from dreamoving_cli.train.garments import COLORS
from dreamoving_cli.train.measures import color_name, mean_lab, measure_clip, torsos
from dreamoving_cli.train.noise_error import noise_error
from dreamoving_cli.train.start import require_clips
from dreamoving_cli.train.variants import VARIANTS, EvaluateOptions, render_clip
from dreamoving_cli.whole import whole_file

SHEET_FRAMES, CELL = 3, 144  # frames of a clip in the sheet; pixels of a cell's height
SHEET_CLIPS = 4  # beside each other in the sheet

OnProgress = Callable[[str, int, int], None]
Values = dict[str, float]


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
        if options.renders:
            found["truth"].append(judged(truth.frames, truth))
            rows["truth"] += pictures_of(truth.frames)
            rows["pose"] += pictures_of(np.array(store.array(seed, "pose")[: options.frames]))
        for j, (name, (path, variant)) in enumerate(columns.items()):
            values = noise_error(packs[path], store, seed, variant, options)
            if options.renders:
                made = render_clip(packs[path], store, seed, variant, options)
                hop = (options.context_frames or packs[path].config.context_frames) - options.context_overlap
                values |= judged(made, truth) | seams(made, truth.frames, hop)
                rows[name] += pictures_of(made)
            found[name].append(values)
            on_progress("clips", i * len(columns) + j + 1, len(seeds) * len(columns))
    return written(options, found, rows, seeds)


def follow_drivers(options: EvaluateOptions) -> dict[str, dict[str, Any]]:
    """Driver -> what `quality` finds in its render; the renders lie in OUT."""
    from dreamoving_cli.quality import measure
    from dreamoving_cli.render import render

    found = {}
    for driver in options.drivers:
        wanted = options.look.replace(
            model=str(options.model), pose=driver, num_frames=options.frames, seed=options.seed
        )
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


def beside(full: Sequence[Values], other: Sequence[Values]) -> Values:
    """By how much the errors of the noise are larger than the whole model's, clip by clip: mean, its error.

    A part helps where its absence costs more than twice the standard error (`_se`).
    """
    means = {}
    for name in ("noise_error", "noise_error_person", "noise_error_head"):
        more = [b[name] - a[name] for a, b in zip(full, other, strict=True) if name in a and name in b]
        if other is not full and len(more) > 1:
            means[f"{name}_more"] = round(float(np.mean(more)), 5)
            means[f"{name}_more_se"] = round(float(np.std(more, ddof=1) / len(more) ** 0.5), 5)
    return means


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
        | beside(found["full"], clips)
        for column, clips in found.items()
        if clips
    }
    if options.renders:
        write_image(options.out / "evaluation.png", sheet_of(rows), overwrite=True)
    values: dict[str, Any] = {
        "clips": list(seeds), "frames": options.frames, "steps": options.look.steps, "preset": options.preset,
        "means": means, "each": found,
        "leaves_out": {name: VARIANTS[name].leaves_out for name in options.variants},
        "packs": {name: str(path) for name, (path, _) in options.columns.items()},
        "drivers": follow_drivers(options),
    }  # fmt: skip
    with whole_file(options.out / "evaluation.json") as part:
        part.write_text(json.dumps(values, indent=1) + "\n")
    return means | {name: numbers(values) for name, values in values["drivers"].items()}
