"""The command line with the real engine behind it, on a tiny random pack: a video, its record, both again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from dreamoving_cli import paths
from dreamoving_cli.caption import for_render
from dreamoving_cli.cli import app
from dreamoving_cli.extract.keypoints import NUM_POINTS, Poses, save_poses
from dreamoving_cli.media.images import write_image
from dreamoving_cli.media.video import open_clip, probe
from dreamoving_cli.models.load import build_pack, save_pack
from dreamoving_cli.models.tiny import tiny_config
from dreamoving_cli.outputs import record_path
from dreamoving_cli.presets import load_preset
from tests.conftest import HEAR_CTRL_C

NTSC = Fraction(30000, 1001)
QUICK = ("--steps", "2", "--context-frames", "8", "--context-overlap", "2", "--device", "cpu")
RENDER = ("render", "--pose", "dance.json", "--cloth", "shirt.png", *QUICK)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs") / "tiny"
    save_pack(build_pack(tiny_config(), seed=0), folder)
    return folder


@pytest.fixture
def inputs(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with dance.json and shirt.png, which is also where the command runs."""
    monkeypatch.setattr(paths, "MINI", tiny_folder)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    points = rng.uniform(4, 60, (10, 1, NUM_POINTS, 2)).astype(np.float32)
    save_poses(tmp_path / "dance.json", Poses(NTSC, 64, 96, points, np.ones((10, 1, NUM_POINTS), np.float32)))
    write_image(tmp_path / "shirt.png", rng.integers(0, 255, (60, 40, 3), dtype=np.uint8))
    return tmp_path


@pytest.fixture
def run(inputs: Path) -> Callable[..., Any]:
    return lambda *words: CliRunner().invoke(app, [*RENDER, *map(str, words)])


def test_a_video_appears_under_the_printed_name(run: Callable[..., Any], inputs: Path) -> None:
    result = run("--seed", 7)
    assert result.exit_code == 0, result.output
    path = Path(result.stdout.strip())
    assert path.name.startswith("dance-shirt-7-")
    info = probe(path)
    assert (info.num_frames, info.fps) == (10, NTSC)
    assert "denoise: 2/2" in result.stderr
    assert {p.name for p in inputs.iterdir()} == {
        "dance.json",
        "shirt.png",
        path.name,
        record_path(path).name,
    }


def test_the_record_repeats_the_video_bit_for_bit(run: Callable[..., Any]) -> None:
    first = Path(run().stdout.strip())
    assert isinstance(load_preset(record_path(first)).seed, int)
    again = CliRunner().invoke(app, ["render", "--preset", str(record_path(first)), "--out", "again.mp4"])
    assert again.exit_code == 0, again.output
    with open_clip(first) as one, open_clip(Path("again.mp4")) as two:
        np.testing.assert_array_equal(one.read(range(10)), two.read(range(10)))


def test_skip_existing_is_done_at_once_for_any_seed(run: Callable[..., Any], inputs: Path) -> None:
    first = run("--skip-existing").stdout
    before = sorted(inputs.iterdir())
    second = run("--skip-existing")
    assert second.exit_code == 0
    assert second.stdout == first
    assert "is there already" in second.stderr
    assert sorted(inputs.iterdir()) == before
    assert run("--skip-existing", "--prompt", "another").stdout != first


def test_an_existing_output_is_kept(run: Callable[..., Any]) -> None:
    assert run("--out", "out.mp4").exit_code == 0
    content = Path("out.mp4").read_bytes()
    refused = run("--out", "out.mp4")
    assert refused.exit_code == 6
    assert "out.mp4" in refused.stderr
    assert Path("out.mp4").read_bytes() == content
    assert run("--out", "out.mp4", "--overwrite").exit_code == 0


def test_dry_run_writes_nothing(run: Callable[..., Any], inputs: Path) -> None:
    before = sorted(inputs.iterdir())
    result = run("--dry-run", "--json", "--seed", 3)
    assert result.exit_code == 0, result.output
    planned = json.loads(result.stdout)
    assert (planned["frames"], planned["fps"], planned["seed"]) == (10, "30000/1001", 3)
    assert planned["output"].startswith("dance-shirt-3-")
    assert sorted(inputs.iterdir()) == before
    assert "frames" in run("--dry-run").stdout
    assert json.loads(run("--devices", "cpu,cpu", "--dry-run", "--json").stdout)["device"] == "cpu,cpu"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--pose", "none.mp4"], 3),
        (["--cloth", "dance.json"], 3),
        (["--size", "100x100"], 2),
        (["--control", "canny=shirt.png"], 2),
        (["--model", "sd15"], 4),
        (["--out", "no/such/folder/out.mp4"], 6),
        (["--out", "out.txt"], 2),
    ],
)
def test_refusals_leave_nothing_behind(
    run: Callable[..., Any], inputs: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int
) -> None:
    monkeypatch.setenv("DREAMOVING_CACHE", str(inputs / "cache"))
    before = sorted(inputs.iterdir())
    result = run(*words)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert sorted(inputs.iterdir()) == before


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
def test_a_stopped_render_leaves_no_video_and_resume_goes_on(
    inputs: Path,
    tiny_folder: Path,
    stop: signal.Signals,
    run: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    code = (
        "import sys, pathlib; from dreamoving_cli import paths; paths.MINI = pathlib.Path(sys.argv.pop(1)); "
    )
    code += "from dreamoving_cli.cli import app; app()"
    command = [sys.executable, "-c", code, str(tiny_folder)]
    long = ("--steps", "40", "--guidance-scale", "1", "--max-pixels", "4096")
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pipes["env"] = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([*command, *RENDER, *long], preexec_fn=HEAR_CTRL_C, **pipes) as process:
        state = wait_for_state(inputs, process)
        process.send_signal(stop)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert "with --resume goes on from" in err
    assert not list(inputs.glob("*.mp4"))
    assert state.is_file()
    resumed = run(*long, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert "going on after step" in caplog.text
    assert Path(resumed.stdout.strip()).is_file()
    assert not list(inputs.glob("*.state"))


def wait_for_state(folder: Path, process: subprocess.Popen[str]) -> Path:
    """The state file of a render that has begun to denoise."""
    for _ in range(6000):
        found = list(folder.glob("*.state"))
        if found:
            return found[0]
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    raise AssertionError("no state after five minutes")


def test_the_prompt_that_was_worded_is_told_and_recorded(
    run: Callable[..., Any], inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "a person is dancing, before a red wall"
    monkeypatch.setattr(for_render, "footage", lambda options: inputs / "dance.mp4")
    monkeypatch.setattr(for_render, "worded", lambda *given: (told, f"prompt, from dance.mp4: {told}"))
    monkeypatch.setattr(for_render, "choose_captioner", lambda model, machine: None)
    result = run("--caption", "force")
    assert f"prompt, from dance.mp4: {told}" in result.stderr
    record = record_path(Path(result.stdout.strip()))
    assert load_preset(record).prompt == told
    (inputs / "words.txt").write_text("# mine\non a beach\n")
    again = run("--prompt-file", "words.txt", "--dry-run")
    assert "prompt, from words.txt: on a beach" in again.stderr
    assert run("--prompt-file", "words.txt", "--prompt", "in a park").exit_code == 2
