"""Weights in parts: two processes that hold halves end as one that holds all, and so do their files."""

import json
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dreamoving_cli.dataset.shards import write_shard
from dreamoving_cli.errors import UsageError
from dreamoving_cli.models.load import Pack, load_pack
from dreamoving_cli.train import estimate, loop, split
from dreamoving_cli.train.estimate import held, parameter_sizes
from dreamoving_cli.train.loop import Run, Trainer
from dreamoving_cli.train.losses import control_residuals, image_prompts
from dreamoving_cli.train.options import as_run
from dreamoving_cli.train.shard_store import ShardStore
from dreamoving_cli.train.source import open_start
from dreamoving_cli.train.split import Divided, Split, part_length
from dreamoving_cli.train.stages import PAPER, STAGES
from tests.shards import make_sample, options, same, state_of, talking_pack

pytestmark = pytest.mark.usefixtures("one_thread")

MODES: dict[str, dict[str, Any]] = {  # what else is on, so that everything is on in one of them
    "content-guider": {"frames": 1, "fps": None, "dtype": "bf16"},
    "long-frames": {"snr_gamma": 5.0},
    "video-controlnet": {"recompute": True, "accumulate": 2},
    "expression": {"dtype": "bf16", "recompute": True},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips, one of them without depth."""
    parts, out = tmp_path_factory.mktemp("parts"), tmp_path_factory.mktemp("shards")
    samples = [make_sample(parts / f"s{k}", f"k{k}", k, depth=k > 0) for k in range(3)]
    write_shard(out / "clips-000000.tar", samples)
    return out


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talking_pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def halves(
    tmp_path_factory: pytest.TempPathFactory, data: Path, start: Path
) -> Callable[[str], tuple[Run, Run]]:
    """A stage's run by one process and, with the same batches, by two that hold halves; both are over."""
    done: dict[str, tuple[Run, Run]] = {}

    def trained(stage: str) -> tuple[Run, Run]:
        if stage not in done:
            folder = tmp_path_factory.mktemp(stage)
            done[stage] = (
                alone(stage, data, folder / "one", start),
                split_run(stage, data, folder / "two", start),
            )
            work(done[stage][0], listening)
            work(done[stage][1])
        return done[stage]

    return trained


def split_run(stage: str, data: Path, out: Path, start: Path, **more: Any) -> Run:
    """Two processes, each with half of the weights."""
    mode = {"batch": 2 * MODES.get(stage, {}).get("accumulate", 1), **MODES.get(stage, {})}
    values = {"size": "64x32", "frames": 2, "workers": 2, "split_weights": True}
    return as_run(stage, options(data, out, start, **{**values, **mode, **more}))


def alone(stage: str, data: Path, out: Path, start: Path, **more: Any) -> Run:
    """The same batches in one process."""
    run = split_run(stage, data, out, start, **more)
    return replace(run, workers=1, accumulate=run.shares, split_weights=False)


def work(run: Run, each: Callable[[int, Run], None] | None = None, exits: int = 0) -> None:
    """Do the run, or call something instead, in as many processes as it has workers."""
    run.out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free, pytest.MonkeyPatch.context() as patch:
        free.bind(("127.0.0.1", 0))
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        patch.setenv("MASTER_PORT", str(free.getsockname()[1]))
        assert run.init is not None
        pack = aligned(run.init)  # each process has a copy of it
        for name in ("load_start", "open_start"):
            patch.setattr(loop, name, lambda *_: pack)
        free.close()
        todo = each or (lambda rank, run: loop.work(rank, run, None, None))
        processes = [get_context("fork").Process(target=todo, args=(k, run)) for k in range(run.workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(300)
    assert [process.exitcode for process in processes] == [exits] * run.workers


def listening(rank: int, run: Run) -> None:
    """Do the run, and write down which ControlNets each share of a batch has drawn."""
    drawn: list[list[bool]] = []
    Split.any_of = lambda self, flags: drawn.append(list(flags)) or list(flags)  # type: ignore[method-assign, func-returns-value]
    loop.work(rank, run, None, None)
    (run.out / "drawn.json").write_text(json.dumps([flags for flags in drawn if len(flags) > 1]))


@lru_cache
def aligned(start: Path) -> Pack:
    """A pack whose weights begin where allocations do, as gathered ones: kernels round by that."""
    pack = load_pack(start)
    for network in pack.networks().values():
        for p in network.parameters():
            p.data = p.data.clone()
    return pack


def distance(one: dict[str, Tensor], two: dict[str, Tensor], before: dict[str, Tensor]) -> float:
    """How far two results lie apart, as a share of how far training moved one of them."""
    assert one.keys() == two.keys()
    apart = torch.cat([(one[n] - two[n]).flatten() for n in one])
    moved = torch.cat([(one[n] - before[n]).flatten() for n in one])
    assert moved.norm() > 0
    return float(apart.norm() / moved.norm())


def weights(start: Path) -> dict[str, Tensor]:
    """Every parameter of a pack."""
    networks = load_pack(start).networks().items()
    return {f"{net}.{n}": p.detach() for net, m in networks for n, p in m.named_parameters()}


def moments(state: dict[str, Any], key: str) -> list[Tensor]:
    return [values[key] for values in state["optimizer"]["state"].values()]


# --- the same result


@pytest.mark.parametrize("stage", PAPER)
def test_two_processes_with_halves_end_as_one(
    stage: str, start: Path, halves: Callable[[str], tuple[Run, Run]]
) -> None:
    one, two = halves(stage)
    whole, parts, before = state_of(one.out), state_of(two.out), weights(start)
    np.testing.assert_allclose(whole["losses"], parts["losses"], rtol=1e-5)
    drawn = json.loads((one.out / "drawn.json").read_text())
    assert PAPER[stage].controls == any(a != b for a, b in zip(drawn[::2], drawn[1::2], strict=True))
    assert list(whole["trained"]) == list(parts["trained"]) == [n for n in before if n in whole["trained"]]
    assert all(name.startswith(PAPER[stage].trains) for name in parts["trained"])
    for key in ("trained", "average"):
        assert distance(whole[key], parts[key], before) < 1e-2
    for key in ("exp_avg", "exp_avg_sq"):
        mine, theirs = (moments(state, key) for state in (whole, parts))
        assert all((m.shape, m.stride()) == (t.shape, t.stride()) for m, t in zip(mine, theirs, strict=True))
        flat, other = (torch.cat([m.flatten() for m in every]) for every in (mine, theirs))
        assert (flat - other).norm() < 1e-3 * flat.norm()


@pytest.mark.parametrize("stage", PAPER)
def test_what_they_export_is_the_same_ordinary_pack(
    stage: str, start: Path, halves: Callable[[str], tuple[Run, Run]]
) -> None:
    one, two = (run.out / "pack" for run in halves(stage))
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    assert (one / "config.json").read_bytes() == (two / "config.json").read_bytes()
    for name in (name for name in names if name.endswith(".safetensors")):
        mine, theirs, first = (load_file(folder / name) for folder in (one, two, start))
        assert mine.keys() == theirs.keys() >= first.keys()
        for key, value in mine.items():
            full = f"{name.removesuffix('.safetensors')}.{key}"
            if full.startswith(PAPER[stage].trains):
                torch.testing.assert_close(theirs[key], value, rtol=2e-3, atol=1e-4)
            else:
                assert torch.equal(theirs[key], value)
                assert torch.equal(value, first[key].half())


# --- files


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, data: Path, start: Path) -> Run:
    """Both processes die by kill -9 right after a checkpoint and a step; beside it lies what each held."""
    cut = split_run("long-frames", data, tmp_path_factory.mktemp("killed"), start)

    def doomed(rank: int, run: Run) -> None:
        trainer, most, left = begun(rank, run), [0], [0]
        gathered, forward = Divided.gathered, trainer.loss

        def counting(self: Divided, part: Tensor) -> Tensor:
            found = gathered(self, part)
            alive = [known[0]() for known in split._alive.values()]
            most.append(found.numel() + sum(weight.numel() for weight in alive if weight is not None))
            return found

        def watched(turn: int = 0) -> Tensor:
            loss = forward(turn)
            left.append(len(split._alive))
            return loss

        Divided.gathered, trainer.loss = counting, watched  # type: ignore[method-assign]
        trainer.train_step()
        found = {"held": held_bytes(trainer), "most": max(most), "left": max(left)}
        (run.out / f"{rank}.json").write_text(json.dumps(found))
        trainer.save()
        trainer.train_step()  # lost
        os.kill(os.getpid(), signal.SIGKILL)

    work(cut, doomed, exits=-signal.SIGKILL)
    return cut


def begun(rank: int, run: Run) -> Trainer:
    """A worker before its first step."""
    loop.dist.init_process_group("gloo", rank=rank, world_size=run.workers)
    assert run.init is not None
    return Trainer(run, loop.settings(run), open_start(run.init, loop.settings(run)), rank)


def held_bytes(trainer: Trainer) -> int:
    """All tensors of a trainer's parameters and of what belongs to them."""
    networks = trainer.pack.networks().values()
    tensors = [p for network in networks for p in network.parameters()]
    states = trainer.optimizer.state.values()
    tensors += [value for state in states for value in state.values() if value.ndim]
    return sum(t.untyped_storage().nbytes() for t in [*tensors, trainer.gradient, *trainer.average.values()])


def test_a_killed_run_of_halves_ends_as_an_uninterrupted_one(
    killed: Run, halves: Callable[[str], tuple[Run, Run]]
) -> None:
    assert state_of(killed.out)["step"] == 1
    work(killed)
    _, uncut = halves("long-frames")
    assert same(state_of(uncut.out), state_of(killed.out))
    packs = [sorted((run.out / "pack").rglob("*.safetensors")) for run in (uncut, killed)]
    assert packs[0]
    assert [p.read_bytes() for p in packs[0]] == [p.read_bytes() for p in packs[1]]


def test_either_goes_on_with_the_other_s_checkpoint(
    data: Path, start: Path, tmp_path: Path, halves: Callable[[str], tuple[Run, Run]]
) -> None:
    """Halves read what one process wrote and write it again, the same bits; then each takes the last step."""
    one, two = (
        make("long-frames", data, tmp_path / name, start)
        for name, make in (("one", alone), ("two", split_run))
    )
    work(replace(one, max_steps=1))
    two.out.mkdir()
    (two.out / "state.pt").write_bytes((one.out / "state.pt").read_bytes())

    def again(rank: int, run: Run) -> None:
        trainer = begun(rank, run)
        trainer.resume()
        trainer.save()
        if rank == 0:
            (run.out / "state.pt").rename(run.out / "again.pt")
        trainer.train_step()
        trainer.save()

    work(two, again)
    assert same(state_of(one.out), torch.load(two.out / "again.pt", weights_only=True))
    (one.out / "state.pt").write_bytes((two.out / "again.pt").read_bytes())
    work(one)
    uncut = state_of(halves("long-frames")[0].out)
    for found in (state_of(one.out), state_of(two.out)):
        assert found["step"] == 2
        np.testing.assert_allclose(found["losses"], uncut["losses"], rtol=1e-5)
        assert distance(uncut["trained"], found["trained"], weights(start)) < 1e-2


# --- what a process holds


def test_a_process_holds_its_half_and_little_else(killed: Run, start: Path) -> None:
    """Between two steps as many bytes as --dry-run says; while it computes, few weights are whole."""
    sizes, trains = parameter_sizes(load_pack(start)), PAPER["long-frames"].trains
    expected = held(sizes, trains, workers=2)
    assert expected < 0.55 * held(sizes, trains)
    for rank in range(2):
        found = json.loads((killed.out / f"{rank}.json").read_text())
        assert (found["held"], found["left"]) == (expected, 0)
        assert 0 < found["most"] < 0.1 * sum(weight.count for weight in sizes.values())


@pytest.mark.parametrize(
    ("shape", "memory"), [((5, 3), torch.contiguous_format), ((4, 3, 3, 3), torch.channels_last)]
)
def test_parts_are_a_weight_as_it_lies_in_memory(shape: tuple[int, ...], memory: torch.memory_format) -> None:
    weight = torch.randn(shape).contiguous(memory_format=memory)
    divided = [Divided(weight, False, rank, 4) for rank in range(4)]
    parts = [one.part_of(weight) for one in divided]
    assert {len(part) for part in parts} == {part_length(weight.numel(), 4)}
    flat = torch.cat(parts)
    whole = flat.as_strided(weight.shape, weight.stride())
    assert torch.equal(whole, weight)
    assert not flat[weight.numel() :].any()


def test_nothing_is_changed_where_nothing_is_divided() -> None:
    layer, idle = nn.Linear(3, 2), Split()
    assert idle.any_of([True, False]) == [True, False]
    assert idle.whole("layer.weight", layer.weight) is layer.weight
    assert idle.part_of("layer.weight", layer.weight) is layer.weight
    assert idle.sorted({"a": layer.weight}) == ([], [layer.weight])


# --- networks that another process has drawn


def test_what_runs_for_another_process_s_sake_counts_for_nothing(data: Path, start: Path) -> None:
    pack = load_pack(start)
    stage = replace(PAPER["expression"], size=(32, 64), images=True, fps=6.0)
    batch = ShardStore(data, pack, stage).batch(np.random.default_rng(0), 1, 2)
    batch = replace(batch, controls={"pose": batch.controls["pose"]})
    rest = {"x": batch.latents, "t": torch.tensor([5]), "text": torch.zeros(1, 32, 32), "settings": stage}

    def seen() -> tuple[Any, Any]:
        dice = torch.Generator().manual_seed(1)
        residuals = control_residuals(pack, batch, generator=dice, **rest)
        images, _ = image_prompts(pack, batch, torch.ones(1), None, dice, absent=0.0)
        return residuals, (images, torch.rand((), generator=dice))

    own = seen()
    asked: list[list[bool]] = []
    pack.any_of = lambda flags: asked.append(list(flags)) or [True] * len(flags)  # type: ignore[func-returns-value]
    both = seen()
    assert asked == [[True, False], [True], [True], [False]]
    for mine, theirs in zip(own[0], both[0], strict=True):
        assert torch.equal(mine, theirs)
    assert len(both[1][0]) == len(own[1][0]) + 1
    assert not both[1][0][-1][0][2].any()
    assert torch.equal(own[1][1], both[1][1])


# --- what is said, and refused


def test_a_dry_run_says_what_each_of_several_would_hold(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In units small enough for a tiny pack."""
    monkeypatch.setattr(estimate, "GIB", 2**16)
    run = replace(split_run("expression", tmp_path, tmp_path, start, dtype="fp32"), workers=3)
    found = estimate.estimate(run)
    said = [found[f"held_gib_split_by_{workers}"] for workers in (2, 3, 4, 8)]
    whole = estimate.estimate(replace(run, split_weights=False))["held_gib"]
    assert whole > said[0] > said[1] > said[2] > said[3] > whole / 8
    assert found["held_gib"] == said[1]
    assert not any("split" in key for key in estimate.estimate(replace(run, chosen=STAGES["expression"])))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"workers": 1}, "with one worker"),
        ({"optimizer": "muon"}, "optimizer 'muon', which needs whole matrices"),
        ({"scale": "mini"}, "Set optimizer: adamw"),
        (
            {"stage": "picture", "frames": 1, "scale": "mini", "optimizer": "adamw"},
            "makes the miniature from nothing",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        split_run(
            str(values.get("stage", "long-frames")),
            tmp_path,
            tmp_path,
            tmp_path,
            **{k: v for k, v in values.items() if k != "stage"},
        )
