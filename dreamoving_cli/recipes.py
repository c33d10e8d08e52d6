"""Which public files make a full-size pack: sd15's own from models.lock, or those of a user's model file.

A model file is YAML: `base: dreamshaper_8.safetensors` alone is one. Each value is a file beside it, an id of
models.lock, or {file: ..., kind: ...} where keys do not tell what a file is. What it leaves out is sd15's.
Only what a render uses is asked for. Not here: what is in the files (models/checkpoints).
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from dreamoving_cli.errors import OutputError, UsageError, WeightsError
from dreamoving_cli.frozen import unknown
from dreamoving_cli.models.checkpoints.files import (
    Part,
    Recipe,
    convert_pickle,
    is_safetensors,
    read_shapes,
)
from dreamoving_cli.models.checkpoints.identify import NAMES, identify
from dreamoving_cli.options import LoraOptions
from dreamoving_cli.paths import weight_cache
from dreamoving_cli.weights import Entry, entry_by_sha256, file_sha256, known, weight_paths

Spec = str | Mapping[str, Any]  # a file or id, or {file, kind}

SD15: dict[str, Any] = {
    "unet": "sd15.unet.fp16",
    "text_encoder": "sd15.text_encoder.fp16",
    "vae": "vae.ft-mse",
    "tokenizer": "sd15.tokenizer",
    "motion": "motion.sd15-v2",
    "controls": {"pose": "controlnet.openpose.fp16", "depth": "controlnet.depth.fp16"},
    "image_encoder": "ip-adapter.image-encoder",
    "face": "ip-adapter.plus-face",
    "cloth": "ip-adapter.plus",
    "style": "ip-adapter.plus",
}
BASE = ("unet", "text_encoder", "vae")  # what a base file brings itself
CONTROL = "controls."  # before the kind, in roles
OWN = ("base", "context_frames")  # keys of a model file beside those
TOKENIZER = {"vocabulary": "vocab.json", "merges": "merges.txt"}
IN_FOLDERS = tuple(  # how diffusers and transformers call a network's file in its folder
    f"{name}{variant}{suffix}"
    for suffix in (".safetensors", ".bin")
    for name in ("diffusion_pytorch_model", "model", "pytorch_model")
    for variant in ("", ".fp16")
)
PICTURES = ("face", "cloth", "style")
VARIANTS = {"faceid-plusv2": "faceid-plus-v2"}  # the lock's word -> the loader's
SHOWS = {"pose": "openpose", "depth": "depth"}  # a control -> the variant of ControlNet that follows it


def find_recipe(model: str, controls: Iterable[str], pictures: Collection[str]) -> Recipe:
    """The files for these controls and kinds of pictures; all that are missing are named at once."""
    values = model_values(model)
    folder = Path(model).absolute().parent
    specs = {role: values[role] for role in ("base", *BASE, "motion") if role in values}
    if pictures:
        specs["image_encoder"] = values["image_encoder"]
    for kind in (kind for kind in PICTURES if kind in pictures):
        specs[kind] = values[kind]
    specs |= tokenizer_specs(values, folder)
    offered = values["controls"]
    for kind in controls:
        if kind not in offered:
            raise UsageError(f"model '{model}' has no control '{kind}'", f"It has: {', '.join(offered)}.")
        specs[CONTROL + kind] = offered[kind]
    parts = find_parts(specs, folder)
    for kind, expected in SHOWS.items():
        check_variant(CONTROL + kind, parts, expected)
    return Recipe(
        name=model if model == "sd15" else Path(model).stem,
        parts={role: part for role, part in parts.items() if not role.startswith(CONTROL)},
        controls={
            role.removeprefix(CONTROL): part for role, part in parts.items() if role.startswith(CONTROL)
        },
        context_frames=values.get("context_frames"),
    )


def model_values(model: str) -> dict[str, Any]:
    """What a model file says on top of sd15's files; `base` stands for the three of BASE."""
    if model == "sd15":
        return SD15
    given = read_model_file(Path(model))
    if strange := sorted(given.keys() - SD15.keys() - set(OWN)):
        raise unknown(f"key in {model}", strange[0], [*SD15, *OWN])
    default = {role: spec for role, spec in SD15.items() if "base" not in given or role not in BASE}
    return {**default, **given, "controls": {**SD15["controls"], **given.get("controls", {})}}


def read_model_file(path: Path) -> dict[str, Any]:
    """The keys of a model file."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}", "Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is not YAML", "docs/models.md shows a model file.") from error
    if not isinstance(values, dict) or not isinstance(values.get("controls", {}), dict):
        raise WeightsError(f"{path} is not a model file", "docs/models.md shows one.")
    frames = values.get("context_frames")
    if frames is not None and (not isinstance(frames, int) or frames < 1):
        raise WeightsError(f"{path}: context_frames is {frames}", "Give a number of frames.")
    return values


def tokenizer_specs(values: Mapping[str, Any], folder: Path) -> dict[str, Spec]:
    """The two files of CLIP's tokenizer: of a folder, of a base folder, or from the lock."""
    chosen = values.get("tokenizer", SD15["tokenizer"])
    own = folder / str(values.get("base", "")) / "tokenizer"
    if "base" in values and chosen == SD15["tokenizer"] and (own / "vocab.json").is_file():
        return {role: str(own / name) for role, name in TOKENIZER.items()}
    if chosen == SD15["tokenizer"]:
        return {role: f"{chosen}.{name}" for role, name in TOKENIZER.items()}
    return {role: str(folder / str(chosen) / name) for role, name in TOKENIZER.items()}


def find_parts(specs: Mapping[str, Spec], folder: Path) -> dict[str, Part]:
    """Every file of `specs`, by role; those of the lock must be here, and are named together if not."""
    named = {role: split_spec(role, spec) for role, spec in specs.items()}
    entries = known().entries
    locked = weight_paths(sorted({file for file, _ in named.values() if file in entries}))
    return {
        role: locked_part(entries[file], locked[file])
        if file in entries
        else own_part(role, folder / file, kind)
        for role, (file, kind) in named.items()
    }


def split_spec(role: str, spec: Spec) -> tuple[str, str]:
    """(file or id, kind) of a value in a model file."""
    if isinstance(spec, str):
        return spec, ""
    if isinstance(spec, Mapping) and isinstance(spec.get("file"), str) and not spec.keys() - {"file", "kind"}:
        return spec["file"], str(spec.get("kind", ""))
    raise WeightsError(
        f"'{role}' is {spec!r} in the model file", "Give a file, an id, or {file: ..., kind: ...}."
    )


def own_part(role: str, path: Path, kind: str = "") -> Part:
    """A user's file; where its hash is in the lock, it is known for what it is."""
    if path.is_dir() and role == "base":
        return Part(path)
    if path.is_dir():
        path = next((path / name for name in IN_FOLDERS if (path / name).is_file()), path)
    if not path.is_file():
        raise WeightsError(f"'{role}' is {path}, which is not there", "Give a file, or an id of models.lock.")
    digest = sha256_of(path)
    entry = entry_by_sha256(digest)
    if entry is None:
        return Part(path, kind=kind, converted=copy_of(digest))
    part = locked_part(entry, path)
    if kind and part.kind and kind != part.kind:
        raise WeightsError(f"'{role}' is said to be {kind}; {path} is {entry.id}", "Correct the model file.")
    return part


def locked_part(entry: Entry, path: Path) -> Part:
    """A file whose hash is the lock's."""
    motion = entry.motion
    return Part(
        path,
        id=entry.id,
        trusted=True,
        converted=copy_of(entry.sha256),
        kind=VARIANTS.get(entry.variant, entry.variant),
        trained_frames=motion.frames if motion else None,
        resnet_norm=motion.norm if motion else None,
        motion_scale=motion.scale if motion else 1.0,
        beta_schedule=motion.beta_schedule if motion else "linear",
        sampler=motion.sampler if motion else "",
    )


def check_variant(role: str, parts: Mapping[str, Part], expected: str) -> None:
    """Refuse a known ControlNet that follows something else; its keys could not tell."""
    part = parts.get(role)
    if part is not None and part.id and part.kind in SHOWS.values() and part.kind != expected:
        raise WeightsError(
            f"'{role}' is {part.name}, the ControlNet for {part.kind} pictures", "Give it to that control."
        )


def recipe_notes(recipe: Recipe, sampler: str) -> Iterator[str]:
    """What users of these files should know: terms that forbid business, a sampler they were made for."""
    lock = known()
    for part in recipe.files:
        entry = lock.entries.get(part.id)
        if entry is not None and entry.commercial == "no":
            yield f"{part.id}: {lock.license_of(entry).name}"
        if part.sampler not in ("", sampler):
            yield f"{part.name} was made for --sampler {part.sampler}"


def find_loras(loras: Iterable[LoraOptions]) -> list[tuple[Part, float]]:
    """The files of --lora and their scales; a name that is no file is an id of models.lock."""
    specs = {str(lora.file): lora for lora in loras if lora.scale}
    parts = find_parts({f"--lora {name}": name for name in specs}, Path())
    return [(parts[f"--lora {name}"], lora.scale) for name, lora in specs.items()]


def convert(file: Path, out: Path | None, allow_pickle: bool) -> tuple[Path, str]:
    """Write a pickle, known or allowed, as safetensors; where that is, and what it is."""
    part = own_part("FILE", file)
    target = out or file.with_suffix(".safetensors")
    if is_safetensors(file):
        raise UsageError(f"{file} is safetensors already", "Use it as it is.")
    if target.exists():
        raise OutputError(f"{target} exists", "Remove it, or give another place with --out.")
    trusted = replace(part, trusted=part.trusted or allow_pickle)
    convert_pickle(trusted, target)
    return target, NAMES[identify(read_shapes(Part(target)))]


def has_files(model: str) -> bool:
    """Whether all files for a pose render of this model are here."""
    try:
        find_recipe(model, ["pose"], ())
    except WeightsError:
        return False
    return True


def copy_of(digest: str) -> Path:
    """Where a pickle's safetensors copy is kept."""
    return weight_cache() / "converted" / f"{digest}.safetensors"


def sha256_of(path: Path) -> str:
    """The file's hash; computed once while the file does not change."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256(path: Path, size: int, changed: int) -> str:
    return file_sha256(path)
