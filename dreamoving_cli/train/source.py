"""What a stage starts from: a pack's folder, a model file or sd15's files; what becomes of its config."""

from pathlib import Path
from typing import Any

from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.controlnet import VideoControlNet
from dreamoving_cli.models.load import Pack, fill, open_pack
from dreamoving_cli.models.motion import MotionBlocks
from dreamoving_cli.models.strict import is_empty
from dreamoving_cli.train.stages import Stage


def load_start(source: Path, stage: Stage) -> Pack:
    """The pack that a stage goes on with; of public files only those that the stage needs."""
    pack = open_start(source, stage)
    for name in pack.networks():
        complete(pack, name, stage)
    return pack


def open_start(source: Path, stage: Stage) -> Pack:
    """The same, its networks still empty: to be completed one by one."""
    if (source / "config.json").is_file():
        return open_pack(source)
    from dreamoving_cli.recipes import find_recipe

    controls = ("pose", "depth") if stage.controls else ()
    pictures = ("face", "cloth") if stage.images else ()
    return open_pack(find_recipe(str(source), controls, pictures))


def complete(pack: Pack, name: str, stage: Stage) -> None:
    """Read a network that is empty; give a ControlNet motion blocks if the stage wants some."""
    if is_empty(pack.networks()[name]):
        fill(pack, name)
    if stage.motion and stage.controls:
        give_motion(pack, name)


def give_motion(pack: Pack, name: str) -> None:
    """Motion blocks, the identity until they are trained, for a ControlNet that has none: a public file's."""
    net = pack.networks()[name]
    if pack.config.motion is None or not isinstance(net, VideoControlNet):
        return
    if net.motion is None:
        net.motion = MotionBlocks(net.controlnet, pack.config.motion)
    pack.config = pack.config.model_copy(update={"controlnet_motion": True})


def extended(config: PackConfig, stage: Stage) -> PackConfig:
    """The config after a stage: motion blocks trained on longer runs, or with other noise, say so."""
    if not stage.motion or config.motion is None:
        return config
    changes: dict[str, Any] = {}
    if stage.frames > config.motion.max_length or stage.frames > config.context_frames:
        changes["motion"] = config.motion.model_copy(update={"max_length": stage.frames})
        changes["context_frames"] = stage.frames
    if stage.beta_schedule:
        changes["scheduler"] = config.scheduler.model_copy(update={"beta_schedule": stage.beta_schedule})
    return config.model_copy(update=changes)
