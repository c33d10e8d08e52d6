"""Names of outputs nobody named: after the inputs and the seed, so that a shell loop never collides.

Not here: what is written into them (render.py, record.py).
"""

import glob
import hashlib
import secrets
from pathlib import Path

from dreamoving_cli.options import MAX_SEED, RenderOptions, is_model_path
from dreamoving_cli.presets import to_yaml

RECORD_SUFFIX = ".dreamoving.yaml"
SUFFIXES = {"vp9": ".webm", "prores": ".mov", "gif": ".gif", "png": ""}  # codec -> extension, .mp4 otherwise


def with_seed(options: RenderOptions) -> RenderOptions:
    """The options with a seed, drawn where none was given."""
    return options if options.seed is not None else options.replace(seed=secrets.randbelow(MAX_SEED + 1))


def is_named(options: RenderOptions, asked: Path | None) -> bool:
    """Whether the asked path is the output itself and not a folder to put it into."""
    return asked is not None and (options.codec == "png" or not asked.is_dir())


def output_path(options: RenderOptions, asked: Path | None) -> Path:
    """Where the video goes: the asked file; in the asked folder, or here, under its default name."""
    if asked is not None and is_named(options, asked):
        return asked
    return (asked or Path()) / default_name(options, str(options.seed))


def default_name(options: RenderOptions, seed: str) -> str:
    """Like dance-me-shirt-42-1f3a9c.mp4: inputs, seed, and a digest of all options."""
    files = [control.file for control in options.all_controls]
    files += [file for kind in ("face", "cloth", "style") for file in options.pictures(kind)]
    stems = dict.fromkeys(file.stem.replace(".", "_") for file in files if file)
    digest = hashlib.sha256(to_yaml(absolute(options).replace(seed=None)).encode()).hexdigest()[:6]
    return "-".join([*stems, seed, digest]) + SUFFIXES.get(options.codec or "", ".mp4")


def absolute(options: RenderOptions) -> RenderOptions:
    """The same options with full paths, so that equal names in two folders stay two things."""
    named = ("pose", "depth", "cloth", "style")
    files = {name: path.absolute() for name in named if (path := getattr(options, name)) is not None}
    controls = tuple(c.replace(file=c.file.absolute()) if c.file else c for c in options.controls)
    # A LoRA that is no file is the id of one.
    loras = tuple(x.replace(file=x.file.absolute()) if x.file.exists() else x for x in options.loras)
    model = str(Path(options.model).absolute()) if is_model_path(options.model) else options.model
    face = tuple(path.absolute() for path in options.face)
    return options.replace(**files, face=face, controls=controls, loras=loras, model=model)


def candidates(options: RenderOptions, asked: Path | None, suffix: str = "") -> list[Path]:
    """Outputs that may be this very render, newest first; of any seed without seed and name.

    suffix: of a file beside the output that must be there.
    """
    if is_named(options, asked) or options.seed is not None:
        return [output_path(options, asked)]
    head, tail = default_name(options, "*").rsplit("*", 1)
    beside = [*(asked or Path()).glob(f"{glob.escape(head)}*{glob.escape(tail + suffix)}")]
    beside.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.with_name(path.name.removesuffix(suffix)) for path in beside]


def record_path(output: Path) -> Path:
    """Where the record of a video is: beside it."""
    return output.with_name(output.name + RECORD_SUFFIX)
