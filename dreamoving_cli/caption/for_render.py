"""The prompt of a render from its driving footage: scene, framing and action, nobody's looks."""

from pathlib import Path
from typing import TYPE_CHECKING

from dreamoving_cli.caption.describe import Describer, OnFrame, Request
from dreamoving_cli.caption.models import FULL, Machine, choose_captioner, is_installed
from dreamoving_cli.caption.words import scene_words
from dreamoving_cli.errors import DeviceMemoryError, UsageError
from dreamoving_cli.options import RenderOptions

if TYPE_CHECKING:
    from dreamoving_cli.caption.models import Chosen

MODES = ("auto", "off", "force")


def footage_prompt(
    options: RenderOptions, mode: str, device: str = "auto", on_frame: OnFrame = lambda done, total: None
) -> tuple[str | None, str]:
    """(the prompt, or None where the options keep theirs; what to tell the user).

    auto: where MiniGPT-v2 and a GPU for it are here; force: with whatever captioner there is.
    """
    if mode not in MODES:
        raise UsageError(f"caption is '{mode}'", f"Choose {', '.join(MODES)}.")
    if mode == "off" or (mode == "auto" and not is_installed()):
        return None, ""
    path = footage(options)
    if path is None:
        if mode == "force":
            raise UsageError(
                "--caption is 'force', and there is no footage to caption", "Give --prompt instead."
            )
        return None, ""
    try:
        chosen = choose_captioner("auto", Machine(device))
    except DeviceMemoryError as error:
        if mode == "force":
            raise
        return None, f"not captioned: {error.problem}"
    if mode == "auto" and chosen.name != FULL:
        return None, ""
    return worded(options, path, chosen, on_frame)


def worded(options: RenderOptions, path: Path, chosen: "Chosen", on_frame: OnFrame) -> tuple[str | None, str]:
    """The prompt from the captioner, and how it came about."""
    describer = Describer(chosen, Request(start_s=options.start_s, duration_s=options.duration_s))
    prompt = scene_words(describer.describe(path, on_frame).caption)
    if not prompt:
        return None, f"{path.name}: the captioner ({chosen.name}) found no words for the scene"
    return prompt, f"prompt, from {path.name} ({chosen.note}): {prompt}"


def footage(options: RenderOptions) -> Path | None:
    """The driving footage, where there is some: no map, no keypoints."""
    from dreamoving_cli.controls import control_files

    return next((file.path for file in control_files(options) if file.form == "footage"), None)
