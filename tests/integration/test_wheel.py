"""The built wheel holds what a user without the checkout needs, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_BYTES = 60 * 2**20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_presets_and_lock_travel_inside(names: set[str]) -> None:
    presets = {f"dreamoving_cli/_data/presets/{path.name}" for path in (ROOT / "presets").glob("*.yaml")}
    assert presets
    assert names >= presets | {"dreamoving_cli/_data/models.lock"}


def test_every_module_and_data_file_travels_inside(names: set[str]) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "dreamoving_cli"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert names >= {path for path in tracked if (ROOT / path).is_file()}


def test_nothing_else_travels_inside(names: set[str]) -> None:
    kinds = {Path(name).parts[0] for name in names}
    assert all(kind == "dreamoving_cli" or kind.endswith(".dist-info") for kind in kinds)
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]


def test_license_and_entry_point(wheel: Path, names: set[str]) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    with zipfile.ZipFile(wheel) as archive:
        [entry] = [name for name in names if name.endswith("entry_points.txt")]
        assert "dreamoving = dreamoving_cli.cli:app" in archive.read(entry).decode()


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < MAX_BYTES


def test_the_unpacked_wheel_finds_its_presets_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import runpy; sys.argv[1:] = ['presets', 'list']; "
    code += "runpy.run_module('dreamoving_cli', run_name='__main__')"
    result = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / "site")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "quality" in result.stdout
