"""Options: every wrong value is refused in a sentence, every preset is complete, options survive YAML."""

from fractions import Fraction
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamoving_cli.errors import InputError, UsageError
from dreamoving_cli.options import MAX_SEED, SAMPLERS, ContextOptions, ControlOptions, RenderOptions
from dreamoving_cli.presets import (
    json_schema,
    load_preset,
    preset_names,
    preset_path,
    preset_purpose,
    read_preset,
    to_yaml,
)
from dreamoving_cli.windows import FUSIONS, SCHEDULES

NAN = float("nan")
REQUIRED = {"quality", "fast", "text-only", "portrait", "full-body", "stylised", "mini"}
PER_RENDER = {  # what belongs to one render and not to a look
    "pose", "pose_kind", "depth", "depth_kind", "controls", "face", "cloth", "style", "seed", "size",
    "start_s", "duration_s", "num_frames", "loras",
}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"face_strength": NAN}, "face_strength is nan. Choose 0 to 2."),
        ({"cloth_strength": 2.1}, "cloth_strength is 2.1. Choose 0 to 2."),
        ({"style_strength": -0.1}, "style_strength is -0.1. Choose 0 to 2."),
        ({"pose_scale": float("inf")}, "pose_scale is inf. Choose 0 to 2."),
        ({"guidance_scale": 0.9}, "guidance_scale is 0.9. Choose 1 to 30."),
        ({"shared_noise": 1.01}, "shared_noise is 1.01. Choose 0 to 1."),
        ({"steps": 0}, "steps is 0. Choose 1 to 1000."),
        ({"steps": 2.5}, "steps is 2.5. Choose 1 to 1000."),
        ({"steps": True}, "steps is True. Choose 1 to 1000."),
        ({"steps": "many"}, "steps is 'many'. Choose 1 to 1000."),
        ({"seed": MAX_SEED + 1}, f"seed is {MAX_SEED + 1}. Choose 0 to {MAX_SEED}."),
        ({"seed": -1}, f"seed is -1. Choose 0 to {MAX_SEED}."),
        ({"sampler": "ddpm"}, "sampler is 'ddpm'. Choose one of ddim, euler, euler-a, dpm++2m, lcm."),
        (
            {"model": "sd21"},
            "model is 'sd21'. Choose auto, sd15 or mini, or give a model file (.yaml) or a pack's folder.",
        ),
        ({"size": "512"}, "size is '512'. Give WIDTHxHEIGHT in pixels, 16 or more a side, such as 512x768."),
        (
            {"size": "8x512"},
            "size is '8x512'. Give WIDTHxHEIGHT in pixels, 16 or more a side, such as 512x768.",
        ),
        ({"fps": "0"}, "fps is '0'. Give up to 240, such as 24 or 30000/1001, or 'source'."),
        ({"fps": "1/0"}, "fps is '1/0'. Give up to 240, such as 24 or 30000/1001, or 'source'."),
        ({"fps": NAN}, "fps is 'nan'. Give up to 240, such as 24 or 30000/1001, or 'source'."),
        ({"start_s": -1}, "start_s is -1. Choose 0 or more."),
        ({"start_s": "soon"}, "start_s is 'soon'. Choose 0 or more."),
        ({"duration_s": 0}, "duration_s is 0. Give more than 0 seconds."),
        ({"duration_s": 2, "num_frames": 48}, "duration_s is 2 and num_frames 48. Give only one."),
        ({"num_frames": 0}, "num_frames is 0. Choose 1 or more."),
        ({"face_strenght": 1}, "unknown option 'face_strenght'. Did you mean 'face_strength'?"),
        ({"context": {"overlap": 4}}, "unknown option 'overlap'. Did you mean 'context_overlap'?"),
        (
            {"context": {"context_frames": 16, "context_overlap": 16}},
            "context_overlap is 16, the window 16 frames. Choose an overlap of 0 to 15.",
        ),
        ({"context": {"schedule": "looped"}}, "schedule is 'looped'. Choose one of static, uniform, loop."),
        (
            {"pose": Path("a.mp4"), "controls": [{"kind": "pose", "file": "b.mp4"}]},
            "control 'pose' is given more than once. Give each kind one file.",
        ),
        ({"controls": [{"kind": "depth", "control_scale": NAN}]}, "control_scale is nan. Choose 0 to 2."),
        ({"controls": [{"file": "b.mp4"}]}, "kind is missing. Give 'kind'."),
        (
            {"controls": [{"kind": "depth", "control_start": 0.5, "control_end": 0.5}]},
            "control_start of 'depth' is 0.5, its control_end 0.5. Choose a start below the end.",
        ),
    ],
)
def test_wrong_values_are_refused_in_one_sentence(values: dict, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        RenderOptions(**values)
    assert str(caught.value) == sentence
    assert caught.value.exit_code == 2


def test_unknown_key_without_a_near_one_lists_all() -> None:
    with pytest.raises(UsageError, match=r"unknown option 'zzz'\. Known: model, loras, pose,"):
        RenderOptions(zzz=1)


def test_options_are_frozen_and_replace_checks_again() -> None:
    options = RenderOptions(seed=7)
    with pytest.raises(UsageError):
        options.replace(seed=-1)
    assert options.replace(seed=8).seed == 8
    assert options.seed == 7


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2.5", Fraction(5, 2)),
        ("1:02.5", Fraction(125, 2)),
        ("1:00:00", Fraction(3600)),
        (0.1, Fraction(1, 10)),
    ],
)
def test_times_are_exact(text: str | float, seconds: Fraction) -> None:
    assert RenderOptions(start_s=text).start_s == seconds


@pytest.mark.parametrize(
    ("given_fps", "kept"),
    [(24, "24"), ("30000/1001", "30000/1001"), (23.976, "2997/125"), ("source", "source")],
)
def test_rates_are_exact(given_fps: object, kept: str) -> None:
    assert RenderOptions(fps=given_fps).fps == kept


def test_size_is_width_first_outside_and_height_first_inside() -> None:
    assert RenderOptions(size="512x768").height_width == (768, 512)
    assert RenderOptions().height_width is None


def test_all_controls_lists_pose_and_depth_first() -> None:
    options = RenderOptions(
        pose="p.mp4",
        depth="d.mp4",
        depth_scale=0.7,
        controls=[{"kind": "canny", "file": "c.mp4", "control_end": 0.5}],
    )
    assert options.all_controls == (
        ControlOptions(kind="pose", file="p.mp4"),
        ControlOptions(kind="depth", file="d.mp4", control_scale=0.7),
        ControlOptions(kind="canny", file="c.mp4", control_end=0.5),
    )


def test_a_preset_says_when_pose_and_depth_act(tmp_path: Path) -> None:
    (tmp_path / "look.yaml").write_text("pose_end: 0.5\ndepth_start: 0.25\ndepth_scale: 0.7\n")
    options = load_preset(tmp_path / "look.yaml", {"pose": Path("p.mp4"), "depth": Path("d.mp4")})
    assert options.all_controls == (
        ControlOptions(kind="pose", file="p.mp4", control_end=0.5),
        ControlOptions(kind="depth", file="d.mp4", control_scale=0.7, control_start=0.25),
    )
    with pytest.raises(UsageError, match=r"pose_start is 0\.5, pose_end 0\.5\. Choose a start below the end"):
        options.replace(pose_start=0.5)


def test_windows_are_resolved_against_the_pack() -> None:
    assert ContextOptions().resolved(64) == ContextOptions(context_frames=64, context_overlap=16)
    assert ContextOptions(context_overlap=3).resolved(16).context_overlap == 3
    with pytest.raises(UsageError, match="context_overlap is 16"):
        ContextOptions(context_overlap=16).resolved(16)


def test_choices_are_the_keys_of_the_tables() -> None:
    schema = json_schema()
    context = schema["$defs"]["ContextOptions"]["properties"]
    assert schema["properties"]["sampler"]["enum"] == list(SAMPLERS)
    assert context["schedule"]["enum"] == list(SCHEDULES)
    assert context["fusion"]["enum"] == list(FUSIONS)


# ---- presets


def test_the_promised_presets_are_there() -> None:
    assert set(preset_names()) >= REQUIRED


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_complete_and_commented(name: str) -> None:
    values = read_preset(name)
    assert set(values) == set(RenderOptions.model_fields) - PER_RENDER
    assert set(values["context"]) == set(ContextOptions.model_fields)
    assert isinstance(load_preset(name), RenderOptions)
    jsonschema.validate(yaml.safe_load(preset_path(name).read_text()), json_schema())
    lines = preset_path(name).read_text().splitlines()
    assert all("#" in line or not line or line == "context:" for line in lines)
    assert preset_purpose(name)


def test_the_presets_do_what_their_names_say() -> None:
    text_only, stylised, fast = load_preset("text-only"), load_preset("stylised"), load_preset("fast")
    assert (text_only.face_strength, text_only.cloth_strength, text_only.style_strength) == (0, 0, 0)
    assert (stylised.face_strength, stylised.cloth_strength) == (0, 0)
    assert stylised.style_strength > 0
    assert fast.steps <= 8
    assert fast.guidance_scale == 1
    assert load_preset("mini").model == "mini"


def test_unknown_preset_says_what_was_meant() -> None:
    with pytest.raises(UsageError, match=r"unknown preset 'qualty'\. Did you mean 'quality'\?"):
        load_preset("qualty")


def test_overrides_win_and_none_means_not_given() -> None:
    options = load_preset(
        "fast", {"steps": 4, "seed": None, "prompt": "", "context_frames": 8, "audio": False}
    )
    assert (options.steps, options.seed, options.prompt, options.audio) == (4, None, "", False)
    assert options.context.context_frames == 8
    assert options.context.fusion == load_preset("fast").context.fusion


def test_a_control_flag_keeps_the_scale_of_the_preset(tmp_path: Path) -> None:
    (tmp_path / "look.yaml").write_text("controls:\n  - {kind: canny, control_scale: 0.8}\n")
    options = load_preset(tmp_path / "look.yaml", {"controls": [{"kind": "canny", "file": Path("e.mp4")}]})
    assert options.controls == (ControlOptions(kind="canny", file="e.mp4", control_scale=0.8),)


def test_a_new_length_replaces_the_length_of_the_preset(tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text("duration_s: 10\n")
    assert load_preset(tmp_path / "long.yaml", {"num_frames": 5}).duration_s is None


def test_files_in_a_preset_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "look.yaml").write_text(
        "style: paint.jpg\ndepth: /maps/d.mp4\ncontrols: [{kind: canny, file: c.mp4}]\n"
    )
    options = load_preset(tmp_path / "look.yaml")
    assert options.style == tmp_path / "paint.jpg"
    assert options.depth == Path("/maps/d.mp4")
    assert options.controls[0].file == tmp_path / "c.mp4"


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ("steps: [", InputError, "is not YAML"),
        ("- steps", InputError, "is not a preset"),
        ("1: 2", InputError, "is not a preset"),
        ("stepz: 2", UsageError, "Did you mean 'steps'"),
        ("controls: 3", UsageError, "controls is 3"),
        ("controls: [3]", UsageError, "controls.0 is 3"),
        ("context: 3", UsageError, "context is 3"),
        ("face: 3", UsageError, "face is 3"),
    ],
)
def test_broken_preset_files_are_refused(
    tmp_path: Path, content: str, kind: type[Exception], message: str
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(kind, match=message):
        load_preset(path)


@pytest.mark.parametrize("content", ["controls: 3", "controls: [3]", "controls: {kind: canny}", "context: 3"])
def test_flags_on_top_of_a_broken_preset_do_not_break_the_refusal(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"context|controls"):
        load_preset(path, {"context_frames": 8} if "context" in content else {"steps": 3})


def test_missing_preset_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_preset(tmp_path / "none.yaml")


options_strategy = st.builds(
    RenderOptions,
    pose=st.sampled_from([None, Path("/a/dance.mp4")]),
    prompt=st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=30),
    face_strength=st.floats(0, 2),
    guidance_scale=st.floats(1, 30),
    seed=st.none() | st.integers(0, MAX_SEED),
    start_s=st.fractions(0, 1000),
    fps=st.none() | st.just("source") | st.fractions("1/100", 240).map(str),
    audio=st.booleans(),
    context=st.builds(ContextOptions, context_frames=st.integers(8, 64), context_overlap=st.integers(0, 7)),
    controls=st.lists(
        st.builds(ControlOptions, kind=st.just("canny"), control_scale=st.floats(0, 2)), max_size=1
    ),
)


@settings(deadline=None, max_examples=25)
@given(options=options_strategy)
def test_options_survive_yaml_bit_for_bit(
    options: RenderOptions, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("record") / "out.mp4.dreamoving.yaml"
    path.write_text(to_yaml(options, facts={"seconds": 1.5}), encoding="utf-8")
    assert load_preset(path) == options
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), json_schema())
