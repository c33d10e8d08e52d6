"""A run's checkpoint: one file, the same whether weights were divided or whole; either goes on with it."""

from typing import TYPE_CHECKING, Any

import torch

from dreamoving_cli.errors import UsageError
from dreamoving_cli.whole import whole_file

if TYPE_CHECKING:
    from dreamoving_cli.train.loop import Run, Trainer

LOSSES = 50  # of the last steps, for the log's next line


def drawn(run: "Run", batch: int) -> dict[str, int]:
    """What decides which data a step sees, beside its number."""
    return {"seed": run.seed, "batch": batch, "shares": run.shares}


def write_checkpoint(trainer: "Trainer") -> None:
    """Write all that the next step depends on: the first worker does; where others hold parts, all help."""
    run, whole, names = trainer.run, trainer.split.whole, list(trainer.trained)
    optimizer = trainer.optimizer.state_dict()
    state = {
        "stage": run.stage, "step": trainer.step, "drawn": drawn(run, trainer.stage.batch),
        "losses": [float(loss) for loss in trainer.losses[-LOSSES:]],
        "spent": trainer.clock.used_s if run.minutes else 0.0,
        "adversary": trainer.adversary.state() if trainer.adversary else None,
        "optimizer": {**optimizer, "state": trainer.split.converted(names, optimizer["state"], whole)},
        "momentum": trainer.muon.momentum,
        "trained": {n: whole(n, p.detach()) for n, p in trainer.trained.items()},
        "average": {n: whole(n, p) for n, p in trainer.average.items()},
        "facts": trainer.facts.state_dict() if trainer.facts else None,
    }  # fmt: skip
    if trainer.rank == 0:
        with whole_file(run.out / "state.pt") as part:
            torch.save(state, part)


def read_checkpoint(trainer: "Trainer") -> None:
    """Go on where the checkpoint is, if there is one."""
    run, path = trainer.run, trainer.run.out / "state.pt"
    if not path.exists():
        return
    state = load_state(trainer)
    now = drawn(run, trainer.stage.batch)
    if state["stage"] != run.stage or state.get("drawn", now) != now:
        raise UsageError(
            f"{path} was begun with {(state['stage'], state.get('drawn'))}, now it is {(run.stage, now)}",
            "Give the same stage, seed, batch, workers and accumulation, or another --out.",
        )
    trainer.step, trainer.clock.used_s = state["step"], state.get("spent", 0.0)
    trainer.losses = [torch.tensor(loss, device=trainer.device) for loss in state.get("losses", [])]
    part_of, names = trainer.split.part_of, list(trainer.trained)
    moments = trainer.split.converted(names, state["optimizer"]["state"], part_of)
    trainer.optimizer.load_state_dict({**state["optimizer"], "state": moments})
    with torch.no_grad():
        for n, p in trainer.trained.items():
            p.copy_(part_of(n, state["trained"][n]))
            trainer.average[n].copy_(part_of(n, state["average"][n]))
        for n, m in trainer.muon.momentum.items():
            m.copy_(state["momentum"][n])
    if trainer.facts:
        trainer.facts.load_state_dict(state["facts"])
    if trainer.adversary and state.get("adversary"):
        trainer.adversary.load(state["adversary"])


def load_state(trainer: "Trainer") -> dict[str, Any]:
    """The file, on the worker's device; mapped where it needs parts alone, so that only these are read."""
    place, mapped = ("cpu", True) if trainer.run.split_weights else (trainer.device, False)
    state: dict[str, Any] = torch.load(
        trainer.run.out / "state.pt", weights_only=True, map_location=place, mmap=mapped
    )
    return state
