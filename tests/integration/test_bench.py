"""The benchmark end to end without processes of its own: equal contenders, their protocol, the command."""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.config as dynamo
from typer.testing import CliRunner

from dreamoving_cli.bench import extraction, ours, peer, sections, worker
from dreamoving_cli.bench.contenders import Job, Runs
from dreamoving_cli.bench.kernels import kernels
from dreamoving_cli.bench.sizes import Task
from dreamoving_cli.bench.stages import stages
from dreamoving_cli.caption import describe
from dreamoving_cli.cli import app
from dreamoving_cli.extract import depth, light, pose, pose_files
from dreamoving_cli.extract.settings import PoseOptions
from dreamoving_cli.media.video import Clip
from dreamoving_cli.media.writer import write_video
from dreamoving_cli.weights import list_weights, weight_path
from tests.tiny_onnx import person_network, pose_network
from tests.unit.test_dwpose import spots

TASK = Task("tiny", 4, (128, 128), 2, guidance_scale=3.0, norm="clip")


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_contenders_denoise_the_same_clip_to_the_same_latents() -> None:
    """diffusers as it comes and tuned, and ours with its way of taking norms; its own way differs."""
    theirs = peer.make(TASK)()
    assert theirs.shape == (1, 4, 4, 16, 16)
    assert apart(ours.make(TASK)(), theirs) < 1e-3  # rounding, which norms over a few cells enlarge
    assert apart(peer.make(TASK, tuned=True)(), theirs) < 1e-3
    assert apart(ours.make(replace(TASK, norm="frame"))(), theirs) > 1e-2


def test_compiled_contenders_take_their_ways_through_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing compiled: the same latents, through the same calls."""
    regions: list[str] = []

    def recorded(function: Any, **how: Any) -> Any:
        regions.append(function.__qualname__)
        return function

    monkeypatch.setattr(torch, "compile", recorded)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    task = replace(TASK, guidance_scale=1.0, steps=1)
    theirs = peer.make(task)()
    assert torch.equal(ours.make(task, fast=True)(), ours.make(task)())
    assert set(regions) == {"residual_block", "spatial_block", "along_time"}
    regions.clear()
    with dynamo.patch(recompile_limit=8, automatic_dynamic_shapes=True):  # theirs sets both for good
        assert apart(peer.make(task, tuned=True, fast=True)(), theirs) < 1e-3
    assert len(regions) > 20  # every block that repeats, of both networks


def test_without_guidance_too_and_every_run_is_the_same() -> None:
    task = replace(TASK, guidance_scale=1.0, steps=1)
    run = ours.make(task)
    assert torch.equal(run(), run())
    assert apart(run(), peer.make(task)()) < 1e-3


def test_contenders_decode_the_same_clip_to_the_same_pictures() -> None:
    task = replace(TASK, steps=1, pictures=True)
    made, theirs = ours.make(task)(), peer.make(task)()
    assert made.dtype == torch.uint8
    assert made.shape == (4, 128, 128, 3)
    other = torch.as_tensor(theirs)[0] * 255  # b f h w c in 0..1
    assert float((made.float() - other).abs().max()) < 1.5
    assert float(made.float().std()) > 5  # not of one color


def test_freenoise_denoises_a_clip_longer_than_its_windows() -> None:
    task = replace(TASK, frames=10, steps=1, window=8, overlap=2)
    theirs = peer.make(task, stride=4)()
    apart_each, at_once = ours.make(task)(), ours.make(replace(task, window_batch=2))()
    assert theirs.shape == apart_each.shape == (1, 4, 10, 16, 16)
    assert apart(at_once, apart_each) < 1e-3
    assert theirs.isfinite().all()


def test_every_stage_of_a_render_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamoving_cli.bench.stages.REPEATS", 1)
    found = stages(asdict(replace(TASK, size=(64, 64), norm="frame")))
    assert set(found["seconds"]) == {*sections.STEP_SHARES, *sections.ONCE_A_FRAME, *sections.ONCE}
    assert all(seconds >= 0 for seconds in found["seconds"].values())
    assert found["flop"]["unet"] > found["flop"]["control"] > 0


def test_operations_that_take_longest_come_first() -> None:
    found = kernels(asdict(replace(TASK, size=(64, 64), steps=1)))
    shares = [row["share"] for row in found["operations"]]
    assert shares == sorted(shares, reverse=True)
    assert 0.5 < sum(shares) <= 1.001
    assert {"aten::addmm", "aten::mkldnn_convolution"} & {row["name"] for row in found["operations"]}
    assert found["busy_seconds"] > 0
    assert found["kernels"] == []
    assert [row["name"].split(",")[0] for row in found["attention"]] == ["cells", "text", "frames"] * 4
    for row in found["attention"]:
        assert row["seconds"] > 0
        assert row["math"] > 0  # every device has the plain way
        assert row["cudnn"] is None  # and no CPU this one
    assert [row["one"] > 0 for row in found["projections"]] == [True] * 4


def test_extraction_is_measured_part_by_part(light_networks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands' own code, which is as it was afterwards."""
    monkeypatch.setattr(extraction, "dwpose_is_here", lambda options: False)
    monkeypatch.setattr(extraction, "public_here", list)
    for each, _ in list_weights():
        if "light-pose" in each.groups:
            weight_path(each.id)  # fetched where it was not yet
    names = [
        (Clip, "read"),
        (pose, "repair"),
        (pose_files, "write_video"),
        (light, "Networks"),
        (depth, "steadied"),
        (describe.Describer, "answers"),
    ]
    before = [getattr(*name) for name in names]
    told = extraction.measure_extraction(side=288, frames=6, rounds=1)
    assert [getattr(*name) for name in names] == before
    missing = {"pose, dwpose": "pose", "depth, zoe": "depth", "words, minigpt-v2": "caption"}
    assert told["missing"] == missing
    body, whole, deep, words = told["rows"]
    for row in told["rows"]:
        assert (row["frames"], row["size"]) == (6, "192x288")
        assert sum(row["share"].values()) == pytest.approx(1)
        assert row["loading_s"] > 0
    common = {"reading", "cuts", "metrics", "writing", "rest"}
    poses = common | {"detector", "landmarks: body", "tracking", "repairs", "drawing"}
    assert set(body["share"]) == poses
    assert set(whole["share"]) == poses | {"landmarks: hands", "landmarks: face"}
    assert set(deep["share"]) == common | {"network", "limits", "steadying"}
    assert set(words["share"]) == {"reading", "network", "rest"}


def test_dwpose_is_measured_where_it_is_here(tmp_path: Path) -> None:
    networks = person_network(tmp_path / "person.onnx"), pose_network(tmp_path / "pose.onnx")
    video = write_video(
        tmp_path / "in.mp4",
        [np.stack([spots((300 + 3 * k, 200)) for k in range(6)])],
        Fraction(25),
        quality=5,
    )
    options = PoseOptions("dwpose", person_network=str(networks[0]), pose_network=str(networks[1]))
    seconds, parts = extraction.run(partial(extraction.find_pose, options), video)
    assert seconds > 0
    assert {"loading", "detector", "landmarks", "drawing", "writing"} <= set(parts)


def test_a_process_runs_and_answers_once_for_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Task] = []
    monkeypatch.setitem(worker.ENGINES, "dreamoving", lambda task: lambda: calls.append(task))
    monkeypatch.setattr("sys.stdin", io.StringIO("run\nrun\n"))
    answers = io.StringIO()
    job = json.loads(json.dumps(asdict(Job("dreamoving", TASK))))
    worker.contend(job, answers)
    assert calls == [TASK] * 2
    told = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [set(line) for line in told] == [{"seconds", "cpu_seconds", "peak_bytes"}] * 2


def test_the_command_measures_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every section, with made-up seconds in place of processes."""
    asked: list[Job] = []

    def compare(jobs: Sequence[Job], rounds: int, together: bool) -> list[Runs]:
        asked.extend(jobs)
        return [Runs(job, [2.0] * rounds, [1.0] * rounds, 2**20, 3.0) for job in jobs]

    def once(what: str, **values: Any) -> dict[str, Any]:
        names = (*sections.STEP_SHARES, *sections.ONCE_A_FRAME, *sections.ONCE)
        flop = dict.fromkeys(("unet", "motion", "control", "decode"), 1e9)
        stages = {"seconds": dict.fromkeys(names, 0.5), "flop": flop}
        about = {"kind": "cpu", "device": "cpu", "dtype": "fp32", "free_bytes": 2**33, "matmul_flops": 1e9}
        about |= {"name": "some processor", "packages": {}, "threads": 1}
        spent = [{"name": "aten::addmm", "calls": 3, "seconds": 0.1, "share": 1.0}]
        row = {"what": "pose", "frames": 5, "size": "96x64", "frames_per_s": 3.0, "frames_per_cpu_s": 9.0}
        pose = {
            "threads": 1,
            "missing": {},
            "rows": [row | {"bar": 8.0, "loading_s": 0.1, "share": {"drawing": 1.0}}],
        }
        kernels = {"seconds": 0.5, "busy_seconds": 0.1, "operations": spent, "kernels": []}
        kernels["attention"] = [{"name": "cells", "seconds": 0.1, "flash": 0.5, "math": None}]
        kernels["projections"] = [{"name": "rows", "seconds": 0.1, "one": 0.5}]
        told = {"stages": stages, "work": flop, "machine": about, "kernels": kernels, "extraction": pose}
        return told[what]

    monkeypatch.setattr(sections, "compare", compare)
    monkeypatch.setattr(sections, "once", once)
    monkeypatch.setattr("dreamoving_cli.bench.contenders.once", once)
    monkeypatch.setattr(sections, "started", lambda words: {"seconds": 0.2, "cpu_seconds": 0.1})
    words = ["bench", "--width", "tiny", "--frames", "6", "--size", "128x64", "--steps", "2", "--rounds", "2"]
    words += ["--long", "20"]
    result = CliRunner().invoke(app, [*words, "--json"])
    found = json.loads(result.stdout)
    assert set(found) == {"machine", "settings", *sections.SECTIONS}
    names = ["dreamoving", "diffusers", "diffusers tuned"]
    assert [row["contender"] for row in found["window"]] == names
    assert [row["compile_s"] for row in found["window"]] == [None] * 3
    assert found["window"][0]["seconds_per_frame_step"] == 2.0 / 12
    assert found["window"][0]["mfu"] == pytest.approx(3e9 / (1.0 / 12) / 1e9)
    assert asked[0].task.size == (64, 128)
    assert {job.task.frames for job in asked} == {6, 20, 16, 64, 256, 1024}
    assert {job.stride for job in asked} >= {None, 4, 12}
    assert {job.task.window_batch for job in asked} == {1, sections.WINDOW_BATCH}
    assert {job.task.frames for job in asked if job.task.pictures} == {6}
    assert found["render"][0]["frames_per_s"] == 3.0  # 6 frames in 2 s
    fast = json.loads(CliRunner().invoke(app, [*words, "--compiled", "--only", "window", "--json"]).stdout)
    assert [row["contender"] for row in fast["window"][3:]] == ["dreamoving compiled", "diffusers compiled"]
    assert [row["compile_s"] for row in fast["window"][2:]] == [None, 1.0, 1.0]  # of 3 s, 2 are a run
    text = CliRunner().invoke(app, words).stdout
    for title in (
        "Machine", "One window", "Several windows", "The whole clip", "From words", "Cost against length",
        "Stages", "Operations", "Attention", "Queries", "Extraction", "Start-up",
    ):  # fmt: skip
        assert f"### {title}" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--width", "wide"], "width is 'wide'. Choose full, half, tiny."),
        (["--size", "100x64"], "size is '100x64'. Give multiples of 64."),
        (["--frames", "0"], "frames is 0"),
        (["--long", "0"], "long is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    about = {"kind": "cpu", "device": "cpu", "dtype": "fp32"}
    monkeypatch.setattr("dreamoving_cli.bench.contenders.once", lambda what, **values: about)
    result = CliRunner().invoke(app, ["bench", *words])
    assert result.exit_code == 2
    assert said in result.output
