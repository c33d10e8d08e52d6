"""What a run would train and how much memory that takes, from sizes alone: nothing is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreamoving_cli.device import GIB
from dreamoving_cli.models.config import PackConfig
from dreamoving_cli.models.load import Pack, empty_networks
from dreamoving_cli.train.loop import Run, settings
from dreamoving_cli.train.mini import mini_config
from dreamoving_cli.train.source import give_motion
from dreamoving_cli.train.split import is_divided, part_length

WEIGHT, GRADIENT, MOMENTS, AVERAGE = 4, 4, 8, 4  # bytes of a trained value; Muon keeps one moment, AdamW two


def estimate(run: Run) -> dict[str, Any]:
    """Parameters and bytes of a run; what activations take is not in them."""
    stage = settings(run)
    config = config_of(run)
    pack = empty_networks(config, config.controls, None)
    if stage.motion and stage.controls:
        for name in pack.networks():
            give_motion(pack, name)
    sizes = parameter_sizes(pack)
    trained = [name for name in sizes if name.startswith(stage.trains)]
    total, ours = (sum(sizes[name].count for name in names) for names in (sizes, trained))
    parts = sorted({".".join(name.split(".")[:2]) for name in trained})
    gib = {w: round(held(sizes, stage.trains, w) / GIB, 2) for w in sorted({1, 2, 4, 8, run.workers})}
    return {
        "stage": run.stage,
        "trains": parts,
        "trained_millions": round(ours / 1e6, 2),
        "frozen_millions": round((total - ours) / 1e6, 2),
        "held_gib": gib[run.workers if run.split_weights else 1],
        **{f"held_gib_split_by_{w}": value for w, value in gib.items() if w > 1 and stage.divisible},
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


@dataclass(frozen=True)
class Weight:
    """How large a parameter is, and whether workers may each hold a part of it."""

    count: int
    divisible: bool


def parameter_sizes(pack: Pack) -> dict[str, Weight]:
    """Each parameter's size by its name, network first."""
    networks = pack.networks().items()
    return {
        f"{net}.{n}": Weight(p.numel(), is_divided(net, p))
        for net, network in networks
        for n, p in network.named_parameters()
    }


def held(sizes: Mapping[str, Weight], trains: tuple[str, ...], workers: int = 1) -> int:
    """Bytes that one of so many workers holds between two steps; what can be divided is."""
    total = 4  # the loss, beside the gradients
    for name, weight in sizes.items():
        count = part_length(weight.count, workers if weight.divisible else 1)
        total += count * (WEIGHT + (GRADIENT + MOMENTS + AVERAGE) * name.startswith(trains))
    return total
