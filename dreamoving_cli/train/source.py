"""What a stage starts from: a pack's folder, a model file or sd15's files; what becomes of its config."""

from pathlib import Path
from typing import Any

from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.load import Pack, load_pack
from dreamoving_cli.models.motion import MotionBlocks
from dreamoving_cli.train.stages import Stage


def load_start(source: Path, stage: Stage) -> Pack:
    """The pack that a stage goes on with; of public files only those that the stage needs."""
    if (source / "config.json").is_file():
        pack = load_pack(source)
    else:
        from dreamoving_cli.recipes import find_recipe

        controls = ("pose", "depth") if stage.controls else ()
        pictures = ("face", "cloth") if stage.images else ()
        pack = load_pack(find_recipe(str(source), controls, pictures))
    if stage.motion and stage.controls:
        give_motion(pack)
    return pack


def give_motion(pack: Pack) -> None:
    """Motion blocks, the identity until they are trained, for ControlNets that have none."""
    if pack.config.motion is None:
        return
    for net in pack.controlnets.values():
        if net.motion is None:  # a public file
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
