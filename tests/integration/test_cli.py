"""The command line in process: what it hands on, what it prints where, which exit code it ends with.

The work itself is replaced by a stand-in here; test_cli_render.py does the real thing.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from dreamoving_cli import __version__
from dreamoving_cli.cli import app
from dreamoving_cli.device import Machine
from dreamoving_cli.errors import DeviceMemoryError, InputError, OutputError, UsageError, WeightsError
from dreamoving_cli.options import RenderOptions
from dreamoving_cli.outputs import record_path
from dreamoving_cli.presets import load_preset, preset_names, preset_path, to_yaml

COMMANDS = (
    [], ["render"], ["extract-pose"], ["quality"], ["examples"],
    ["presets"], ["presets", "list"], ["presets", "show"], ["presets", "schema"],
    ["models"], ["models", "list"], ["models", "path"],
    ["dataset"], ["dataset", "build"], ["dataset", "pictures"], ["dataset", "check"], ["train"], ["evaluate"],
)  # fmt: skip


@dataclass(frozen=True)
class StandInPlan:
    frames: int = 48
    fps: Fraction = Fraction(30000, 1001)


class StandIn(ModuleType):
    """In the place of render.py: keeps what it was asked, raises or returns what the test wants."""

    def __init__(self) -> None:
        super().__init__("dreamoving_cli.render")
        self.asked: list[tuple[RenderOptions, Path, Machine, dict[str, Any]]] = []
        self.error: BaseException | None = None

    def render(self, options: RenderOptions, output: Path, device: Machine, **more: Any) -> Path:
        if self.error:
            raise self.error
        more.pop("on_progress")("denoise", 1, 2)
        self.asked.append((options, output, device, more))
        return output

    def plan(self, options: RenderOptions, device: Machine) -> StandInPlan:
        if self.error:
            raise self.error
        self.asked.append((options, Path(), device, {}))
        return StandInPlan()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "dreamoving_cli.render", stand_in)
    return stand_in


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    yield lambda *words: CliRunner().invoke(app, [str(word) for word in words])
    logging.getLogger("dreamoving_cli").setLevel(logging.NOTSET)


# ---- help and version


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_help(run: Callable[..., Any], words: list[str]) -> None:
    for flag in ("--help", "-h"):
        result = run(*words, flag)
        assert result.exit_code == 0, result.output
        assert "Usage: " in result.stdout
        assert result.stderr == ""


def test_render_help_is_grouped(run: Callable[..., Any]) -> None:
    text = run("render", "--help").stdout
    panels = [
        text.index(f"─ {panel} ─")
        for panel in ("Inputs", "Look", "Output", "Sampling", "Windows", "This run")
    ]
    assert panels == sorted(panels)


def test_version(run: Callable[..., Any]) -> None:
    assert run("--version").stdout == f"dreamoving {__version__}\n"


# ---- render


def test_the_issue_s_first_command(run: Callable[..., Any], engine: StandIn) -> None:
    result = run("render", "--pose", "dance.mp4", "--face", "me.jpg", "--cloth", "shirt.png")
    assert result.exit_code == 0, result.output
    [(options, output, device, more)] = engine.asked
    assert (options.pose, options.face, options.cloth) == (
        Path("dance.mp4"),
        (Path("me.jpg"),),
        Path("shirt.png"),
    )
    assert options.model == "auto"  # the engine says that it falls back
    assert options.seed is not None
    assert output.name.startswith(f"dance-me-shirt-{options.seed}-")
    assert device == Machine()
    assert more == {"overwrite": False, "resume": False, "preview": False}
    assert result.stdout == f"{output}\n"
    assert result.stderr == "denoise: 1/2\n"


def test_every_flag_reaches_the_options(run: Callable[..., Any], engine: StandIn) -> None:
    values = {
        "model": "mini", "pose": "p.json", "pose-kind": "json", "depth": "d.mp4", "depth-kind": "map",
        "face": "f.jpg", "cloth": "c.png", "style": "s.png", "prompt": "a dancer", "negative-prompt": "rain",
        "guidance-scale": 1.5, "guidance-rescale": 0.3, "guidance-start": 0.1, "guidance-end": 0.9,
        "driver-guidance-scale": 1.2, "driver-guidance-start": 0.3, "driver-guidance-end": 0.8,
        "face-strength": 0.5, "cloth-strength": 0.6, "style-strength": 0.7,
        "pose-scale": 0.8, "pose-start": 0.1, "pose-end": 0.8,
        "depth-scale": 0.9, "depth-start": 0.2, "depth-end": 0.7,
        "steps": 4, "sampler": "dpm++2m", "shared-noise": 0.25,
        "anchor-frames": 2, "cache-interval": 3, "cache-branch-id": 1,
        "seed": 9, "size": "128x192", "max-pixels": 40000, "fps": "24000/1001", "start": "1:02.5",
        "frames": 12, "context-frames": 16, "context-overlap": 5, "context-stride": 2, "schedule":
        "static", "fusion": "flat", "window-batch": 3, "decode-batch": 2, "decoder": "taesd", "codec": "vp9",
        "quality": 30,
    }  # fmt: skip
    words = [word for key, value in values.items() for word in (f"--{key}", value)]
    run(
        "render",
        *words,
        "--control",
        "canny=e.mp4:0.4:0.1-0.9",
        "--lora",
        "style.safetensors:0.8",
        "--no-audio",
        "--device",
        "cpu",
        "--vram",
        "low",
        "--dtype",
        "bf16",
        "--compile",
        "blocks",
        "-o",
        "o.webm",
    )
    [(options, output, device, _)] = engine.asked
    plain = {
        key: value
        for key, value in options.model_dump(mode="json").items()
        if key not in ("context", "controls", "loras")
    }
    flat = {**plain, **options.context.model_dump()}
    renamed = {"start": "start_s", "frames": "num_frames"}
    expected = {renamed.get(key, key.replace("-", "_")): value for key, value in values.items()}
    assert flat == expected | {"start_s": "125/2", "audio": False, "duration_s": None, "face": ["f.jpg"]}
    [lora] = options.loras
    assert (lora.file, lora.scale) == (Path("style.safetensors"), 0.8)
    [control] = options.controls
    assert (control.kind, control.control_scale, control.control_start, control.control_end) == (
        "canny",
        0.4,
        0.1,
        0.9,
    )
    assert (output, device) == (Path("o.webm"), Machine("cpu", "low", "bf16", "blocks"))


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_goes_through_the_real_parser(
    run: Callable[..., Any], engine: StandIn, name: str
) -> None:
    assert run("render", "--preset", name, "--pose", "p.mp4", "--seed", 1).exit_code == 0
    assert engine.asked[0][0] == load_preset(name, {"pose": Path("p.mp4"), "seed": 1})


def test_a_record_is_a_preset_and_flags_win(run: Callable[..., Any], engine: StandIn) -> None:
    made = load_preset("fast", {"seed": 5, "pose": Path("/a/dance.mp4")})
    Path("out.dreamoving.yaml").write_text(to_yaml(made, facts={"version": "0.1.0"}))
    run("render", "--preset", "out.dreamoving.yaml")
    run("render", "-p", "out.dreamoving.yaml", "--seed", 6)
    assert [options for options, *_ in engine.asked] == [made, made.replace(seed=6)]


def test_several_controls_at_once(run: Callable[..., Any], engine: StandIn) -> None:
    run("render", "--pose", "p.mp4", "--control", "depth=d.mp4:0.7", "--control", "canny=e.mp4")
    assert [(c.kind, c.control_scale) for c in engine.asked[0][0].all_controls] == [
        ("pose", 1.5), ("depth", 0.7), ("canny", 1.0),
    ]  # fmt: skip


def test_a_picture_that_counts_for_nothing_is_said(run: Callable[..., Any], engine: StandIn) -> None:
    result = run("render", "--preset", "text-only", "--pose", "p.mp4", "--face", "me.jpg")
    assert "me.jpg is not used: face_strength is 0" in result.stderr


@pytest.mark.parametrize(("scale", "said"), [("1", True), ("2", False)])
def test_a_negative_prompt_that_counts_for_nothing_is_said(
    run: Callable[..., Any], engine: StandIn, scale: str, said: bool
) -> None:
    words = ("--pose", "p.mp4", "--negative-prompt", "rain", "--guidance-scale", scale)
    note = "--negative-prompt is not used: guidance_scale is 1. Give --guidance-scale 2 to use it."
    assert (note in run("render", "--preset", "mini", *words).stderr) == said
    assert note not in run("render", "--preset", "fast", "--pose", "p.mp4").stderr  # nobody asked for one


def test_a_shell_loop_never_collides(run: Callable[..., Any], engine: StandIn) -> None:
    for prompt in ("beach", "street", "stage"):
        run("render", "--pose", "dance.mp4", "--prompt", prompt, "--seed", 1)
    assert len({output for _, output, *_ in engine.asked}) == 3


def test_json_result(run: Callable[..., Any], engine: StandIn) -> None:
    result = run("render", "--pose", "p.mp4", "-o", "out.mp4", "--json")
    assert json.loads(result.stdout) == {"output": "out.mp4", "record": str(record_path(Path("out.mp4")))}


def test_dry_run_prints_the_plan(run: Callable[..., Any], engine: StandIn) -> None:
    text = run("render", "--pose", "p.mp4", "-o", "out.mp4", "--dry-run")
    assert text.stdout.split() == ["output", "out.mp4", "frames", "48", "fps", "30000/1001"]
    as_json = run("render", "--pose", "p.mp4", "-o", "out.mp4", "--dry-run", "--json")
    assert json.loads(as_json.stdout) == {"output": "out.mp4", "frames": 48, "fps": "30000/1001"}
    assert not any(Path().iterdir())


def test_overwrite_and_resume_are_handed_on(run: Callable[..., Any], engine: StandIn) -> None:
    run("render", "--pose", "p.mp4", "--overwrite", "--resume")
    assert engine.asked[0][3] == {"overwrite": True, "resume": True, "preview": False}


# ---- errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("size is 100x100", "Use multiples of 64."), 2),
        (InputError("p.mp4 is missing", "Check the path."), 3),
        (WeightsError("sd15 is not here", "Choose --model mini."), 4),
        (DeviceMemoryError("the GPU is full", "Choose a smaller --size."), 5),
        (OutputError("out.mp4 exists", "Give --overwrite."), 6),
    ],
)
def test_an_error_is_one_sentence_and_a_code(
    run: Callable[..., Any], engine: StandIn, error: Exception, code: int
) -> None:
    engine.error = error
    result = run("render", "--pose", "p.mp4")
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == f"dreamoving: {error}\n"
    traced = run("render", "--pose", "p.mp4", "--debug")
    assert traced.exit_code == code
    assert "Traceback" in traced.stderr
    assert "Traceback" in run("--debug", "render", "--pose", "p.mp4").stderr


def test_ctrl_c_is_130(run: Callable[..., Any], engine: StandIn) -> None:
    engine.error = KeyboardInterrupt()
    result = run("render", "--pose", "p.mp4")
    assert result.exit_code == 130
    assert result.stderr == "dreamoving: interrupted\n"


def test_full_memory_is_5(run: Callable[..., Any], engine: StandIn) -> None:
    engine.error = MemoryError()
    assert run("render", "--pose", "p.mp4").exit_code == 5


def test_a_bug_keeps_its_traceback(run: Callable[..., Any], engine: StandIn) -> None:
    engine.error = ZeroDivisionError("ours")
    result = run("render", "--pose", "p.mp4")
    assert result.exit_code == 1
    assert result.exception is engine.error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--face-strength", "nan"], "face_strength is nan. Choose 0 to 2."),
        (["--context-frames", "16", "--context-overlap", "16"], "Choose an overlap of 0 to 15."),
        (["--size", "banana"], "size is 'banana'."),
        (["--control", "depth"], "--control is 'depth'."),
        (["--control", "depth=d.mp4:nan"], "control_scale is nan."),
        (["--preset", "qualty"], "Did you mean 'quality'?"),
        (["--seed", "-1"], "seed is -1."),
        (["--duration", "2", "--frames", "5"], "Give only one."),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_loaded(
    run: Callable[..., Any], engine: StandIn, words: list[str], message: str
) -> None:
    result = run("render", "--pose", "p.mp4", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert engine.asked == []


@pytest.mark.parametrize("words", [["--steps", "many"], ["--sampler", "nope"], ["--no-such-flag"]])
def test_what_typer_refuses_is_2_too(run: Callable[..., Any], words: list[str]) -> None:
    assert run("render", *words).exit_code == 2


def test_unknown_key_in_a_preset_file(run: Callable[..., Any], engine: StandIn) -> None:
    Path("mine.yaml").write_text("cloth_strengh: 1\n")
    result = run("render", "--preset", "mine.yaml")
    assert result.exit_code == 2
    assert "Did you mean 'cloth_strength'?" in result.stderr


# ---- presets and models


def test_presets_list(run: Callable[..., Any]) -> None:
    lines = run("presets", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == preset_names()
    assert list(json.loads(run("presets", "list", "--json").stdout)) == preset_names()


@pytest.mark.parametrize("name", preset_names())
def test_presets_show_prints_the_file(run: Callable[..., Any], name: str) -> None:
    assert run("presets", "show", name).stdout == preset_path(name).read_text(encoding="utf-8")


def test_presets_schema_checks_presets(run: Callable[..., Any]) -> None:
    schema = json.loads(run("presets", "schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load("stepz: 3"), schema)


def test_models_list_names_the_miniature_first(run: Callable[..., Any]) -> None:
    rows = json.loads(run("models", "list", "--json").stdout)
    assert next(iter(rows)) == "mini"
    assert [line.split()[0] for line in run("models", "list").stdout.splitlines()] == list(rows)


def test_models_path_of_the_miniature_and_of_the_unknown(run: Callable[..., Any]) -> None:
    assert run("models", "path", "mini").stdout.endswith("mini\n")
    assert run("models", "path", "no-such-weights").exit_code in (2, 4)


# ---- completion


def test_presets_are_completed(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ("dreamoving render --preset po", "dreamoving presets show po"):
        monkeypatch.setenv("_DREAMOVING_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", "3")
        result = CliRunner().invoke(app, prog_name="dreamoving")
        assert result.stdout.split() == ["portrait"], words
