"""Default names: after the inputs and the seed, one for each different render."""

import os
from pathlib import Path

import pytest

from dreamoving_cli.options import RenderOptions
from dreamoving_cli.outputs import candidates, output_path, record_path, with_seed

OPTIONS = RenderOptions(pose="a/dance.mp4", face="me.jpg", cloth="shirt.png", seed=42)


def test_a_seed_is_drawn_only_where_none_is_given() -> None:
    assert with_seed(OPTIONS).seed == 42
    assert with_seed(RenderOptions(seed=0)).seed == 0
    assert len({with_seed(RenderOptions()).seed for _ in range(9)}) > 1


def test_the_name_tells_the_inputs_and_the_seed() -> None:
    name = output_path(OPTIONS, None).name
    assert name.startswith("dance-me-shirt-42-")
    assert name.endswith(".mp4")


@pytest.mark.parametrize(
    "changes",
    [{"seed": 43}, {"prompt": "on the beach"}, {"face_strength": 0.5}, {"pose": "b/dance.mp4"}, {"steps": 9}],
)
def test_different_renders_have_different_names(changes: dict) -> None:
    assert output_path(OPTIONS.replace(**changes), None) != output_path(OPTIONS, None)


def test_the_same_render_has_the_same_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = output_path(OPTIONS, None).name
    files = {name: getattr(OPTIONS, name).absolute() for name in ("pose", "cloth")}
    full = OPTIONS.replace(**files, face=tuple(path.absolute() for path in OPTIONS.face))
    monkeypatch.chdir(tmp_path)
    assert output_path(full, None).name == here


@pytest.mark.parametrize(
    ("codec", "suffix"), [(None, ".mp4"), ("vp9", ".webm"), ("prores", ".mov"), ("gif", ".gif")]
)
def test_the_extension_follows_the_codec(codec: str | None, suffix: str) -> None:
    assert output_path(OPTIONS.replace(codec=codec), None).suffix == suffix


def test_an_asked_file_is_kept_and_an_asked_folder_is_filled(tmp_path: Path) -> None:
    assert output_path(OPTIONS, tmp_path / "out.mp4") == tmp_path / "out.mp4"
    assert output_path(OPTIONS, tmp_path).parent == tmp_path
    assert output_path(OPTIONS.replace(codec="png"), tmp_path) == tmp_path


def test_candidates_with_a_seed_or_a_name_are_the_one_output(tmp_path: Path) -> None:
    assert candidates(OPTIONS, tmp_path) == [output_path(OPTIONS, tmp_path)]
    assert candidates(OPTIONS.replace(seed=None), Path("out.mp4")) == [Path("out.mp4")]


def test_candidates_without_both_are_the_renders_of_any_seed_newest_first(tmp_path: Path) -> None:
    seedless = OPTIONS.replace(seed=None, pose="odd [1].mp4")
    assert candidates(seedless, tmp_path) == []
    paths = [output_path(seedless.replace(seed=seed), tmp_path) for seed in (5, 6)]
    for age, path in enumerate(paths):
        path.touch()
        os.utime(path, (age, age))
    output_path(OPTIONS, tmp_path).touch()  # of other inputs
    assert candidates(seedless, tmp_path) == paths[::-1]
    assert candidates(seedless, tmp_path, ".state") == []
    paths[0].with_name(paths[0].name + ".state").touch()
    assert candidates(seedless, tmp_path, ".state") == [paths[0]]


def test_the_record_is_beside_the_video() -> None:
    assert record_path(Path("a/out.mp4")) == Path("a/out.mp4.dreamoving.yaml")
