"""The record beside a video: what it was made of and with, as a preset that makes it again bit for bit."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from dreamoving_cli import __version__
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.outputs import absolute, record_path
from dreamoving_cli.presets import to_yaml
from dreamoving_cli.weights import file_sha256
from dreamoving_cli.whole import whole_file

LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "av")


def write_record(output: Path, options: RenderOptions, facts: dict[str, Any]) -> Path:
    """Write <output>.dreamoving.yaml: the resolved options, and the facts under `record`."""
    path = record_path(output)
    with whole_file(path) as part:
        part.write_text(to_yaml(options, {"output": output.name, **facts}), encoding="utf-8")
    return path


def record_matches(output: Path, options: RenderOptions) -> bool:
    """Whether `output` was made from just these options and from files that are still the same."""
    path = record_path(output)
    if not output.exists() or not path.is_file():
        return False
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        facts = values["record"]
        same_options = facts["requested"] == request(options) and options.seed in (None, values["seed"])
        return same_options and facts["inputs"] == input_hashes(options)
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        return False  # no record of ours: render


def request(options: RenderOptions) -> dict[str, Any]:
    """What was asked for, comparable: full paths, any seed."""
    return absolute(options).replace(seed=None).model_dump(mode="json")


def input_hashes(options: RenderOptions) -> dict[str, str]:
    """sha256 of every input file that counts, by its full path."""
    files = [control.file for control in options.all_controls if control.control_scale > 0]
    kinds = [kind for kind in ("face", "cloth", "style") if getattr(options, f"{kind}_strength")]
    files += [file for kind in kinds for file in options.pictures(kind)]
    files += [lora.file for lora in options.loras if lora.file.is_file()]
    files += [Path(options.model)] if Path(options.model).is_file() else []
    return {str(path.absolute()): file_sha256(path) for path in files if path is not None}


def versions() -> dict[str, str]:
    """Our version and those of what decides pixels."""
    found = {"dreamoving": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
