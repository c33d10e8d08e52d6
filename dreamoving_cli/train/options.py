"""The YAML file of `dreamoving train`: every key with its meaning; what it leaves out is the stage's own.

Not here: the stages' values (stages.py).
"""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field

from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.frozen import Options, unknown
from dreamoving_cli.options import Size
from dreamoving_cli.train.stages import SCALES, Stage
from dreamoving_cli.train.validation import Validation

if TYPE_CHECKING:
    from dreamoving_cli.train.loop import Run

OF_STAGE = (  # keys that stand for fields of a stage
    "steps", "batch", "lr", "frames", "crop", "fps", "weight_decay", "optimizer", "schedule", "warmup", "ema",
    "drop_text", "drop_images", "drop_both", "snr_gamma", "beta_schedule", "shared_noise",
)  # fmt: skip


def key(default: Any, text: str, **rules: Any) -> Any:
    return Field(default, description=text, **rules)


class ValidationOptions(Options):
    """What is rendered now and then while a stage trains."""

    every: int = key(..., "Steps between two renders.", ge=1)
    pose: Path = key(..., "The dance that drives it.")
    prompt: str = key("", "The scene in words.")
    face: Path | None = key(None, "A photo of the person.")
    cloth: Path | None = key(None, "A photo of the garment.")
    frames: int = key(16, "Frames.", ge=1)
    steps: int = key(25, "Denoising steps.", ge=1)
    size: Size = key(None, "WIDTHxHEIGHT.")
    seed: int = key(0, "The seed.", ge=0)


class TrainOptions(Options):
    """One stage's run."""

    data: Path = key(..., "A folder built by `dreamoving dataset`, or of synthetic clips.")
    out: Path = key(..., "Checkpoint, log, curve and pack are written here.")
    model: str | None = key(None, "What it goes on with: a pack's folder, a model file or sd15.")
    scale: Literal["paper", "mini"] = key(
        "paper", "Whose values the stage has: DreaMoving's, or the miniature's."
    )
    steps: int | None = key(None, "Steps.", ge=1)
    batch: int | None = key(None, "Samples a step, over all workers.", ge=1)
    lr: float | None = key(None, "Peak learning rate.", gt=0)
    frames: int | None = key(None, "Frames of a run.", ge=1)
    size: Size = key(None, "WIDTHxHEIGHT that samples are cut to.")
    crop: Literal["center", "random"] | None = key(None, "Which part of a picture.")
    fps: float | None = key(None, "Frames a second of a run.", gt=0)
    weight_decay: float | None = key(None, "AdamW's.", ge=0)
    optimizer: Literal["adamw", "muon"] | None = key(None, "adamw, or muon for matrices.")
    schedule: Literal["constant", "cosine"] | None = key(None, "Of the learning rate after the warm-up.")
    warmup: int | None = key(None, "Steps until the peak learning rate.", ge=1)
    ema: float | None = key(None, "Decay of the averaged weights that are exported.", ge=0, lt=1)
    drop_text: float | None = key(None, "Share of the samples without text.", ge=0, le=1)
    drop_images: float | None = key(None, "Share of the samples without pictures.", ge=0, le=1)
    drop_both: float | None = key(None, "Share of the samples without either.", ge=0, le=1)
    snr_gamma: float | None = key(None, "min-SNR weights; 5 is usual, 0 is off.", ge=0)
    shared_noise: float | None = key(
        None, "Variance share of the noise common to a run's frames.", ge=0, le=1
    )
    beta_schedule: Literal["linear", "scaled_linear"] | None = key(None, "The noise schedule.")
    accumulate: int = key(1, "Shares of the batch that a worker computes one after the other.", ge=1)
    workers: int = key(1, "Processes: one a GPU, or one a CPU core.", ge=1)
    split_weights: bool = key(
        False, "Each worker holds a part of weights, gradients and moments (as FSDP): less memory."
    )
    device: str = key("auto", "auto, cpu or cuda.")
    dtype: Literal["fp32", "bf16"] = key("fp32", "What layers compute in; weights are kept in fp32.")
    recompute: bool = key(False, "Gradient checkpointing: less memory, more time.")
    cache_latents: bool = key(False, "Keep encoded clips beside the data (crop: center).")
    seed: int = key(0, "Of all that is drawn.", ge=0)
    save_every_s: float = key(600.0, "Seconds between two checkpoints.", gt=0)
    tensorboard: bool = key(False, "Write TensorBoard's files too.")
    validation: ValidationOptions | None = key(None, "Renders while it trains.")


def load_train_options(path: Path) -> TrainOptions:
    """The options in a YAML file; paths in it are relative to it."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML", "dreamoving train STAGE --defaults prints one.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no keys", "dreamoving train STAGE --defaults prints some.")
    options = TrainOptions(**values)
    return options.replace(**dict(placed(options, path.absolute().parent)))


def placed(options: TrainOptions, folder: Path) -> Iterator[tuple[str, Any]]:
    """Paths, relative to the file that names them."""
    for name in ("data", "out"):
        yield name, folder / getattr(options, name)
    if options.model is not None and options.model != "sd15":
        yield "model", str(folder / options.model)
    if (shown := options.validation) is not None:
        names = [name for name in ("pose", "face", "cloth") if getattr(shown, name) is not None]
        yield "validation", shown.replace(**{name: folder / getattr(shown, name) for name in names})


def stage_of(name: str, scale: str) -> Stage:
    """A stage by name, with its values at this scale."""
    stages = SCALES[scale]
    if name not in stages:
        raise unknown(f"stage of scale '{scale}'", name, stages)
    return stages[name]


def chosen_stage(name: str, options: TrainOptions) -> Stage:
    """The stage with what the file says instead."""
    given = {k: getattr(options, k) for k in OF_STAGE if getattr(options, k) is not None}
    if options.size:
        width, height = map(int, options.size.split("x"))
        given["size"] = height, width
    stage = replace(stage_of(name, options.scale), **given)
    shares = options.workers * options.accumulate
    if stage.batch % shares:
        raise UsageError(
            f"a batch of {stage.batch} does not divide by {options.workers} workers x {options.accumulate}",
            "Choose a batch that does.",
        )
    if options.split_weights:
        require_splittable(stage, options.workers)
    return stage


def require_splittable(stage: Stage, workers: int) -> None:
    """Refuse to divide the weights of a stage that needs them whole."""
    if workers == 1:
        raise UsageError("split_weights is true with one worker", "Set workers: 2 or more, or leave it out.")
    if stage.optimizer != "adamw":
        raise UsageError(
            f"split_weights is true with optimizer '{stage.optimizer}', which needs whole matrices",
            "Set optimizer: adamw, or leave split_weights out.",
        )
    if not stage.divisible:
        raise UsageError(
            "split_weights is true for a stage that makes the miniature from nothing",
            "Leave it out: the miniature is small.",
        )


def as_run(name: str, options: TrainOptions, max_steps: int | None = None) -> "Run":
    """What the loop is given."""
    from dreamoving_cli.device import choose_device
    from dreamoving_cli.train.loop import Run

    device = choose_device(options.device).type if options.device == "auto" else options.device
    shown = options.validation
    return Run(
        name, options.data, options.out, None if options.model is None else Path(options.model),
        workers=options.workers, save_every_s=options.save_every_s, seed=options.seed,
        chosen=chosen_stage(name, options), accumulate=options.accumulate, device=device, dtype=options.dtype,
        split_weights=options.split_weights, recompute=options.recompute, cache_latents=options.cache_latents,
        max_steps=max_steps, tensorboard=options.tensorboard,
        validation=None if shown is None else Validation(**shown.model_dump()),
    )  # fmt: skip


def defaults_yaml(name: str, scale: str) -> str:
    """Every key with its value for this stage, commented: a file to begin with."""
    stage = stage_of(name, scale)
    values = {field.name: getattr(stage, field.name) for field in fields(stage)}
    values |= {"size": f"{stage.size[1]}x{stage.size[0]}" if stage.size else None, "scale": scale}
    values |= {"data": "DATA", "out": "OUT", "model": "MODEL"}
    lines = []
    for field, info in TrainOptions.model_fields.items():
        value = values.get(field, info.default)
        text = "" if value is None else f" {yaml.safe_dump(value).splitlines()[0]}"
        lines.append(f"{'# ' if value is None else ''}{field}:{text}  # {info.description}")
    return "\n".join(lines) + "\n"
