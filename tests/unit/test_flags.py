"""Flags: every preset key has one, and --control is read as meant."""

from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from dreamoving_cli.errors import UsageError
from dreamoving_cli.flags import overrides, parse_control, preset_fields
from dreamoving_cli.options import ContextOptions, RenderOptions
from dreamoving_cli.render_command import command


def flag_names() -> set[str]:
    context = typer.Context(command())
    return {name for parameter in command().get_params(context) for name in parameter.opts}


def test_every_preset_key_is_a_flag() -> None:
    keys = (set(RenderOptions.model_fields) | set(ContextOptions.model_fields)) - {"context"}
    assert {name for name, _ in preset_fields()} == keys
    renamed = {
        "controls": "control",
        "loras": "lora",
        "start_s": "start",
        "duration_s": "duration",
        "num_frames": "frames",
    }
    expected = {"--" + renamed.get(key, key).replace("_", "-") for key in keys}
    assert flag_names() >= expected


def test_no_flag_name_is_given_twice() -> None:
    context = typer.Context(command())
    parameters = command().get_params(context)
    names = [name for p in parameters for name in (*p.opts, *p.secondary_opts)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("depth=map.mp4", {"kind": "depth", "file": Path("map.mp4")}),
        ("depth=map.mp4:0.7", {"kind": "depth", "file": Path("map.mp4"), "control_scale": 0.7}),
        ("depth=map.mp4:.5", {"kind": "depth", "file": Path("map.mp4"), "control_scale": 0.5}),
        (r"depth=C:\maps\d.mp4", {"kind": "depth", "file": Path(r"C:\maps\d.mp4")}),
        (r"depth=C:\maps\d.mp4:1", {"kind": "depth", "file": Path(r"C:\maps\d.mp4"), "control_scale": 1.0}),
        ("depth=a=b.mp4", {"kind": "depth", "file": Path("a=b.mp4")}),
        (
            "pose=dance.mp4:1:0-0.8",
            {
                "kind": "pose",
                "file": Path("dance.mp4"),
                "control_scale": 1.0,
                "control_start": 0.0,
                "control_end": 0.8,
            },
        ),
    ],
)
def test_control_is_read(text: str, values: dict) -> None:
    assert parse_control(text) == values


@pytest.mark.parametrize("text", ["", "depth", "depth=", "=map.mp4"])
def test_half_a_control_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="Give KIND=FILE"):
        parse_control(text)


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "3"])
def test_a_wrong_scale_is_a_scale_and_not_a_file_name(number: str) -> None:
    values = parse_control(f"depth=map.mp4:{number}")
    with pytest.raises(UsageError, match="control_scale is"):
        RenderOptions(controls=[values])


@given(
    stem=st.text(alphabet="abc:=. -\\/1", min_size=1, max_size=12),
    scale=st.floats(0, 2).map(lambda value: f"{value:.3f}"),
)
def test_whatever_the_file_is_called_the_last_number_is_its_scale(stem: str, scale: str) -> None:
    file = f"{stem}.mp4"
    assert parse_control(f"depth={file}:{scale}") == {
        "kind": "depth", "file": Path(file), "control_scale": float(scale),
    }  # fmt: skip


def test_only_given_flags_are_overrides() -> None:
    assert overrides({"steps": None, "controls": [], "audio": False, "start_s": "2"}) == {
        "audio": False,
        "start_s": "2",
    }
