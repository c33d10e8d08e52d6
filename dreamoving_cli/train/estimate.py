"""What a run would train and how much memory that takes, from sizes alone: nothing is loaded."""

from typing import Any

from dreamoving_cli.device import GIB
from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.load import Pack, empty_networks
from dreamoving_cli.train.loop import Run, settings
from dreamoving_cli.train.mini import mini_config
from dreamoving_cli.train.source import give_motion

WEIGHT, GRADIENT, MOMENTS, AVERAGE = 4, 4, 8, 4  # bytes of a trained value; Muon keeps one moment, AdamW two


def estimate(run: Run) -> dict[str, Any]:
    """Parameters and bytes of a run; what activations take is not in them."""
    stage = settings(run)
    config = config_of(run)
    pack = empty_networks(config, config.controls, None)
    if stage.motion and stage.controls:
        give_motion(pack)
    counts = parameter_counts(pack)
    trained = {name: count for name, count in counts.items() if name.startswith(stage.trains)}
    total, ours = sum(counts.values()), sum(trained.values())
    held = total * WEIGHT + ours * (GRADIENT + MOMENTS + AVERAGE)
    parts = sorted({".".join(name.split(".")[:2]) for name in trained})
    return {
        "stage": run.stage,
        "trains": parts,
        "trained_millions": round(ours / 1e6, 2),
        "frozen_millions": round((total - ours) / 1e6, 2),
        "held_gib": round(held / GIB, 2),
        "steps": stage.steps,
        "batch": f"{stage.batch} = {run.workers} workers x {run.accumulate} x {stage.batch // run.shares}",
        "frames": stage.frames,
        "size": f"{stage.size[1]}x{stage.size[0]}" if stage.size else "as stored",
        "lr": stage.lr,
        "dtype": run.dtype,
    }


def config_of(run: Run) -> PackConfig:
    """The sizes of what the run starts from."""
    if run.init is None:
        return mini_config()
    if (run.init / "config.json").is_file():
        return PackConfig.load(run.init / "config.json")
    from dreamoving_cli.models.checkpoints.assemble import recipe_config
    from dreamoving_cli.recipes import find_recipe

    stage = settings(run)
    controls = ("pose", "depth") if stage.controls else ()
    return recipe_config(find_recipe(str(run.init), controls, ("face", "cloth") if stage.images else ()))


def parameter_counts(pack: Pack) -> dict[str, int]:
    """Values of each parameter by its name, network first."""
    networks = pack.networks().items()
    return {f"{net}.{n}": p.numel() for net, network in networks for n, p in network.named_parameters()}
