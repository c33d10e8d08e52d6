"""Names of outputs nobody named: after the inputs and the seed, so that a shell loop never collides.

Not here: what is written into them (render.py, record.py).
"""

import hashlib
import secrets
from pathlib import Path

from dreamoving_cli.options import MAX_SEED, RenderOptions, read_preset, to_yaml

RECORD_SUFFIX = ".dreamoving.yaml"
SUFFIXES = {"vp9": ".webm", "prores": ".mov", "gif": ".gif", "png": ""}  # codec -> extension, .mp4 otherwise


def with_seed(options: RenderOptions) -> RenderOptions:
    """The options with a seed, drawn where none was given."""
    return options if options.seed is not None else options.replace(seed=secrets.randbelow(MAX_SEED + 1))


def output_path(options: RenderOptions, asked: Path | None) -> Path:
    """Where the video goes: the asked file; in the asked folder, or here, under its default name."""
    if asked is not None and (options.codec == "png" or not asked.is_dir()):
        return asked
    return (asked or Path()) / name_pattern(options).replace("*", str(options.seed))


def name_pattern(options: RenderOptions) -> str:
    """The default name, dance-me-shirt-SEED-DIGEST.mp4, with * for the seed; the digest is of the options."""
    controls = [control.file for control in options.all_controls]
    pictures = [options.face, options.cloth, options.style]
    stems = list(dict.fromkeys(file.stem for file in [*controls, *pictures] if file))
    digest = hashlib.sha256(to_yaml(absolute(options).replace(seed=None)).encode()).hexdigest()[:6]
    return "-".join([*stems, "*", digest]) + SUFFIXES.get(options.codec or "", ".mp4")


def absolute(options: RenderOptions) -> RenderOptions:
    """The same options with full paths, so that equal names in two folders stay two things."""
    named = ("pose", "depth", "face", "cloth", "style")
    files = {name: path.absolute() for name in named if (path := getattr(options, name)) is not None}
    controls = tuple(c.replace(file=c.file.absolute()) if c.file else c for c in options.controls)
    return options.replace(**files, controls=controls)


def candidates(options: RenderOptions, asked: Path | None) -> list[tuple[Path, RenderOptions]]:
    """Outputs that may be this very render, with the options to compare; without a seed any seed will do."""
    if options.seed is not None:
        return [(output_path(options, asked), options)]
    named = asked is not None and (options.codec == "png" or not asked.is_dir())
    found = [asked] if asked and named else sorted((asked or Path()).glob(name_pattern(options)))
    return [(path, options.replace(seed=seed)) for path in found if (seed := recorded_seed(path)) is not None]


def record_path(output: Path) -> Path:
    """Where the record of a video is: beside it."""
    return output.with_name(output.name + RECORD_SUFFIX)


def recorded_seed(output: Path) -> int | None:
    """The seed in the record beside a video; None where there is no record."""
    record = record_path(output)
    return read_preset(record).get("seed") if record.is_file() else None
