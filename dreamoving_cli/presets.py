"""Preset files: YAML -> options -> YAML, flags on top of them, and the schema that editors check them with.

A preset is one of ours by its name, or any file; the record beside a video is one too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dreamoving_cli.errors import InputError
from dreamoving_cli.frozen import unknown
from dreamoving_cli.options import ContextOptions, RenderOptions, is_model_path
from dreamoving_cli.paths import PRESETS

FILES = {"pose", "depth", "face", "cloth", "style", "file"}  # keys that hold a path


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_path(name_or_file: str | Path) -> Path:
    """Where a preset is: one of ours by name, else a file (a record beside a video is one too)."""
    text = str(name_or_file)
    if text in preset_names():
        return PRESETS / f"{text}.yaml"
    if text.endswith((".yaml", ".yml")) or Path(text).is_file():
        return Path(text)
    raise unknown("preset", text, preset_names())


def preset_purpose(name: str) -> str:
    """What a preset of ours is for: the first line of its first comment."""
    return preset_path(name).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def read_preset(name_or_file: str | Path) -> dict[str, Any]:
    """The keys of a preset as written, without a record's facts; its files are relative to its folder."""
    path = preset_path(name_or_file)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise InputError(
            f"cannot read preset {path}: {error.strerror}", "Give a preset's name or file."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not YAML", "See 'dreamoving presets show quality' for the form."
        ) from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(
            f"{path} is not a preset", "Write 'key: value' lines; 'dreamoving presets schema' lists all."
        )
    values.pop("record", None)
    loras = local_files(tables(values.get("loras")), path.parent)
    for holder in [values, *tables(values.get("controls")), *loras]:
        for key in FILES & holder.keys():
            if isinstance(holder[key], str):
                holder[key] = path.parent / holder[key]
            elif isinstance(holder[key], list):
                holder[key] = [path.parent / name if isinstance(name, str) else name for name in holder[key]]
    if is_model_path(path.parent / str(values.get("model"))):
        values["model"] = str(path.parent / values["model"])
    return values


def local_files(loras: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The LoRAs that are files in this folder; the others are ids, or told to be missing later."""
    return [lora for lora in loras if isinstance(lora.get("file"), str) and (folder / lora["file"]).exists()]


def load_preset(name_or_file: str | Path, overrides: Mapping[str, Any] | None = None) -> RenderOptions:
    """A preset, with `overrides` on top; an override of None means not given, window keys may stand flat."""
    return RenderOptions(**merged(read_preset(name_or_file), overrides or {}))


def merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`overrides` on top of `values`: controls merge kind by kind, a new length replaces the old."""
    given = {key: value for key, value in overrides.items() if value is not None}
    context = {key: given.pop(key) for key in list(given) if key in ContextOptions.model_fields}
    result = dict(values)
    if given.keys() & {"duration_s", "num_frames"}:
        result.pop("duration_s", None)
        result.pop("num_frames", None)
    if "controls" in given:
        by_kind = {str(control.get("kind")): dict(control) for control in tables(result.get("controls"))}
        for control in given.pop("controls"):
            by_kind.setdefault(control["kind"], {}).update(control)
        result["controls"] = tuple(by_kind.values())
    if context and isinstance(result.get("context", {}), dict):
        result["context"] = {**result.get("context", {}), **context}
    return result | given


def tables(values: Any) -> list[dict[str, Any]]:
    """The tables of a list, if it is one; whether it should be one is for the options to say."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list | tuple) else []


def to_yaml(options: RenderOptions, facts: Mapping[str, Any] | None = None) -> str:
    """A preset of these options; `facts` go under the key `record`, which presets ignore."""
    values = options.model_dump(mode="json") | ({"record": dict(facts)} if facts else {})
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)


def json_schema() -> dict[str, Any]:
    """The schema that editors check presets with."""
    schema = RenderOptions.model_json_schema()
    for part in [schema, *schema["$defs"].values()]:
        for key in part["properties"].values():
            key.pop("panel", None)
            key.pop("flag", None)
    record = {"type": "object", "description": "Facts of a finished render; ignored when read."}
    schema["properties"]["record"] = record
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema
